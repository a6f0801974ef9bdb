"""What a test sees of the log that is made in its own process."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from infra.telemetry.logs import LineFormatter
from tests.log_lines import fault_in


class Watch(logging.Handler):
    """Sees each line that anything in this process makes, and has one made of each record as the service would; keeps
    what is wrong. It looks once at all lines with the same fields of the same types, which costs next to nothing.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)  # below that, libraries write what they like
        logging.logAsyncioTasks = False  # type: ignore[attr-defined, unused-ignore]  # as the service's own set-up does
        self.faults: list[str] = []
        self._seen: set[frozenset[tuple[str, type]]] = set()
        self.setFormatter(LineFormatter())
        make = LineFormatter.serialize

        def serialize(formatter: LineFormatter, log: Any) -> str:
            line = make(formatter, log)
            self._look_at(line, log)
            return line

        LineFormatter.serialize = serialize  # type: ignore[method-assign, assignment]

    def emit(self, record: logging.LogRecord) -> None:
        self.format(record)

    def _look_at(self, line: str, log: dict[str, Any]) -> None:
        shape = frozenset((name, type(value)) for name, value in log.items())
        if shape not in self._seen:
            self._seen.add(shape)
            if fault := fault_in(line):
                self.faults.append(fault)


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(LineFormatter())
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))


@contextmanager
def kept_lines(logger: str | None = None) -> Iterator[list[dict[str, Any]]]:
    """Those that this logger, or any, writes meanwhile."""
    handler = _Kept()
    logging.getLogger(logger).addHandler(handler)
    try:
        yield handler.lines
    finally:
        logging.getLogger(logger).removeHandler(handler)
