"""Keys of callers, from the command that makes one to the answers of servers and functions, as processes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from tests.e2e.conftest import Server
from tests.e2e.emulator import emulating
from tests.e2e.processes import ROOT, StartProcess, own_address, until
from tests.e2e.stores import S3

pytestmark = pytest.mark.e2e


def keys(environment: dict[str, str], *arguments: str) -> str:
    """What the command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "infra", "keys", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def listed(environment: dict[str, str]) -> list[dict[str, Any]]:
    return list(json.loads(keys(environment, "list", "--json")))


def test_a_key_from_its_first_day_to_its_last(
    start_server: Callable[..., Server], start_process: StartProcess, bucket: S3
) -> None:
    environment = {**bucket.environment(), "AUTH_MODE": "keys"}
    server = start_server(**environment)
    with emulating(start_process, **environment) as function:

        def statuses(key: str) -> list[int]:
            headers = {"x-api-key": key}
            return [
                server.client.get("/api/items", headers=headers).status_code,
                function.request("GET", "/api/items", headers=headers)["statusCode"],
            ]

        assert statuses("") == [401, 401]
        key = keys(environment, "create", "laptop", "--scope", "read", "--scope", "write")
        until(lambda: statuses(key) == [200, 200])  # the server's reads are a second old
        written = function.request("POST", "/api/items", '{"name": "x"}', headers={"authorization": f"Bearer {key}"})
        assert written["statusCode"] == 201
        assert server.client.get("/metrics", headers={"x-api-key": key}).status_code == 403
        until(lambda: listed(environment)[0]["last_used_on"] is not None)
        keys(environment, "revoke", key.split("_")[1])
        assert function.request("GET", "/api/items", headers={"x-api-key": key})["statusCode"] == 401
        until(lambda: statuses(key) == [401, 401])
        lines = [*server.process.lines, *function.process.lines]
        assert [line for line in lines if key.split("_")[2] in line] == []
        assert [line for line in lines if '"refused":"revoked"' in line]


def test_server_that_uvicorn_starts_lets_in_its_own_machine_alone(start_process: StartProcess) -> None:
    """No setting of the service says where it listens."""
    process = start_process(sys.executable, "-m", "uvicorn", "handler.asgi:app", "--host", "0.0.0.0", "--port", "0")
    port = process.wait_for(r"Uvicorn running on http://0.0.0.0:(\d+)")[1]
    inside = httpx2.get(f"http://127.0.0.1:{port}/api/items", trust_env=False)
    outside = httpx2.get(f"http://{own_address()}:{port}/api/items", trust_env=False)
    assert (inside.status_code, outside.status_code) == (200, 403)
    assert "AUTH_MODE is not set" in outside.json()["detail"]
