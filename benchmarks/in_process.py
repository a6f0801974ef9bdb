"""The application without a server around it: what is asked of it happens in this process, and can be counted."""

import asyncio
import json
import os
import random
import sys
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType

from starlette.types import Message

from handler.asgi import create_app
from handler.service import open_service
from infra.settings import Settings
from infra.telemetry.logs import configure_logging
from infra.telemetry.metrics import Metrics

ITEMS = 10_000
_NO_LOOK = "3600"  # READ_FRESHNESS_SECONDS: none comes between two requests, whatever time they take
WARM_UP, COUNTED = 20, 100
INSTRUCTIONS_OF = ("GET /health", "GET an item", "list of 50", "POST")


class InProcess:
    """The application over a log in a directory: as a server, or as a function of Lambda."""

    def __init__(self, directory: Path, metrics: Metrics, *, function: bool = False) -> None:
        # Whoever counts is slow: nothing is to happen because of it
        slow = {"SLOW_STATEMENT_MS": "1000000", "SLOW_REQUEST_MS": "1000000", "COMMIT_TIMEOUT_SECONDS": "600"}
        place = {
            "DATABASE_PATH": str(directory / ("function.db" if function else "app.db")),
            "REPLICA_URL": (directory / "replica").as_uri(),
            "READ_FRESHNESS_SECONDS": "0" if function else _NO_LOOK,
            "AUTH_MODE": "none",
        }
        settings = Settings.from_environment({**place, **slow})
        self._service = open_service(settings, metrics, None, lasting=not function)
        self._app = create_app(self._service)
        self._draw = random.Random(place["DATABASE_PATH"].rpartition("/")[2])

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._service.database.close()

    async def ask(self, method: str, target: str, body: object = None, *, keyed: bool = False) -> None:
        """Raises AssertionError unless it is answered with success."""
        content = b"" if body is None else json.dumps(body).encode()
        headers = [(b"host", b"localhost"), (b"content-length", str(len(content)).encode())]
        if body is not None:
            headers.append((b"content-type", b"application/json"))
        if keyed:
            headers.append((b"idempotency-key", self._new_key()))
        path, _, query = target.partition("?")
        scope = {
            **{"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "root_path": ""},
            **{"method": method, "path": path, "raw_path": path.encode(), "query_string": query.encode()},
            **{"headers": headers, "client": ("127.0.0.1", 50000), "server": ("127.0.0.1", 8000), "state": {}},
        }
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: Message) -> None:
            sent.append(message)

        await self._app(scope, receive, send)
        assert 200 <= sent[0]["status"] < 300, f"{method} {target}: {sent}"

    def _new_key(self) -> bytes:
        """The same ones in each run: which pages they come to lie on decides on the bytes of a commit."""
        return str(uuid.UUID(int=self._draw.getrandbits(128), version=4)).encode()

    async def fill(self) -> None:
        for first in range(1, ITEMS, 500):
            items = [item(number) for number in range(first, first + 500)]
            await self.ask("POST", "/api/items/batch", {"items": items})


def item(number: int) -> dict[str, object]:
    text = "A thing of brass, as it is described in the catalogue"
    return {"name": f"item {number:05}", "description": text, "price": "12.50", "quantity": 3}


def batch(number: int) -> object:
    return {"items": [item(number * 10 + place) for place in range(10)]}


Request = Callable[[InProcess, int], Awaitable[None]]

# By their names in the tables; each is given a number that it has not had before
REQUESTS: dict[str, Request] = {
    "GET /health": lambda app, n: app.ask("GET", "/health"),
    "GET an item": lambda app, n: app.ask("GET", f"/api/items/{n * 97 % ITEMS + 1}"),
    "list of 50": lambda app, n: app.ask("GET", "/api/items"),
    "search": lambda app, n: app.ask("GET", "/api/items?q=m%2000777"),
    "POST": lambda app, n: app.ask("POST", "/api/items", item(n)),
    "PUT with a key": lambda app, n: app.ask("PUT", f"/api/items/{n + 1}", item(n), keyed=True),
    "PATCH with a key": lambda app, n: app.ask("PATCH", f"/api/items/{n + 1}", {"quantity": n}, keyed=True),
    "DELETE with a key": lambda app, n: app.ask("DELETE", f"/api/items/{ITEMS - n}", keyed=True),
    "batch of 10 with a key": lambda app, n: app.ask("POST", "/api/items/batch", batch(n), keyed=True),
}


async def count_instructions(directory: Path) -> None:
    """Under valgrind: have it count what some kinds of request take, after some of each to warm up."""
    with InProcess(directory, Metrics()) as app:
        for name in INSTRUCTIONS_OF:
            for number in range(WARM_UP):
                await REQUESTS[name](app, number)
            tell_valgrind("instrumentation", "on")
            for number in range(WARM_UP, WARM_UP + COUNTED):
                await REQUESTS[name](app, number)
            tell_valgrind("dump", name)
            tell_valgrind("instrumentation", "off")


def tell_valgrind(*words: str) -> None:
    """By its own program, with as few instructions of this process as can be."""
    silent = [(os.POSIX_SPAWN_OPEN, output, os.devnull, os.O_WRONLY, 0) for output in (1, 2)]
    command = ["vgdb", f"--pid={os.getpid()}", *words]
    pid = os.posix_spawnp(command[0], command, {"PATH": os.environ["PATH"]}, file_actions=silent)
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"vgdb {words}: {status}"


if __name__ == "__main__":
    configure_logging("INFO")
    asyncio.run(count_instructions(Path(sys.argv[1])))
