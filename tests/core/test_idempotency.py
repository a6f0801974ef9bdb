"""What is kept of a write for its Idempotency-Key; tests/handler/test_idempotency.py has what a caller sees of it."""

import time
from collections.abc import Callable
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
from peewee import Database, OperationalError

from core import idempotency, items
from core.dialects import SETTINGS, execute, state_of
from core.errors import IdempotencyKeyReused, ItemNotFound, WriteRefused
from core.idempotency import Answer, Attempt, once
from core.schemas import ItemPatch, ItemQuery, NewItem
from tests.core.conftest import connected

ATTEMPT = Attempt("ann", "k", b"asked")
ROW = (
    "INSERT INTO idempotency_keys (hour, caller, key, fingerprint, status, headers, body) VALUES (?, ?, ?, ?, ?, ?, ?)"
)
HOUR = int(time.time()) // 3600


@pytest.fixture(autouse=True)
def _it_is_that_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.idempotency.time", SimpleNamespace(time=lambda: HOUR * 3600.0))


def create(db: Database) -> Answer:
    return Answer(201, {"etag": '"1"'}, items.create_item(db, NewItem(name="Lamp")).name.encode())


def names(db: Database) -> list[str]:
    return [item.name for item in items.list_items(db, ItemQuery()).items]


def keys(db: Database) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = execute(db, "SELECT hour, key FROM idempotency_keys ORDER BY hour, key").fetchall()
    return found


def put(db: Database, hour: int, key: str = "k", **given: Any) -> None:
    row = {"fingerprint": b"asked", "status": 201, "headers": "{}", "body": b"old", **given}
    execute(db, ROW, (hour, "ann", key, *row.values()))


def test_the_second_time_the_first_answer_comes_and_nothing_is_done(db: Database) -> None:
    first = once(db, ATTEMPT, create, 24)
    assert first == Answer(201, {"etag": '"1"'}, b"Lamp")
    assert once(db, ATTEMPT, create, 24) == Answer(201, {"etag": '"1"'}, b"Lamp", is_repeated=True)
    assert names(db) == ["Lamp"]


def test_key_is_of_its_caller_and_of_one_request(db: Database) -> None:
    once(db, ATTEMPT, create, 24)
    once(db, Attempt("bob", "k", b"another"), create, 24)
    with pytest.raises(IdempotencyKeyReused):
        once(db, Attempt("ann", "k", b"another"), create, 24)
    assert names(db) == ["Lamp", "Lamp"]


def test_nothing_is_kept_of_what_was_not_done(db: Database) -> None:
    def fail(db: Database) -> Answer:
        items.patch_item(db, 7, ItemPatch(quantity=1))
        raise AssertionError

    with pytest.raises(ItemNotFound), db.atomic():
        once(db, ATTEMPT, fail, 24)
    assert keys(db) == []
    assert not once(db, ATTEMPT, create, 24).is_repeated


@pytest.mark.parametrize(("hours_ago", "kept"), [(24, True), (25, False), (-1, True)])
def test_key_is_kept_for_its_hours(db: Database, hours_ago: int, kept: bool) -> None:
    put(db, HOUR - hours_ago)
    answer = once(db, ATTEMPT, create, 24)
    assert (answer.is_repeated, answer.body) == ((True, b"old") if kept else (False, b"Lamp"))
    assert once(db, ATTEMPT, create, 24).is_repeated


def test_some_of_what_is_too_old_goes_with_each_write(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "_ONE_IN", 1)
    for number in range(6):
        put(db, HOUR - 30 + number, f"old {number}")
    put(db, HOUR - 24, "kept")
    once(db, ATTEMPT, create, 24)
    assert [key for _, key in keys(db)] == ["old 4", "old 5", "kept", "k"]
    once(db, Attempt("ann", "l", b""), create, 24)
    assert [key for _, key in keys(db)] == ["kept", "k", "l"]


def test_on_postgresql_one_write_in_some_removes_for_all(
    on_postgresql: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = iter([1, 15, 0])
    monkeypatch.setattr("random.randrange", lambda end: next(drawn))
    for number in range(70):
        put(on_postgresql, 1, f"old {number:02}")
    left = []
    for key in "abc":
        once(on_postgresql, Attempt("ann", key, b""), create, 24)
        left.append(len(keys(on_postgresql)))
    assert left == [71, 72, 73 - 64]


@pytest.mark.parametrize("change", [{"status": 500}, {"headers": "[]"}, {"headers": '{"a": 1}'}])
def test_row_that_is_no_answer_is_told(db: Database, change: dict[str, Any]) -> None:
    put(db, HOUR, **change)
    with pytest.raises(WriteRefused, match="is no answer"):
        once(db, ATTEMPT, create, 24)


Steps = list[Callable[[Database], Any]]


def test_two_keys_are_not_in_each_others_way_on_postgresql(on_postgresql: Database, shared_url: str) -> None:
    """In one table, however small, both begin before either is done. Each may also change an item of its own."""
    one, two = [items.create_item(on_postgresql, NewItem(name=name)).id for name in ("one", "two")]
    on_postgresql.execute_sql("ANALYZE items, idempotency_keys")  # so that its planner knows how small

    def steps(key: str, item_id: int) -> Steps:
        def change(db: Database) -> Answer:
            return Answer(200, {}, items.patch_item(db, item_id, ItemPatch(quantity=1)).name.encode())

        return [
            lambda db: db.execute_sql("BEGIN ISOLATION LEVEL SERIALIZABLE"),
            lambda db: once(db, Attempt("ann", f"{key}1", b""), create, 24),
            lambda db: once(db, Attempt("ann", f"{key}2", b""), change, 24),
            lambda db: db.execute_sql("COMMIT"),
        ]

    with closing(connected(shared_url)) as first, closing(connected(shared_url)) as second:
        for db in (first, second):
            for name, setting in SETTINGS.items():
                db.execute_sql(f"SET {name} = {setting}")
        for of_first, of_second in zip(steps("a", one), steps("b", two), strict=True):
            of_first(first)
            of_second(second)
    assert len(keys(on_postgresql)) == 4


def test_two_with_the_same_key_at_once_are_one_write_on_postgresql(on_postgresql: Database, shared_url: str) -> None:
    """The second has begun before the first was done: it is to run again, and then finds the answer."""
    with closing(connected(shared_url)) as first, closing(connected(shared_url)) as second:
        for db in (first, second):
            db.execute_sql("BEGIN ISOLATION LEVEL SERIALIZABLE")
            db.execute_sql("SELECT 1")  # its state is of now
        once(first, ATTEMPT, create, 24)
        first.execute_sql("COMMIT")
        with pytest.raises(OperationalError) as caught:
            once(second, ATTEMPT, create, 24)
        assert state_of(caught.value) == "40001"
        second.execute_sql("ROLLBACK")
        assert once(second, ATTEMPT, create, 24).is_repeated
    assert names(on_postgresql) == ["Lamp"]
