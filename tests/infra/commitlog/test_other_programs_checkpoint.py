"""Checkpoints, whoever asks for them, take nothing away that is not stored."""

import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import apsw
import pytest

from core.errors import CommitNotStored, DatabaseLocked, StoreUnreachable
from infra.commitlog import open_file
from infra.commitlog.raw_file import page_size_of
from infra.commitlog.wal import FRAME_HEADER
from tests.infra.commitlog.conftest import (
    BIG,
    Instance,
    Shell,
    StartInstance,
    at_once,
    check_file_is_the_log,
    kept,
    keyed_rows,
    old_copy,
    overwrite,
    shell_once,
    stored_in,
    watch,
)


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
    monkeypatch.setattr(open_file, "CHECKPOINT_FRAMES", 20)
    for _ in range(30):
        server.sql(BIG)
        server.sql("DELETE FROM t")
    assert path.with_name("app.db-wal").stat().st_size < 60 * 4120
    assert server.replica.at_rest.position_file.checkpointed > 40


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


def test_own_checkpoint_does_not_go_past_what_is_not_stored(
    server: Instance, shell: Shell, file_url: str, tmp_path: Path
) -> None:
    shell(BIG)
    with pytest.raises(DatabaseLocked, match="stored first"):
        server.replica.file.checkpoint()
    shell("PRAGMA wal_checkpoint(PASSIVE)", "INSERT INTO t VALUES (1)")
    server.sql("INSERT INTO t VALUES (2)")
    assert server.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 1, 2, "0" * 60000]


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


def test_checkpoint_that_was_killed_half_way_is_no_edit(
    server: Instance, path: Path, file_url: str, tmp_path: Path
) -> None:
    server.sql(BIG)
    watch(server)
    before = server.replica.visible
    wal = path.with_name("app.db-wal").read_bytes()
    frame_size = FRAME_HEADER + page_size_of(path)
    frames = [wal[start : start + frame_size] for start in range(32, len(wal), frame_size)]
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
    opened, rest = keyed.replica.file, keyed.replica.at_rest

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
    opened = server.replica.file

    def commit() -> None:
        shell.execute("INSERT INTO t VALUES (2)")

    with monkeypatch.context() as patch:
        patch.setattr(opened, "connect", at_once(opened.connect, commit, before=True))
        server.fresh_rows()
    shell.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
    monkeypatch.setattr(opened, "ship_others", at_once(opened.ship_others, shell.close, before=False))
    check_file_is_the_log(server, file_url, tmp_path)
    assert stored_in(file_url, tmp_path / "out.db") == [0, 1, 2]
