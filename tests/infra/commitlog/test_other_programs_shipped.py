"""What another program commits to the file of a running server is in the log."""

from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from core.errors import CommitNotStored, DatabaseLocked, StoreUnreachable
from tests.infra.commitlog.conftest import BIG, Instance, Shell, StartInstance, check_file_is_the_log, stored_in, watch


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
    transaction = server.replica.file.transaction

    def late() -> Any:
        shell("INSERT INTO t VALUES (1)")
        return transaction()

    with monkeypatch.context() as patch:
        patch.setattr(server.replica.file, "transaction", late)
        server.sql("INSERT INTO t VALUES (2)")
    assert server.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 1, 2]


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
    monkeypatch.setattr(server.replica.committer, "max_bytes", 20_000)
    transaction = server.replica.file.transaction
    late = iter([BIG])

    def begin() -> Any:
        for statement in late:
            shell(statement)
        return transaction()

    monkeypatch.setattr(server.replica.file, "transaction", begin)
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


def test_lock_that_is_never_released_is_reported(server: Instance, shell: Shell) -> None:
    shell("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseLocked):
        server.sql("INSERT INTO t VALUES (1)")
    shell("ROLLBACK")
    server.sql("INSERT INTO t VALUES (2)")
    assert server.rows() == [0, 2]
