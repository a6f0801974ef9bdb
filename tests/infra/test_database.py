import asyncio
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import Mock

import apsw
import peewee
import pytest

from core import items, migrations
from core.errors import (
    DatabaseFull,
    DatabaseInUse,
    DatabaseLocked,
    DatabaseUnavailable,
    LogDamaged,
    StoreUnavailable,
    StoreUnreachable,
    TooManyWrites,
)
from core.schemas import ItemQuery, NewItem
from infra.clock import Clock
from infra.commitlog import open_log, publish_file
from infra.commitlog.raw_file import RawFile, page_size_of
from infra.commitlog.upkeep import Compactor
from infra.database import Session
from infra.settings import Settings
from infra.sqlite import write_queue
from infra.sqlite.database import SqliteDatabase, open_sqlite
from infra.sqlite_errors import translated_errors
from infra.storage.object_store import ObjectStore
from tests.conftest import open_at

T = TypeVar("T")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "app.db"


@pytest.fixture
def database(path: Path) -> Iterator[SqliteDatabase]:
    database = open_at(path, READ_FRESHNESS_SECONDS="0")
    yield database
    database.close()


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


def add(db: peewee.Database) -> int:
    return items.create_item(db, NewItem(name="n")).id


def count(db: peewee.Database) -> int:
    return len(items.list_items(db, ItemQuery(limit=100)).items)


def test_connections_keep_the_promised_settings(database: SqliteDatabase) -> None:
    def pragmas(db: peewee.Database) -> list[Any]:
        names = ("journal_mode", "synchronous", "foreign_keys")
        return [db.execute_sql(f"PRAGMA {name}").fetchone()[0] for name in names]

    assert run(database.write(pragmas)) == ["wal", 2, 1]
    assert run(database.read(pragmas)) == ["wal", 2, 1]


def test_reading_connection_cannot_write(database: SqliteDatabase) -> None:
    with pytest.raises(DatabaseUnavailable):
        run(database.read(add))


