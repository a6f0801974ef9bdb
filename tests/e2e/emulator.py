"""The function under the real runtime interface emulator and client."""

import json
import os
import platform
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2

from tests.e2e.processes import ROOT, Process, StartProcess, free_port, listens, until

EVENTS = ROOT / "tests" / "events"


class Function:
    """What answers at an emulator's port; like a real instance it serves one invocation at a time."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/2015-03-31/functions/function/invocations"

    def invoke(self, event: dict[str, Any]) -> dict[str, Any]:
        return dict(httpx2.post(self._url, json=event, timeout=60, trust_env=False).json())

    def request(
        self, method: str, path: str, body: str | None = None, query: str = "", headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        event = json.loads((EVENTS / "function_url_create.json").read_text())
        event["rawPath"] = event["requestContext"]["http"]["path"] = path
        event["requestContext"]["http"]["method"] = method
        event["rawQueryString"] = query
        event["body"] = body
        event["headers"] |= headers or {}
        return self.invoke(event)


class Emulator(Function):
    """A function whose emulator and runtime are processes of ours."""

    def __init__(self, process: Process, port: int) -> None:
        super().__init__(port)
        self.process = process

    def signal_runtime(self, number: signal.Signals) -> bool:
        """The emulator puts the runtime in a process group of its own. Returns whether there was one."""
        found = [pid for pid in children(self.process.popen.pid) if "awslambdaric" in command_line(pid)]
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return bool(found)

    def kill_runtime(self) -> None:
        assert self.signal_runtime(signal.SIGKILL)


def emulator_binary() -> Path:
    processor = {"aarch64": "arm64"}.get(platform.machine(), platform.machine())
    (binary,) = ROOT.glob(f".venv-sam/lib/python*/site-packages/samcli/local/rapid/aws-lambda-rie-{processor}")
    binary.chmod(0o755)
    return binary


@contextmanager
def emulating(
    start_process: StartProcess, handler: str = "handler.aws_lambda.handler", **environment: str
) -> Iterator[Emulator]:
    port, api_port = free_port(), free_port()
    process = start_process(
        str(emulator_binary()),
        "--runtime-interface-emulator-address",
        f"127.0.0.1:{port}",
        "--runtime-api-address",
        f"127.0.0.1:{api_port}",
        sys.executable,
        "-m",
        "awslambdaric",
        handler,
        **{"AWS_LAMBDA_FUNCTION_NAME": "items", "AWS_LAMBDA_FUNCTION_TIMEOUT": "60", **environment},
    )
    until(lambda: listens(port))  # its first lines come before that
    try:
        yield Emulator(process, port)
    finally:
        for pid in children(process.popen.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    """Of all generations; a process that ends meanwhile has none."""
    found: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found + [grandchild for child in found for grandchild in children(child)]


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""
