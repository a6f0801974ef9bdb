"""Real faults of a real server: each is told under the name whose section in RUNBOOK.md leads to what cures it, by the
service itself and by `python -m infra status`, and at no moment under a wrong one.
"""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import apsw
import httpx2
import pytest

from infra.objectives.history_file import HistoryFile
from infra.operators.status import read_status
from infra.settings import Settings
from tests.e2e.processes import ROOT, SHELL, Process, StartProcess, until

pytestmark = pytest.mark.e2e

# The server, in a hurry to look and to keep what it has seen
SERVER = """
from infra.objectives import watch
watch.LOOK_SECONDS = watch.KEEP_SECONDS = 0.2
from handler.__main__ import main
main()
"""
LOCK = ".timeout 20000\nBEGIN IMMEDIATE;\n"
SHUT = f".timeout 20000\nPRAGMA locking_mode=EXCLUSIVE;\n{LOCK}DELETE FROM items;\n"
SLOW = {"SlowResponses", "SlowerResponses", "SlowQueries"}  # as this machine may be
ERRORS = {"HighErrorRate", "ElevatedErrorRate"}


class Place:
    """A server, its files, and what can be done to them."""

    def __init__(self, start: StartProcess, directory: Path) -> None:
        self._start = start
        self.data = directory / "data"
        self.database, self.log = self.data / "app.db", directory / "log"
        self.environment = {
            "DATABASE_PATH": str(self.database),
            "REPLICA_URL": self.log.as_uri(),
            "BACKUP_URL": (directory / "backups").as_uri(),
            "MAINTENANCE_INTERVAL_SECONDS": "0",
            "BUSY_TIMEOUT_SECONDS": "0.3",
        }
        self.settings = Settings.from_environment(self.environment)
        self.process: Process
        self.client: httpx2.Client | None = None
        self._clients = ExitStack()

    def serve(self, **environment: str) -> None:
        self.process, self.client = self.started(**environment)

    def started(self, **environment: str) -> tuple[Process, httpx2.Client]:
        process = self._start(sys.executable, "-c", SERVER, **{**self.environment, "PORT": "0", **environment})
        url = process.wait_for(r"Uvicorn running on (http://[0-9.:]+)")[1]
        return process, self._clients.enter_context(httpx2.Client(base_url=url, timeout=30, trust_env=False))

    def close(self) -> None:
        self._clients.close()

    def write(self, times: int = 1) -> None:
        assert self.client
        for _ in range(times):
            self.client.post("/api/items", json={"name": "x" * 50})

    def run(self, *arguments: str) -> None:
        environment = {**os.environ, **self.environment}
        subprocess.run([sys.executable, "-m", "infra", *arguments], cwd=ROOT, env=environment, capture_output=True)

    def objects(self) -> list[Path]:
        return sorted(self.log.rglob("*.ltx"))

    def told(self) -> list[list[str]]:
        """The names of the alerts: by the service, if it can be asked, and by the command."""
        found = [[alert["name"] for alert in read_status(self.settings).alerts]]
        if self.client:
            answer = self.client.get("/ops/status").json()
            found.append([alert["name"] for alert in answer["alerts"]])
        return found

    def age(self, *, also_its_time: bool) -> None:
        """As if the last that was kept were ten minutes old."""
        file = HistoryFile(self.database)
        history = file.read()
        assert history
        history.move(-600)
        file.write(history)
        if also_its_time:
            os.utime(file.path, (history.until, history.until))


@contextmanager
def shell(place: Place, typed: str) -> Iterator[None]:
    """A `sqlite3` in which somebody has typed this, and gone for lunch."""
    with subprocess.Popen([SHELL, place.database], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(typed + ".print typed\n")
        process.stdin.flush()
        while process.stdout.readline() != "typed\n":
            pass
        yield
        process.kill()


@contextmanager
def disk_full(place: Place) -> Iterator[None]:
    place.process.end()
    small = place.data.with_name("small")
    place.data.rename(small)
    place.data.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place.data], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        shutil.copytree(small, place.data, dirs_exist_ok=True)
        place.serve()
        with suppress(OSError), (place.data / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass
        yield
        place.process.end(signal.SIGKILL)
    finally:
        subprocess.run(["umount", "--lazy", place.data], check=True)


@contextmanager
def quota(place: Place) -> Iterator[None]:
    resource.prlimit(place.process.popen.pid, resource.RLIMIT_FSIZE, (100, 100))
    place.age(also_its_time=True)
    place.write(6)
    while HistoryFile(place.database).seen_at() < time.time() - 60:
        time.sleep(0.01)
    yield


@contextmanager
def stopped(place: Place) -> Iterator[None]:
    place.process.end()
    place.client = None
    yield


@contextmanager
def hanging(place: Place) -> Iterator[None]:
    place.client = None
    place.process.popen.send_signal(signal.SIGSTOP)
    place.age(also_its_time=True)
    yield
    place.process.popen.send_signal(signal.SIGCONT)


@contextmanager
def store_moved_away(place: Place) -> Iterator[None]:
    place.log.rename(place.log.with_name("elsewhere"))
    yield


@contextmanager
def log_emptied(place: Place) -> Iterator[None]:
    for file in place.objects():
        file.unlink()
    yield


@contextmanager
def other_log(place: Place) -> Iterator[None]:
    place.process.end()
    for file in place.data.glob("app.db*"):
        if not file.name.endswith(".history"):
            file.unlink()
    place.serve(REPLICA_URL=(place.data / "other").as_uri())
    yield


@contextmanager
def damaged_commit(place: Place) -> Iterator[None]:
    """Of another instance."""
    last = place.objects()[-1]
    txid = int(last.stem.split("-")[0], 16) + 1
    last.with_name(f"{txid:016x}-{txid:016x}.ltx").write_bytes(last.read_bytes()[:-9])
    yield


@contextmanager
def damaged_log(place: Place) -> Iterator[None]:
    file = place.objects()[1]
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    place.run("maintain")
    yield


@contextmanager
def locked(place: Place) -> Iterator[None]:
    with shell(place, LOCK):
        place.write()
        yield


@contextmanager
def locked_while_another_instance_writes(place: Place) -> Iterator[None]:
    process, other = place.started(DATABASE_PATH=str(place.data.with_name("b") / "app.db"))
    place.process.end()
    place.serve(BUSY_TIMEOUT_SECONDS="4")
    with shell(place, LOCK):
        other.post("/api/items", json={"name": "x"}).raise_for_status()
        yield
    process.end(signal.SIGKILL)


@contextmanager
def locked_at_the_start(place: Place) -> Iterator[None]:
    place.process.end()
    with shell(place, SHUT):
        place.serve()
        yield


@contextmanager
def file_removed(place: Place) -> Iterator[None]:
    place.database.unlink()
    yield


@contextmanager
def file_damaged(place: Place) -> Iterator[None]:
    place.write(60)
    with closing(apsw.Connection(str(place.database))) as connection:
        until(lambda: connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()[0][0] == 0)
    with place.database.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (place.database.stat().st_size - 4096))
    assert place.client
    for _ in range(9):
        place.client.get("/api/items?limit=100")
    yield


