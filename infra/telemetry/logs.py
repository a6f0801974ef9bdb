"""JSON logs on stdout: log-line.schema.json says what a line has."""

import io
import logging
import sys
from typing import Any

from aws_lambda_powertools.logging.formatter import (
    LambdaPowertoolsFormatter,
    clear_context_keys,
    set_context_keys,
)

from infra.settings import SERVICE
from infra.telemetry.newest_errors import ERRORS

__all__ = ["LineFormatter", "clear_context_keys", "configure_logging", "set_context_keys"]

_NAMES = {"uvicorn.error": "uvicorn"}  # whoever looks for "error" is not to find all that a server says


class LineFormatter(LambdaPowertoolsFormatter):
    """Makes of a record, whoever wrote it, one line with one JSON object."""

    def __init__(self) -> None:
        super().__init__(
            service=SERVICE,
            utc=True,
            use_rfc3339=True,
            log_record_order=["timestamp", "level", "message", "service"],
            serialize_stacktrace=False,
            location=None,
            json_deserializer=str,  # a message is text, also one that could be read as JSON
        )

    def format(self, record: logging.LogRecord) -> str:
        record.logger = _NAMES.get(record.name, record.name)
        record.__dict__.pop("color_message", None)  # uvicorn's message again, with terminal colours
        if not isinstance(record.msg, str):
            record.msg = str(record.msg)
        return super().format(record)


def configure_logging(level: str) -> tuple[logging.Handler, LineFormatter]:
    """Send every log line of the process to stdout, one JSON object a line, whoever wrote it."""
    formatter = LineFormatter()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # whatever the locale, and for text that no encoding has
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    handler = logging.StreamHandler(sys.stdout)
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


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.exit(130)
    logging.getLogger("infra").critical("uncaught %s", kind.__name__, exc_info=(kind, error, trace))
