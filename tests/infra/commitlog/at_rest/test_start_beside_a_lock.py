"""A start that finds the file open elsewhere serves what is there, and notes what is true of it."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import apsw
import pytest

from infra.commitlog.position_file import Note, PositionFile
from tests.infra.commitlog.conftest import Instance, StartInstance, kept, overwrite, shell_once, stored_in


@contextmanager
def reader(path: Path) -> Iterator[None]:
    """A shell in a transaction, so that the WAL cannot be merged; its end merges nothing, either."""
    with closing(apsw.Connection(str(path))) as shell:
        shell.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        shell.execute("BEGIN").execute("SELECT * FROM t").fetchall()
        yield


def test_file_that_was_served_with_its_wal_is_known_to_need_it(
    server: Instance, path: Path, start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    server.replica.file.checkpoint()
    with reader(path):  # which keeps the rows after it out of the file
        server.sql("INSERT INTO t VALUES (1)")
        server.kill()
        again = start("server", file_url, lasting=True)
        again.sql("INSERT INTO t VALUES (2)")
        again.kill()
    for suffix in ("-wal", "-shm", ".last-wal"):  # an older file is left, and no edit
        path.with_name(f"app.db{suffix}").unlink()
    last = start("server", file_url, lasting=True)
    assert last.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 1, 2]
    assert kept(path) == []


def test_edit_after_a_start_beside_a_lock_is_on_top_of_what_was_served(
    server: Instance, path: Path, start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    """Though the crash before came between the commit and its note."""
    note = path.with_name("app.db.position").read_bytes()
    server.sql("INSERT INTO t VALUES (1)")
    server.kill()
    path.with_name("app.db.position").write_bytes(note)
    with reader(path):
        start("server", file_url, lasting=True).kill()
    shell_once(path, "CREATE TABLE mine (v)")()
    last = start("server", file_url, lasting=True)
    assert last.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 1]
    assert last.rows("SELECT count(*) FROM mine") == [0]
    assert kept(path) == []


def test_part_of_a_page_after_a_half_written_file_is_kept(
    server: Instance, path: Path, start: StartInstance, file_url: str
) -> None:
    server.replica.close()
    notes = PositionFile(path)
    note = notes.read()
    assert note
    notes.write(Note(note.position, note.position.txid, applying=True))
    notes.close()
    with path.open("ab") as file:
        file.write(b"by somebody else")
    assert start("server", file_url, lasting=True).rows() == [0]
    assert kept(path) == ["app.db.dive"]


def test_kept_file_that_is_put_back_as_its_line_says_is_the_next_commit(
    server: Instance, path: Path, start: StartInstance, file_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.replica.close()
    shell_once(path, "CREATE TABLE mine (v)")()
    start("other", file_url).sql("INSERT INTO t VALUES (1)")
    start("server", file_url, lasting=True).replica.close()
    (found,) = path.parent.glob("app.db.diverged-*")
    assert f"after its last line copy the file, with its -wal if there is one, over {path}, and start" in caplog.text
    overwrite(path, found)
    again = start("server", file_url, lasting=True)
    assert (again.rows(), again.rows("SELECT * FROM mine")) == ([0], [])
    assert kept(path) == ["app.db.dive"]
