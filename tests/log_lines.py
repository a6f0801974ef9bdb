"""Lines of the log, held to infra/telemetry/log-line.schema.json."""

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from infra.telemetry.logs import LineFormatter

SCHEMA = json.loads((Path(__file__).parents[1] / "infra/telemetry/log-line.schema.json").read_text())

_validator = Draft202012Validator(SCHEMA)


def fault_in(line: str) -> str | None:
    """Why a line is not as it should be."""
    try:
        fault = next(_validator.iter_errors(json.loads(line)), None)
    except ValueError as error:
        return f"{error}: {line}"
    return f"{fault.json_path}: {fault.message}: {line}" if fault else None


def assert_described(lines: Iterable[str]) -> None:
    assert [fault for line in lines if (fault := fault_in(line))] == []


class Watch(logging.Handler):
    """Sees each line that anything in this process makes, and has one made of each record as the service would; keeps
    what is wrong. It looks once at all lines with the same fields of the same types, which costs next to nothing.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)  # below that, libraries write what they like
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
