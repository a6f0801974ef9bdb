"""A server's file that outlives it, and what others do to it meanwhile."""

import logging
import os
import resource
import shutil
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import apsw
import peewee
import pytest

from core.errors import DatabaseDamaged, DatabaseLocked, DatabaseUnavailable, LogDamaged
from infra.clock import Clock
from infra.commitlog.at_rest.publish import publish_file
from infra.commitlog.chain import Position
from infra.commitlog.file_state import state_of
from infra.commitlog.group import Write
from infra.commitlog.log import open_log
from infra.commitlog.position_file import Note, PositionFile
from infra.commitlog.raw_file import RawFile, page_size_of
from infra.commitlog.wal import WalEnd
from infra.storage.object_store import ObjectStore
from tests.conftest import spoiled
from tests.infra.commitlog.conftest import Instance, ManualClock, StartInstance, WatchedStore, log_over, stored_in

Server = Callable[[], Instance]


@pytest.fixture
def server(start: StartInstance, file_url: str) -> Server:
    return lambda: start("server", file_url, lasting=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "server" / "app.db"


@pytest.fixture
def stopped(server: Server) -> Instance:
    """Two rows, cleanly stopped."""
    instance = server()
    instance.sql("CREATE TABLE t (v)")
    instance.sql("INSERT INTO t VALUES (1)")
    instance.sql("INSERT INTO t VALUES (2)")
    instance.replica.close()
    return instance


def edit(path: Path, *statements: str) -> None:
    connection = apsw.Connection(str(path))
    for statement in statements:
        connection.execute(statement).fetchall()
    connection.close()


def crash(instance: Instance, directory: Path) -> None:
    """The files as a kill -9 leaves them."""
    saved = directory / "saved"
    shutil.copytree(instance.path.parent, saved)
    instance.replica.close()
    shutil.rmtree(instance.path.parent)
    saved.rename(instance.path.parent)


def test_clean_stop_is_trusted_when_the_log_has_that_very_commit(server: Server, stopped: Instance) -> None:
    again = server()
    assert again.rows() == [1, 2]
    txid = stopped.replica.visible.txid
    names = [(verb, name[-20:]) for verb, name in again.store.requests]
    newest, next_one = (f"{number:016x}.ltx" for number in (txid, txid + 1))
    assert names == [("read_end", newest), ("read", next_one), ("read_end", newest)]


def test_file_of_another_history_of_the_same_length_is_kept_and_not_served(
    server: Server, stopped: Instance, path: Path, tmp_path: Path, start: StartInstance, file_url: str
) -> None:
    txid = stopped.replica.visible.txid
    (tmp_path / f"replica/ltx/0/{txid:016x}-{txid:016x}.ltx").unlink()
    other = start("other", file_url)
    other.sql("INSERT INTO t VALUES ('theirs')")
    assert other.replica.visible.txid == txid
    again = server()
    again.sql("INSERT INTO t VALUES ('later')")
    assert again.rows() == stored_in(file_url, tmp_path / "out.db") == [1, "later", "theirs"]
    (kept,) = path.parent.glob("*.diverged-*")
    with closing(apsw.Connection(str(kept))) as connection:
        assert connection.execute("SELECT v FROM t").fetchall() == [(1,), (2,)]


def test_file_behind_the_log_catches_up(server: Server, stopped: Instance, start: StartInstance, file_url: str) -> None:
    start("other", file_url).sql("INSERT INTO t VALUES (3)")
    assert server().rows() == [1, 2, 3]


def test_crash_is_no_edit(
    server: Server, tmp_path: Path, start: StartInstance, file_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    instance = server()
    instance.sql("CREATE TABLE t (v)")
    instance.sql("INSERT INTO t VALUES (1)")
    crash(instance, tmp_path)
    start("other", file_url).sql("INSERT INTO t VALUES (2)")
    head = start("reader", file_url).replica.visible
    caplog.set_level(logging.WARNING)
    again = server()
    assert again.rows() == [1, 2]
    assert again.replica.visible == head
    assert caplog.text == ""


def test_lost_wal_costs_nothing(server: Server, tmp_path: Path, path: Path) -> None:
    instance = server()
    instance.sql("CREATE TABLE t (v)")
    for n in range(3):
        instance.sql(f"INSERT INTO t VALUES ({n})")
    crash(instance, tmp_path)
    for suffix in ("-wal", "-shm"):
        path.with_name(f"app.db{suffix}").unlink()
    assert server().rows() == [0, 1, 2]


def test_edit_on_top_of_a_commit_that_a_power_cut_has_torn_takes_nothing_back(
    server: Server, stopped: Instance, tmp_path: Path, path: Path
) -> None:
    instance = server()
    instance.sql("INSERT INTO t VALUES " + ", ".join(f"('{n}' || hex(zeroblob(2000)))" for n in range(10, 20)))
    expected = instance.rows()
    crash(instance, tmp_path)
    wal, second = path.with_name("app.db-wal"), path.with_name("app.db.last-wal")
    second.unlink()
    second.hardlink_to(wal)
    with wal.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(bytes(100))
    edit(path, "VACUUM")  # writes fewer frames than there were, and removes the WAL when it has moved all of it
    assert not wal.exists()
    assert server().rows() == expected


def test_lost_file_is_built_from_the_log(server: Server, stopped: Instance, path: Path) -> None:
    path.unlink()
    assert server().rows() == [1, 2]


def test_edit_while_stopped_becomes_a_commit(
    server: Server, stopped: Instance, path: Path, start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    before = stopped.replica.visible
    edit(path, "DELETE FROM t WHERE v = 1", "INSERT INTO t VALUES (9)", "VACUUM")
    assert server().rows() == [2, 9]
    assert start("other", file_url).rows() == [2, 9]
    old = tmp_path / "old.db"
    open_log(file_url, Clock()).restore(old, before.txid)  # history keeps both
    connection = apsw.Connection(str(old))
    assert connection.execute("SELECT v FROM t ORDER BY 1").fetchall() == [(1,), (2,)]
    connection.close()


def test_old_copy_put_in_place_becomes_a_commit(server: Server, stopped: Instance, path: Path, tmp_path: Path) -> None:
    shutil.copy(path, tmp_path / "old.db")
    again = server()
    again.sql("INSERT INTO t VALUES (3)")
    again.replica.close()
    shutil.copy(tmp_path / "old.db", path)
    third = server()
    assert third.rows() == [1, 2]
    assert third.replica.visible.txid == again.replica.visible.txid + 1


def test_old_copy_put_beside_a_newer_wal_is_no_commit(
    server: Server, stopped: Instance, path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit(path, "CREATE TABLE u (v)", "INSERT INTO u VALUES (zeroblob(50000))")
    old = tmp_path / "old.db"
    server().replica.close()
    shutil.copy(path, old)
    instance = server()
    instance.sql("DROP TABLE u")
    instance.replica.close()
    instance = server()
    for n in range(3, 6):
        instance.sql(f"INSERT INTO t VALUES ({n})")
    instance.replica.file.checkpoint()
    instance.sql("INSERT INTO t VALUES (6)")
    crash(instance, tmp_path)
    shutil.copy(old, path)
    again = server()
    assert again.rows() == [1, 2, 3, 4, 5, 6]
    assert again.replica.visible == instance.replica.visible
    assert list(path.parent.glob("app.db.diverged-*"))
    assert "kept as" in caplog.text


def test_both_changed_the_log_wins_and_the_file_is_kept(
    server: Server,
    stopped: Instance,
    path: Path,
    start: StartInstance,
    file_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    edit(path, "INSERT INTO t VALUES ('mine')")
    start("other", file_url).sql("INSERT INTO t VALUES ('theirs')")
    assert server().rows() == [1, 2, "theirs"]
    (kept,) = path.parent.glob("app.db.diverged-*")
    connection = apsw.Connection(str(kept))
    assert connection.execute("SELECT v FROM t").fetchall() == [(1,), (2,), ("mine",)]
    connection.close()
    assert "both changed" in caplog.text


def test_file_without_a_log_is_its_first_commit(
    server: Server, path: Path, start: StartInstance, file_url: str
) -> None:
    path.parent.mkdir()
    edit(path, "PRAGMA page_size = 8192", "CREATE TABLE t (v)", "INSERT INTO t VALUES ('old')")
    instance = server()
    assert instance.rows() == ["old"]
    assert instance.replica.visible.txid == 1
    assert start("other", file_url).rows() == ["old"]


def test_emptied_log_is_not_begun_anew_by_itself(server: Server, stopped: Instance, path: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "replica" / "ltx")
    with pytest.raises(LogDamaged, match="the log was emptied or REPLICA_URL is wrong"):
        server()
    assert path.exists()


@pytest.mark.parametrize("commits", [0, 3])
def test_another_log_is_not_served_in_its_place(
    server: Server, stopped: Instance, start: StartInstance, path: Path, file_url: str, tmp_path: Path, commits: int
) -> None:
    """Replaced while nobody ran, or REPLICA_URL is wrong: also when the other one is the longer."""
    shutil.rmtree(tmp_path / "replica" / "ltx")
    other = start("other", file_url)
    other.sql("CREATE TABLE t (v)")
    for n in range(commits):
        other.sql(f"INSERT INTO t VALUES ('theirs {n}')")
    with pytest.raises(LogDamaged, match="or REPLICA_URL is wrong"):
        server()
    assert not list(path.parent.glob("app.db.diverged-*"))
    for name in ("app.db", "app.db.position"):
        path.with_name(name).unlink()
    assert server().rows() == other.rows()


def test_emptied_log_is_begun_anew_when_somebody_says_so(
    server: Server, stopped: Instance, path: Path, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "replica" / "ltx")
    path.with_name("app.db.position").unlink()
    assert server().rows() == [1, 2]


@pytest.mark.parametrize("page_size", [512, 4096])
def test_file_with_pages_of_another_size_is_given_those_of_the_log(
    server: Server, stopped: Instance, path: Path, file_url: str, tmp_path: Path, page_size: int
) -> None:
    other = tmp_path / "other.db"
    edit(other, f"PRAGMA page_size = {page_size}", "CREATE TABLE t (v)", "INSERT INTO t VALUES (3)")
    shutil.copy(other, path)
    again = server()
    again.sql("INSERT INTO t VALUES (4)")
    assert again.rows() == stored_in(file_url, tmp_path / "out.db") == [3, 4]
    again.replica.close()
    publish_file(other, open_log(file_url, Clock()), Clock())
    assert server().rows() == stored_in(file_url, tmp_path / "out.db") == [3]
    assert page_size_of(path) == page_size_of(tmp_path / "out.db") == 1024


def test_file_that_cannot_be_given_the_pages_of_the_log_is_kept(server: Server, stopped: Instance, path: Path) -> None:
    with closing(apsw.Connection(str(path))) as connection:
        connection.create_scalar_function("german", lambda *values: values[0], deterministic=True)
        for statement in ("journal_mode = delete", "page_size = 4096"):
            connection.execute(f"PRAGMA {statement}").fetchall()
        connection.execute("CREATE INDEX by_german ON t (german(v)); VACUUM")
    assert server().rows() == [1, 2]
    [kept] = path.parent.glob("app.db.diverged-*")
    assert page_size_of(kept) == 4096


def test_damaged_file_never_becomes_history(
    server: Server, stopped: Instance, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:1024] + b"\xff" * 4096)
    again = server()
    assert again.rows() == [1, 2]
    assert again.replica.visible == stopped.replica.visible
    assert list(path.parent.glob("app.db.diverged-*"))
    assert f"{path} is damaged" in caplog.text


def test_file_that_ends_in_the_middle_of_a_page_never_becomes_history(
    server: Server, path: Path, file_url: str, tmp_path: Path
) -> None:
    """SQLite reads zeros for the rest, and of an empty index there is nothing else there."""
    instance = server()
    instance.sql("CREATE TABLE t (v UNIQUE)")
    instance.replica.close()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 100)
    with pytest.raises(DatabaseDamaged, match="ends in the middle of a page"):
        publish_file(path, open_log(file_url, Clock()), Clock())
    with pytest.raises(DatabaseDamaged, match="ends in the middle of a page"):
        publish_file(path, open_log((tmp_path / "empty").as_uri(), Clock()), Clock())
    again = server()
    again.sql("INSERT INTO t VALUES (1)")
    assert again.replica.visible.txid == instance.replica.visible.txid + 1
    assert stored_in(file_url, tmp_path / "out.db") == [1]


def damage_unseen(path: Path, begin: int = 1024) -> None:
    """From this byte on, as a failing disk does: nothing else tells of it, and no lock is lost."""
    status = path.stat()
    with RawFile(path) as file:
        file.seek(begin)
        file.write(b"\xff" * (status.st_size - begin))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture
def fresh(server: Server, start: StartInstance, file_url: str, tmp_path: Path) -> Instance:
    """A server that has read nothing of its file yet."""
    instance = server()
    instance.sql("CREATE TABLE t (v)")
    start("other", file_url).sql("INSERT INTO t VALUES (1)")
    instance.replica.catch_up()
    return instance


@pytest.mark.parametrize("wal", [False, True])
def test_live_file_that_is_found_damaged_is_built_anew_and_nothing_is_lost(
    fresh: Instance, path: Path, tmp_path: Path, file_url: str, caplog: pytest.LogCaptureFixture, wal: bool
) -> None:
    before = fresh.replica.visible.txid
    if wal:
        fresh.write(lambda db: db.execute_sql("CREATE TABLE u (v)"))
        before += 1
    damage_unseen(path)
    writes = [Write(lambda db, n=n: db.execute_sql(f"INSERT INTO t VALUES ({n})")) for n in (2, 3)]  # type: ignore[misc]
    fresh.replica.write_together(writes, 10)
    assert [write.error for write in writes] == [None, None]
    assert fresh.rows() == stored_in(file_url, tmp_path / "out.db") == [1, 2, 3]
    assert fresh.replica.visible.txid == before + 1
    assert list(path.parent.glob("app.db.diverged-*"))
    assert [record.levelname for record in caplog.records if "damaged while the service runs" in record.message] == [
        "ERROR"
    ]
    fresh.replica.close()
    with closing(apsw.Connection(str(path))) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_nothing_is_committed_together_with_a_request_that_has_found_damage(fresh: Instance) -> None:
    before = fresh.replica.visible.txid
    finds = iter([apsw.CorruptError("database disk image is malformed")])

    def read(db: peewee.Database) -> Any:
        for error in finds:
            raise error
        return db.execute_sql("SELECT v FROM t").fetchall()

    writes = [Write(lambda db: db.execute_sql("INSERT INTO t VALUES (2)")), Write(read)]
    fresh.replica.write_together(writes, 10)
    assert [write.error for write in writes] == [None, None]
    assert writes[1].result == [(1,), (2,)]
    assert fresh.replica.visible.txid == before + 1


def test_damage_that_is_found_while_a_shells_work_is_stored_is_mended(fresh: Instance, path: Path) -> None:
    damage_unseen(path, 100)
    with pytest.raises(DatabaseDamaged):
        fresh.replica.watch(fresh.clock.now())
    fresh.replica.watch(fresh.clock.now())
    assert fresh.rows() == [1]


def test_what_is_done_outside_of_transactions_finds_damage_as_well(fresh: Instance, path: Path) -> None:
    damage_unseen(path)
    fresh.replica.run_alone(lambda db: db.execute_sql("VACUUM"), 10)
    assert fresh.rows() == [1]


def test_suspicion_is_looked_into_while_nobody_asks_for_anything(fresh: Instance, path: Path) -> None:
    damage_unseen(path)
    assert fresh.replica.suspect()
    assert not fresh.replica.is_fresh(float("-inf"))
    assert not fresh.replica.is_current()
    with pytest.raises(DatabaseUnavailable, match="brought in order"):
        fresh.rows()
    fresh.replica.watch(fresh.clock.now())
    assert fresh.rows() == [1]
    assert fresh.replica.is_fresh(float("-inf"))


def test_damage_that_building_anew_does_not_mend_is_an_error_and_looked_into_once_a_minute(fresh: Instance) -> None:
    runs = 0

    def damaged(db: peewee.Database) -> None:
        nonlocal runs
        runs += 1
        raise apsw.CorruptError("database disk image is malformed")

    for wait, expected in ((0, 2), (59, 3), (1, 5)):
        fresh.clock.seconds += wait
        with pytest.raises(DatabaseDamaged):
            fresh.write(damaged)
        assert runs == expected
        assert fresh.rows() == [1]


def test_stop_does_not_vouch_for_a_file_that_was_found_damaged(fresh: Instance, server: Server, path: Path) -> None:
    damage_unseen(path)
    fresh.replica.suspect()
    fresh.replica.close()
    assert server().rows() == [1]


def test_damaged_file_without_a_log_is_an_error(server: Server, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(DatabaseDamaged):
        server()
    assert path.exists()


def test_changes_of_another_program_are_in_the_log_after_its_checkpoint(
    server: Server, path: Path, start: StartInstance, file_url: str
) -> None:
    instance = server()
    instance.sql("CREATE TABLE t (v)")
    edit(path, "INSERT INTO t VALUES ('appended')")
    instance.sql("INSERT INTO t VALUES (1)")
    assert start("b", file_url).rows() == [1, "appended"]
    edit(path, "INSERT INTO t VALUES ('moved')", "PRAGMA wal_checkpoint(TRUNCATE)", "INSERT INTO t VALUES ('after')")
    instance.sql("INSERT INTO t VALUES (2)")
    assert instance.rows() == start("c", file_url).rows() == [1, 2, "after", "appended", "moved"]


def test_shell_that_stays_open_does_not_stop_the_service(
    server: Server, path: Path, start: StartInstance, file_url: str
) -> None:
    instance = server()
    instance.sql("CREATE TABLE t (v)")
    shell = apsw.Connection(str(path))
    for statement in ("INSERT INTO t VALUES ('shell')", "PRAGMA wal_checkpoint(TRUNCATE)", "VACUUM"):
        shell.execute(statement).fetchall()
    instance.sql("INSERT INTO t VALUES (1)")
    assert start("b", file_url).rows() == [1, "shell"]
    shell.close()


def test_file_in_use_is_not_patched(server: Server, path: Path, start: StartInstance, file_url: str) -> None:
    instance = server()
    instance.sql("CREATE TABLE t (v)")
    shell = apsw.Connection(str(path))
    shell.execute("SELECT * FROM t").fetchall()
    start("other", file_url).sql("INSERT INTO t VALUES (1)")
    with pytest.raises(DatabaseLocked, match="open in another program"):
        instance.fresh_rows()
    shell.close()
    assert instance.fresh_rows() == [1]


def test_torn_note_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    path.write_bytes(b"x")
    notes = PositionFile(path)
    assert notes.read() is None
    notes.write(Note(Position(1, 2, 3), 1, closed=state_of(path)))
    notes.write(Note(Position(2, 2**64 - 1, 3), 1, WalEnd(9, bytes(range(24)))))
    notes.close()
    assert PositionFile(path).read() == Note(Position(2, 2**64 - 1, 3), 1, WalEnd(9, bytes(range(24))))
    content = bytearray(notes.path.read_bytes())
    content[40] ^= 1
    notes.path.write_bytes(content)
    assert PositionFile(path).read() == Note(Position(1, 2, 3), 1, closed=state_of(path))
    notes.path.write_bytes(b"garbage")
    assert PositionFile(path).read() is None


def test_published_file_is_the_next_commit_whatever_others_write(
    stopped: Instance, path: Path, start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    old = tmp_path / "old.db"
    shutil.copy(path, old)
    other = start("other", file_url)
    other.sql("INSERT INTO t VALUES ('later')")
    shutil.copy(old, path)
    clock = ManualClock()
    store = WatchedStore(ObjectStore(file_url))
    others = iter(["once"])

    def interfere(verb: str, name: str) -> None:
        if verb == "create" and name.startswith("ltx") and next(others, None):
            other.sql("INSERT INTO t VALUES ('in between')")

    store.before = interfere
    before, position = publish_file(path, log_over(store, clock), clock)
    assert before == other.replica.visible
    assert position.txid == other.replica.visible.txid + 1
    assert other.fresh_rows() == [1, 2]
    assert start("server", file_url, lasting=True).replica.visible == position


def test_file_torn_by_a_crash_while_catching_up_is_built_anew(
    server: Server,
    tmp_path: Path,
    start: StartInstance,
    file_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    instance = server()
    instance.sql("CREATE TABLE t (v)")
    start("other", file_url).sql("INSERT INTO t VALUES (zeroblob(20000))", "INSERT INTO t VALUES (1)")
    saved = tmp_path / "saved"

    def crash_half_way(file: Any, header: Any, pages: Any, before: int) -> None:
        for number, page in islice(pages, 2):
            file.seek((number - 1) * header.page_size)
            file.write(page)
        shutil.copytree(instance.path.parent, saved)
        raise OSError("no more")

    with monkeypatch.context() as patch:
        patch.setattr("infra.commitlog.raw_file.write_pages", crash_half_way)
        with pytest.raises(DatabaseUnavailable):
            instance.fresh_rows()
    instance.replica.close()
    shutil.rmtree(instance.path.parent)
    saved.rename(instance.path.parent)
    again = server()
    assert len(again.rows()) == 2
    assert "was left in the middle of a change" in caplog.text  # its note says so, and nobody need guess
    assert not list(again.path.parent.glob("app.db.diverged-*"))


def test_database_that_shrank_elsewhere_shrinks_here(server: Server, start: StartInstance, file_url: str) -> None:
    instance = server()
    instance.sql("CREATE TABLE t (v)")
    instance.sql("INSERT INTO t VALUES (zeroblob(100000))")
    other = start("other", file_url)
    other.sql("DELETE FROM t")
    other.replica.run_alone(lambda db: db.execute_sql("VACUUM"), 10.0)
    instance.fresh_rows()
    assert instance.path.stat().st_size < 20_000
    assert instance.rows("PRAGMA integrity_check") == ["ok"]


BIG = "INSERT INTO t VALUES (hex(zeroblob(30000)))"


def test_changes_of_another_program_before_a_clean_stop_are_a_commit(
    server: Server, path: Path, file_url: str, tmp_path: Path
) -> None:
    instance = server()
    instance.sql("CREATE TABLE t (v)")
    edit(path, BIG)
    instance.replica.close()
    again = server()
    again.sql("INSERT INTO t VALUES (2)")
    assert again.rows() == stored_in(file_url, tmp_path / "out.db") == [2, "0" * 60000]


def test_changes_that_another_program_checkpointed_are_a_commit_before_the_wal_begins_anew(
    server: Server, path: Path, file_url: str, tmp_path: Path
) -> None:
    instance = server()
    instance.sql("CREATE TABLE t (v)")
    edit(path, BIG, "PRAGMA wal_checkpoint")
    instance.sql("INSERT INTO t VALUES (2)")
    instance.sql("INSERT INTO t VALUES (3)")
    assert instance.rows() == stored_in(file_url, tmp_path / "out.db") == [2, 3, "0" * 60000]


def test_changes_of_another_program_are_not_mixed_with_those_of_another_instance(
    server: Server, path: Path, start: StartInstance, file_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    instance = server()
    instance.sql("CREATE TABLE t (v)")
    edit(path, BIG)
    start("other", file_url).sql("CREATE TABLE mine (z)", "INSERT INTO mine VALUES (hex(randomblob(9000)))")
    instance.fresh_rows()
    instance.sql("INSERT INTO t VALUES (2)")
    assert instance.rows() == stored_in(file_url, tmp_path / "out.db") == [2]
    assert list(path.parent.glob("app.db.diverged-*"))
    assert "both changed" in caplog.text


def test_image_that_is_not_in_wal_mode_can_be_opened(
    server: Server, stopped: Instance, path: Path, start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    """A backup that was copied beside a WAL: SQLite takes it for a file in WAL mode, whatever it says itself."""
    old = tmp_path / "old.db"
    shutil.copy(path, old)
    edit(old, "PRAGMA journal_mode = delete")
    instance = server()
    instance.sql("INSERT INTO t VALUES (3)")
    shutil.copy(f"{path}-wal", tmp_path / "wal")
    instance.replica.close()
    shutil.copy(old, path)
    shutil.copy(tmp_path / "wal", f"{path}-wal")
    again = server()
    assert again.rows() == start("other", file_url).rows() == [1, 2, 3]
    again.replica.close()
    # and one that another writer of this format has put into the log
    edit(path, "PRAGMA journal_mode = delete")
    page_size = page_size_of(path)
    page = path.read_bytes()[:page_size]
    log = open_log(file_url, Clock())
    head = again.replica.visible
    log.append(head, page_size, path.stat().st_size // page_size, [(1, page)], Clock().now() + 10)
    for name in ("new", "server"):
        instance = start(name, file_url, lasting=True)
        instance.sql(f"INSERT INTO t VALUES ('{name}')")
    assert instance.rows() == stored_in(file_url, tmp_path / "out.db") == [1, 2, 3, "new", "server"]


def test_start_that_fails_leaves_no_scratch_behind(
    server: Server, stopped: Instance, path: Path, tmp_path: Path
) -> None:
    edit(path, "INSERT INTO t VALUES (3)")
    newest = max((tmp_path / "replica/ltx/0").iterdir())
    newest.write_bytes(spoiled(newest.read_bytes()))
    with pytest.raises(LogDamaged):
        server()
    assert [left.name for left in path.parent.iterdir() if left.name.startswith("app.db.")] == ["app.db.position"]


def test_kept_file_that_finds_no_room_is_not_left_in_part(
    server: Server, stopped: Instance, path: Path, start: StartInstance, file_url: str
) -> None:
    start("other", file_url).sql("INSERT INTO t VALUES (4)")
    shutil.copy(path, path.with_name("copy.db"))
    edit(path.with_name("copy.db"), "PRAGMA user_version = 7", "CREATE TABLE u AS SELECT randomblob(3000000) AS v")
    shutil.copy(path.with_name("copy.db"), path)
    failed = start("server", file_url, lasting=True, open=False)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, before[1]))
    try:
        with pytest.raises(DatabaseUnavailable, match="File too large"):
            failed.replica.open()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    failed.replica.close()
    assert list(path.parent.glob("*.diverged-*")) == []
    assert server().rows() == [1, 2, 4]
    assert len(list(path.parent.glob("*.diverged-*"))) == 1


def test_file_that_does_not_outlive_its_process_has_no_note(tmp_path: Path) -> None:
    position_file = PositionFile(tmp_path / "app.db", lasting=False)
    position_file.note(Position(3, 0, 0, 0))
    position_file.sync()
    position_file.close()
    assert (position_file.read(), position_file.newest.txid, list(tmp_path.iterdir())) == (None, 3, [])
