"""What the SQLite shell does to the file of a running server."""

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import apsw
import pytest

from core.errors import CommitNotStored, DatabaseLocked, NotServed, StoreUnreachable
from infra.__main__ import main
from infra.clock import Clock
from infra.commitlog import open_file
from infra.commitlog.at_rest import file_commit
from infra.commitlog.at_rest.kept import KeptFiles
from infra.commitlog.at_rest.local_file import LocalFile
from infra.commitlog.log import open_log
from infra.commitlog.raw_file import differing_pages
from infra.commitlog.replica import Replica, Write
from tests.infra.commitlog.conftest import Instance, StartInstance, litestream_restore, stored_in

Shell = Callable[..., list[Any]]
BIG = "INSERT INTO t VALUES (hex(zeroblob(30000)))"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "server" / "app.db"


@pytest.fixture
def server(start: StartInstance, file_url: str) -> Instance:
    instance = start("server", file_url, lasting=True)
    instance.sql("CREATE TABLE t (v)")
    instance.sql("INSERT INTO t VALUES (0)")
    return instance


@pytest.fixture
def shell(server: Instance, path: Path) -> Iterator[Shell]:
    """Stays open, so that nothing is moved into the file by its end."""
    with closing(apsw.Connection(str(path))) as connection:

        def run(*statements: str) -> list[Any]:
            return [connection.execute(statement).fetchall() for statement in statements][-1]

        yield run


def watch(server: Instance) -> None:
    server.replica.watch(server.clock.now())


def check_file_is_the_log(server: Instance, url: str, tmp_path: Path) -> None:
    server.replica.close()
    assert not server.path.with_name("app.db-wal").exists()
    restored = tmp_path / "restored.db"
    open_log(url, Clock()).restore(restored)
    assert restored.read_bytes() == server.path.read_bytes()
    assert litestream_restore(url, tmp_path / "litestream.db").read_bytes() == server.path.read_bytes()


# In the log


def test_it_is_in_the_log_though_no_request_writes(
    server: Instance, shell: Shell, file_url: str, tmp_path: Path
) -> None:
    before = server.replica.visible.txid
    shell("INSERT INTO t VALUES (1)", "INSERT INTO t VALUES (2)")
    watch(server)
    assert server.replica.visible.txid == before + 1
    assert server.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 1, 2]
    watch(server)
    assert server.replica.visible.txid == before + 1


def test_it_shares_no_commit_with_a_request_that_comes_later(
    server: Instance, shell: Shell, file_url: str, tmp_path: Path
) -> None:
    before = server.replica.visible.txid
    shell("INSERT INTO t VALUES (1)")
    server.sql("INSERT INTO t VALUES (2)")
    assert server.replica.visible.txid == before + 2
    assert server.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 1, 2]


def test_it_joins_the_commit_of_a_request_that_it_came_just_before(
    server: Instance, shell: Shell, file_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transaction = server.replica._open.transaction

    def late() -> Any:
        shell("INSERT INTO t VALUES (1)")
        return transaction()

    with monkeypatch.context() as patch:
        patch.setattr(server.replica._open, "transaction", late)
        server.sql("INSERT INTO t VALUES (2)")
    assert server.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 1, 2]


@pytest.mark.parametrize("mode", ["PASSIVE", "FULL", "RESTART", "TRUNCATE"])
def test_no_checkpoint_takes_it_away_before_it_is_stored(
    server: Instance, shell: Shell, file_url: str, tmp_path: Path, mode: str
) -> None:
    shell(BIG)
    for n in (1, 2):
        try:
            shell(f"PRAGMA wal_checkpoint({mode})", f"INSERT INTO t VALUES ({n})")
        except apsw.BusyError:
            shell(f"INSERT INTO t VALUES ({n})")
    watch(server)
    assert server.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 1, 2, "0" * 60000]


def test_checkpoint_passes_once_everything_is_stored(
    server: Instance, shell: Shell, path: Path, file_url: str, tmp_path: Path
) -> None:
    shell("INSERT INTO t VALUES (1)")
    assert shell("PRAGMA wal_checkpoint(TRUNCATE)")[0][0] == 1  # busy
    for _ in range(2):
        watch(server)
        shell("PRAGMA wal_checkpoint(TRUNCATE)")
    assert path.with_name("app.db-wal").stat().st_size == 0
    shell("INSERT INTO t VALUES (2)", "VACUUM")
    server.sql("INSERT INTO t VALUES (3)")
    assert server.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 1, 2, 3]


def test_wal_is_begun_anew_and_does_not_grow_for_ever(server: Instance, shell: Shell, path: Path) -> None:
    for n in range(40):
        server.sql(BIG)
        shell(f"INSERT INTO t VALUES ({n})")
        server.sql("DELETE FROM t")
        for _ in range(2):
            watch(server)
            shell("PRAGMA wal_checkpoint(PASSIVE)")
    assert path.with_name("app.db-wal").stat().st_size < 500_000


def test_server_moves_the_wal_into_the_file_by_itself(
    server: Instance, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_file, "_CHECKPOINT_FRAMES", 20)
    for _ in range(30):
        server.sql(BIG)
        server.sql("DELETE FROM t")
    assert path.with_name("app.db-wal").stat().st_size < 60 * 4120
    assert server.replica._at_rest.checkpointed > 40


@pytest.mark.parametrize("work", ["VACUUM", "REINDEX", "ANALYZE", "CREATE INDEX i ON t (v)", "DROP TABLE t"])
def test_whatever_it_did_the_file_is_the_log(
    server: Instance, path: Path, file_url: str, tmp_path: Path, work: str
) -> None:
    server.sql("CREATE INDEX j ON t (v)")
    with closing(apsw.Connection(str(path))) as shell:
        shell.execute(work).fetchall()
    server.sql("CREATE TABLE u (v)")
    check_file_is_the_log(server, file_url, tmp_path)


