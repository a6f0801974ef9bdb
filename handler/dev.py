"""The server for whoever works on it: python -m handler.dev. When the code changes, it is stopped and started anew.

The one process that watches holds the port, so a request that comes meanwhile waits for the answer of the new code.
"""

import signal
from pathlib import Path
from types import FrameType

from uvicorn.supervisors.watchfilesreload import WatchFilesReload

from handler.__main__ import Server, read_server_settings, server_config

_ROOT = Path(__file__).parent.parent


class _Worker(Server):
    """Leaves Ctrl-C, which a terminal sends to both processes, to the one that watches, which then stops this one.

    So whatever ends both comes twice, and only the first counts: a second signal would cut the stop short.
    """

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig != signal.SIGINT and not self.should_exit:
            super().handle_exit(sig, frame)


def main() -> None:
    settings = read_server_settings()
    config = server_config("handler.asgi:app", settings)
    config.reload_dirs = [_ROOT / package for package in ("core", "handler", "infra")]
    config.reload_includes = ["*.sql"]  # besides *.py
    WatchFilesReload(config, target=_Worker(config).run, sockets=[config.bind_socket()]).run()


if __name__ == "__main__":
    main()
