"""JSON logs on stdout: log-line.schema.json says what a line has."""

import io
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from aws_lambda_powertools.logging.formatter import THREAD_LOCAL_KEYS, LambdaPowertoolsFormatter
from pydantic_core import to_json

from infra.settings import SERVICE
from infra.telemetry.line_handler import LineHandler
from infra.telemetry.newest_errors import ERRORS

__all__ = ["CONTEXT_KEYS", "LineFormatter", "configure_logging"]

CONTEXT_KEYS = THREAD_LOCAL_KEYS  # what each line says that is written in a context, as Powertools keeps it

_OF_EVERY_RECORD = {*vars(logging.makeLogRecord({})), "taskName", "message", "asctime", "color_message"}
_NAMES = {"uvicorn.error": "uvicorn"}  # whoever looks for "error" is not to find all that a server says


class LineFormatter(LambdaPowertoolsFormatter):
    """Makes of a record, whoever wrote it, one line with one JSON object.

    What belongs to an invocation, and to a request, is kept as Powertools keeps it; the line is put together here, with
    fewer steps.
    """

    def __init__(self) -> None:
        super().__init__(service=SERVICE, log_record_order=["service"], location=None, level=None, timestamp=None)
        self._is_traced = "AWS_LAMBDA_FUNCTION_NAME" in os.environ

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            name: value for name, value in record.__dict__.items() if name not in _OF_EVERY_RECORD and value is not None
        }
        if record.exc_info and (error := record.exc_info[1]):
            fields |= {"exception": self.formatException(record.exc_info), "exception_name": type(error).__name__}
            if notes := getattr(error, "__notes__", None):
                fields["exception_notes"] = notes
        name = _NAMES.get(record.name, record.name)
        return self.line(record.created, record.levelname, record.getMessage(), name, fields)

    def line(self, created: float, level: str, message: str, logger: str, fields: dict[str, Any]) -> str:
        """Put it together. `created`: seconds since 1970."""
        line: dict[str, Any] = {"timestamp": _timestamp(created), "level": level, "message": message}
        for name, value in self.get_current_keys().items():
            if value is not None:
                line[name] = value
        line |= CONTEXT_KEYS.get()
        line |= fields
        line["logger"] = logger
        if self._is_traced and (trace_id := self._get_latest_trace_id()):
            line["xray_trace_id"] = trace_id
        return self.serialize(line)

    def serialize(self, log: Any) -> str:
        try:
            return to_json(log, fallback=str).decode()
        except ValueError:  # text that no encoding has
            return json.dumps(log, ensure_ascii=False, default=str)


def _timestamp(seconds: float) -> str:
    """As RFC 3339 has it, with milliseconds."""
    return f"{_second(int(seconds))}.{int(seconds % 1 * 1000):03d}+00:00"


@lru_cache(1)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def configure_logging(level: str) -> tuple[logging.Handler, LineFormatter]:
    """Send every log line of the process to stdout, one JSON object a line, whoever wrote it."""
    formatter = LineFormatter()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # whatever the locale, and for text that no encoding has
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    handler = LineHandler(sys.stdout)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler, ERRORS], level=level, force=True)
    logging.captureWarnings(True)
    logging.logAsyncioTasks = False  # type: ignore[attr-defined, unused-ignore]
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    # the service logs each request itself
    for name in ("uvicorn.access", "mangum.http"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("peewee").setLevel(logging.INFO)  # below that it shows each statement with its values
    sys.excepthook = _log_uncaught
    return handler, formatter


def log_request(logger: logging.Logger, message: str, fields: dict[str, Any]) -> None:
    """Write a line of INFO as the logger would, in half of the time: no record is made, and nobody else is told."""
    if logger.isEnabledFor(logging.INFO):
        for handler in logging.getLogger().handlers:
            if isinstance(handler, LineHandler) and isinstance(handler.formatter, LineFormatter):
                handler.write(handler.formatter.line(time.time(), "INFO", message, logger.name, fields))


def write_waiting_lines() -> None:
    """For a process that ends without Python's end, which does it too."""
    for handler in logging.getLogger().handlers:
        handler.flush()


@contextmanager
def lines_on_a_thread() -> Iterator[None]:
    """Write what need not go out at once on a thread, meanwhile."""
    handlers = [handler for handler in logging.getLogger().handlers if isinstance(handler, LineHandler)]
    for handler in handlers:
        handler.start()
    try:
        yield
    finally:
        for handler in handlers:
            handler.stop()


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.exit(130)
    logging.getLogger("infra").critical("uncaught %s", kind.__name__, exc_info=(kind, error, trace))
