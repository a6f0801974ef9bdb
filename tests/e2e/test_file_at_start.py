"""What a server finds when it starts: its own file, somebody's changes to it, another file, or none."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest

from infra.clock import Clock
from infra.commitlog import open_log
from tests.e2e.conftest import Server
from tests.e2e.evidence import items_in
from tests.e2e.processes import SHELL
from tests.e2e.test_other_programs import INSERT
from tests.infra.commitlog.conftest import litestream_restore

pytestmark = pytest.mark.e2e

StartServer = Callable[..., Server]
TIMER_OFF = {"MAINTENANCE_INTERVAL_SECONDS": "0"}


@pytest.fixture
def start(start_server: StartServer) -> Callable[[], Server]:
    return lambda: start_server(**TIMER_OFF)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def add(server: Server, *names: str) -> None:
    for name in names:
        server.client.post("/api/items", json={"name": name}).raise_for_status()


def names_at(server: Server) -> list[str]:
    found = server.client.get("/api/items", params={"limit": 100}).raise_for_status().json()["items"]
    return sorted(item["name"] for item in found)


def shell(database: Path, script: str) -> str:
    done = subprocess.run([SHELL, "-bail", str(database)], input=script, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def insert(name: str) -> str:
    return INSERT.format(name=name)


def cp(source: Path, target: Path) -> None:
    subprocess.run(["cp", str(source), str(target)], check=True)


def cp_with_wal(source: Path, target: Path) -> None:
    for suffix in ("", "-wal"):
        cp(Path(f"{source}{suffix}"), Path(f"{target}{suffix}"))


def kill(server: Server) -> None:
    server.process.end(signal.SIGKILL)


def history(data: Path, scratch: Path) -> list[list[str]]:
    """The names that the database had after each commit; that any two readers of the log agree on it is checked."""
    url = (data / "replica").as_uri()
    log = open_log(url, Clock())
    found = []
    for txid in range(1, max(item.max_txid for item in log.objects.everything()) + 1):
        path = scratch / f"at-{txid}.db"
        path.unlink(missing_ok=True)
        log.restore(path, txid)
        with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
            tables = connection.execute("SELECT name FROM sqlite_schema WHERE name = 'items'").fetchall()
            rows = connection.execute("SELECT name FROM items").fetchall() if tables else []
        found.append(sorted(str(name) for (name,) in rows))
    by_litestream = scratch / "litestream.db"
    by_litestream.unlink(missing_ok=True)
    assert litestream_restore(url, by_litestream).read_bytes() == path.read_bytes()
    return found


def kept_in(data: Path) -> list[list[str]]:
    return [
        sorted(name for _, name in items_in(path))
        for path in data.glob("app.db.diverged-*")
        if not path.name.endswith(("-wal", "-shm"))
    ]


def errors_of(server: Server) -> list[Any]:
    return [line["message"] for line in server.process.log if line["level"] == "ERROR"]


def test_clean_stop_and_start(start: Callable[[], Server], data: Path, tmp_path: Path) -> None:
    server = start()
    add(server, "a", "b")
    server.process.end()
    before = history(data, tmp_path)
    again = start()
    assert names_at(again) == ["a", "b"]
    again.process.end()
    assert history(data, tmp_path) == before
    assert errors_of(again) == []


@pytest.mark.parametrize("lost", [(), ("-wal",), ("-shm",), ("-wal", "-shm")], ids=" ".join)
def test_crash_and_removed_lock_files(
    start: Callable[[], Server], data: Path, tmp_path: Path, lost: tuple[str, ...]
) -> None:
    server = start()
    add(server, "a", "b")
    kill(server)
    before = history(data, tmp_path)
    for suffix in lost:
        (data / f"app.db{suffix}").unlink()
    again = start()
    assert names_at(again) == ["a", "b"]
    assert history(data, tmp_path) == before
    assert errors_of(again) == []
    assert kept_in(data) == []


def test_lock_files_removed_under_the_running_server(start: Callable[[], Server], data: Path, tmp_path: Path) -> None:
    server = start()
    add(server, "a")
    for suffix in ("-wal", "-shm"):
        (data / f"app.db{suffix}").unlink()
    add(server, "b")
    assert names_at(server) == ["a", "b"]
    server.process.end()
    assert names_at(start()) == ["a", "b"]


def test_edit_while_stopped_is_the_next_commit(start: Callable[[], Server], data: Path, tmp_path: Path) -> None:
    server = start()
    add(server, "a", "b")
    server.process.end()
    shell(data / "app.db", f"DELETE FROM items WHERE name = 'a'; {insert('c')} VACUUM;")
    again = start()
    assert names_at(again) == ["b", "c"]
    add(again, "d")
    assert history(data, tmp_path)[-3:] == [["a", "b"], ["b", "c"], ["b", "c", "d"]]


def test_edit_just_before_a_crash_is_the_next_commit(start: Callable[[], Server], data: Path, tmp_path: Path) -> None:
    server = start()
    add(server, "a")
    shell(data / "app.db", insert("c"))
    kill(server)
    again = start()
    assert names_at(again) == ["a", "c"]
    assert history(data, tmp_path)[-2:] == [["a"], ["a", "c"]]
    assert kept_in(data) == []


def test_edit_after_a_crash_is_the_next_commit(start: Callable[[], Server], data: Path, tmp_path: Path) -> None:
    server = start()
    add(server, "a")
    kill(server)
    shell(data / "app.db", insert("c"))
    again = start()
    assert names_at(again) == ["a", "c"]
    assert history(data, tmp_path)[-2:] == [["a"], ["a", "c"]]
    assert kept_in(data) == []


def test_edit_after_a_crash_without_its_wal_takes_nothing_back(
    start: Callable[[], Server], data: Path, tmp_path: Path
) -> None:
    server = start()
    add(server, "in the file")
    server.process.end()
    server = start()
    add(server, "in the WAL")
    kill(server)
    for suffix in ("-wal", "-shm"):
        (data / f"app.db{suffix}").unlink()
    shell(data / "app.db", insert("by the shell"))
    again = start()
    assert names_at(again) == ["in the WAL", "in the file"]
    assert kept_in(data) == [["by the shell", "in the file"]]
    assert "perhaps without what the log has" in errors_of(again)[0]


@pytest.mark.parametrize("made_by", ["cp", ".backup", "make backup"])
def test_old_backup_put_in_place_while_stopped_is_the_next_commit(
    start: Callable[[], Server], data: Path, tmp_path: Path, made_by: str
) -> None:
    server = start()
    add(server, "a")
    backup = tmp_path / "old.db"
    if made_by == ".backup":
        shell(data / "app.db", f".backup {backup}")
    server.process.end()
    if made_by == "cp":
        cp(data / "app.db", backup)
    if made_by == "make backup":
        command = ["make", "-s", "backup"]
        subprocess.run(command, env=environment(data), check=True, capture_output=True)
        with (data / "backups" / "app-latest.db.gz").open("rb") as packed:
            backup.write_bytes(subprocess.run(["gunzip", "-c"], stdin=packed, capture_output=True, check=True).stdout)
    server = start()
    add(server, "b")
    server.process.end()
    cp(backup, data / "app.db")
    again = start()
    assert names_at(again) == ["a"]
    assert history(data, tmp_path)[-2:] == [["a", "b"], ["a"]]


WAYS = ["stop and cp", ".backup", "cp of a live file", "python -m infra backup"]


def backed_up(server: Server, start: Callable[[], Server], data: Path, way: str, backup: Path) -> Server:
    """Make a backup in one of the ways that people make them; returns the server that runs after it."""
    match way:
        case "stop and cp":
            server.process.end()
            cp(data / "app.db", backup)
            return start()
        case ".backup":
            shell(data / "app.db", f".backup {backup}")
        case "cp of a live file":
            server.process.end()  # whose start has moved all into the file; nothing was written since
            server = start()
            cp(data / "app.db", backup)
        case _:
            command = way.replace("python", sys.executable).split()
            subprocess.run(command, env=environment(data), check=True, capture_output=True)
            with (data / "backups" / "app-latest.db.gz").open("rb") as packed:
                unpacked = subprocess.run(["gunzip", "-c"], stdin=packed, capture_output=True, check=True).stdout
            backup.write_bytes(unpacked)
    return server


@pytest.mark.parametrize("way", WAYS)
def test_backup_is_served_wherever_the_runbook_says_so_and_each_time(
    start: Callable[[], Server], data: Path, tmp_path: Path, way: str
) -> None:
    """Over the running service and a restart, then while it is stopped; each twice in a row, with the same file."""
    backup = tmp_path / "old.db"
    server = start()
    add(server, "good")
    server = backed_up(server, start, data, way, backup)
    for over_a_running_service in (True, True, False, False):
        add(server, "bad")
        if over_a_running_service:
            cp(backup, data / "app.db")
            server.process.end()
        else:
            server.process.end()
            cp(backup, data / "app.db")
        server = start()
        assert names_at(server) == ["good"]
    assert kept_in(data) == []
    assert history(data, tmp_path)[-4:] == [["bad", "good"], ["good"], ["bad", "good"], ["good"]]
    # and beside the WAL of a crash the log is served, and the file kept
    add(server, "later")
    kill(server)
    cp(backup, data / "app.db")
    assert names_at(start()) == ["good", "later"]
    assert len(kept_in(data)) == 1


@pytest.mark.parametrize("typed", ["BEGIN EXCLUSIVE;", "BEGIN; SELECT count(*) FROM items;"])
def test_restart_beside_a_shell_that_holds_a_lock_serves_reads_and_says_so(
    start: Callable[[], Server], data: Path, typed: str
) -> None:
    server = start()
    add(server, "a")
    with open_shell(data / "app.db", typed) as type_more:
        server.process.end()
        server = start()
        assert names_at(server) == ["a"]
        assert server.client.get("/health").status_code == 200
        if "SELECT" not in typed:
            assert server.client.get("/ready").json()["status"] == "degraded"
            refused = server.client.post("/api/items", json={"name": "b"})
            assert (refused.status_code, refused.json()["code"]) == (503, "database_locked")
            assert "Retry-After" in refused.headers
        type_more("ROLLBACK;")
        add(server, "b")
        assert server.client.get("/ready").json()["status"] == "ready"


def test_restart_beside_a_shell_that_has_written_waits_and_says_so(start: Callable[[], Server], data: Path) -> None:
    server = start()
    add(server, "a")
    server.process.end()
    with open_shell(data / "app.db", insert("by the shell"), "BEGIN IMMEDIATE;") as type_more:
        server = start()
        ready = server.client.get("/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "not ready")
        assert "The start waits: " in ready.json()["database"]
        assert server.client.get("/health").status_code == server.client.get("/metrics").status_code == 200
        refused = server.client.get("/api/items")
        assert (refused.status_code, refused.json()["code"]) == (503, "database_locked")
        server.process.end()
        assert "is held by another program" in errors_of(server)[0]
        server = start()
        type_more("ROLLBACK;")
        server.process.wait_for("was let go: the start goes on")
        assert names_at(server) == ["a", "by the shell"]
    assert kept_in(data) == []


@contextmanager
def open_shell(database: Path, *lines: str) -> Iterator[Callable[[str], None]]:
    """A shell that somebody has left open; what it gives types one more line there."""
    with subprocess.Popen([SHELL, str(database)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout

        def type_in(line: str) -> None:
            assert process.stdin
            assert process.stdout
            process.stdin.write(f"{line}\n.print done\n")
            process.stdin.flush()
            while process.stdout.readline() not in ("done\n", ""):
                pass

        for line in lines:
            type_in(line)
        yield type_in
        process.stdin.close()


def environment(data: Path) -> dict[str, str]:
    return {**os.environ, "DATABASE_PATH": str(data / "app.db")}


def test_old_backup_over_the_running_server_counts_after_the_restart(
    start: Callable[[], Server], data: Path, tmp_path: Path
) -> None:
    """The runbook's emergency: cp backups/app-latest.db data/app.db && docker restart."""
    server = start()
    add(server, "a")
    shell(data / "app.db", f".backup {tmp_path / 'old.db'}")
    add(server, "b")
    cp(tmp_path / "old.db", data / "app.db")
    server.process.end()
    again = start()
    assert names_at(again) == ["a"]
    assert history(data, tmp_path)[-2:] == [["a", "b"], ["a"]]