def test_transaction_of_any_size_is_stored_and_blames_no_request(
    server: Instance, shell: Shell, file_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.replica._open._vfs._wal, "_max_bytes", 20_000)
    transaction = server.replica._open.transaction
    late = iter([BIG])

    def begin() -> Any:
        for statement in late:
            shell(statement)
        return transaction()

    monkeypatch.setattr(server.replica._open, "transaction", begin)
    server.sql("INSERT INTO t VALUES (1)")
    assert server.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 1, "0" * 60000]


def test_it_waits_for_a_store_that_is_away(server: Instance, shell: Shell, file_url: str, tmp_path: Path) -> None:
    def away(verb: str, name: str) -> None:
        raise StoreUnreachable("away")

    server.store.before = away
    shell("INSERT INTO t VALUES (1)")
    for _ in range(2):
        with pytest.raises(CommitNotStored):
            watch(server)
    shell("INSERT INTO t VALUES (2)")
    assert shell("PRAGMA wal_checkpoint(TRUNCATE)")[0][0] == 1  # it would be lost
    server.store.before = lambda verb, name: None
    watch(server)
    assert server.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 1, 2]


def test_no_checkpoint_takes_away_what_could_not_be_stored(
    server: Instance, shell: Shell, file_url: str, tmp_path: Path
) -> None:
    def away(verb: str, name: str) -> None:
        raise StoreUnreachable("away")

    server.store.before = away
    shell(BIG)
    for _ in range(2):
        with pytest.raises(CommitNotStored):
            watch(server)
        shell("PRAGMA wal_checkpoint(PASSIVE)")
    shell("INSERT INTO t VALUES (2)")  # which would begin the WAL anew
    server.store.before = lambda verb, name: None
    watch(server)
    assert server.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 2, "0" * 60000]


def test_it_is_stored_at_the_end_if_not_before(server: Instance, path: Path, file_url: str, tmp_path: Path) -> None:
    with closing(apsw.Connection(str(path))) as shell:
        shell.execute(BIG)
    check_file_is_the_log(server, file_url, tmp_path)


def test_start_stores_what_the_end_could_not(
    server: Instance, path: Path, start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    def away(verb: str, name: str) -> None:
        raise StoreUnreachable("away")

    with closing(apsw.Connection(str(path))) as shell:
        shell.execute("INSERT INTO t VALUES (1)")
    server.store.before = away
    server.replica.close()
    assert start("server", file_url, lasting=True).rows() == stored_in(file_url, tmp_path / "out.db") == [0, 1]


def test_own_checkpoint_does_not_go_past_what_is_not_stored(
    server: Instance, shell: Shell, file_url: str, tmp_path: Path
) -> None:
    shell(BIG)
    with pytest.raises(DatabaseLocked, match="stored first"):
        server.replica._open.checkpoint()
    shell("PRAGMA wal_checkpoint(PASSIVE)", "INSERT INTO t VALUES (1)")
    server.sql("INSERT INTO t VALUES (2)")
    assert server.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 1, 2, "0" * 60000]


def test_token_of_the_first_of_two_is_taken_back_though_the_second_cannot_be_stored(
    server: Instance, shell: Shell
) -> None:
    def one_more(verb: str, name: str) -> None:
        if verb == "create" and "/0/" in name:
            shell("INSERT INTO t VALUES (2)")
            server.store.before = refuse

    def refuse(verb: str, name: str) -> None:
        if verb == "create":
            raise StoreUnreachable("away")

    shell("INSERT INTO t VALUES (1)")
    server.store.after = one_more
    before = server.replica.stored.txid
    with pytest.raises(CommitNotStored):
        watch(server)
    token = server.replica.stored.txid
    assert token == before + 1
    server.replica.refresh(float("-inf"), token)


# In the middle of a start, or of catching up


def at_once(act: Callable[..., Any], extra: Callable[[], None], *, before: bool) -> Callable[..., Any]:
    """The function, with something else that happens around its first call."""
    calls = iter([extra])

    def both(*arguments: Any) -> Any:
        first = next(calls, lambda: None)
        if before:
            first()
        found = act(*arguments)
        if not before:
            first()
        return found

    return both


def shell_once(path: Path, *statements: str) -> Callable[[], None]:
    def run() -> None:
        with closing(apsw.Connection(str(path))) as connection:
            for statement in statements:
                connection.execute(statement).fetchall()

    return run


class NoNewerSchema:
    def check(self, connection: apsw.Connection) -> bool:
        if connection.pragma("user_version") == 99:
            raise NotServed("It has schema version 99.")
        return True

    def migrate(self, path: Path) -> None:
        raise AssertionError("nothing is old here")


class AlwaysOlder:
    def check(self, connection: apsw.Connection) -> bool:
        return False

    def migrate(self, path: Path) -> None:
        """Somebody undoes it at once."""


