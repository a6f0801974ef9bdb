"""What another program has made of the database may be no commit."""

from contextlib import closing
from pathlib import Path

import apsw
import pytest

from core.errors import NotServed
from infra.clock import Clock
from infra.commitlog.log import open_log
from tests.infra.commitlog.conftest import Instance, StartInstance, at_once, shell_once, stored_in, stored_in_file


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
    opened = server.replica.file
    spoil = shell_once(path, "INSERT INTO t VALUES (1)", "PRAGMA user_version = 99")
    monkeypatch.setattr(opened, "transaction", at_once(opened.transaction, spoil, before=True))
    server.sql("INSERT INTO t VALUES (2)")
    assert server.rows() == stored_in(file_url, tmp_path / "out.db") == [2]
    [kept] = path.parent.glob("app.db.diverged-*")
    assert stored_in_file(kept) == [1]


def test_file_of_a_crash_stays_as_it_is_when_the_newest_state_of_the_log_cannot_be_served(
    server: Instance, path: Path, start: StartInstance, file_url: str
) -> None:
    server.kill()
    start("other", file_url).sql("PRAGMA user_version = 99")
    before = path.read_bytes()
    with pytest.raises(NotServed, match="Nothing was written to it"):
        start("server", file_url, lasting=True, schema=NoNewerSchema())
    assert path.read_bytes() == before