def test_read_that_finds_the_file_damaged_answers_from_one_that_is_built_anew(
    database: SqliteDatabase, path: Path
) -> None:
    run(database.write(add))
    other = open_at(path.parent / "other" / "app.db", REPLICA_URL=database.log.url)
    run(other.write(add))
    other.close()
    run(database.verify())
    status, page_size = path.stat(), page_size_of(path)
    with RawFile(path) as file:
        file.seek(page_size)
        file.write(b"\xff" * (status.st_size - page_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert run(database.read(count)) == 2
    assert list(path.parent.glob("app.db.diverged-*"))


def test_failed_use_case_leaves_nothing_behind(database: SqliteDatabase) -> None:
    def add_and_fail(db: peewee.Database) -> None:
        add(db)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(database.write(add_and_fail))
    assert run(database.read(count)) == 0


def test_reads_do_not_wait_for_a_write_under_way(database: SqliteDatabase) -> None:
    inside, release = threading.Event(), threading.Event()

    def slow(db: peewee.Database) -> None:
        add(db)
        inside.set()
        assert release.wait(10)

    async def scenario() -> tuple[int, int]:
        writing = asyncio.create_task(database.write(slow))
        await asyncio.to_thread(inside.wait, 10)
        before = await database.read(count)
        release.set()
        await writing
        return before, await database.read(count)

    assert run(scenario()) == (0, 1)


def test_locked_database_is_reported_and_then_works_again(database: SqliteDatabase, path: Path) -> None:
    other = apsw.Connection(str(path))
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseLocked):
        run(database.write(add))
    assert run(database.read(count)) == 0
    other.execute("ROLLBACK")
    other.close()
    run(database.write(add))
    assert run(database.read(count)) == 1


def test_waiting_behind_others_counts_against_the_timeout(database: SqliteDatabase, path: Path) -> None:
    other = apsw.Connection(str(path))
    other.execute("BEGIN IMMEDIATE")

    async def all_at_once() -> list[Any]:
        started = asyncio.get_running_loop().time()
        found = await asyncio.gather(*(database.write(add) for _ in range(20)), return_exceptions=True)
        # one after another they would need twenty timeouts
        assert asyncio.get_running_loop().time() - started < 20 * 0.2
        return found

    assert {type(error) for error in run(all_at_once())} == {DatabaseLocked}
    other.close()


def test_busy_reader_tries_again_without_stopping_the_loop(database: SqliteDatabase) -> None:
    attempts = 0

    def busy_at_first(db: peewee.Database) -> str:
        nonlocal attempts
        attempts += 1
        if attempts < 4:
            raise apsw.BusyError
        return "read"

    async def scenario() -> tuple[str, bool]:
        reading = asyncio.create_task(database.read(busy_at_first))
        await asyncio.sleep(0)
        turned = not reading.done()
        return await reading, turned

    assert run(scenario()) == ("read", True)


def test_reader_that_stays_busy_is_told_so(database: SqliteDatabase) -> None:
    def busy(db: peewee.Database) -> None:
        raise apsw.BusyError

    with pytest.raises(DatabaseLocked):
        run(database.read(busy))


def test_file_locked_by_another_program_cannot_be_opened(database: SqliteDatabase, path: Path) -> None:
    # locking_mode=EXCLUSIVE keeps even readers of a WAL database out
    run(database.write(add))
    database.close()
    other = apsw.Connection(str(path))
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN IMMEDIATE")
    other.execute("UPDATE items SET quantity = 1")
    other.execute("COMMIT")
    try:
        with pytest.raises(DatabaseLocked):
            open_at(path, busy_timeout=0.1)
    finally:
        other.close()


@contextmanager
def holding(path: Path, *statements: str) -> Iterator[apsw.Connection]:
    """A shell that has typed this, and does not end its transaction before the body does."""
    with closing(apsw.Connection(str(path))) as shell:
        for statement in statements:
            shell.execute(statement).fetchall()
        yield shell


IMMEDIATE = ("BEGIN IMMEDIATE", "UPDATE items SET quantity = 7")
WROTE_AND_HOLDS = ("UPDATE items SET quantity = 9", "BEGIN IMMEDIATE")


def wait_until(check: Callable[[], None]) -> None:
    """Until it finds no lock, or long enough."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with suppress(DatabaseLocked):
            return check()
        time.sleep(0.01)


def quantities(db: peewee.Database) -> list[int]:
    return [item.quantity for item in items.list_items(db, ItemQuery(limit=100)).items]


@pytest.fixture
def left(path: Path) -> Path:
    """By a clean stop, with one item."""
    with closing(open_at(path)) as database:
        run(database.write(add))
    return path


@pytest.mark.parametrize("held", ["while it runs", "after the stop"])
def test_start_beside_a_lock_serves_reads_and_says_that_writes_are_locked(left: Path, held: str) -> None:
    database = open_at(left)
    run(database.write(add))
    if held == "after the stop":
        database.close()
    with holding(left, *IMMEDIATE) as shell:
        database.close()
        with closing(open_at(left, give_up=Mock())) as again:
            assert run(again.read(quantities)) == [0, 0]
            if held == "while it runs":
                with pytest.raises(DatabaseLocked):
                    again.check_unlocked()
            with pytest.raises(DatabaseLocked):
                run(again.write(add))
            with pytest.raises(DatabaseLocked):
                again.check_unlocked()
            shell.execute("ROLLBACK")
            wait_until(again.check_unlocked)
            again.check_unlocked()
            run(again.write(add))
            assert run(again.read(quantities)) == [0, 0, 0]


def test_what_the_shell_commits_at_last_is_the_next_commit(left: Path) -> None:
    database = open_at(left)
    with holding(left, *IMMEDIATE) as shell:
        database.close()
        with closing(open_at(left, give_up=Mock())) as again:
            shell.execute("COMMIT")
            run(again.write(add))
            assert run(again.read(quantities)) == [7, 0]
            txid = again.txid
    for kept in left.parent.glob("app.db*"):
        kept.unlink()
    with closing(open_at(left)) as rebuilt:
        assert (run(rebuilt.read(quantities)), rebuilt.txid) == ([7, 0], txid)


def test_start_waits_for_a_lock_when_the_file_must_be_settled_first(left: Path) -> None:
    with holding(left, *WROTE_AND_HOLDS) as shell, closing(open_at(left, give_up=Mock())) as database:
        with pytest.raises(DatabaseLocked, match=r"The start waits: .* is held by another program"):
            database.check()
        for use in (database.read(count), database.read_local(count), database.write(add), database.verify()):
            with pytest.raises(DatabaseLocked, match="The start waits"):
                run(use)
        assert "commit_log_txid" not in database.gauges()
        shell.execute("ROLLBACK")
        wait_until(database.check)
        assert run(database.read(quantities)) == [9]
        run(database.write(add))
        assert not list(left.parent.glob("*.diverged-*"))


def test_start_that_was_given_up_while_it_waited_takes_nothing_from_the_shell(left: Path) -> None:
    """What the first try has moved into the file is no other file beside the WAL of a crash."""
    database = open_at(left)
    run(database.write(add))
    crashed = {path: path.read_bytes() for path in left.parent.glob("app.db*")}
    database.close()
    for path, content in crashed.items():
        path.write_bytes(content)
    last_wal = left.with_name("app.db.last-wal")
    last_wal.unlink()
    last_wal.hardlink_to(left.with_name("app.db-wal"))
    with holding(left, *WROTE_AND_HOLDS):
        open_at(left, give_up=Mock()).close()
    with closing(open_at(left)) as again:
        assert run(again.read(quantities)) == [9, 9]
    assert not list(left.parent.glob("*.diverged-*"))


def test_start_that_cannot_go_on_after_the_wait_is_given_up(left: Path) -> None:
    give_up, called = Mock(), threading.Event()
    give_up.side_effect = lambda error: called.set()
    with holding(left, *WROTE_AND_HOLDS) as shell, closing(open_at(left, give_up=give_up)):
        (left.parent / "replica" / "ltx").rename(left.parent / "moved")
        shell.execute("ROLLBACK")
        assert called.wait(20)
    assert isinstance(give_up.call_args.args[0], LogDamaged)


def test_second_owner_is_refused_and_told_who_has_it(database: SqliteDatabase, path: Path) -> None:
    with pytest.raises(DatabaseInUse, match=f"in use by process {os.getpid()}"):
        open_at(path, busy_timeout=0)


def test_lock_of_a_killed_owner_is_free(path: Path) -> None:
    code = f"from pathlib import Path; from tests.conftest import open_at; d = open_at(Path({str(path)!r})); "
    code += "print('open', flush=True); import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as owner:
        assert owner.stdout
        assert owner.stdout.readline() == b"open\n"
        with pytest.raises(DatabaseInUse, match=f"process {owner.pid}"):
            open_at(path, busy_timeout=0)
        owner.send_signal(signal.SIGKILL)
    open_at(path, busy_timeout=0).close()


@pytest.mark.parametrize("act", [Path.unlink, lambda path: path.rename(path.with_suffix(".moved"))])
def test_write_to_a_file_that_was_taken_away_is_refused(database: SqliteDatabase, path: Path, act: Any) -> None:
    run(database.write(add))
    act(path)
    with pytest.raises(
        DatabaseUnavailable, match="removed or replaced while the service runs: move it back, or restart"
    ):
        run(database.write(add))


def test_file_that_was_moved_back_is_served_again(database: SqliteDatabase, path: Path) -> None:
    moved = path.rename(path.with_suffix(".moved"))
    with pytest.raises(DatabaseUnavailable):
        run(database.write(add))
    moved.rename(path)
    run(database.write(add))


def test_disk_error_names_what_failed(tmp_path: Path) -> None:
    path, limits = tmp_path / "app.db", resource.getrlimit(resource.RLIMIT_FSIZE)
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("CREATE TABLE t (a)")
        resource.setrlimit(resource.RLIMIT_FSIZE, (16384, limits[1]))
        try:
            with (
                pytest.raises(DatabaseUnavailable, match=r"disk I/O error \(SQLITE_IOERR_WRITE\)$"),
                translated_errors(path),
            ):
                connection.execute("INSERT INTO t VALUES (zeroblob(100000))")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_damaged_file_is_refused_by_name(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(DatabaseUnavailable, match="is damaged"):
        open_at(path, busy_timeout=0)
    # nothing stays locked behind the failure
    path.unlink()
    open_at(path, busy_timeout=0).close()


def test_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatabaseUnavailable, match="Cannot create the directory"):
        open_at(tmp_path / "file" / "app.db", REPLICA_URL=(tmp_path / "replica").as_uri())


def test_full_disk_is_reported_and_nothing_is_half_written(database: SqliteDatabase) -> None:
    def limit(db: peewee.Database) -> None:
        db.execute_sql(f"PRAGMA max_page_count = {db.execute_sql('PRAGMA page_count').fetchone()[0]}").fetchall()

    def fill(db: peewee.Database) -> None:
        for _ in range(1000):
            items.create_item(db, NewItem(name="n", description="x" * 2000))

    run(database.write(limit))
    with pytest.raises(DatabaseFull, match="free disk space"):
        run(database.write(fill))
    assert run(database.read(count)) == 0


def test_closing_moves_the_wal_into_the_file(path: Path) -> None:
    database = open_at(path, busy_timeout=0)
    run(database.write(add))
    assert database.gauges()["database_wal_size_bytes"] > 0
    database.close()
    database.close()
    assert not path.with_name("app.db-wal").exists()
    with apsw.Connection(str(path)) as connection:
        assert connection.execute("SELECT count(*) FROM items").fetchall() == [(1,)]
    connection.close()


def test_one_question_to_the_store_answers_all_reads_that_wait(
    database: SqliteDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    read = ObjectStore.read

    def count_reads(store: ObjectStore, name: str) -> Iterator[bytes]:
        asked.append(name)
        return read(store, name)

    monkeypatch.setattr(ObjectStore, "read", count_reads)

    async def scenario() -> list[int]:
        return await asyncio.gather(*(database.read(count) for _ in range(50)))

    assert run(scenario()) == [0] * 50
    assert 1 <= len(asked) <= 3


def test_failed_question_fails_the_reads_that_wait_and_no_others(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = open_at(path, READ_FRESHNESS_SECONDS="0")

    def fail(*arguments: object) -> None:
        raise StoreUnavailable("away")

    async def scenario() -> list[Any]:
        return await asyncio.gather(*(database.read(count) for _ in range(5)), return_exceptions=True)

    with monkeypatch.context() as patch:
        for verb in ("read", "read_range", "read_end", "directories"):
            patch.setattr(ObjectStore, verb, fail)
        assert {type(error) for error in run(scenario())} == {StoreUnavailable}
    assert run(scenario()) == [0] * 5
    database.close()


class HeldStore:
    """The real store, whose creates wait until they are let through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.gate = threading.Event(), threading.Event()
        create = ObjectStore.create

        def held(store: ObjectStore, *arguments: Any) -> None:
            self.reached.set()
            assert self.gate.wait(10)
            create(store, *arguments)

        monkeypatch.setattr(ObjectStore, "create", held)


def test_writes_that_wait_share_the_next_commit(database: SqliteDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    store = HeldStore(monkeypatch)
    before = database.txid

    async def scenario() -> list[Session]:
        sessions = [Session() for _ in range(100)]
        first = asyncio.create_task(database.write(add, sessions[0]))
        await asyncio.to_thread(store.reached.wait, 10)
        others = [asyncio.create_task(database.write(add, session)) for session in sessions[1:]]
        await asyncio.sleep(0)
        assert database.gauges()["database_writes_waiting"] == 99
        assert await database.read_local(count) == 0  # and reads go on
        store.gate.set()
        assert len({await task for task in (first, *others)}) == 100
        return sessions

    assert [session.shown - before for session in run(scenario())] == [1] + [2] * 99
    assert run(database.read(count)) == 100


def test_write_that_the_event_loop_is_about_to_hand_over_is_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was just answered asks again: without that, two halves of the callers take turns, at twice the cost."""
    monkeypatch.setattr(write_queue, "_GATHER_SECONDS", 60.0)
    database = open_at(path, busy_timeout=60)
    before = database.txid

    def wait_until_it_is_taken() -> None:
        while database.gauges()["database_writes_waiting"]:
            time.sleep(0.001)

    async def add_another() -> None:
        wait_until_it_is_taken()
        await database.write(add)

    async def main() -> None:
        await asyncio.gather(database.write(add), add_another())

    run(main())
    assert (database.txid, run(database.read(count))) == (before + 1, 2)
    database.close()


def test_event_loop_that_is_busy_keeps_no_write_waiting(path: Path) -> None:
    database, has_run = open_at(path, busy_timeout=60), threading.Event()

    async def main() -> None:
        writing = asyncio.create_task(database.write(lambda db: has_run.set()))
        await asyncio.sleep(0)
        assert has_run.wait(60)
        await writing

    run(main())
    database.close()


def test_write_beyond_the_limit_of_the_queue_is_refused_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = open_at(path, WRITE_QUEUE_LIMIT="3")
    store = HeldStore(monkeypatch)

    async def scenario() -> list[Any]:
        tasks = [asyncio.create_task(database.write(add))]
        await asyncio.to_thread(store.reached.wait, 10)
        tasks += [asyncio.create_task(database.write(add)) for _ in range(5)]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        refused = [task.exception() for task in done]
        store.gate.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        return refused

    assert [type(error) for error in run(scenario())] == [TooManyWrites] * 2
    assert run(database.read(count)) == 4
    database.close()


def test_write_that_nobody_waits_for_any_more_is_not_begun(
    database: SqliteDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = HeldStore(monkeypatch)

    async def scenario() -> None:
        first = asyncio.create_task(database.write(add))
        await asyncio.to_thread(store.reached.wait, 10)
        second, third = (asyncio.create_task(database.write(add)) for _ in range(2))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.sleep(0)
        store.gate.set()
        await asyncio.gather(first, third)

    run(scenario())
    assert run(database.read(count)) == 2


def test_what_is_queued_is_stored_before_the_database_closes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = open_at(path)
    store = HeldStore(monkeypatch)

    async def scenario() -> list[int]:
        tasks = [asyncio.create_task(database.write(add)) for _ in range(20)]
        await asyncio.to_thread(store.reached.wait, 10)
        closing = asyncio.create_task(asyncio.to_thread(database.close))
        await asyncio.sleep(0.01)
        store.gate.set()
        await closing
        return await asyncio.gather(*tasks)

    assert len(run(scenario())) == 20
    database = open_at(path)
    assert run(database.read(count)) == 20
    database.close()


def test_fault_of_the_code_below_is_heard_of_by_everyone_who_waits(
    database: SqliteDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> list[Any]:
        return await asyncio.gather(*(database.write(add) for _ in range(3)), return_exceptions=True)

    with monkeypatch.context() as patch:
        for fault in (ZeroDivisionError, SystemExit):
            patch.setattr(database._replica, "write_together", Mock(side_effect=fault))
            assert [type(error.__cause__) for error in run(scenario())] == [fault] * 3
    assert run(database.write(add)) == 1


def test_vacuum_runs_outside_of_transactions(database: SqliteDatabase) -> None:
    run(database.write(add))
    before = database.txid
    run(database.write_alone(lambda db: db.execute_sql("VACUUM").fetchall()))
    assert database.txid == before + 1
    assert run(database.read(count)) == 1


def test_work_of_another_program_is_noticed_by_an_idle_server(path: Path) -> None:
    database = open_at(path)
    before = database.txid
    with apsw.Connection(str(path)) as other:
        other.execute("CREATE TABLE mine (v)")
    other.close()
    deadline = time.monotonic() + 10
    while database.txid == before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert database.txid == before + 1
    database.close()


def test_store_that_is_away_while_another_program_writes_is_reported_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    database = open_at(path)
    tries = []

    def fail(*arguments: object) -> None:
        tries.append(1)
        raise StoreUnreachable("away")

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "create", fail)
        with apsw.Connection(str(path)) as other:
            other.execute("CREATE TABLE mine (v)")
        other.close()
        deadline = time.monotonic() + 10
        while len(tries) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    database.close()
    assert caplog.text.count("cannot be brought in order with its log now: away") == 1
    again = open_at(path)
    assert run(again.read(lambda db: db.table_exists("mine")))
    again.close()


def test_closed_database_says_so(path: Path) -> None:
    database = open_at(path, READ_FRESHNESS_SECONDS="0")
    database.close()
    for use in (database.write(add), database.write_alone(add), database.read(count)):
        with pytest.raises(DatabaseUnavailable, match="The database is closed"):
            run(use)


def test_work_of_another_program_is_noticed_under_steady_reads(path: Path) -> None:
    database = open_at(path, READ_FRESHNESS_SECONDS="0")
    before = database.txid
    with apsw.Connection(str(path)) as other:
        other.execute("CREATE TABLE mine (v)")
    other.close()

    async def read_until_stored() -> None:
        deadline = time.monotonic() + 10
        while database.txid == before and time.monotonic() < deadline:
            await database.read(count)
            await asyncio.sleep(0.01)

    run(read_until_stored())
    assert database.txid == before + 1
    database.close()


def test_older_file_that_the_migration_cannot_take_is_kept_and_the_log_served(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = migrations.scripts()
    monkeypatch.setattr(migrations, "schema_after", migrations.schema_after.__wrapped__)
    monkeypatch.setattr(migrations, "scripts", lambda: [*known, "CREATE UNIQUE INDEX one ON items (name)"])
    open_at(path).close()
    path.unlink()
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("".join(known) + f"PRAGMA user_version = {len(known)}")
        for _ in range(2):
            connection.execute("INSERT INTO items (name, created_at, updated_at) VALUES ('same', '', '')")
    with closing(open_at(path)) as database:
        assert run(database.read(count)) == 0
    assert len(list(path.parent.glob("app.db.diverged-*"))) == 1


# A function's file, which is opened page by page


def test_snapshot_from_before_a_migration_is_not_migrated_again(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, clock, image = (tmp_path / "log").as_uri(), Clock(), tmp_path / "old.db"
    with closing(apsw.Connection(str(image))) as connection:
        connection.execute(migrations.scripts()[0] + "PRAGMA user_version = 1")
    log = open_log(url, clock)
    _, position = publish_file(image, log, clock)
    Compactor(log, ObjectStore(url), clock).store_snapshot(image, position, tmp_path)
    open_at(path, REPLICA_URL=url).close()  # which migrates it
    monkeypatch.setattr("infra.sqlite.database.migrate", Mock(side_effect=AssertionError))
    settings = {"DATABASE_PATH": str(tmp_path / "function" / "app.db"), "REPLICA_URL": url, "PAGED_ABOVE_MB": "always"}
    with closing(open_sqlite(Settings.from_environment(settings), lasting=False)) as function:
        assert run(function.read(migrations.schema_version)) == len(migrations.scripts())
