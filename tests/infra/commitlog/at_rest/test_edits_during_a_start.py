"""What others commit while a start looks at the file, or replaces it, is not lost."""

from contextlib import closing
from pathlib import Path

import apsw
import pytest

from infra.clock import Clock
from infra.commitlog.at_rest import file_commit
from infra.commitlog.at_rest.local_file import LocalFile
from infra.commitlog.log import open_log
from infra.commitlog.raw_file import differing_pages
from tests.infra.commitlog.conftest import (
    BIG,
    Instance,
    StartInstance,
    at_once,
    check_file_is_the_log,
    shell_once,
    stored_in,
)


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
    server.kill()
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
    server.replica.file.checkpoint()
    server.sql("CREATE TABLE u (v)")
    server.kill()
    path.with_name("app.db-wal").unlink()  # so that the file is behind, and is replaced
    meanwhile = shell_once(path, "INSERT INTO t VALUES ('mine')")
    monkeypatch.setattr(file_commit, "differing_pages", at_once(differing_pages, meanwhile, before=False))
    again = start("server", file_url, lasting=True)
    assert again.rows() == [0, 1]
    (kept,) = path.parent.glob("*.diverged-*")
    with closing(apsw.Connection(str(kept))) as connection:
        assert ("mine",) in connection.execute("SELECT v FROM t").fetchall()


def test_commit_and_end_of_a_shell_before_the_file_is_replaced_are_not_lost(
    server: Instance, path: Path, start: StartInstance, file_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.sql("INSERT INTO t VALUES (1)")
    server.kill()
    path.with_name("app.db-wal").unlink()
    meanwhile = shell_once(path, "CREATE TABLE mine (v)")
    monkeypatch.setattr(LocalFile, "_write_anew", at_once(LocalFile._write_anew, meanwhile, before=True))
    again = start("server", file_url, lasting=True)
    assert again.rows() == [0, 1]
    (kept,) = path.parent.glob("*.diverged-*")
    with closing(apsw.Connection(str(kept))) as connection:
        assert ("mine",) in connection.execute("SELECT name FROM sqlite_schema").fetchall()


def test_commit_between_a_look_and_the_connections_is_stored(
    server: Instance, path: Path, start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    server.replica.close()
    again = start("server", file_url, lasting=True, open=False)
    meanwhile = shell_once(path, "INSERT INTO t VALUES (1)")  # its end moves the WAL into the file
    again.replica.file.connect = at_once(again.replica.file.connect, meanwhile, before=True)  # type: ignore[method-assign]
    again.replica.open()
    assert again.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 1]
