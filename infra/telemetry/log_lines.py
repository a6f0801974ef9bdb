"""Counts what is logged."""

import logging

from infra.telemetry.metrics import Metrics


class LogLines(logging.Handler):
    """Counts the lines of WARNING and above, from `start` to `stop`."""

    def __init__(self, metrics: Metrics) -> None:
        super().__init__(logging.WARNING)
        self._metrics = metrics

    def emit(self, record: logging.LogRecord) -> None:
        """Count it."""
        self._metrics.line_logged(record.levelno)

    def start(self) -> "LogLines":
        """Count whatever any logger of the process says from now on."""
        logging.getLogger().addHandler(self)
        return self

    def stop(self) -> None:
        """Count no more."""
        logging.getLogger().removeHandler(self)
