"""The server: python -m handler"""

import uvicorn

from handler.asgi import read_settings, server_app

# Shorter than the 30 seconds that `docker stop -t 30` gives, so that the database is closed in time
_DRAIN_SECONDS = 20


def main() -> None:
    settings = read_settings()
    uvicorn.run(
        server_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )


if __name__ == "__main__":
    main()