def test_old_backup_over_the_running_server_counts_without_a_restart_too(
    start: Callable[[], Server], data: Path, tmp_path: Path
) -> None:
    server = start()
    add(server, "a")
    shell(data / "app.db", f".backup {tmp_path / 'old.db'}")
    add(server, "b")
    cp(tmp_path / "old.db", data / "app.db")
    server.process.wait_for("overwritten while the service runs")
    add(server, "c")
    assert names_at(server) == ["a", "c"]
    assert history(data, tmp_path)[-3:] == [["a", "b"], ["a"], ["a", "c"]]


def test_old_backup_restored_by_the_shell_while_it_runs_is_the_next_commit(
    start: Callable[[], Server], data: Path, tmp_path: Path
) -> None:
    server = start()
    add(server, "a")
    shell(data / "app.db", f".backup {tmp_path / 'old.db'}")
    add(server, "b")
    shell(data / "app.db", f".timeout 5000\n.restore {tmp_path / 'old.db'}")
    server.process.wait_for("another program's changes")
    assert names_at(server) == ["a"]
    add(server, "c")
    server.process.end()
    assert names_at(start()) == ["a", "c"]
    assert history(data, tmp_path)[-3:] == [["a", "b"], ["a"], ["a", "c"]]


def test_old_backup_beside_the_wal_of_a_crash_is_kept_and_the_log_served(
    start: Callable[[], Server], data: Path, tmp_path: Path
) -> None:
    """SQLite would mix the two."""
    server = start()
    add(server, "a")
    shell(data / "app.db", f".backup {tmp_path / 'old.db'}")
    add(server, "b")
    kill(server)
    cp(tmp_path / "old.db", data / "app.db")
    again = start()
    assert names_at(again) == ["a", "b"]
    assert "is kept as app.db.diverged-" in errors_of(again)[0]
    again.process.end()
    (kept,) = [path for path in data.glob("app.db.diverged-*") if not path.name.endswith("-wal")]
    assert kept.read_bytes() == (tmp_path / "old.db").read_bytes()
    cp(kept, data / "app.db")  # what the message says
    assert names_at(start()) == ["a"]
    assert history(data, tmp_path)[-2:] == [["a", "b"], ["a"]]


