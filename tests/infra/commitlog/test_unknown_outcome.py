"""After an unknown outcome its number is taken by somebody, so that a look at the log is certain."""

from collections.abc import Callable
from pathlib import Path

import peewee
import pytest

from core.errors import CommitOutcomeUnknown, ObjectExists, StoreUnavailable, StoreUnreachable
from infra.clock import Clock
from infra.commitlog.log import open_log
from tests.infra.commitlog.conftest import Instance, StartInstance, stored_in


@pytest.fixture(params=[False, True], ids=["function", "server"])
def a(request: pytest.FixtureRequest, start: StartInstance, url: str) -> Instance:
    instance = start("a", url, lasting=request.param)
    instance.sql("CREATE TABLE t (v)")
    return instance


def late(instance: Instance, *statements: str) -> tuple[int, Callable[[], None]]:
    """Write, with a PUT that the store gets only later, if ever; returns its TXID and what brings it there."""
    held: list[tuple[str, bytes]] = []
    create = instance.store.create

    def hold(name: str, body: bytes | bytearray, *rest: object) -> None:
        held.append((name, bytes(body)))
        raise StoreUnavailable("no reply")

    instance.store.create = hold  # type: ignore[method-assign, assignment]
    with pytest.raises(CommitOutcomeUnknown) as error:
        instance.sql(*statements)
    instance.store.create = create  # type: ignore[method-assign]
    return error.value.txid, lambda: instance.store.store.create(*held[0])


def levels(url: str) -> list[int]:
    return [item.max_txid for item in open_log(url, Clock()).objects.everything() if item.level == 0]


def test_number_is_taken_and_the_late_commit_never_appears(a: Instance, url: str, tmp_path: Path) -> None:
    txid, arrive = late(a, "INSERT INTO t VALUES ('late')")
    assert a.fresh_rows() == []
    assert a.replica.visible.txid == txid - 1  # a read proves nothing yet
    a.replica.settle_unknown(a.clock.now())
    assert a.replica.visible.txid == txid
    with pytest.raises(ObjectExists):
        arrive()
    assert a.fresh_rows() == stored_in(url, tmp_path / "out.db") == []
    a.sql("INSERT INTO t VALUES ('next')")
    assert a.fresh_rows() == stored_in(url, tmp_path / "out.db") == ["next"]


def test_what_stays_unclear_is_not_run_again(a: Instance) -> None:
    """Not even when the store is back a moment later."""
    runs = []
    given_up = a.clock.now() + 12

    def lose(verb: str, name: str) -> None:
        if verb == "create" and a.clock.now() < given_up:
            raise StoreUnavailable("no reply")

    def insert(db: peewee.Database) -> None:
        runs.append(1)
        db.execute_sql("INSERT INTO t VALUES (1)")

    a.store.before = lose
    with pytest.raises(CommitOutcomeUnknown):
        a.write(insert)
    assert len(runs) == 1


def test_commit_that_arrived_first_is_found_and_nothing_is_put_behind_it(a: Instance, url: str, tmp_path: Path) -> None:
    txid, arrive = late(a, "INSERT INTO t VALUES ('late')")
    arrive()
    a.replica.settle_unknown(a.clock.now())
    assert a.replica.visible.txid == txid
    assert a.fresh_rows() == stored_in(url, tmp_path / "out.db") == ["late"]
    assert levels(url)[-1] == txid


def test_commit_that_arrives_between_look_and_filler_is_found_too(a: Instance, url: str) -> None:
    txid, arrive = late(a, "INSERT INTO t VALUES ('late')")

    def arrive_first(verb: str, name: str) -> None:
        if verb == "create":
            a.store.before = lambda verb, name: None
            arrive()

    a.store.before = arrive_first
    a.replica.settle_unknown(a.clock.now() + 10)
    assert (a.replica.visible.txid, levels(url)[-1]) == (txid, txid)
    assert a.fresh_rows() == ["late"]


def test_number_that_somebody_else_has_taken_needs_no_filler(a: Instance, start: StartInstance, url: str) -> None:
    txid, arrive = late(a, "INSERT INTO t VALUES ('late')")
    b = start("b", url)
    b.sql("INSERT INTO t VALUES ('b')")
    with pytest.raises(ObjectExists):
        arrive()
    a.replica.settle_unknown(a.clock.now())
    assert levels(url)[-1] == txid
    assert a.fresh_rows() == ["b"]


def test_nothing_is_asked_when_every_outcome_is_known(a: Instance) -> None:
    a.sql("INSERT INTO t VALUES (1)")
    a.store.requests.clear()
    a.replica.settle_unknown(a.clock.now())
    assert a.store.requests == []


def test_filler_is_tried_until_the_store_is_back_by_whoever_watches(start: StartInstance, url: str) -> None:
    a = start("a", url, lasting=True)
    a.sql("CREATE TABLE t (v)")
    txid, arrive = late(a, "INSERT INTO t VALUES ('late')")

    def fail(verb: str, name: str) -> None:
        raise StoreUnreachable("away")

    a.store.before = fail
    with pytest.raises(StoreUnreachable):
        a.replica.watch(a.clock.now())
    a.store.before = lambda verb, name: None
    a.replica.watch(a.clock.now())
    assert a.replica.visible.txid == txid
    with pytest.raises(ObjectExists):
        arrive()
    assert a.rows() == []
