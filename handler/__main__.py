"""The server: python -m handler"""

import socket
from typing import Any

import uvicorn

from core.errors import SettingsError
from handler.asgi import read_settings, refuse_to_start, server_app

# Shorter than the 30 seconds that `docker stop -t 30` gives, so that the database is closed in time
_DRAIN_SECONDS = 20


def main() -> None:
    settings = read_settings()
    try:
        _check_address(settings.host, settings.port)
    except SettingsError as error:
        refuse_to_start(error)
    uvicorn.run(
        server_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )


def _check_address(host: str, port: int) -> None:
    """Raises SettingsError when nobody can listen there. Uvicorn would find out after everything has been opened."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        failures = [error for address in addresses if (error := _bind_error(*address))]
    except (OSError, UnicodeError) as error:
        raise SettingsError(f"HOST={host!r} is no address to listen on: {error}") from error
    if len(failures) == len(addresses):
        raise SettingsError(f"HOST={host!r}, PORT={port}: cannot listen there: {failures[0].strerror}")


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