def test_old_backup_with_its_own_wal_put_in_place_while_stopped_is_the_next_commit(
    start: Callable[[], Server], data: Path, tmp_path: Path
) -> None:
    server = start()
    add(server, "a")
    cp_with_wal(data / "app.db", tmp_path / "old.db")
    add(server, "b")
    server.process.end()
    cp_with_wal(tmp_path / "old.db", data / "app.db")
    again = start()
    assert names_at(again) == ["a"]
    assert history(data, tmp_path)[-2:] == [["a", "b"], ["a"]]


def test_old_pair_after_a_crash_is_the_log_again_and_said(
    start: Callable[[], Server], data: Path, tmp_path: Path
) -> None:
    """Both are of the log, so nothing is lost, and nothing says that somebody wants the older one."""
    server = start()
    add(server, "a")
    cp_with_wal(data / "app.db", tmp_path / "old.db")
    add(server, "b")
    kill(server)
    cp_with_wal(tmp_path / "old.db", data / "app.db")
    again = start()
    assert names_at(again) == ["a", "b"]
    assert "older state than it was left in" in "\n".join(again.process.lines)
    assert history(data, tmp_path)[-1] == ["a", "b"]


def test_file_without_a_log_begins_one(start: Callable[[], Server], data: Path, tmp_path: Path) -> None:
    server = start()
    add(server, "a")
    server.process.end()
    shutil.rmtree(data / "replica")
    (data / "app.db.position").unlink()
    again = start()
    assert names_at(again) == ["a"]
    assert history(data, tmp_path) == [["a"]]


