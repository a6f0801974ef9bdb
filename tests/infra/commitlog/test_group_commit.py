"""Requests that share a commit: one object for all of them, and none answers for another."""

from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import peewee
import pytest

from core.errors import (
    CommitNotStored,
    CommitOutcomeUnknown,
    DatabaseFull,
    DatabaseUnavailable,
    ItemNotFound,
    StoreUnavailable,
    StoreUnreachable,
    TransactionTooLarge,
    TransactionTooSlow,
    TxidNotReached,
    WriteRefused,
)
from infra.clock import Clock
from infra.commitlog.group import Write
from infra.commitlog.log import open_log
from tests.infra.commitlog.conftest import Instance, StartInstance, stored_in

UseCase = Callable[[peewee.Database], Any]
COUNT = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000000) "


@pytest.fixture
def a(start: StartInstance, file_url: str) -> Instance:
    instance = start("a", file_url)
    instance.sql("CREATE TABLE t (v UNIQUE)")
    return instance


def insert(value: object) -> UseCase:
    return lambda db: db.execute_sql("INSERT INTO t VALUES (?) RETURNING v", (value,)).fetchone()[0]


def fail(db: peewee.Database) -> None:
    insert("failed")(db)
    raise ItemNotFound(1)


def abort(db: peewee.Database) -> None:
    """SQLite ends the transaction with the statement."""
    insert("aborted")(db)
    db.execute_sql("INSERT OR ROLLBACK INTO t VALUES ('twice'), ('twice')")


def together(instance: Instance, *use_cases: UseCase) -> list[Any]:
    """The result or error of each."""
    writes = [Write(use_case) for use_case in use_cases]
    instance.replica.write_together(writes, 10)
    return [write.error or write.result for write in writes]


def commits(url: str) -> int:
    return len(open_log(url, Clock()).objects.everything())


def test_they_share_one_object(a: Instance, file_url: str, tmp_path: Path) -> None:
    before = commits(file_url)
    a.store.requests.clear()
    assert together(a, *(insert(n) for n in range(50))) == list(range(50))
    assert commits(file_url) == before + 1
    assert [verb for verb, _ in a.store.requests] == ["create", "read_end"]
    assert a.rows() == stored_in(file_url, tmp_path / "out.db") == list(range(50))


def test_each_sees_what_the_ones_before_it_did(a: Instance) -> None:
    def count(db: peewee.Database) -> int:
        insert(db.execute_sql("SELECT count(*) FROM t").fetchone()[0])(db)
        return int(db.execute_sql("SELECT count(*) FROM t").fetchone()[0])

    assert together(a, count, fail, count, count)[0::2] == [1, 2]
    assert a.rows() == [0, 1, 2]


def test_none_is_answered_before_the_object_is_there(a: Instance) -> None:
    writes = [Write(insert(n)) for n in range(3)]
    seen = []
    a.store.before = lambda verb, name: seen.append((verb, a.rows(), [write.shown for write in writes]))
    a.replica.write_together(writes, 10)
    assert seen == [("create", [], [0, 0, 0]), ("read_end", [], [0, 0, 0])]
    assert [write.shown for write in writes] == [a.replica.visible.txid] * 3


def test_failure_of_one_undoes_that_one_alone(a: Instance, file_url: str, tmp_path: Path) -> None:
    before = commits(file_url)
    found = together(a, insert(1), fail, insert(2), insert(1), insert(3))
    assert [found[0], found[2], found[4]] == [1, 2, 3]
    assert isinstance(found[1], ItemNotFound)
    assert isinstance(found[3], WriteRefused)
    assert commits(file_url) == before + 1
    assert a.rows() == stored_in(file_url, tmp_path / "out.db") == [1, 2, 3]


def test_nested_transactions_of_a_request_are_its_own(a: Instance) -> None:
    def nested(db: peewee.Database) -> None:
        with db.atomic():
            insert("kept")(db)
            with db.atomic() as savepoint:
                insert("changed my mind")(db)
                savepoint.rollback()

    assert together(a, insert("a"), nested, insert("z")) == ["a", None, "z"]
    assert a.rows() == ["a", "kept", "z"]


def test_abort_of_one_costs_the_others_only_their_common_commit(a: Instance, file_url: str, tmp_path: Path) -> None:
    before = commits(file_url)
    found = together(a, insert(1), abort, insert(2), insert(3))
    assert [found[0], *found[2:]] == [1, 2, 3]
    assert isinstance(found[1], WriteRefused)
    assert commits(file_url) == before + 3
    assert a.rows() == stored_in(file_url, tmp_path / "out.db") == [1, 2, 3]


