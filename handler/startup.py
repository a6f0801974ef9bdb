"""What every way to start the service begins with."""

import logging
import os
import sys
from typing import NoReturn

from core.errors import ServiceError
from infra.settings import Settings
from infra.telemetry.logs import configure_logging

logger = logging.getLogger(__name__)


def read_settings() -> Settings:
    """The settings, with logging on; ends the process with exit code 2 when one is wrong."""
    configure_logging("INFO")
    try:
        settings = Settings.from_environment()
    except ServiceError as error:
        refuse_to_start(error)
    configure_logging(settings.log_level)
    return settings


def refuse_to_start(error: ServiceError) -> NoReturn:
    logger.critical("cannot start: %s", error)
    sys.exit(2)


def end_failed_start(error: Exception) -> NoReturn:
    """The same on any thread, for a server that answers already that it waits: nothing is open that could be closed."""
    logger.critical("cannot start: %s", error, exc_info=not isinstance(error, ServiceError))
    os._exit(2)
