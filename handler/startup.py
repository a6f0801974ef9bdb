"""What every way to start the service begins with."""

import logging
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