@contextmanager
def backups_lost(place: Place) -> Iterator[None]:
    place.process.end()
    place.serve(MAINTENANCE_INTERVAL_SECONDS="1")
    place.process.wait_for("maintenance done")
    backups = place.data.with_name("backups")
    shutil.rmtree(backups)
    backups.write_text("in the way")
    place.write()
    yield


@contextmanager
def drill_failed(place: Place) -> Iterator[None]:
    place.run("drill")  # there is no backup
    yield


class Fault(NamedTuple):
    """`alert`: the first that is told; `cure`: where its section leads, the place in RUNBOOK; `also`: what may be told
    before it.
    """

    happens: Callable[[Place], AbstractContextManager[None]]
    alert: str
    cure: str
    also: set[str] = set()  # noqa: RUF012  # nobody changes it


FAULTS = [
    Fault(disk_full, "WritesRefused", "disk-full-507"),
    Fault(quota, "WritesRefused", "disk-full-507"),
    Fault(stopped, "ServiceDown", "p0-container-crashed"),
    Fault(hanging, "ServiceDown", "p0-health-check-failing"),
    Fault(store_moved_away, "StoreAway", "store-away"),
    Fault(log_emptied, "OtherLog", "commit-log-emptied"),
    Fault(other_log, "OtherLog", "the-items-are-gone"),
    Fault(damaged_commit, "LogUnsound", "commit-log-damaged"),
    Fault(damaged_log, "LogUnsound", "commit-log-damaged"),
    Fault(locked, "WritesRefused", "p1-database-locked"),
    Fault(locked_while_another_instance_writes, "WritesRefused", "p1-database-locked"),
    Fault(locked_at_the_start, "NotReady", "p1-database-locked"),
    Fault(file_removed, "NotReady", "p0-appdb-damaged-or-lost"),
    Fault(file_damaged, "FilesKept", "a-file-named-appdbdiverged-", {"NotReady", "DatabaseLocked", *ERRORS}),
    Fault(backups_lost, "MaintenanceFailing", "maintenance-fails"),
    Fault(drill_failed, "DrillOld", "restore-drill"),
]


@pytest.fixture
def place(start_process: StartProcess, tmp_path: Path) -> Iterator[Place]:
    with closing(Place(start_process, tmp_path)) as place:
        place.serve()
        yield place


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.happens.__name__)
def test_fault_is_told_by_the_name_whose_section_leads_to_its_cure(place: Place, fault: Fault) -> None:
    place.write(3)
    assert {name for names in place.told() for name in names} <= SLOW
    with fault.happens(place):
        deadline = time.monotonic() + 60
        while True:
            told = [[name for name in names if name not in fault.also | SLOW] for names in place.told()]
            assert {names[0] for names in told if names} <= {fault.alert}
            if all(told):
                break
            assert time.monotonic() < deadline, (told, place.process.lines[-5:])
            time.sleep(0.1)
    section = re.search(rf"^### Alert: {fault.alert}\n(.*?)^###? ", (ROOT / "RUNBOOK.md").read_text(), re.M | re.S)
    assert section
    assert f"(#{fault.cure})" in section[1]


def test_what_was_put_right_is_told_no_more(place: Place) -> None:
    place.write()
    with store_moved_away(place):
        while not all("StoreAway" in names for names in place.told()):
            time.sleep(0.1)
    place.log.with_name("elsewhere").rename(place.log)
    while any("StoreAway" in names for names in place.told()):
        time.sleep(0.1)
