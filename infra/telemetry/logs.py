"""JSON logs on stdout."""

import io
import logging
import sys
from typing import Any

from aws_lambda_powertools.logging.formatter import (
    LambdaPowertoolsFormatter,
    remove_context_keys,
    set_context_keys,
)

from infra.settings import SERVICE
from infra.telemetry.newest_errors import ERRORS

__all__ = ["configure_logging", "remove_context_keys", "set_context_keys"]


def configure_logging(level: str) -> tuple[logging.Handler, LambdaPowertoolsFormatter]:
    """Send every log line of the process to stdout, one JSON object a line, whoever wrote it."""
    formatter = LambdaPowertoolsFormatter(
        service=SERVICE,
        utc=True,
        use_rfc3339=True,
        log_record_order=["timestamp", "level", "message", "service"],
        serialize_stacktrace=False,
        location=None,
    )
    if isinstance(sys.stdout, io.TextIOWrapper):
        # whatever the locale, and for text that no encoding has
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(formatter)
    handler.addFilter(_tidy)
    logging.basicConfig(handlers=[handler, ERRORS], level=level, force=True)
    logging.captureWarnings(True)
    logging.logAsyncioTasks = False  # type: ignore[attr-defined, unused-ignore]
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    # the service logs each request itself
    for name in ("uvicorn.access", "mangum.http"):
        logging.getLogger(name).setLevel(logging.WARNING)
    sys.excepthook = _log_uncaught
    return handler, formatter


def _tidy(record: logging.LogRecord) -> bool:
    record.logger = record.name
    record.__dict__.pop("color_message", None)  # uvicorn's message again, with terminal colours
    return True


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.exit(130)
    logging.getLogger("infra").critical("uncaught %s", kind.__name__, exc_info=(kind, error, trace))