@pytest.mark.parametrize("others", [0, 2])
def test_nothing_is_committed_behind_the_back_of_an_abort(
    a: Instance, file_url: str, tmp_path: Path, others: int
) -> None:
    """After SQLite has ended the transaction each further statement would be a commit of its own."""

    def go_on(db: peewee.Database) -> str:
        try:
            abort(db)
        except peewee.IntegrityError:
            insert("stray")(db)
        return "done"

    def swallow(db: peewee.Database) -> str:
        try:
            abort(db)
        except peewee.IntegrityError:
            return "done"
        raise AssertionError

    for use_case in (go_on, swallow):
        *_, last = together(a, *(insert(f"{use_case.__name__}{n}") for n in range(others)), use_case)
        assert isinstance(last, peewee.PeeweeException | DatabaseUnavailable | WriteRefused)
    assert "stray" not in a.rows()
    assert a.rows() == stored_in(file_url, tmp_path / "out.db")
    assert len(a.rows()) == 2 * others


def leave_open(db: peewee.Database) -> None:
    db.transaction().__enter__()
    insert("left open")(db)


def begin_anew(db: peewee.Database) -> None:
    with db.transaction() as transaction:
        insert("thrown away")(db)
        transaction.rollback()


def give_the_cursor_away(db: peewee.Database) -> Any:
    return db.execute_sql("INSERT INTO t VALUES ('x'), ('y') RETURNING v")


def fail_with_a_cursor(db: peewee.Database) -> None:
    rows = db.execute_sql("INSERT INTO t VALUES ('x'), ('y') RETURNING v")
    if next(iter(rows)):
        raise ItemNotFound(1)


def violate_later(db: peewee.Database) -> None:
    db.execute_sql("INSERT INTO child VALUES (99)")


def attach(db: peewee.Database) -> None:
    other = Path(db.database).with_name("other.db")
    with closing(apsw.Connection(str(other))) as connection:
        for statement in ("PRAGMA journal_mode = wal", "CREATE TABLE IF NOT EXISTS z (v)"):
            connection.execute(statement).fetchall()
    db.execute_sql(f"ATTACH '{other}' AS other")
    db.execute_sql("SELECT * FROM other.z").fetchall()


def sql(statement: str) -> UseCase:
    return lambda db: db.execute_sql(statement).fetchall()


@pytest.mark.parametrize(
    "fault",
    [
        leave_open,
        begin_anew,
        give_the_cursor_away,
        fail_with_a_cursor,
        violate_later,
        attach,
        sql("ROLLBACK"),
        sql("COMMIT"),
        sql("BEGIN"),
        sql("ROLLBACK; BEGIN"),
        sql("RELEASE one_of_the_requests"),
        sql("PRAGMA query_only = 1"),
        sql("PRAGMA locking_mode = exclusive"),
        sql("PRAGMA synchronous = off"),
        sql("PRAGMA foreign_keys = off"),
        sql("PRAGMA wal_autocheckpoint = 1"),
        sql("CREATE TEMP TABLE t (v)"),
    ],
)
def test_request_that_does_what_it_must_not_harms_itself_alone(
    a: Instance, file_url: str, tmp_path: Path, fault: UseCase
) -> None:
    a.sql("CREATE TABLE parent (id INTEGER PRIMARY KEY)")
    a.sql("CREATE TABLE child (parent REFERENCES parent DEFERRABLE INITIALLY DEFERRED)")
    found = together(a, insert(1), fault, insert(2))
    assert [found[0], found[2]] == [1, 2]
    assert isinstance(found[1], Exception)
    with pytest.raises(type(found[1])):
        a.write(fault)
    assert together(a, insert(3), insert(4)) == [3, 4]
    assert a.sql("PRAGMA foreign_keys") == [(1,)]
    assert a.rows() == stored_in(file_url, tmp_path / "out.db") == [1, 2, 3, 4]


def test_transaction_left_open_outside_of_transactions_is_an_error(a: Instance) -> None:
    with pytest.raises(DatabaseUnavailable, match="left a transaction open"):
        a.replica.run_alone(sql("BEGIN"), 10.0)
    a.sql("INSERT INTO t VALUES (1)")
    assert a.rows() == [1]


