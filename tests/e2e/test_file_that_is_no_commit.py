"""What lies in the file's place and may not become everybody's newest commit, and a log that is another program's."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from core.migrations import scripts
from infra.clock import Clock
from infra.commitlog import open_log
from tests.e2e.conftest import Server
from tests.e2e.processes import Process, StartProcess, until
from tests.e2e.test_file_at_start import TIMER_OFF, add, cp, errors_of, insert, kill, names_at, shell

pytestmark = pytest.mark.e2e

StartServer = Callable[..., Server]
Spoil = Callable[[Path, Path], None]  # (the database, a directory for files)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def start(start_server: StartServer) -> Callable[[], Server]:
    return lambda: start_server(**TIMER_OFF)


@pytest.fixture
def other(start_server: StartServer, data: Path, tmp_path: Path) -> Callable[[], Server]:
    """Starts another instance, with a file of its own and the same log."""
    return lambda: start_server(
        **TIMER_OFF,
        DATABASE_PATH=str(tmp_path / "other" / "app.db"),
        REPLICA_URL=(data / "replica").as_uri(),
        READ_FRESHNESS_SECONDS="0",
    )


def head(data: Path) -> int:
    return max(item.max_txid for item in open_log((data / "replica").as_uri(), Clock()).objects.everything())


def kept_files(data: Path) -> list[Path]:
    return [path for path in data.glob("app.db.diverged-*") if not path.name.endswith(("-wal", "-shm"))]


def by_shell(script: str) -> Spoil:
    def spoil(database: Path, scratch: Path) -> None:
        shell(database, ".timeout 5000\n" + script)

    return spoil


def replaced_by_another_programs(database: Path, scratch: Path) -> None:
    shell(scratch / "theirs.db", "CREATE TABLE theirs (id INTEGER PRIMARY KEY, v); INSERT INTO theirs VALUES (1, 2);")
    cp(scratch / "theirs.db", database)


def replaced_by_an_empty_database(database: Path, scratch: Path) -> None:
    shell(scratch / "new.db", "VACUUM;")
    cp(scratch / "new.db", database)


def replaced_by_a_truncated_copy(database: Path, scratch: Path) -> None:
    """Of something that is not in the log."""
    shell(database, f".timeout 5000\n.backup {scratch / 'copy.db'}")
    shell(scratch / "copy.db", "UPDATE items SET name = 'never served'; VACUUM;")
    content = (scratch / "copy.db").read_bytes()
    (scratch / "part.db").write_bytes(content[: len(content) - 4096])
    cp(scratch / "part.db", database)


def replaced_by_text(database: Path, scratch: Path) -> None:
    (scratch / "notes.txt").write_text("These are notes, and no database.\n" * 1000)
    cp(scratch / "notes.txt", database)


SPOILT: dict[str, tuple[Spoil, str]] = {
    "a newer schema": (by_shell("PRAGMA user_version = 99;"), "schema version 99, this release serves up to"),
    "no schema version": (by_shell("PRAGMA user_version = 0;"), "not a database of this service"),
    "another program's mark": (by_shell("PRAGMA application_id = 252006673;"), "has application_id 252006673"),
    "a lost table": (by_shell("DROP TABLE items;"), f"lacks what schema version {len(scripts())} has in table items"),
    "a trigger without its table": (
        by_shell("CREATE TRIGGER t AFTER INSERT ON items BEGIN INSERT INTO audit VALUES (1); END;"),
        "Table items cannot be read and written: no such table: main.audit",
    ),
    "a lost column": (
        by_shell("PRAGMA wal_checkpoint(TRUNCATE); ALTER TABLE items DROP COLUMN description;"),
        "in table items: description",
    ),
    "another program's database": (replaced_by_another_programs, "not a database of this service"),
    "an empty database": (replaced_by_an_empty_database, "there is nothing in it"),
    "a truncated copy": (replaced_by_a_truncated_copy, "damaged"),
    "a text": (replaced_by_text, "not a database"),
}
EACH = pytest.mark.parametrize("what", SPOILT)


@EACH
def test_stopped_file_that_may_be_no_commit_is_kept_and_the_log_served(
    what: str, start: Callable[[], Server], other: Callable[[], Server], data: Path, tmp_path: Path
) -> None:
    spoil, reason = SPOILT[what]
    server = start()
    add(server, "a", "b")
    server.process.end()
    before = head(data)
    spoil(data / "app.db", tmp_path)
    again = start()
    assert names_at(again) == ["a", "b"]
    assert head(data) == before
    (kept,) = kept_files(data)
    (message,) = errors_of(again)
    assert f"is kept as {kept.name}" in message
    assert reason in message
    theirs = other()
    add(theirs, "c")
    assert names_at(theirs) == ["a", "b", "c"]


@EACH
def test_live_file_that_may_be_no_commit_is_kept_and_the_log_served(
    what: str, start: Callable[[], Server], other: Callable[[], Server], data: Path, tmp_path: Path
) -> None:
    spoil, reason = SPOILT[what]
    server, theirs = start(), other()
    add(server, "a", "b")
    before = head(data)
    spoil(data / "app.db", tmp_path)
    message = server.process.wait_for("is kept as app.db.diverged-.*").group()
    assert reason in message
    assert names_at(server) == names_at(theirs) == ["a", "b"]
    assert head(data) == before
    assert len(kept_files(data)) == 1
    add(server, "c")
    add(theirs, "d")
    assert names_at(theirs) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    "script",
    [
        "CREATE INDEX mine ON items (quantity);",
        "CREATE TABLE mine (v); INSERT INTO mine VALUES (1);",
        "ALTER TABLE items ADD COLUMN mine TEXT;",
        "DROP INDEX idx_items_created;",
        "VACUUM;",
        "REINDEX;",
        "ANALYZE;",
    ],
)
def test_what_a_shell_may_do_stays_welcome(
    script: str, start: Callable[[], Server], other: Callable[[], Server], data: Path
) -> None:
    server = start()
    add(server, "a")
    before = head(data)
    shell(data / "app.db", ".timeout 5000\n" + script)
    server.process.wait_for("another program's changes of")
    server.process.end()
    shell(data / "app.db", insert("b") + "VACUUM;")
    assert names_at(start()) == names_at(other()) == ["a", "b"]
    assert head(data) == before + 2
    assert kept_files(data) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_file_of_0_bytes_is_no_edit(
    start: Callable[[], Server], other: Callable[[], Server], data: Path, number: signal.Signals
) -> None:
    server = start()
    add(server, "a")
    shell(data / "app.db", ".timeout 5000\nPRAGMA wal_checkpoint(TRUNCATE);")
    server.process.end(number)
    before = head(data)
    (data / "app.db").write_bytes(b"")
    again = start()
    assert names_at(again) == ["a"]
    assert "was empty, which is no edit" in "\n".join(again.process.lines)
    assert head(data) == before
    assert kept_files(data) == errors_of(again) == []
    add(again, "b")
    assert names_at(other()) == ["a", "b"]


def test_file_of_0_bytes_beside_the_wal_of_a_crash_is_no_edit_and_a_shells_commit_is_kept(
    start: Callable[[], Server], data: Path
) -> None:
    server = start()
    add(server, "a")
    kill(server)
    (data / "app.db").write_bytes(b"")
    server = start()
    assert names_at(server) == ["a"]
    assert kept_files(data) == []
    add(server, "b")
    kill(server)
    with closing(apsw.Connection(str(data / "app.db"))) as connection:
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.execute(insert("only here"))
    (data / "app.db").write_bytes(b"")
    again = start()
    assert names_at(again) == ["a", "b"]
    assert "its -wal has what the log does not" in errors_of(again)[0]
    (kept,) = data.glob("app.db.diverged-*-wal")
    assert b"only here" in kept.read_bytes()


def test_live_file_of_0_bytes_is_no_edit(start: Callable[[], Server], data: Path) -> None:
    server = start()
    add(server, "a")
    before = head(data)
    (data / "app.db").write_bytes(b"")
    server.process.wait_for("was empty, which is no edit")
    assert names_at(server) == ["a"]
    assert head(data) == before
    add(server, "b")
    assert names_at(server) == ["a", "b"]
    assert kept_files(data) == []


def test_file_of_0_bytes_with_an_empty_log_is_a_new_database(start: Callable[[], Server], data: Path) -> None:
    data.mkdir()
    (data / "app.db").write_bytes(b"")
    server = start()
    add(server, "a")
    assert names_at(server) == ["a"]


def version_1(database: Path, page_size: int = 4096) -> None:
    shell(database, f"PRAGMA page_size = {page_size};" + scripts()[0] + "PRAGMA user_version = 1;" + insert("old"))


def test_database_of_an_older_schema_is_migrated_before_anybody_sees_it(
    start: Callable[[], Server], other: Callable[[], Server], data: Path, tmp_path: Path
) -> None:
    version_1(tmp_path / "old.db")
    server = start()
    add(server, "a")
    server.process.end()
    before = head(data)
    cp(tmp_path / "old.db", data / "app.db")
    again = start()
    assert head(data) == before + 1
    assert names_at(again) == names_at(other()) == ["old"]
    assert shell(data / "app.db", "PRAGMA user_version;").strip() == str(len(scripts()))


def test_database_of_an_older_schema_put_over_the_live_file_is_migrated_before_anybody_sees_it(
    start: Callable[[], Server], data: Path, tmp_path: Path
) -> None:
    version_1(tmp_path / "old.db", page_size=1024)  # others SQLite does not restore into a file in WAL mode
    server = start()
    add(server, "a")
    before = head(data)
    shell(data / "app.db", f".timeout 5000\n.restore {tmp_path / 'old.db'}")
    server.process.wait_for("the changes are the next commit")
    assert names_at(server) == ["old"]
    assert head(data) == before + 1
    assert shell(data / "app.db", "PRAGMA user_version;").strip() == str(len(scripts()))


def test_database_of_an_older_schema_begins_a_log(start: Callable[[], Server], data: Path) -> None:
    data.mkdir()
    version_1(data / "app.db")
    server = start()
    assert names_at(server) == ["old"]
    assert shell(data / "app.db", "PRAGMA user_version;").strip() == str(len(scripts()))


def refused(start_process: StartProcess, **environment: str) -> str:
    process: Process = start_process(sys.executable, "-m", "handler", **TIMER_OFF, **environment)
    assert process.popen.wait(60) == 2
    return process.wait_for("cannot start: .*").group()


@pytest.mark.parametrize("what", ["another program's database", "a text"])
def test_file_of_others_begins_no_log(what: str, start_process: StartProcess, data: Path, tmp_path: Path) -> None:
    data.mkdir()
    SPOILT[what][0](data / "app.db", tmp_path)
    before = (data / "app.db").read_bytes()
    message = refused(start_process)
    assert SPOILT[what][1] in message
    assert str(data / "app.db") in message
    assert (data / "app.db").read_bytes() == before
    assert not list((data / "replica").glob("ltx/0/*"))


def with_a_collation(database: Path, script: str) -> None:
    """By a program that has one which the service has not."""
    with closing(apsw.Connection(str(database))) as connection:
        connection.set_busy_timeout(5000)
        connection.create_collation("german", lambda one, two: (one > two) - (one < two))
        connection.execute(script)


def test_index_that_cannot_be_checked_survives_a_crash(start: Callable[[], Server], data: Path) -> None:
    server = start()
    add(server, "a")
    with_a_collation(data / "app.db", "CREATE TABLE mine (v); CREATE INDEX i ON mine (v COLLATE german)")
    server.process.wait_for("another program's changes of")
    kill(server)
    with_a_collation(data / "app.db", "INSERT INTO mine VALUES ('b')")  # so that all of the file is looked at
    again = start()
    again.process.wait_for("table mine cannot be checked here: no such collation sequence: german")
    assert names_at(again) == ["a"]
    assert errors_of(again) == kept_files(data) == []
    add(again, "c")
    assert names_at(again) == ["a", "c"]


def test_file_that_needs_what_is_not_here_begins_no_log(start_process: StartProcess, data: Path) -> None:
    data.mkdir()
    script = "".join(scripts()) + f"PRAGMA user_version = {len(scripts())};"
    with_a_collation(data / "app.db", script + "CREATE INDEX i ON items (name COLLATE german)")
    message = refused(start_process)
    assert "Table items cannot be read and written: it needs the collation german, which is not here" in message


def litestream_replicates(source: Path, url: str) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"}
    binary = str(Path(sys.executable).with_name("litestream"))
    command = [binary, "replicate", str(source), url]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def commits_in(log: Path) -> list[Path]:
    return sorted((log / "ltx" / "0").glob("*.ltx"))


def test_log_of_another_program_is_refused(start_process: StartProcess, data: Path, tmp_path: Path) -> None:
    url = (tmp_path / "theirs").as_uri()
    shell(tmp_path / "theirs.db", "PRAGMA journal_mode = wal; CREATE TABLE theirs (v); INSERT INTO theirs VALUES (1);")
    with litestream_replicates(tmp_path / "theirs.db", url) as process:
        try:
            until(lambda: bool(commits_in(tmp_path / "theirs")))
            before = commits_in(tmp_path / "theirs")
            message = refused(start_process, REPLICA_URL=url)
            assert url in message
            assert "not a database of this service" in message
            assert commits_in(tmp_path / "theirs") == before  # the other program itself merges them meanwhile
            assert not list((tmp_path / "theirs").rglob("create-if-absent*"))
        finally:
            process.terminate()


def test_log_that_another_program_writes_is_refused_until_a_prefix_of_its_own(
    start: Callable[[], Server], start_server: StartServer, start_process: StartProcess, data: Path, tmp_path: Path
) -> None:
    """Somebody replicates the service's own database, by Litestream, to where the service is to keep its log."""
    server = start()
    add(server, "a")
    server.process.end()
    shutil.copy(data / "app.db", tmp_path / "copy.db")
    url = (tmp_path / "theirs").as_uri()
    with litestream_replicates(tmp_path / "copy.db", url) as process:
        try:
            until(lambda: bool(list((tmp_path / "theirs").rglob("*.ltx"))))
        finally:
            process.terminate()
    fresh = tmp_path / "fresh" / "app.db"
    message = refused(start_process, REPLICA_URL=url, DATABASE_PATH=str(fresh))
    assert f"{url} is being written by another program" in message
    backups = tmp_path / "backups"
    maintenance = start_process(
        sys.executable,
        "-m",
        "infra",
        "maintain",
        REPLICA_URL=url,
        BACKUP_URL=backups.as_uri(),
        DATABASE_PATH=str(fresh),
    )
    assert maintenance.popen.wait(60) == 1  # or its newest backup would be of what nobody serves
    maintenance.wait_for("is being written by another program")
    assert not list(backups.glob("*.gz"))
    subprocess.run(
        [str(Path(sys.executable).with_name("litestream")), "restore", "-o", str(tmp_path / "new" / "app.db"), url],
        check=True,
        capture_output=True,
    )
    taken_over = start_server(
        **TIMER_OFF, DATABASE_PATH=str(tmp_path / "new" / "app.db"), REPLICA_URL=(tmp_path / "new" / "log").as_uri()
    )
    assert names_at(taken_over) == ["a"]
