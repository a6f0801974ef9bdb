"""The server: python -m handler"""

import gc
import logging
import os
import resource
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from core.errors import SettingsError
from handler.asgi import server_app
from handler.callers.gate import check_listening
from handler.middleware.header_limit import MAX_HEADER_BYTES
from handler.protocol import SPARE_CONNECTIONS, Bounds, Protocol, is_not_told_here
from handler.startup import read_settings, refuse_to_start
from infra.settings import Settings
from infra.telemetry.logs import write_waiting_lines

logger = logging.getLogger(__name__)

_OTHER_FILES = 100  # the database, the store, the log
_DRAIN_SECONDS = 5  # for the requests in hand
_SWITCH_SECONDS = 0.0005  # a tenth of what is usual, and about what an answer takes
_STOP_SECONDS = 9.0  # for all of it; `docker stop` kills after 10


def main() -> None:
    settings = read_server_settings()
    server = Server(server_config(server_app(settings), settings))
    _shorten_waits()
    with suppress(KeyboardInterrupt):
        server.run()


def read_server_settings() -> Settings:
    """The settings; ends the process with exit code 2 when one is wrong, when nobody can listen at their
    address, or when it is not said who may come in there.
    """
    settings = read_settings()
    try:
        _check_address(settings.host, settings.port)
        check_listening(settings)
        _allow_files(settings.max_connections)
    except SettingsError as error:
        refuse_to_start(error)
    return settings


def server_config(app: ASGIApp | str, settings: Settings) -> uvicorn.Config:
    logging.getLogger("uvicorn.error").addFilter(is_not_told_here)
    bounds = Bounds(settings.max_connections, settings.request_timeout_seconds)
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=partial(Protocol, bounds=bounds),  # type: ignore[arg-type]
        h11_max_incomplete_event_size=2 * MAX_HEADER_BYTES,  # up to there HeaderLimit can say what is wrong
        log_config=None,
        access_log=False,
        server_header=False,
        forwarded_allow_ips=list(settings.forwarded_allow_ips),
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )


class Server(uvicorn.Server):
    """The first signal to stop answers what is in hand and closes the database, the second ends the process.

    Either way, and also when a store does not answer, nothing acknowledged is lost: it is in the log.
    """

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            write_waiting_lines()
            os._exit(128 + sig)
        _later(_STOP_SECONDS, _give_up)
        super().handle_exit(sig, frame)


def _give_up() -> None:
    _later(1.0, partial(os._exit, 1))  # should nobody read the log any more
    logger.critical(
        "not stopped within %s s, so ended: the store does not answer, perhaps; the next start looks into what is here",
        _STOP_SECONDS,
    )
    os._exit(1)


def _later(seconds: float, act: Callable[[], object]) -> None:
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()


def _shorten_waits() -> None:
    """For the event loop: for the thread that writes to let go of the interpreter, and for the collector of garbage."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.collect()
    gc.freeze()  # what the start has made stays: no use to look through it again and again


def _check_address(host: str, port: int) -> None:
    """Raises SettingsError when nobody can listen there. Uvicorn would find out after everything has been opened."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        failures = [error for address in addresses if (error := _bind_error(*address))]
    except (OSError, UnicodeError) as error:
        raise SettingsError(f"HOST={host!r} is no address to listen on: {error}") from error
    if len(failures) == len(addresses):
        raise SettingsError(f"HOST={host!r}, PORT={port}: cannot listen there: {failures[0].strerror}")


def _allow_files(connections: int) -> None:
    """Lets this process open a file for each connection, and what else it needs. Raises SettingsError if it may not."""
    needed = connections + SPARE_CONNECTIONS + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    except (ValueError, OSError):
        raise SettingsError(
            f"MAX_CONNECTIONS={connections}: needs {needed} open files, and {hard} are allowed (ulimit -Hn)"
        ) from None


def _bind_error(family: int, kind: int, protocol: int, name: str, address: Any) -> OSError | None:
    try:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error
    return None


if __name__ == "__main__":
    main()