@pytest.mark.parametrize("lost", ["app.db", "app.db*"])
def test_log_without_a_file_is_enough(start: Callable[[], Server], data: Path, lost: str) -> None:
    server = start()
    add(server, "a")
    kill(server)
    for path in data.glob(lost):
        path.unlink()
    assert names_at(start()) == ["a"]


@pytest.fixture
def other(start_server: StartServer, data: Path, tmp_path: Path) -> Callable[[], Server]:
    """Starts another instance, with a file of its own and the same log."""
    return lambda: start_server(
        **TIMER_OFF,
        DATABASE_PATH=str(tmp_path / "other" / "app.db"),
        REPLICA_URL=(data / "replica").as_uri(),
    )


ENDS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])


@ENDS
def test_log_that_moved_on_is_served_without_a_word(
    start: Callable[[], Server], other: Callable[[], Server], data: Path, number: signal.Signals
) -> None:
    server = start()
    add(server, "a")
    server.process.end(number)
    add(other(), "theirs")
    again = start()
    assert names_at(again) == ["a", "theirs"]
    assert kept_in(data) == errors_of(again) == []


def test_both_moved_the_log_is_served_and_the_file_kept(
    start: Callable[[], Server], other: Callable[[], Server], data: Path, tmp_path: Path
) -> None:
    """Of a file that was left well it cannot be told whether somebody has changed rows, or put an old copy there."""
    server = start()
    add(server, "a")
    server.process.end()
    add(other(), "theirs")
    shell(data / "app.db", insert("mine"))
    again = start()
    assert names_at(again) == ["a", "theirs"]
    assert kept_in(data) == [["a", "mine"]]
    assert "both changed" in errors_of(again)[0]
    add(again, "later")
    assert names_at(again) == ["a", "later", "theirs"]