def test_edit_that_is_of_an_older_schema_after_its_migration_is_no_commit(
    server: Instance, path: Path, start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    server.replica.close()
    shell_once(path, "INSERT INTO t VALUES (1)")()
    again = start("server", file_url, lasting=True, schema=AlwaysOlder())
    assert again.rows() == stored_in(file_url, tmp_path / "out.db") == [0]
    [kept] = path.parent.glob("app.db.diverged-*")
    assert stored_in_file(kept) == [0, 1]


def test_what_may_be_no_commit_is_none_though_it_came_before_the_connection(
    server: Instance, path: Path, start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    """While the start stores its own commit: no connection of the service has seen the file without it."""
    server.replica.close()
    shell_once(path, "INSERT INTO t VALUES (1)")()
    again = start("server", file_url, lasting=True, open=False, schema=NoNewerSchema())
    spoil = iter([shell_once(path, "INSERT INTO t VALUES (2)", "PRAGMA user_version = 99")])
    again.store.after = lambda verb, name: next(spoil, lambda: None)() if "/0/" in name and verb == "create" else None
    with pytest.raises(NotServed):
        again.replica.open()
    again.replica.close()
    last = start("server", file_url, lasting=True, schema=NoNewerSchema())
    open_log(file_url, Clock()).restore(tmp_path / "out.db")
    with closing(apsw.Connection(str(tmp_path / "out.db"))) as connection:
        assert connection.pragma("user_version") != 99
    assert last.rows() == [0, 1]
    [kept] = path.parent.glob("app.db.diverged-*")
    assert stored_in_file(kept) == [0, 1, 2]


def test_what_may_be_no_commit_is_none_though_it_came_just_before_a_request(
    path: Path, start: StartInstance, file_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be shipped along with it."""
    server = start("server", file_url, lasting=True, schema=NoNewerSchema())
    server.sql("CREATE TABLE t (v)")
    opened = server.replica._open
    spoil = shell_once(path, "INSERT INTO t VALUES (1)", "PRAGMA user_version = 99")
    monkeypatch.setattr(opened, "transaction", at_once(opened.transaction, spoil, before=True))
    server.sql("INSERT INTO t VALUES (2)")
    assert server.rows() == stored_in(file_url, tmp_path / "out.db") == [2]
    [kept] = path.parent.glob("app.db.diverged-*")
    assert stored_in_file(kept) == [1]


def test_file_of_a_crash_stays_as_it_is_when_the_newest_state_of_the_log_cannot_be_served(
    server: Instance, path: Path, start: StartInstance, file_url: str
) -> None:
    server.replica._disconnect()  # as kill -9 does
    start("other", file_url).sql("PRAGMA user_version = 99")
    before = path.read_bytes()
    with pytest.raises(NotServed, match="Nothing was written to it"):
        start("server", file_url, lasting=True, schema=NoNewerSchema())
    assert path.read_bytes() == before


def stored_in_file(path: Path) -> list[Any]:
    with closing(apsw.Connection(str(path))) as connection:
        return [value for (value,) in connection.execute("SELECT v FROM t ORDER BY 1")]


@pytest.mark.parametrize("edited", [False, True])
def test_commit_while_the_file_is_compared_is_stored_and_mixed_with_nothing(
    server: Instance,
    path: Path,
    start: StartInstance,
    file_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    edited: bool,
) -> None:
    server.replica._open.close()  # as kill -9 does
    if edited:
        shell_once(path, "INSERT INTO t VALUES (1)")()
    else:
        path.with_name("app.db-wal").unlink()
    first = server.replica.visible.txid
    meanwhile = shell_once(path, "CREATE TABLE u (v)", BIG.replace(" t ", " u "), "PRAGMA wal_checkpoint(PASSIVE)")
    compare = at_once(differing_pages, meanwhile, before=False)
    monkeypatch.setattr(file_commit, "differing_pages", compare)
    again = start("server", file_url, lasting=True)
    again.sql("INSERT INTO t VALUES (2)")
    assert again.rows() == [0, *[1] * edited, 2]
    if edited:
        assert again.rows("SELECT count(*) FROM u") == [1]
    for txid in range(first, again.replica.visible.txid + 1):  # each of them is a whole database
        image = tmp_path / f"at-{txid}.db"
        open_log(file_url, Clock()).restore(image, txid)
        with closing(apsw.Connection(str(image), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    check_file_is_the_log(again, file_url, tmp_path)


def test_commit_before_the_file_is_replaced_is_not_lost(
    server: Instance,
    path: Path,
    start: StartInstance,
    file_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.sql("INSERT INTO t VALUES (1)")
    server.replica._open.checkpoint()
    server.sql("CREATE TABLE u (v)")
    server.replica._open.close()
    path.with_name("app.db-wal").unlink()  # so that the file is behind, and is replaced
    meanwhile = shell_once(path, "INSERT INTO t VALUES ('mine')")
    monkeypatch.setattr(file_commit, "differing_pages", at_once(differing_pages, meanwhile, before=False))
    again = start("server", file_url, lasting=True)
    assert again.rows() == [0, 1]
    (kept,) = path.parent.glob("*.diverged-*")
    with closing(apsw.Connection(str(kept))) as connection:
        assert ("mine",) in connection.execute("SELECT v FROM t").fetchall()


def test_commit_between_a_look_and_the_connections_is_stored(
    server: Instance, path: Path, start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    server.replica.close()
    again = start("server", file_url, lasting=True, open=False)
    meanwhile = shell_once(path, "INSERT INTO t VALUES (1)")  # its end moves the WAL into the file
    again.replica._open.connect = at_once(again.replica._open.connect, meanwhile, before=True)  # type: ignore[method-assign]
    again.replica.open()
    assert again.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 1]


def test_copy_over_the_file_while_it_catches_up_is_not_patched(
    server: Instance, path: Path, start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    copy = old_copy(server, tmp_path)
    start("other", file_url).sql("CREATE TABLE u (v)")
    disconnect = at_once(server.replica._open.disconnect, lambda: overwrite(path, copy), before=False)
    server.replica._open.disconnect = disconnect  # type: ignore[method-assign]
    server.fresh_rows()
    assert server.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 2, "0" * 60000]
    check_file_is_the_log(server, file_url, tmp_path)


# Locks


def test_checkpoint_and_write_that_wait_for_each_other_both_succeed(server: Instance, path: Path) -> None:
    """The checkpoint holds the write lock until nobody reads from the WAL any more."""
    server.clock.sleep = time.sleep  # type: ignore[method-assign, assignment]
    busy: list[Any] = []
    rows = [0]

    def checkpoint() -> None:
        with closing(apsw.Connection(str(path))) as shell:
            shell.set_busy_timeout(10_000)
            busy.append(shell.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()[0][0])

    thread = threading.Thread(target=checkpoint)
    thread.start()
    while thread.is_alive():
        rows.append(len(rows))
        server.sql(f"INSERT INTO t VALUES ({rows[-1]})")
        time.sleep(0.02)  # SQLite's locks are not fair: without a pause the checkpoint may never get its turn
    assert busy == [0]
    assert server.rows() == rows


def test_lock_that_is_never_released_is_reported(server: Instance, shell: Shell) -> None:
    shell("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseLocked):
        server.sql("INSERT INTO t VALUES (1)")
    shell("ROLLBACK")
    server.sql("INSERT INTO t VALUES (2)")
    assert server.rows() == [0, 2]


# The file itself


def old_copy(server: Instance, tmp_path: Path) -> Path:
    """Made by the shell's .backup, before two more rows."""
    copy = tmp_path / "copy.db"
    with (
        closing(apsw.Connection(str(server.path))) as source,
        closing(apsw.Connection(str(copy))) as target,
        target.backup("main", source, "main") as backup,
    ):
        backup.step()
    server.sql(BIG)
    server.replica._open.checkpoint()
    server.sql("INSERT INTO t VALUES (2)")  # begins the WAL anew
    return copy


def overwrite(path: Path, source: Path) -> None:
    """Like cp: the file stays the same, its content does not."""
    with source.open("rb") as read, path.open("wb") as write:
        shutil.copyfileobj(read, write)


def test_copy_over_the_live_file_is_not_mixed_with_what_is_there(
    server: Instance, path: Path, file_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = old_copy(server, tmp_path)
    overwrite(path, copy)
    with pytest.raises(DatabaseLocked, match="is being written"):
        server.sql("INSERT INTO t VALUES (3)")
    server.clock.seconds += 2
    server.sql("INSERT INTO t VALUES (4)")
    assert server.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 4]
    assert "overwritten" in caplog.text
    check_file_is_the_log(server, file_url, tmp_path)


def test_copy_over_the_live_file_counts_after_a_restart(
    server: Instance, path: Path, start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    copy = old_copy(server, tmp_path)
    before = server.replica.visible.txid
    overwrite(path, copy)
    server.replica.close()
    again = start("server", file_url, lasting=True)
    assert again.rows() == stored_in(file_url, tmp_path / "out.db") == [0]
    assert again.replica.visible.txid == before + 1  # so that what it replaced is in the history


def test_checkpoint_that_was_killed_half_way_is_no_edit(
    server: Instance, path: Path, file_url: str, tmp_path: Path
) -> None:
    server.sql(BIG)
    watch(server)
    before = server.replica.visible
    wal = path.with_name("app.db-wal").read_bytes()
    frames = [wal[start : start + 4120] for start in range(32, len(wal), 4120)]
    newest = sorted({frame[:4]: frame[24:] for frame in frames}.items())
    with path.open("r+b") as file:  # the order of a checkpoint, which notes only at its end how far it came
        file.write(b"".join(page for _, page in newest[: len(newest) // 2]))
    with pytest.raises(DatabaseLocked):
        server.sql("SELECT 1")
    server.clock.seconds += 2
    watch(server)
    assert server.rows() == [0, "0" * 60000]
    assert server.replica.visible == before
    assert not list(path.parent.glob("*.diverged-*"))
    check_file_is_the_log(server, file_url, tmp_path)


def test_removed_wal_is_noticed(
    server: Instance, path: Path, file_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for suffix in ("-wal", "-shm"):
        path.with_name(f"app.db{suffix}").unlink()
    server.sql("INSERT INTO t VALUES (1)")
    with closing(apsw.Connection(str(path))) as shell:
        assert shell.execute("SELECT v FROM t").fetchall() == [(0,), (1,)]
        shell.execute("INSERT INTO t VALUES (2)")
    watch(server)
    assert server.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 1, 2]
    check_file_is_the_log(server, file_url, tmp_path)


def test_edit_after_a_crash_does_not_take_back_what_was_acknowledged(
    server: Instance, path: Path, start: StartInstance, file_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved = tmp_path / "saved"
    shutil.copytree(path.parent, saved)
    server.replica.close()
    shutil.rmtree(path.parent)
    saved.rename(path.parent)
    for suffix in ("-wal", "-shm"):  # whoever removes it, or a power cut: the row 0 is in the log only
        path.with_name(f"app.db{suffix}").unlink()
    with closing(apsw.Connection(str(path))) as shell:
        shell.execute("CREATE TABLE mine (v)")
    again = start("server", file_url, lasting=True)
    assert again.rows() == stored_in(file_url, tmp_path / "out.db") == [0]
    (kept,) = path.parent.glob("*.diverged-*")
    with closing(apsw.Connection(str(kept))) as connection:
        assert ("mine",) in connection.execute("SELECT name FROM sqlite_schema").fetchall()
    assert "kept as" in caplog.text


def test_edit_after_a_crash_is_the_next_commit_though_the_wal_is_gone_with_the_shell(
    server: Instance, path: Path, start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    server.replica._open.close()  # leaves the files as kill -9 does
    with closing(apsw.Connection(str(path))) as shell:
        shell.execute("INSERT INTO t VALUES (1)")
    assert not path.with_name("app.db-wal").exists()
    again = start("server", file_url, lasting=True)
    assert again.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 1]
    assert not list(path.parent.glob("*.diverged-*"))


def test_edit_after_a_crash_that_left_everything_is_the_next_commit(
    server: Instance, path: Path, start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    with closing(apsw.Connection(str(path))) as shell:
        shell.execute("INSERT INTO t VALUES (1)")
        saved = tmp_path / "saved"
        shutil.copytree(path.parent, saved)
    server.replica._open.close()
    shutil.rmtree(path.parent)
    saved.rename(path.parent)
    again = start("server", file_url, lasting=True)
    assert again.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 1]
    assert not list(path.parent.glob("*.diverged-*"))


def test_shell_that_waits_at_its_prompt_survives_a_replacement_of_the_file(
    server: Instance, path: Path, start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    """It has the file open and no lock on it: it must find the new content, not another file's WAL."""
    prompt = apsw.Connection(str(path))
    start("other", file_url).sql("CREATE TABLE u (v)", BIG)
    shell_once(path, "INSERT INTO t VALUES (2)")()
    watch(server)
    assert list(path.parent.glob("*.diverged-*"))
    prompt.execute("INSERT INTO t VALUES (3)")
    watch(server)
    assert server.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 3, "0" * 60000]
    prompt.close()
    check_file_is_the_log(server, file_url, tmp_path)


def test_mixture_that_a_look_has_made_of_a_copy_and_the_wal_of_a_crash_is_no_edit(
    server: Instance, path: Path, start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    server.sql("CREATE TABLE u (v)")
    server.replica.close()
    copy = tmp_path / "copy.db"
    shutil.copy(path, copy)
    server = start("server", file_url, lasting=True)
    server.sql("INSERT INTO t VALUES ('acknowledged')")
    server.replica.close()
    server = start("server", file_url, lasting=True)
    server.sql("INSERT INTO u VALUES (1)")
    server.replica._open.close()  # as kill -9 does
    overwrite(path, copy)
    shell_once(path, "SELECT count(*) FROM t")()  # whose end moves the WAL into the copy
    again = start("server", file_url, lasting=True)
    assert again.rows() == stored_in(file_url, tmp_path / "out.db") == [0, "acknowledged"]
    assert again.rows("SELECT v FROM u") == [1]
    assert list(path.parent.glob("*.diverged-*"))


def leave_wal(path: Path, *statements: str) -> None:
    """As a shell that was killed."""
    with closing(apsw.Connection(str(path))) as shell:
        shell.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        for statement in statements:
            shell.execute(statement).fetchall()


def change_later(path: Path) -> None:
    """Than everything that lies there; the file system's clock ticks slowly."""
    later = path.stat().st_mtime_ns + 1_000_000_000
    os.utime(path, ns=(later, later))


def test_copy_beside_the_wal_that_a_shell_has_left_is_not_mixed_with_it(
    server: Instance, path: Path, start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    """After a clean stop, when nothing says what the file was when the shell came."""
    server.sql("CREATE TABLE u (v)")
    server.replica.close()
    copy = tmp_path / "copy.db"
    shutil.copy(path, copy)
    shell_once(path, "INSERT INTO t VALUES ('moved into the file')")()
    leave_wal(path, "INSERT INTO u VALUES ('left')")
    overwrite(path, copy)
    change_later(path)
    again = start("server", file_url, lasting=True)
    assert again.rows() == stored_in(file_url, tmp_path / "out.db") == [0]
    assert again.rows("SELECT v FROM u") == []
    (kept,) = (found for found in path.parent.glob("*.diverged-*") if not found.name.endswith("-wal"))
    assert kept.read_bytes() == copy.read_bytes()


@pytest.mark.parametrize("moved", [True, False])
def test_wal_that_a_shell_has_left_is_an_edit_though_it_was_moved_in_part(
    moved: bool, server: Instance, path: Path, start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    server.sql("CREATE TABLE u (v)")
    server.replica.close()
    leave_wal(path, "INSERT INTO t VALUES ('one')")
    if moved:
        with closing(apsw.Connection(str(path))) as reader:
            reader.execute("BEGIN").execute("SELECT * FROM t").fetchall()
            leave_wal(path, "INSERT INTO u VALUES ('two')", "PRAGMA wal_checkpoint")
            reader.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        change_later(path)
    again = start("server", file_url, lasting=True)
    assert again.rows() == stored_in(file_url, tmp_path / "out.db") == [0, "one"]
    assert again.rows("SELECT v FROM u") == ["two"] * moved
    assert not list(path.parent.glob("*.diverged-*"))


def test_undoing_by_the_shell_after_a_crash_is_an_edit(
    server: Instance, path: Path, start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    """Though every page is then as the log had it before."""
    server.sql("UPDATE t SET v = 1")
    server.replica._open.close()
    shell_once(path, "UPDATE t SET v = 0")()
    again = start("server", file_url, lasting=True)
    assert again.rows() == stored_in(file_url, tmp_path / "out.db") == [0]


def test_commit_and_end_of_a_shell_before_the_file_is_replaced_are_not_lost(
    server: Instance, path: Path, start: StartInstance, file_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.sql("INSERT INTO t VALUES (1)")
    server.replica._open.close()
    path.with_name("app.db-wal").unlink()
    meanwhile = shell_once(path, "CREATE TABLE mine (v)")
    monkeypatch.setattr(LocalFile, "_write_anew", at_once(LocalFile._write_anew, meanwhile, before=True))
    again = start("server", file_url, lasting=True)
    assert again.rows() == [0, 1]
    (kept,) = path.parent.glob("*.diverged-*")
    with closing(apsw.Connection(str(kept))) as connection:
        assert ("mine",) in connection.execute("SELECT name FROM sqlite_schema").fetchall()


def test_commit_after_the_index_of_the_wal_was_removed_is_not_lost(
    server: Instance, path: Path, file_url: str, tmp_path: Path
) -> None:
    path.with_name("app.db-shm").unlink()
    shell_once(path, "INSERT INTO t VALUES (1)")()
    server.sql("INSERT INTO t VALUES (2)")
    watch(server)
    assert server.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 1, 2]
    check_file_is_the_log(server, file_url, tmp_path)


def test_copy_that_a_checkpoint_hides_is_found_at_the_next_start(
    server: Instance, path: Path, start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    copy = old_copy(server, tmp_path)
    watch(server)  # so that there is something for a checkpoint to do
    overwrite(path, copy)
    shell_once(path, "PRAGMA wal_checkpoint(PASSIVE)")()
    watch(server)
    server.replica.close()
    again = start("server", file_url, lasting=True)
    assert again.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 2, "0" * 60000]
    check_file_is_the_log(again, file_url, tmp_path)


def test_what_a_shell_adds_to_a_copy_over_the_live_file_is_kept_and_not_mixed(
    server: Instance, path: Path, file_url: str, tmp_path: Path
) -> None:
    copy = old_copy(server, tmp_path)
    overwrite(path, copy)
    shell_once(path, "INSERT INTO t VALUES ('on the copy')")()
    with pytest.raises(DatabaseLocked):
        server.sql("INSERT INTO t VALUES (3)")
    server.clock.seconds += 2
    server.sql("INSERT INTO t VALUES (4)")
    assert server.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 2, 4, "0" * 60000]
    assert list(path.parent.glob("*.diverged-*"))


def test_copy_over_the_live_file_is_not_taken_while_a_shell_reads_it(
    server: Instance, path: Path, file_url: str, tmp_path: Path
) -> None:
    """The end of that shell mixes the copy with the WAL."""
    copy = old_copy(server, tmp_path)
    shell = apsw.Connection(str(path))
    shell.execute("SELECT * FROM t").fetchall()
    overwrite(path, copy)
    for _ in range(2):
        with pytest.raises(DatabaseLocked):
            watch(server)
        server.clock.seconds += 3
    shell.close()
    watch(server)
    assert server.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 2, "0" * 60000]
    check_file_is_the_log(server, file_url, tmp_path)


def test_journal_that_was_left_does_not_get_into_a_new_file(
    server: Instance, path: Path, start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    server.replica.close()
    for statement in ("PRAGMA journal_mode = delete", "PRAGMA cache_size = 2"):
        shell_once(path, statement)()
    killed = apsw.Connection(str(path))
    killed.execute("PRAGMA cache_size = 2").fetchall()
    killed.execute("BEGIN; CREATE TABLE x (v)")
    killed.execute(BIG)
    shutil.copy(path.with_name("app.db-journal"), tmp_path / "journal")
    killed.close()
    path.unlink()
    shutil.copy(tmp_path / "journal", path.with_name("app.db-journal"))
    again = start("server", file_url, lasting=True)
    again.sql("INSERT INTO t VALUES (1)")
    assert again.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 1]
    check_file_is_the_log(again, file_url, tmp_path)


# While another instance is faster


@pytest.fixture
def keyed(server: Instance) -> Instance:
    server.sql("CREATE TABLE k (id INTEGER PRIMARY KEY, v)")
    server.sql("INSERT INTO k VALUES (1, 'a'), (2, 'b')")
    return server


def kept(path: Path) -> list[str]:
    return sorted(found.name.rpartition("-")[0][:11] for found in path.parent.glob("app.db.[dc][ih]*"))


def keyed_rows(instance: Instance) -> list[Any]:
    instance.fresh_rows()
    return instance.rows("SELECT id, v FROM k")


@pytest.mark.parametrize("end", ["shell is open", "shell has ended", "after a checkpoint"])
def test_it_is_done_again_on_what_another_instance_has_made(
    keyed: Instance, path: Path, start: StartInstance, file_url: str, tmp_path: Path, end: str
) -> None:
    if end == "after a checkpoint":
        shell_once(path, "PRAGMA wal_checkpoint(PASSIVE)")()
        watch(keyed)  # which leaves the WAL, so that it can be begun anew
        shell_once(path, "PRAGMA wal_checkpoint(TRUNCATE)")()
    other = start("other", file_url)
    other.sql("UPDATE k SET v = 'theirs' WHERE id = 2")
    with closing(apsw.Connection(str(path))) as shell:
        shell.execute("UPDATE k SET v = 'mine' WHERE id = 1")
        if end != "shell is open":
            shell.close()
        else:
            with pytest.raises(DatabaseLocked):
                watch(keyed)
    watch(keyed)
    assert keyed_rows(keyed) == keyed_rows(other) == [(1, "mine"), (2, "theirs")]
    assert kept(path) == []
    check_file_is_the_log(keyed, file_url, tmp_path)


def test_it_is_done_again_though_shells_come_and_go_while_the_log_cannot_be_read(
    keyed: Instance, path: Path, start: StartInstance, file_url: str
) -> None:
    """The end of none of them may take the WAL away: which rows were changed would not be told any more."""
    other = start("other", file_url)
    other.sql("INSERT INTO k VALUES (3, 'theirs')")

    def away(verb: str, name: str) -> None:
        if verb == "objects":
            raise StoreUnreachable("away")

    keyed.store.before = away
    for number in (1, 2, 4):
        shell_once(path, f"INSERT OR REPLACE INTO k VALUES ({number}, hex(zeroblob(10000)))")()
        with pytest.raises(StoreUnreachable):
            watch(keyed)
    keyed.store.before = lambda verb, name: None
    watch(keyed)
    big = "0" * 20000
    assert keyed_rows(keyed) == keyed_rows(other) == [(1, big), (2, big), (3, "theirs"), (4, big)]
    assert kept(path) == []


def test_it_is_done_again_though_requests_leave_no_pause(
    keyed: Instance, path: Path, start: StartInstance, file_url: str
) -> None:
    other = start("other", file_url)
    other.sql("UPDATE k SET v = 'theirs' WHERE id = 2")
    shell_once(path, "UPDATE k SET v = 'mine' WHERE id = 1")()
    for n in range(2):
        write = Write(lambda db, n=n: db.execute_sql(f"INSERT INTO t VALUES ({n})"))  # type: ignore[misc]
        keyed.replica.write_together([write], 10)
        write.outcome()
    assert keyed_rows(other) == [(1, "mine"), (2, "theirs")]
    assert kept(path) == []


@pytest.mark.parametrize("statement", ["VACUUM", "REINDEX", "ANALYZE"])
def test_work_that_changes_no_row_is_forgotten(
    keyed: Instance, path: Path, start: StartInstance, file_url: str, tmp_path: Path, statement: str
) -> None:
    keyed.sql("DELETE FROM k WHERE id = 1")
    start("other", file_url).sql("INSERT INTO k VALUES (3, 'theirs')")
    shell_once(path, statement)()
    watch(keyed)
    assert keyed_rows(keyed) == [(2, "b"), (3, "theirs")]
    assert kept(path) == []
    check_file_is_the_log(keyed, file_url, tmp_path)


@pytest.mark.parametrize("statement", ["CREATE TABLE mine (v)", "INSERT INTO t VALUES ('mine')"])
def test_what_rows_cannot_tell_is_kept_with_the_whole_file(
    keyed: Instance, path: Path, start: StartInstance, file_url: str, statement: str
) -> None:
    start("other", file_url).sql("INSERT INTO k VALUES (3, 'theirs')")
    shell_once(path, statement)()
    watch(keyed)
    assert keyed_rows(keyed) == [(1, "a"), (2, "b"), (3, "theirs")]
    assert kept(path) == ["app.db.dive"]


@pytest.mark.parametrize(
    ("statement", "kind"), [("UPDATE k SET v = 'mine' WHERE id = 1", "changes"), ("CREATE TABLE mine (v)", "diverged")]
)
def test_what_is_kept_is_on_disk_before_the_file_is_replaced(
    keyed: Instance,
    path: Path,
    start: StartInstance,
    file_url: str,
    monkeypatch: pytest.MonkeyPatch,
    statement: str,
    kind: str,
) -> None:
    start("other", file_url).sql("INSERT INTO k VALUES (3, 'theirs')")
    shell_once(path, statement)()
    synced: list[str] = []
    before: list[str] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    replace = at_once(LocalFile._write_over, lambda: before.extend(synced), before=True)
    monkeypatch.setattr(LocalFile, "_write_over", replace)
    monkeypatch.setattr(os, "fsync", record)
    watch(keyed)
    [content] = [place for place, name in enumerate(before) if name.startswith(f"{path}.{kind}-")]
    assert str(path.parent) in before[content:]


def test_rows_that_both_have_changed_are_named_and_kept(
    keyed: Instance,
    path: Path,
    start: StartInstance,
    file_url: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = start("other", file_url)
    other.sql("UPDATE k SET v = 'theirs' WHERE id = 1")
    shell_once(path, "UPDATE k SET v = 'mine'")()
    for _ in range(3):
        watch(keyed)
    assert keyed_rows(keyed) == keyed_rows(other) == [(1, "theirs"), (2, "b")]
    assert kept(path) == ["app.db.chan"]
    (message,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert "do not fit the state that the log has since: k 1." in message
    (file,) = path.parent.glob("app.db.changes-*")
    monkeypatch.setenv("DATABASE_PATH", str(path))
    assert message.count(f"python -m infra changes {file}") == 1
    assert main(["changes", str(file)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f'UPDATE "k" SET "v" = \'mine\' WHERE "id" IS {number} AND "v" IS \'{old}\';'
        for number, old in ((1, "a"), (2, "b"))
    ]
    keyed.sql("UPDATE k SET v = 'a' WHERE id = 1")  # whoever decides for what was typed
    keyed.replica.close()
    again = start("server", file_url, lasting=True)
    watch(again)
    assert keyed_rows(again) == [(1, "mine"), (2, "mine")]
    assert kept(path) == []


def test_it_is_done_again_by_the_next_process(
    keyed: Instance, path: Path, start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    start("other", file_url).sql("UPDATE k SET v = 'theirs' WHERE id = 2")
    shell_once(path, "UPDATE k SET v = 'mine' WHERE id = 1")()
    keyed.replica._open.close()  # as kill -9 does
    again = start("server", file_url, lasting=True)
    watch(again)
    assert keyed_rows(again) == [(1, "mine"), (2, "theirs")]
    assert kept(path) == []
    check_file_is_the_log(again, file_url, tmp_path)


@pytest.mark.parametrize("at", ["before the file is replaced", "before it is done again", "before it is forgotten"])
def test_crash_in_between_loses_nothing_and_does_nothing_twice(
    keyed: Instance,
    path: Path,
    start: StartInstance,
    file_url: str,
    monkeypatch: pytest.MonkeyPatch,
    at: str,
) -> None:
    other = start("other", file_url)
    other.sql("UPDATE k SET v = 'theirs' WHERE id = 2")
    shell_once(path, "UPDATE k SET v = v || '+' WHERE id = 1")()

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    step = {
        "before the file is replaced": (LocalFile, "_write_anew"),
        "before it is done again": (Replica, "_redo"),
        "before it is forgotten": (LocalFile, "remove_changes"),
    }[at]
    with monkeypatch.context() as patch:
        patch.setattr(*step, crash)
        with pytest.raises(KeyboardInterrupt):
            watch(keyed)
    keyed.replica._whole = False
    keyed.replica._open.close()
    again = start("server", file_url, lasting=True)
    watch(again)
    assert keyed_rows(again) == keyed_rows(other) == [(1, "a+"), (2, "theirs")]
    # There the proof is gone that it was made on top of everything
    assert kept(path) == (["app.db.dive"] if at == "before the file is replaced" else [])


def test_commit_of_a_shell_while_its_changes_are_written_down_is_not_lost(
    keyed: Instance, path: Path, start: StartInstance, file_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = start("other", file_url)
    other.sql("INSERT INTO k VALUES (3, 'theirs')")
    shell_once(path, "UPDATE k SET v = 'mine' WHERE id = 1")()
    meanwhile = shell_once(path, "UPDATE k SET v = v || '+'")
    monkeypatch.setattr(KeptFiles, "keep_rows", at_once(KeptFiles.keep_rows, meanwhile, before=False))
    watch(keyed)
    assert keyed_rows(keyed) == keyed_rows(other) == [(1, "mine+"), (2, "b+"), (3, "theirs")]
    assert kept(path) == []


@pytest.mark.parametrize("end", ["its end", "TRUNCATE"])
def test_commit_between_two_anchors_that_a_checkpoint_moves_is_not_taken_for_the_logs(
    keyed: Instance,
    path: Path,
    start: StartInstance,
    file_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: str,
) -> None:
    """It comes just before the server opens the file again, and leaves the WAL just after it has closed it."""
    other = start("other", file_url)
    other.sql("INSERT INTO k VALUES (3, 'theirs')")
    shell = apsw.Connection(str(path))
    opened, rest = keyed.replica._open, keyed.replica._at_rest

    def commit() -> None:
        shell.execute("UPDATE k SET v = 'mine' WHERE id = 1")

    def leave() -> None:
        if end == "TRUNCATE":
            shell.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        else:
            shell.close()

    with monkeypatch.context() as patch:
        patch.setattr(opened, "connect", at_once(opened.connect, commit, before=True))
        keyed.fresh_rows()
    shell.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
    other.sql("INSERT INTO t VALUES (1)")
    monkeypatch.setattr(rest, "apply", at_once(rest.apply, leave, before=True))
    with suppress(DatabaseLocked):
        watch(keyed)
    shell.close()
    watch(keyed)
    told = end == "its end"  # which pages it has changed: the WAL's second name has them, but not after TRUNCATE
    assert keyed_rows(keyed) == keyed_rows(other) == [(1, "mine" if told else "a"), (2, "b"), (3, "theirs")]
    assert keyed.rows() == [0, 1]
    assert kept(path) == ([] if told else ["app.db.dive"])
    check_file_is_the_log(keyed, file_url, tmp_path)


def test_commit_between_two_anchors_that_is_stored_after_a_checkpoint_is_the_logs(
    server: Instance,
    path: Path,
    start: StartInstance,
    file_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start("other", file_url).sql("INSERT INTO t VALUES (1)")
    shell = apsw.Connection(str(path))
    opened = server.replica._open

    def commit() -> None:
        shell.execute("INSERT INTO t VALUES (2)")

    with monkeypatch.context() as patch:
        patch.setattr(opened, "connect", at_once(opened.connect, commit, before=True))
        server.fresh_rows()
    shell.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
    monkeypatch.setattr(opened, "ship_foreign", at_once(opened.ship_foreign, shell.close, before=False))
    check_file_is_the_log(server, file_url, tmp_path)
    assert stored_in(file_url, tmp_path / "out.db") == [0, 1, 2]


def test_few_kept_files_stay_and_never_the_newest_goes(
    keyed: Instance, path: Path, start: StartInstance, file_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    day = 24 * 3600
    for number in range(14):
        for name, age in ((f"app.db.diverged-{number:02}", 0), (f"app.db.changes-{number:02}", 31 * day)):
            file = path.with_name(name)
            file.write_bytes(b"")
            os.utime(file, (time.time() - age + number,) * 2)
    path.with_name("app.db.diverged-00-wal").write_bytes(b"")
    keyed.replica.close()
    start("server", file_url, lasting=True)
    left = sorted(found.name for kind in ("diverged", "changes") for found in path.parent.glob(f"app.db.{kind}-*"))
    # Changes that nobody has tried yet are no leftovers, however many they are
    assert left == [f"app.db.changes-{n:02}" for n in range(14)] + [f"app.db.diverged-{n:02}" for n in range(4, 14)]
    warned = [record.getMessage() for record in caplog.records if "is removed" in record.getMessage()]
    assert [f"app.db.diverged-{n:02}," in message for n, message in enumerate(warned)] == [True] * 4
    files = KeptFiles(path)
    files.prune([])
    assert files.all("changes") == [path.with_name("app.db.changes-13")]
    assert len(files.all("diverged")) == 10
