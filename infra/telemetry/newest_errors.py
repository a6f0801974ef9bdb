"""The newest errors, for whoever looks at the service instead of reading its log."""

import logging
from dataclasses import dataclass

from aws_lambda_powertools.logging.formatter import THREAD_LOCAL_KEYS

_MOST = 20
_MOST_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class NewestError:
    """What its line in the log says; `at`: seconds since 1970. Of `count` equal lines the newest."""

    at: float
    level: str
    message: str
    logger: str
    request_id: str | None
    count: int = 1


class NewestErrors(logging.Handler):
    """Keeps the last lines of ERROR and above, in memory alone; those that say the same as one."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._kept: dict[tuple[str, str, str], NewestError] = {}  # oldest first

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()[:_MOST_CHARACTERS]
            request_id = THREAD_LOCAL_KEYS.get().get("request_id")
            line = record.levelname, message, record.name
            before = self._kept.pop(line, None)
            self._kept[line] = NewestError(record.created, *line, request_id, before.count + 1 if before else 1)
            if len(self._kept) > _MOST:
                del self._kept[next(iter(self._kept))]
        except Exception:
            self.handleError(record)

    def newest_first(self) -> list[NewestError]:
        return list(self._kept.values())[::-1]


ERRORS = NewestErrors()
