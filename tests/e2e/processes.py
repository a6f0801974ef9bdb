"""Child processes, and what is known of them."""

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import apsw.sqlite_extra

from tests.log_lines import assert_described

ROOT = Path(__file__).parents[2]
SERVERS = {"handler", "handler.asgi:app"}  # whose output is a log and nothing else
SHELL = apsw.sqlite_extra.path("sqlite3_shell")  # the image's `sqlite3`


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
        if SERVERS.intersection(self.popen.args):  # type: ignore[arg-type]
            assert_described(self.lines if code != -signal.SIGKILL else self.lines[:-1])  # the last may be cut off
        return code

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


StartProcess = Callable[..., Process]


@contextmanager
def starting_processes(**defaults: str) -> Iterator[StartProcess]:
    started: list[Process] = []

    def start(*arguments: str, **environment: str) -> Process:
        process = Process(list(arguments), {**os.environ, "PYTHONUNBUFFERED": "1", **defaults, **environment})
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in started:
            process.end(signal.SIGKILL)


def free_port() -> int:
    """Below the range that outgoing connections take theirs from: it stays free while a server is down."""
    while True:
        port = 12_000 + secrets.randbelow(20_000)
        with suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


def own_address() -> str:
    """One of this machine that is no loopback address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing
        return str(probe.getsockname()[0])


def listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()