def test_what_is_to_follow_the_commit_follows_it(a: Instance, caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []

    def then(name: str, then_fail: bool = False) -> UseCase:
        def use_case(db: peewee.Database) -> None:
            insert(name)(db)
            db.after_commit(lambda: done.append(f"{name} {a.rows()}"))
            if then_fail:
                raise ItemNotFound(1)

        return use_case

    def fault(db: peewee.Database) -> None:
        insert("z")(db)
        db.after_commit(lambda: 1 / 0)

    found = together(a, then("a"), then("b", True), fault, then("c"))
    assert [type(value) for value in found] == [type(None), ItemNotFound, type(None), type(None)]
    assert done == ["a ['a', 'c', 'z']", "c ['a', 'c', 'z']"]
    assert "after a commit has failed" in caplog.text


def test_slow_query_is_run_alone(a: Instance) -> None:
    def slow(db: peewee.Database) -> int:
        a.clock.seconds += 5
        return int(db.execute_sql(COUNT + "SELECT max(i) FROM n").fetchone()[0])

    assert together(a, insert(1), slow) == [1, 3000000]


def test_store_that_is_away_is_tried_once_for_all_of_them(a: Instance) -> None:
    def away(verb: str, name: str) -> None:
        a.clock.seconds += 1
        raise StoreUnreachable("away")

    a.store.before = away
    started = a.clock.now()
    found = together(a, *(insert(n) for n in range(20)), abort)
    assert {type(error) for error in found[:-1]} == {CommitNotStored}
    assert a.clock.now() - started < 15


def test_abort_is_answered_from_fresh_state(a: Instance, start: StartInstance, file_url: str) -> None:
    b = start("b", file_url)
    b.sql("INSERT INTO t VALUES ('taken')")
    a.sql("DELETE FROM t")
    a.clock.seconds += 1
    b.write(sql("INSERT OR ROLLBACK INTO t VALUES ('taken')"))
    assert b.rows() == ["taken"]


def test_full_database_fails_only_the_request_that_does_not_fit(a: Instance) -> None:
    def limit(db: peewee.Database) -> None:
        pages = db.execute_sql("PRAGMA page_count").fetchone()[0]
        db.execute_sql(f"PRAGMA max_page_count = {pages + 3}").fetchall()

    def fill(db: peewee.Database) -> None:
        with db.atomic():
            for n in range(100):
                insert(f"{n} " + "x" * 3000)(db)

    a.write(limit)
    found = together(a, insert("a"), fill, insert("b"))
    assert [found[0], found[2]] == ["a", "b"]
    assert isinstance(found[1], DatabaseFull)
    assert a.rows() == ["a", "b"]


def test_sum_that_is_too_large_is_stored_in_parts(a: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(a.replica.committer, "max_bytes", 100_000)
    big, bigger = "b" * 30_000, "c" * 200_000
    found = together(a, insert("a" * 30_000), insert(bigger), insert(big), insert("small"))
    assert [len(value) if isinstance(value, str) else type(value) for value in found] == [
        30_000,
        TransactionTooLarge,
        30_000,
        5,
    ]
    assert len(a.rows()) == 3


@pytest.mark.parametrize(
    ("failure", "expected"),
    [(StoreUnreachable("away"), CommitNotStored), (StoreUnavailable("?"), CommitOutcomeUnknown)],
)
def test_commit_that_fails_fails_all_of_them(a: Instance, failure: Exception, expected: type[Exception]) -> None:
    def raise_it(verb: str, name: str) -> None:
        if verb == "create":
            raise failure

    a.store.before = raise_it
    found = together(a, insert(1), fail, insert(2))
    assert [type(error) for error in found] == [expected, CommitNotStored, expected]
    a.store.before = lambda verb, name: None
    assert a.rows() == []
    assert together(a, insert(3), insert(4)) == [3, 4]
    assert a.rows() == [3, 4]


def test_conflict_runs_all_of_them_again(a: Instance, start: StartInstance, file_url: str) -> None:
    b = start("b", file_url)
    b.sql("INSERT INTO t VALUES (2)")
    found = together(a, insert(1), insert(2), insert(3))
    assert [found[0], found[2]] == [1, 3]
    assert isinstance(found[1], WriteRefused)
    assert a.rows() == [1, 2, 3]


def test_group_that_commits_nothing_is_a_read(a: Instance, start: StartInstance, file_url: str) -> None:
    def find(db: peewee.Database) -> int:
        row = db.execute_sql("SELECT v FROM t").fetchone()
        if not row:
            raise ItemNotFound(1)
        return int(row[0])

    start("b", file_url).sql("INSERT INTO t VALUES (7)")
    a.clock.seconds += 1
    writes = [Write(find, a.clock.now()), Write(find, 0.0, 99)]
    a.replica.write_together(writes, 10)
    assert writes[0].outcome() == 7
    assert isinstance(writes[1].error, TxidNotReached)


def test_one_that_takes_too_long_is_stopped_and_keeps_the_others_no_longer(
    a: Instance, file_url: str, tmp_path: Path
) -> None:
    def hog(db: peewee.Database, seconds: float) -> None:
        a.clock.seconds += seconds  # as if each look at the clock had come so much later
        db.execute_sql(COUNT + "INSERT INTO t SELECT max(i) FROM n")

    found = together(a, insert(1), partial(hog, seconds=20), insert(2))
    assert [found[0], found[2]] == [1, 2]
    assert isinstance(found[1], TransactionTooSlow)
    assert a.rows() == stored_in(file_url, tmp_path / "out.db") == [1, 2]
    assert together(a, insert(3), partial(hog, seconds=5)) == [3, None]  # alone it has all of its time
    assert a.rows() == [1, 2, 3, 3000000]


def test_what_no_transaction_allows_is_run_outside_of_any(
    a: Instance, start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    b = start("b", file_url)
    a.sql(*(f"INSERT INTO t VALUES ({n})" for n in range(500)))
    a.sql("DELETE FROM t WHERE v > 3")
    before = commits(file_url)
    b.replica.run_alone(lambda db: db.execute_sql("VACUUM").fetchall(), 10.0)  # and b had not seen any of it
    assert commits(file_url) == before + 1
    assert a.fresh_rows() == b.rows() == stored_in(file_url, tmp_path / "out.db") == [0, 1, 2, 3]
    with pytest.raises(peewee.OperationalError, match="VACUUM"):
        a.sql("VACUUM")
