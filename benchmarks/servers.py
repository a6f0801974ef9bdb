"""The servers that are measured side by side, and the load that they get: one core for them, one for wrk."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.processes import free_port

ROOT = Path(__file__).parent.parent
PEERS = ROOT / ".venv-bench" / "bin"
LOAD = Path(__file__).with_name("load.lua")
ITEMS = 10_000
TICKS = os.sysconf("SC_CLK_TCK")
NAMES = ("ours", "threads", "asyncio", "bare")
UVICORN = ("--workers", "1", "--loop", "uvloop", "--http", "httptools")
DESCRIPTION = "A thing of brass, as it is described in the catalogue"


@dataclass(frozen=True)
class Load:
    """What wrk has found: requests a second, milliseconds, microseconds of the server's processor for each request."""

    rate: float
    p50: float
    p99: float
    cpu: float


class Server:
    """One of them, running. Its log goes into a file, as it ships."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], directory: Path) -> None:
        self.name = name
        self.port = free_port()
        directory.mkdir()
        given = {
            **{"PATH": os.environ["PATH"], "HOME": str(directory), "DATABASE_PATH": str(directory / "app.db")},
            **{"PORT": str(self.port), **environment},
        }
        with (directory / "log").open("wb") as log, on_core(0):
            command = [part.replace("PORT", str(self.port)) for part in command]
            self.process = subprocess.Popen(command, cwd=ROOT, env=given, stdout=log, stderr=log)
        self.log = directory / "log"

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            with suppress(OSError):
                self.ask("GET", "/health")
                return
            time.sleep(0.05)
        raise SystemExit(f"{self.name} does not start:\n{self.log.read_text()[-2000:]}")

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """The answer. Raises OSError unless it is one of success."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", method=method)
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    def fill(self) -> None:
        """Let it create as many items as all have."""
        for first in range(1, ITEMS, 500):
            new = [
                {"name": f"item {number}", "description": DESCRIPTION, "price": "12.50", "quantity": 3}
                for number in range(first, first + 500)
            ]
            self.ask("POST", "/api/items/batch", {"items": new})

    @property
    def cpu_seconds(self) -> float:
        """What the process has used of the processor."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    @property
    def peak_megabytes(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6

    def load(self, kind: str, clients: int, seconds: int, path: str = "/") -> Load:
        """Load it. Ends the program when anything but success is answered."""
        before = self.cpu_seconds
        found = self.finish(self.begin(kind, clients, seconds, path))
        spent = self.cpu_seconds - before
        return Load(
            found["requests"] / found["seconds"], found["p50"], found["p99"], spent / found["requests"] * 1_000_000
        )

    def begin(self, kind: str, clients: int, seconds: int, path: str = "/") -> "subprocess.Popen[str]":
        command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "30s", "-s", str(LOAD)]
        command += [f"http://127.0.0.1:{self.port}{path}", "--", kind, str(ITEMS), f"{time.time_ns()}-"]
        with on_core(1):
            return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def finish(self, wrk: "subprocess.Popen[str]") -> dict[str, float]:
        printed = wrk.communicate()[0]
        try:
            found: dict[str, float] = json.loads(printed.splitlines()[-1])
        except (IndexError, ValueError):
            raise SystemExit(f"wrk says of {self.name}: {printed}") from None
        wrong = {name: int(found[name]) for name in ("statuses", "timeouts", "broken") if found[name]}
        if wrong or not found["requests"]:
            raise SystemExit(
                f"{self.name} does not answer {' '.join(wrk.args[-6:])} as it should: "  # type: ignore[arg-type, index]
                f"{wrong or 'no request is done'}; the end of its log:\n{self.log.read_text()[-2000:]}"
            )
        return found

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def command(name: str) -> list[str]:
    """What starts it."""
    if name == "ours":
        return [sys.executable, "-m", "handler"]
    module = {"threads": "fastapi_threads", "asyncio": "fastapi_asyncio", "bare": "bare"}[name]
    silent = ["--no-access-log"] if name == "bare" else []
    return [str(PEERS / "uvicorn"), f"benchmarks.peers.{module}:app", "--port", "PORT", *UVICORN, *silent]


@contextmanager
def on_core(number: int) -> Iterator[None]:
    """Processes that are started meanwhile have this one core of those that there are."""
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        raise SystemExit("needs two cores: one for the server, one for wrk")
    os.sched_setaffinity(0, {sorted(cores)[number]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


@contextmanager
def all_servers(directory: Path) -> Iterator[dict[str, Server]]:
    """The service and its peers, each filled, by their names."""
    with ExitStack() as ended:
        servers = {}
        for name in NAMES:
            servers[name] = Server(name, command(name), {}, directory / name)
            ended.callback(servers[name].close)
        for name, server in servers.items():
            server.wait_until_ready()
            if name != "bare":
                server.fill()
        yield servers
