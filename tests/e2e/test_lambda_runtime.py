"""The function under the real runtime interface emulator and client, with S3 over HTTP."""

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.e2e.conftest import ROOT, Process, StartProcess

pytestmark = pytest.mark.e2e

EVENTS = ROOT / "tests" / "events"


class Emulator:
    def __init__(self, process: Process, port: int) -> None:
        self.process = process
        self._url = f"http://127.0.0.1:{port}/2015-03-31/functions/function/invocations"

    def invoke(self, event: dict[str, Any]) -> dict[str, Any]:
        return dict(httpx2.post(self._url, json=event, timeout=60, trust_env=False).json())

    def request(self, method: str, path: str, body: str | None = None) -> dict[str, Any]:
        event = json.loads((EVENTS / "function_url_create.json").read_text())
        event["rawPath"] = event["requestContext"]["http"]["path"] = path
        event["requestContext"]["http"]["method"] = method
        event["body"] = body
        return self.invoke(event)

    def kill_runtime(self) -> None:
        """The emulator puts the runtime in a process group of its own."""
        killed = [pid for pid in children(self.process.popen.pid) if "awslambdaric" in command_line(pid)]
        assert killed
        for pid in killed:
            os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    found = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return found + [grandchild for child in found for grandchild in children(child)]


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def emulator(start_process: StartProcess, s3: str) -> Iterator[Emulator]:
    (binary,) = ROOT.glob(".venv-sam/lib/python*/site-packages/samcli/local/rapid/aws-lambda-rie-x86_64")
    binary.chmod(0o755)
    port, api_port = free_port(), free_port()
    process = start_process(
        str(binary),
        "--runtime-interface-emulator-address",
        f"127.0.0.1:{port}",
        "--runtime-api-address",
        f"127.0.0.1:{api_port}",
        sys.executable,
        "-m",
        "awslambdaric",
        "handler.aws_lambda.handler",
        BACKUP_URL=s3,
        AWS_LAMBDA_FUNCTION_NAME="items",
        AWS_LAMBDA_FUNCTION_TIMEOUT="60",
    )
    process.wait_for("exec|server|listening|rapid")
    yield Emulator(process, port)
    for pid in children(process.popen.pid):
        os.kill(pid, signal.SIGKILL)


def names(answer: dict[str, Any]) -> list[str]:
    return [item["name"] for item in json.loads(answer["body"])["items"]]


def test_backed_up_items_outlive_the_runtime(emulator: Emulator) -> None:
    for n in range(3):
        answer = emulator.request("POST", "/api/items", json.dumps({"name": f"item {n}"}))
        assert answer["statusCode"] == 201, answer
    made = emulator.invoke(json.loads((EVENTS / "backup.json").read_text()))
    assert made["rows"] == {"items": 3}
    emulator.request("POST", "/api/items", '{"name": "after the backup"}')
    assert len(names(emulator.request("GET", "/api/items"))) == 4
    emulator.kill_runtime()
    emulator.request("GET", "/health")  # the emulator notices the death at the next invocation
    assert names(emulator.request("GET", "/api/items")) == ["item 0", "item 1", "item 2"]
    written = emulator.request("POST", "/api/items", '{"name": "item 4"}')
    assert json.loads(written["body"])["id"] == 4


@pytest.mark.parametrize("name", ["function_url_create", "rest_api_create"])
def test_every_gateway_is_served(emulator: Emulator, name: str) -> None:
    assert emulator.invoke(json.loads((EVENTS / f"{name}.json").read_text()))["statusCode"] == 201


def test_unknown_event_is_an_error_and_the_function_goes_on(emulator: Emulator) -> None:
    assert "unknown event" in emulator.invoke({"Records": []})["errorMessage"]
    assert emulator.request("GET", "/ready")["statusCode"] == 200
