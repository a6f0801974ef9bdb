"""The newest errors, for whoever looks at the service instead of reading its log."""

import logging
from collections import deque
from dataclasses import dataclass

from aws_lambda_powertools.logging.formatter import THREAD_LOCAL_KEYS

_MOST = 20
_MOST_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class NewestError:
    """What its line in the log says; `at`: seconds since 1970."""

    at: float
    level: str
    message: str
    logger: str
    request_id: str | None


class NewestErrors(logging.Handler):
    """Keeps the last lines of ERROR and above, in memory alone."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._kept: deque[NewestError] = deque(maxlen=_MOST)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()[:_MOST_CHARACTERS]
            request_id = THREAD_LOCAL_KEYS.get().get("request_id")
            self._kept.append(NewestError(record.created, record.levelname, message, record.name, request_id))
        except Exception:
            self.handleError(record)

    def newest_first(self) -> list[NewestError]:
        return list(self._kept)[::-1]


ERRORS = NewestErrors()
