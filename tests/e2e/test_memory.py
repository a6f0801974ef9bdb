"""What a server keeps in memory does not grow with what it has written."""

import asyncio
import gc
import json
import logging
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from handler.asgi import create_app
from handler.service import open_server_service
from tests.conftest import settings_in

pytestmark = pytest.mark.e2e

WARM_UP, COMMITS = 200, 400
MOST = 60  # bytes a commit: what names one is more. Lists of free objects that Python keeps still fill up meanwhile


def test_nothing_is_kept_for_each_commit(tmp_path: Path) -> None:
    service = open_server_service(settings_in(tmp_path))
    app = create_app(service)
    body = json.dumps({"name": "item", "price": "12.50"}).encode()
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/api/items",
        "raw_path": b"/api/items",
        "query_string": b"",
        "headers": [(b"host", b"x"), (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "scheme": "http",
        "root_path": "",
    }

    async def post() -> int:
        received = iter([{"type": "http.request", "body": body, "more_body": False}])
        statuses: list[int] = []

        async def receive() -> Any:
            found = next(received, None)
            return found or await asyncio.Event().wait()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        await app({**scope, "state": {}}, receive, send)
        return statuses[0]

    async def grown() -> int:
        for _ in range(WARM_UP):
            assert await post() == 201
        before = traced()
        for _ in range(COMMITS):
            await post()
        return traced() - before

    logging.getLogger().setLevel(logging.WARNING)  # pytest keeps the lines
    tracemalloc.start()
    try:
        assert asyncio.run(grown()) < MOST * COMMITS
        assert service.database.txid > WARM_UP + COMMITS
    finally:
        tracemalloc.stop()
        service.database.close()


def traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]
