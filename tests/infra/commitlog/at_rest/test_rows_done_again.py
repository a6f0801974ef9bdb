"""Rows that another program has changed while another instance was faster are changed again."""

from contextlib import closing
from pathlib import Path

import apsw
import pytest

from core.errors import DatabaseLocked, StoreUnreachable
from infra.commitlog.at_rest.kept import KeptFiles
from infra.commitlog.at_rest.local_file import LocalFile
from infra.commitlog.group import Write
from infra.commitlog.replica import Replica
from tests.infra.commitlog.conftest import (
    Instance,
    StartInstance,
    at_once,
    check_file_is_the_log,
    kept,
    keyed_rows,
    shell_once,
    watch,
)


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


def test_it_is_done_again_by_the_next_process(
    keyed: Instance, path: Path, start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    start("other", file_url).sql("UPDATE k SET v = 'theirs' WHERE id = 2")
    shell_once(path, "UPDATE k SET v = 'mine' WHERE id = 1")()
    keyed.kill()
    again = start("server", file_url, lasting=True)
    watch(again)
    assert keyed_rows(again) == [(1, "mine"), (2, "theirs")]
    assert kept(path) == []
    check_file_is_the_log(again, file_url, tmp_path)


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
    keyed.kill()
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