def rename(old: str, new: str) -> str:
    return f"UPDATE items SET name = '{new}' WHERE name = '{old}';"


def test_both_moved_after_a_crash_the_edit_is_done_again(
    start: Callable[[], Server], other: Callable[[], Server], data: Path, tmp_path: Path
) -> None:
    server = start()
    add(server, "a")
    kill(server)
    add(other(), "theirs")
    shell(data / "app.db", rename("a", "mine"))
    again = start()
    again.process.wait_for("another program's changes of .*, done again, are commit")
    assert names_at(again) == ["mine", "theirs"]
    assert errors_of(again) == kept_in(data) == []
    assert not list(data.glob("app.db.changes-*"))


def test_both_move_while_it_runs_and_the_edit_is_done_again(
    start: Callable[[], Server], other: Callable[[], Server], data: Path, tmp_path: Path
) -> None:
    server = start()
    add(server, "a", "b")
    theirs = other()
    add(theirs, "theirs")
    shell(data / "app.db", rename("a", "mine"))
    server.process.wait_for("another program's changes of .*, done again, are commit")
    assert names_at(server) == ["b", "mine", "theirs"]
    assert errors_of(server) == kept_in(data) == []
    assert not list(data.glob("app.db.changes-*"))
    add(theirs, "c")
    assert history(data, tmp_path)[-1] == names_at(theirs) == ["b", "c", "mine", "theirs"]


def test_both_change_a_row_while_it_runs_and_the_edit_is_named_and_kept(
    start: Callable[[], Server], other: Callable[[], Server], data: Path, tmp_path: Path
) -> None:
    server = start()
    add(server, "a")
    theirs = other()
    theirs.client.patch("/api/items/1", json={"name": "theirs"}).raise_for_status()
    shell(data / "app.db", rename("a", "mine"))
    server.process.wait_for("do not fit the state that the log has since: items 1")
    assert names_at(server) == ["theirs"]
    (file,) = data.glob("app.db.changes-*")
    (message,) = errors_of(server)
    command = [sys.executable, "-m", "infra", "changes", str(file)]
    assert " ".join(command[1:]) in message
    done = subprocess.run(command, env=environment(data), capture_output=True, text=True, check=True)
    assert done.stdout == 'UPDATE "items" SET "name" = \'mine\' WHERE "id" IS 1 AND "name" IS \'a\';\n'
    add(theirs, "c")
    assert history(data, tmp_path)[-1] == ["c", "theirs"]
