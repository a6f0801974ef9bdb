"""What others do to a file that lies there: an edit is told from a crash, and from a mixture."""

import os
import shutil
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from tests.infra.commitlog.conftest import (
    BIG,
    Instance,
    StartInstance,
    check_file_is_the_log,
    overwrite,
    shell_once,
    stored_in,
)


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
    server.kill()
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
    server.kill()
    shutil.rmtree(path.parent)
    saved.rename(path.parent)
    again = start("server", file_url, lasting=True)
    assert again.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 1]
    assert not list(path.parent.glob("*.diverged-*"))


def test_undoing_by_the_shell_after_a_crash_is_an_edit(
    server: Instance, path: Path, start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    """Though every page is then as the log had it before."""
    server.sql("UPDATE t SET v = 1")
    server.kill()
    shell_once(path, "UPDATE t SET v = 0")()
    again = start("server", file_url, lasting=True)
    assert again.rows() == stored_in(file_url, tmp_path / "out.db") == [0]


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


@pytest.mark.parametrize(("moved", "crashed"), [(True, False), (False, False), (True, True)])
def test_wal_that_a_shell_has_left_is_an_edit_though_it_was_moved_in_part(
    moved: bool, crashed: bool, server: Instance, path: Path, start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    server.sql("CREATE TABLE u (v)")
    server.kill() if crashed else server.replica.close()
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


@pytest.mark.parametrize("crashed", [True, False])
def test_half_a_checkpoint_whose_wal_was_removed_is_told_from_an_edit_by_the_wals_second_name(
    crashed: bool, server: Instance, path: Path, start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    """A WAL that only shells have had has none, and SQLite itself finds nothing wrong with the mixture."""
    server.sql("CREATE TABLE u (v)")
    server.replica.close()
    if crashed:
        start("server", file_url, lasting=True).kill()
    leave_wal(path, "BEGIN", "INSERT INTO t VALUES ('one')", "INSERT INTO u VALUES ('one')", "COMMIT")
    with closing(apsw.Connection(str(path))) as reader:
        reader.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        reader.execute("BEGIN").execute("SELECT * FROM t").fetchall()
        leave_wal(path, "INSERT INTO t VALUES ('two')", "PRAGMA wal_checkpoint")
    for suffix in ("-wal", "-shm"):
        path.with_name(f"app.db{suffix}").unlink()
    again = start("server", file_url, lasting=True)
    assert again.rows() == stored_in(file_url, tmp_path / "out.db") == [0]
    assert again.rows("SELECT v FROM u") == ([] if crashed else ["one"])
    assert bool(list(path.parent.glob("*.diverged-*"))) == crashed


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
    server.kill()
    overwrite(path, copy)
    shell_once(path, "SELECT count(*) FROM t")()  # whose end moves the WAL into the copy
    again = start("server", file_url, lasting=True)
    assert again.rows() == stored_in(file_url, tmp_path / "out.db") == [0, "acknowledged"]
    assert again.rows("SELECT v FROM u") == [1]
    assert list(path.parent.glob("*.diverged-*"))


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
