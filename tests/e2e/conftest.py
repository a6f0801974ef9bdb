import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

ROOT = Path(__file__).parents[2]


class Process:
    """A child process whose JSON log lines are collected while it runs."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self.popen = subprocess.Popen(
            arguments,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout
        for line in self.popen.stdout:
            with self._news:
                self.lines.append(line.decode().rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def wait_for(self, pattern: str, seconds: float = 30) -> re.Match[str]:
        with self._news:
            found = self._news.wait_for(
                lambda: (
                    next((match for line in self.lines if (match := re.search(pattern, line))), None)
                    or (self.popen.poll() is not None and not self._reader.is_alive())
                ),
                seconds,
            )
        assert isinstance(found, re.Match), f"no {pattern!r} in:\n" + "\n".join(self.lines)
        return found

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal the process and wait; its exit code."""
        if self.popen.poll() is None:
            os.killpg(self.popen.pid, number)
        code = self.popen.wait(60)
        self._reader.join(10)
        assert self.popen.stdout
        self.popen.stdout.close()
        return code

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


StartProcess = Callable[..., Process]


@pytest.fixture
def start_process(tmp_path: Path) -> Iterator[StartProcess]:
    started: list[Process] = []

    def start(*arguments: str, **environment: str) -> Process:
        defaults = {"DATABASE_PATH": str(tmp_path / "data" / "app.db"), "PORT": "0", "PYTHONUNBUFFERED": "1"}
        process = Process(list(arguments), {**os.environ, **defaults, **environment})
        started.append(process)
        return process

    yield start
    for process in started:
        process.end(signal.SIGKILL)


class Server:
    def __init__(self, process: Process) -> None:
        self.process = process
        self.client = httpx2.Client(
            base_url=process.wait_for(r"Uvicorn running on (http://[0-9.:]+)")[1], timeout=30, trust_env=False
        )


@pytest.fixture
def start_server(start_process: StartProcess) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(**environment: str) -> Server:
        server = Server(start_process(sys.executable, "-m", "handler", **environment))
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.client.close()
