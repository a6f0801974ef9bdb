"""JSON logs on stdout: log-line.schema.json says what a line has."""

import io
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from aws_lambda_powertools.logging.formatter import (
    LambdaPowertoolsFormatter,
    clear_context_keys,
    set_context_keys,
)
from pydantic_core import to_json

from infra.settings import SERVICE
from infra.telemetry.line_handler import LineHandler
from infra.telemetry.newest_errors import ERRORS

__all__ = ["LineFormatter", "clear_context_keys", "configure_logging", "set_context_keys"]

_NAMES = {"uvicorn.error": "uvicorn"}  # whoever looks for "error" is not to find all that a server says


class Record(logging.LogRecord):
    """A record without what no line says: where in the code, and by which thread and process, it was made."""

    def __init__(
        self,
        name: str,
        level: int,
        pathname: str,
        lineno: int,
        msg: object,
        args: Any,
        exc_info: Any,
        func: str | None = None,
        sinfo: str | None = None,
        **others: object,
    ) -> None:
        self.name, self.levelno, self.levelname = name, level, logging.getLevelName(level)
        self.msg, self.args = msg, args
        if args and len(args) == 1 and isinstance(args[0], Mapping) and args[0]:
            self.args = args[0]  # for "%(name)s", as in any other record
        self.exc_info, self.exc_text, self.stack_info = exc_info, None, sinfo
        self.created = time.time()
        self.msecs, self.relativeCreated = self.created % 1 * 1000, 0.0
        self.pathname, self.filename, self.module, self.lineno, self.funcName = pathname, "", "", lineno, func or ""
        self.thread = self.threadName = self.process = self.processName = None
        self.taskName: str | None = None


_OF_EVERY_RECORD = {*vars(Record("", 0, "", 0, "", None, None)), "message", "asctime", "color_message"}


class LineFormatter(LambdaPowertoolsFormatter):
    """Makes of a record, whoever wrote it, one line with one JSON object.

    What belongs to an invocation, and to a request, is kept as Powertools keeps it; the line is put together here, in
    a fifth of the time.
    """

    def __init__(self) -> None:
        super().__init__(service=SERVICE, log_record_order=["service"], location=None, level=None, timestamp=None)
        self._is_traced = "AWS_LAMBDA_FUNCTION_NAME" in os.environ

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "timestamp": _timestamp(record.created),
            "level": record.levelname,
            "message": record.getMessage(),
        }
        for name, value in self.get_current_keys().items():
            if value is not None:
                fields[name] = value
        fields |= self.thread_safe_get_current_keys()
        for name, value in record.__dict__.items():
            if name not in _OF_EVERY_RECORD and value is not None:
                fields[name] = value
        fields["logger"] = _NAMES.get(record.name, record.name)
        if self._is_traced and (trace_id := self._get_latest_trace_id()):
            fields["xray_trace_id"] = trace_id
        if record.exc_info and (error := record.exc_info[1]):
            fields |= {"exception": self.formatException(record.exc_info), "exception_name": type(error).__name__}
            if notes := getattr(error, "__notes__", None):
                fields["exception_notes"] = notes
        return self.serialize(fields)

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
    logging.setLogRecordFactory(Record)
    logging.logAsyncioTasks = False  # type: ignore[attr-defined, unused-ignore]
    logging._srcfile = None  # nor is looked for where it was made (see "Optimization" in logging's documentation)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    # the service logs each request itself
    for name in ("uvicorn.access", "mangum.http"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("peewee").setLevel(logging.INFO)  # below that it shows each statement with its values
    sys.excepthook = _log_uncaught
    return handler, formatter


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
