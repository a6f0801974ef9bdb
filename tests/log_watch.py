"""What a test sees of the log that is made in its own process."""

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from infra.telemetry.line_handler import LineHandler
from infra.telemetry.logs import LineFormatter
from tests.log_lines import fault_in


class Watch(LineHandler):
    """Sees each line that anything in this process makes, and has one made of each record as the service would; keeps
    what is wrong. It looks once at all lines with the same fields of the same types, which costs next to nothing.
    """

    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.setLevel(logging.INFO)  # below that, libraries write what they like
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

    def write(self, line: str, *, is_urgent: bool = False) -> None:
        pass

    def _look_at(self, line: str, log: dict[str, Any]) -> None:
        shape = frozenset((name, type(value)) for name, value in log.items())
        if shape not in self._seen:
            self._seen.add(shape)
            if fault := fault_in(line):
                self.faults.append(fault)


class _Kept(LineHandler):
    def __init__(self, logger: str | None) -> None:
        super().__init__(io.StringIO())
        self.setFormatter(LineFormatter())
        self._logger = logger
        self.lines: list[dict[str, Any]] = []

    def write(self, line: str, *, is_urgent: bool = False) -> None:
        found = json.loads(line)
        if self._logger in (None, found["logger"]):
            self.lines.append(found)


@contextmanager
def kept_lines(logger: str | None = None) -> Iterator[list[dict[str, Any]]]:
    """Those of INFO and above that this logger, or any, writes meanwhile."""
    handler, root = _Kept(logger), logging.getLogger()
    level = root.level
    handler.setLevel(logging.INFO)
    root.addHandler(handler)
    root.setLevel(min(level, logging.INFO))
    try:
        yield handler.lines
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
