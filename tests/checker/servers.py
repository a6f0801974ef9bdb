"""Server processes: started, killed, stopped, put to sleep; and what is known of their files."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from tests.checker.commits import rows_of
from tests.checker.history import Row

_CLOCKS = Path(__file__).with_name("clocks")


class Server:
    """One server with its file, port and clocks. Its output is in `directory`/server.log."""

    def __init__(
        self,
        number: int,
        code: Path,
        directory: Path,
        port: int,
        freshness: float,
        environment: Mapping[str, str],
        moves_clocks: bool,
    ) -> None:
        self.number = number
        self.directory = directory
        self.database = directory / "app.db"
        self.port = port
        self.freshness = freshness
        self._code = code
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        directory.mkdir()
        self._wall, self._monotonic = directory / "clock-wall", directory / "clock-monotonic"
        self._offsets = (0.0, 0.0)
        self._environment = {
            **plain_environment(),
            **environment,
            "DATABASE_PATH": str(self.database),
            "PORT": str(port),
            "READ_FRESHNESS_SECONDS": str(freshness),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        if moves_clocks:
            self.move_clocks(0, 0)
            self._environment |= self._with_moving_clocks()

    @property
    def name(self) -> str:
        return f"server {self.number}"

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        with self._lock:
            if self.is_alive:
                return
            with (self.directory / "server.log").open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "handler"],
                    cwd=self._code,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        if self._process:
            self._process.wait(30)

    def stop(self, seconds: float = 15) -> int:
        """By SIGTERM; the exit code."""
        if not self._process:
            return 0
        self._signal(signal.SIGTERM)
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def move_clocks(self, wall: float, monotonic: float) -> None:
        """By so many seconds, in one go; for a process that is paused, or that is to see a leap."""
        self._offsets = self._offsets[0] + wall, self._offsets[1] + monotonic
        for path, offset in zip((self._wall, self._monotonic), self._offsets, strict=True):
            new = path.with_suffix(".new") if path == self._wall else path
            with new.open("r+b" if new.exists() else "wb") as file:
                file.write(f"{offset:+030.6f}\n".encode())  # always of one length: it is read while it is written
            if new != path:
                new.replace(path)

    def maintain(self, seconds: float) -> int | None:
        """`python -m infra maintain` beside the server; its exit code, None if it was killed for taking too long."""
        with (self.directory / "maintain.log").open("ab") as log:
            try:
                return subprocess.run(
                    [sys.executable, "-m", "infra", "maintain"],
                    cwd=self._code,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    timeout=seconds,
                ).returncode
            except subprocess.TimeoutExpired:
                return None

    def shell(self, sql: str) -> bool:
        """Another program on the file; whether all of it was done."""
        try:
            done = subprocess.run(
                [sys.executable, "-m", "apsw", str(self.database), ".timeout 4000", sql],
                env=plain_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=30,
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def rows(self) -> list[Row]:
        """Of the file, which nobody has open."""
        return rows_of(self.database)

    def keeps(self, text: str) -> bool:
        """Whether this is in any file beside the database."""
        for path in self.directory.rglob("*"):
            if path.is_file() and path.name not in ("app.db", "server.log", "maintain.log"):
                with suppress(FileNotFoundError):
                    if text.encode() in path.read_bytes():
                        return True
        return False

    def last_words(self) -> str:
        lines = (self.directory / "server.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-5:])

    def _signal(self, number: signal.Signals) -> None:
        with self._lock:
            if self._process and self._process.poll() is None:
                os.killpg(self._process.pid, number)

    def _with_moving_clocks(self) -> dict[str, str]:
        spec = find_spec("libfaketime")
        assert spec
        assert spec.origin
        library = Path(spec.origin).parent / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"
        return {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._wall),
            "FAKETIME_CACHE_DURATION": "0",  # read when a second begins: at every call would cost 20 ms a request
            "DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
            "CHECKER_MONOTONIC_FILE": str(self._monotonic),
            "PYTHONPATH": str(_CLOCKS),
        }


def plain_environment() -> dict[str, str]:
    """This process' own, without what would change how a server or its store's client behaves."""
    others = ("aws_", "http_proxy", "https_proxy", "all_proxy", "no_proxy", "replica_", "backup_", "keep_", "python")
    return {name: value for name, value in os.environ.items() if not name.lower().startswith(others)}
