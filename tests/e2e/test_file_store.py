"""A log in a directory: what outlives a power cut, and disks that are full or read-only."""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import httpx2
import pytest

from infra.clock import Clock
from infra.commitlog import open_log
from tests.conftest import assert_problem
from tests.e2e.conftest import Server
from tests.e2e.evidence import Claims
from tests.e2e.processes import StartProcess

pytestmark = pytest.mark.e2e

StartServer = Callable[..., Server]
SYSTEM_CALLS = "openat,write,pwrite64,fsync,fdatasync,link,linkat,mkdir,sendto,sendmsg,writev"


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace (Debian: apt-get install strace)")
def test_object_and_its_name_are_on_disk_before_the_answer_leaves(start_process: StartProcess, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    strace = ["strace", "-f", "-y", "-s", "40", "-o", str(trace), "-e", f"trace={SYSTEM_CALLS}"]
    process = start_process(*strace, sys.executable, "-m", "handler", MAINTENANCE_INTERVAL_SECONDS="0")
    url = process.wait_for(r"Uvicorn running on (http://[0-9.:]+)")[1]
    answer = httpx2.post(f"{url}/api/items", json={"name": "x"}, trust_env=False).raise_for_status()
    second = httpx2.post(f"{url}/api/items", json={"name": "y"}, trust_env=False).raise_for_status()
    many = {
        "items": [{"name": "z", "description": "z" * 1900}] * 400
    }  # two on a page, and 1,000 pages are moved into the file
    for _ in range(5):
        httpx2.post(f"{url}/api/items/batch", json=many, trust_env=False).raise_for_status()
    process.end(signal.SIGTERM)
    txid = answer.headers["x-commit-txid"]
    lines = trace.read_text().splitlines()
    linked = place(lines, rf'link.*/ltx/0/\.[^"]*\.partial", .*{txid}-{txid}\.ltx"\) += 0')
    partial = re.search(r"/ltx/0/(\.[^\"]*\.partial)", lines[linked])
    assert partial
    written = place(lines, rf"write\(\d+<.*{re.escape(partial[1])}>", before=linked)
    synced = place(lines, rf"fsync\(\d+<.*{re.escape(partial[1])}>\) += 0", before=linked)
    named = place(lines, r"fsync\(\d+<.*/ltx/0>\) += 0", after=linked)
    answered = place(lines, r'"HTTP/1\.1 201', after=linked)
    assert written < synced < linked < named < answered
    # nothing else is waited for: the log has what a power cut takes from the WAL, but for what is moved into the file
    answered_again = place(lines, r'"HTTP/1\.1 201', after=answered + 1)
    in_log = r"/ltx/0(/\.[^\"]*\.partial)?>"
    syncs = [line for line in lines[answered:answered_again] if re.search(r"f(data)?sync\(", line)]
    assert [bool(re.search(in_log, line)) for line in syncs] == [True, True], second.text
    moved = place(lines, r"pwrite64\(\d+<.*/app\.db>", after=answered_again)
    place(lines, r"f(data)?sync\(\d+<.*/app\.db-wal>\) += 0", after=answered_again, before=moved)
    # the same for the directories that were made on the way
    for made in ("replica", "replica/ltx", "replica/ltx/0"):
        created = place(lines, rf'mkdir\(".*/{made}",')
        place(lines, rf"fsync\(\d+<.*/{made.rpartition('/')[0] or 'data'}>\) += 0", after=created, before=answered)


def place(lines: list[str], pattern: str, after: int = 0, before: int | None = None) -> int:
    """The first line after one and, if another is given, the last before that."""
    end = len(lines) if before is None else before
    found = [number for number in range(after, end) if re.search(pattern, lines[number])]
    assert found, f"no {pattern} in lines {after}-{end}:\n" + "\n".join(lines[max(0, end - 60) : end])
    return found[-1] if before is not None else found[0]


class Disk:
    """A file system of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.path)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)], capture_output=True)
    if made.returncode:
        pytest.skip("mounting a small disk needs root")
    yield Disk(path)
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(server: Server, claims: Claims) -> httpx2.Response:
    """Write until that is refused."""
    for number in count(len(claims)):
        name = f"item {number}"
        answer = server.client.post("/api/items", json={"name": name, "description": "x" * 500})
        claims.record(name, answer.status_code, answer.json())
        if answer.status_code != 201:
            return answer
    raise AssertionError


def test_full_log_refuses_writes_loses_none_and_goes_on_when_there_is_room(
    start_server: StartServer, disk: Disk, tmp_path: Path
) -> None:
    url = (disk.path / "replica").as_uri()
    server = start_server(REPLICA_URL=url, MAINTENANCE_INTERVAL_SECONDS="0")
    claims = Claims()
    assert assert_problem(fill(server, claims), 507)["code"] == "database_full"
    assert server.process.wait_for("nothing can be written: No space left on device")
    assert len(claims.acknowledged) > 50
    assert server.client.get("/api/items", params={"limit": 1}).status_code == 200
    assert not list((disk.path / "replica").rglob("*.partial"))
    disk.remount("size=2m")
    answer = server.client.post("/api/items", json={"name": "there is room"})
    claims.record("there is room", answer.status_code, answer.json())
    server.process.end()
    log = open_log(url, Clock())
    log.restore(tmp_path / "restored.db")
    assert "there is room" in claims.acknowledged
    claims.check(tmp_path / "restored.db")
    claims.check(tmp_path / "data" / "app.db")


def test_read_only_log_refuses_writes_and_stops_no_reads(
    start_server: StartServer, start_process: StartProcess, disk: Disk, tmp_path: Path
) -> None:
    url = (disk.path / "replica").as_uri()
    server = start_server(REPLICA_URL=url, MAINTENANCE_INTERVAL_SECONDS="0")
    server.client.post("/api/items", json={"name": "a"}).raise_for_status()
    disk.remount("ro")
    assert assert_problem(server.client.post("/api/items", json={"name": "b"}), 503)["stored"] == "no"
    assert server.process.wait_for("Read-only file system")
    assert [item["name"] for item in server.client.get("/api/items").json()["items"]] == ["a"]
    empty = start_process(
        sys.executable,
        "-m",
        "handler",
        DATABASE_PATH=str(tmp_path / "x" / "app.db"),
        REPLICA_URL=f"{disk.path.as_uri()}/y",
    )
    empty.popen.wait(30)
    assert empty.end() == 2
    assert "Read-only file system" in empty.log[-1]["message"]
    disk.remount("rw")
    server.client.post("/api/items", json={"name": "c"}).raise_for_status()
    assert [item["name"] for item in server.client.get("/api/items").json()["items"]] == ["a", "c"]


def refusing(calls: str, error: str) -> list[str]:
    """A server on a file system that refuses these system calls."""
    inject = ["-e", f"trace={calls}", "-e", f"inject={calls}:error={error}"]
    return ["strace", "-f", "-o", "/dev/null", *inject, sys.executable, "-m", "handler"]


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace (Debian: apt-get install strace)")
@pytest.mark.parametrize("error", ["EPERM", "EOPNOTSUPP", "ENOSYS"])
def test_file_system_without_hard_links_is_refused_by_name(start_process: StartProcess, error: str) -> None:
    process = start_process(*refusing("link,linkat", error))
    process.popen.wait(60)
    assert process.end() == 2
    assert "its file system makes no hard links" in process.log[-1]["message"]


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace (Debian: apt-get install strace)")
def test_file_system_without_owners_modes_and_times_is_used(start_process: StartProcess) -> None:
    calls = "chmod,fchmod,chown,fchown,utimensat"
    server = Server(start_process(*refusing(calls, "EPERM"), MAINTENANCE_INTERVAL_SECONDS="0"))
    server.client.post("/api/items", json={"name": "x"}).raise_for_status()
    server.client.close()
