"""What becomes of a use case when others are first, or the server goes."""

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

import peewee
import psycopg
import pytest

from core import items
from core.errors import (
    CommitNotStored,
    CommitOutcomeUnknown,
    DatabaseLocked,
    DatabaseUnavailable,
    TransactionTooSlow,
    WriteRefused,
)
from core.idempotency import Answer, Attempt, once
from core.schemas import NewItem
from infra.postgresql.database import PostgresqlDatabase
from infra.telemetry.metrics import Metrics
from tests.infra.postgresql.conftest import Open
from tests.infra.postgresql.proxy import proxy_before
from tests.postgresql import Cluster

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


def add(db: peewee.Database, name: str = "n") -> int:
    return items.create_item(db, NewItem(name=name)).id


def names(database: PostgresqlDatabase) -> list[str]:
    rows = run(database.read(lambda db: db.execute_sql("SELECT name FROM items ORDER BY id").fetchall()))
    return [name for (name,) in rows]


def repeated(metrics: Metrics) -> float:
    return metrics._retries.value


def is_commit(sent: bytes) -> bool:
    return b"COMMIT" in sent


# Others are first


@pytest.mark.parametrize("together", [2, 5])
def test_updates_of_one_row_that_meet_are_all_done(opened: Open, migrated_url: str, together: int) -> None:
    metrics = Metrics()
    database = opened(migrated_url, metrics=metrics)
    run(database.write(add))
    meet = threading.Barrier(together)
    first_time = threading.local()

    def add_one(db: peewee.Database) -> None:
        [(quantity,)] = db.execute_sql("SELECT quantity FROM items WHERE id = 1").fetchall()
        if not getattr(first_time, "is_over", False):
            first_time.is_over = True
            meet.wait(30)  # all have read the same
        db.execute_sql("UPDATE items SET quantity = %s WHERE id = 1", (quantity + 1,))

    async def all_at_once() -> None:
        await asyncio.gather(*(database.write(add_one) for _ in range(together)))

    run(all_at_once())
    assert run(database.read(lambda db: items.get_item(db, 1).quantity)) == together
    assert repeated(metrics) >= together - 1
    assert metrics.totals().conflicts >= together - 1


def test_two_that_would_each_be_right_alone_are_not_both_done(opened: Open, migrated_url: str) -> None:
    """Write skew: each sees two on duty, and takes one of them off."""
    database = opened(migrated_url)
    for name in ("a", "b"):
        run(database.write(partial(add, name=name)))
    meet = threading.Barrier(2)
    first_time = threading.local()

    def leave(db: peewee.Database, name: str) -> bool:
        [(others,)] = db.execute_sql("SELECT count(*) FROM items WHERE name <> %s", (name,)).fetchall()
        if not getattr(first_time, "is_over", False):
            first_time.is_over = True
            meet.wait(30)
        if others:
            db.execute_sql("DELETE FROM items WHERE name = %s", (name,))
        return bool(others)

    async def both() -> list[bool]:
        return list(await asyncio.gather(*(database.write(partial(leave, name=name)) for name in ("a", "b"))))

    assert sorted(run(both())) == [False, True]
    assert len(names(database)) == 1


def test_deadlock_runs_again(opened: Open, migrated_url: str) -> None:
    database = opened(migrated_url, DATABASE_TOKEN="")
    for name in ("a", "b"):
        run(database.write(partial(add, name=name)))
    meet = threading.Barrier(2)
    first_time = threading.local()

    def lock(db: peewee.Database, *ids: int) -> None:
        db.execute_sql("LOCK TABLE items IN ROW SHARE MODE")
        for number, item_id in enumerate(ids):
            db.execute_sql("SELECT id FROM items WHERE id = %s FOR UPDATE", (item_id,)).fetchall()
            if number == 0 and not getattr(first_time, "is_over", False):
                first_time.is_over = True
                meet.wait(30)

    async def both() -> None:
        await asyncio.gather(database.write(lambda db: lock(db, 1, 2)), database.write(lambda db: lock(db, 2, 1)))

    run(both())


def test_who_is_never_first_is_told_that_nothing_is_stored(opened: Open, migrated_url: str) -> None:
    database = opened(migrated_url, COMMIT_TIMEOUT_SECONDS="0.5")
    run(database.write(add))

    def always_second(db: peewee.Database) -> None:
        db.execute_sql("SELECT quantity FROM items WHERE id = 1").fetchall()
        with psycopg.connect(migrated_url) as other:
            other.execute("UPDATE items SET quantity = quantity + 1 WHERE id = 1")
        db.execute_sql("UPDATE items SET name = 'second' WHERE id = 1")

    with pytest.raises(DatabaseLocked, match="Other transactions were first"):
        run(database.write(always_second))
    assert names(database) == ["n"]


def test_read_in_one_transaction_sees_one_state(opened: Open, migrated_url: str) -> None:
    database = opened(migrated_url)

    def count_twice(db: peewee.Database) -> list[int]:
        found = []
        with db.atomic():
            for _ in range(2):
                found.append(db.execute_sql("SELECT count(*) FROM items").fetchone()[0])
                with psycopg.connect(migrated_url) as other:
                    other.execute("INSERT INTO items (name, created_at, updated_at) VALUES ('x', '', '')")
        return found

    assert run(database.read(count_twice)) == [0, 0]
    assert len(names(database)) == 2


def test_read_writes_nothing(opened: Open, migrated_url: str) -> None:
    def read(db: peewee.Database) -> None:
        with db.atomic():
            add(db)

    database = opened(migrated_url)
    with pytest.raises(DatabaseUnavailable, match="read-only transaction"):
        run(database.read(read))
    assert names(database) == []


def test_row_that_another_has_just_made_is_seen_the_next_time(opened: Open, migrated_url: str) -> None:
    database = opened(migrated_url)
    key = "INSERT INTO api_keys (id, name, secret_sha256, scopes, created_at) VALUES ('k', '', '', '', '')"

    def make_if_absent(db: peewee.Database) -> bool:
        is_there = bool(db.execute_sql("SELECT 1 FROM items LIMIT 1").fetchall())  # and so the state is chosen
        if not db.execute_sql("SELECT 1 FROM api_keys WHERE id = 'k'").fetchall():
            with psycopg.connect(migrated_url) as other:
                other.execute(key + " ON CONFLICT DO NOTHING")
            db.execute_sql(key)
        return is_there

    assert run(database.write(make_if_absent)) is False


# What the use case does


def test_what_a_use_case_raises_undoes_all_of_it(opened: Open, migrated_url: str) -> None:
    database = opened(migrated_url, DATABASE_CONNECTIONS=1)

    def fail(db: peewee.Database) -> None:
        add(db)
        with db.atomic():  # no transaction in the transaction
            add(db)
        raise LookupError("no")

    with pytest.raises(LookupError):
        run(database.write(fail))
    run(database.write(partial(add, name="after")))
    assert names(database) == ["after"]


def test_there_are_no_savepoints(opened: Open, migrated_url: str) -> None:
    with pytest.raises(NotImplementedError):
        run(opened(migrated_url).write(lambda db: db.savepoint()))


def test_statement_that_failed_is_not_forgotten_at_commit(opened: Open, migrated_url: str) -> None:
    """PostgreSQL answers COMMIT with ROLLBACK then, which is no error."""
    database = opened(migrated_url, COMMIT_TIMEOUT_SECONDS="0.3")

    def careless(db: peewee.Database) -> None:
        add(db)
        with pytest.raises(peewee.IntegrityError):
            db.execute_sql("INSERT INTO items (name, quantity, created_at, updated_at) VALUES ('x', -1, '', '')")

    with pytest.raises(CommitNotStored):
        run(database.write(careless))
    assert names(database) == []


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO items (name, quantity, created_at, updated_at) VALUES ('x', -1, '', '')",  # CHECK
        "INSERT INTO items (created_at, updated_at) VALUES ('', '')",  # NOT NULL
        "INSERT INTO items (name, quantity, created_at, updated_at) VALUES ('x', 99999999999999999999, '', '')",
        "INSERT INTO schema_migrations (number, holder, held_until) VALUES (1, '', now())",  # a key that is taken
    ],
)
def test_what_stands_in_the_database_against_a_write_refuses_it(
    opened: Open, migrated_url: str, statement: str
) -> None:
    with pytest.raises(WriteRefused):
        run(opened(migrated_url).write(lambda db: db.execute_sql(statement)))


def test_text_that_postgresql_cannot_hold_is_refused(opened: Open, migrated_url: str) -> None:
    with pytest.raises(WriteRefused, match="NUL"):
        run(opened(migrated_url).write(lambda db: db.execute_sql("SELECT %s::text", ("a\0b",))))


# The connection is lost


def backend_of(db: peewee.Database) -> int:
    return int(db.execute_sql("SELECT pg_backend_pid()").fetchone()[0])


def test_connection_that_is_lost_before_commit_is_made_anew(
    opened: Open, postgresql: Cluster, migrated_url: str
) -> None:
    metrics = Metrics()
    database = opened(migrated_url, metrics=metrics)
    killed: list[int] = []

    def killed_once(db: peewee.Database) -> None:
        add(db)
        if not killed:
            killed.append(backend_of(db))
            end_backend(postgresql, killed[0])  # behind the last statement, and before COMMIT

    run(database.write(killed_once))
    assert names(database) == ["n"]
    assert repeated(metrics) == 1
    assert metrics.totals().unknown == 0


def end_backend(postgresql: Cluster, pid: int) -> None:
    with postgresql.superuser() as db:
        db.execute("SELECT pg_terminate_backend(%s, 30000)", (pid,))


def test_connection_that_is_lost_in_the_middle_is_made_anew(
    opened: Open, postgresql: Cluster, migrated_url: str
) -> None:
    database = opened(migrated_url)
    killed: list[int] = []

    def killed_once(db: peewee.Database) -> None:
        if not killed:
            killed.append(backend_of(db))
            end_backend(postgresql, killed[0])
        add(db)

    run(database.write(killed_once))
    run(database.read(lambda db: names_after(db, postgresql, killed)))
    assert names(database) == ["n"]


def names_after(db: peewee.Database, postgresql: Cluster, killed: list[int]) -> None:
    if len(killed) < 2:
        killed.append(backend_of(db))
        end_backend(postgresql, killed[-1])
    db.execute_sql("SELECT 1").fetchall()


def test_connections_that_the_server_has_ended_meanwhile_trouble_nobody(
    opened: Open, postgresql: Cluster, migrated_url: str
) -> None:
    database = opened(migrated_url)
    run(database.write(add))
    with postgresql.away():
        pass
    run(database.write(add))
    assert len(names(database)) == 2


def test_connection_that_is_cut_before_commit_arrives_is_of_unknown_outcome(
    opened: Open, postgresql: Cluster, migrated_url: str
) -> None:
    with proxy_before(postgresql.port) as proxy:
        metrics = Metrics()
        database = opened(migrated_url.replace(str(postgresql.port), str(proxy.port)), metrics=metrics)
        proxy.before = is_commit
        with pytest.raises(CommitOutcomeUnknown):
            run(database.write(add))
        proxy.before = lambda sent: False
        assert names(database) == []
        assert metrics.totals().unknown == 1


def test_commit_whose_answer_is_lost_is_unknown_and_settled_by_its_idempotency_key(
    opened: Open, postgresql: Cluster, migrated_url: str
) -> None:
    attempt = Attempt("caller", "key", b"what was asked")

    def add_once(db: peewee.Database) -> Answer:
        return once(db, attempt, lambda db: Answer(201, {}, str(add(db)).encode()), 24)

    with proxy_before(postgresql.port) as proxy:
        database = opened(migrated_url.replace(str(postgresql.port), str(proxy.port)))
        proxy.after = is_commit
        with pytest.raises(CommitOutcomeUnknown):
            run(database.write(add_once))
        proxy.after = lambda sent: False
        assert run(database.write(add_once)) == Answer(201, {}, b"1", is_repeated=True)
        assert names(database) == ["n"]


def test_commit_that_a_frozen_server_does_not_answer_is_unknown(
    opened: Open, postgresql: Cluster, migrated_url: str
) -> None:
    database = opened(migrated_url, COMMIT_TIMEOUT_SECONDS="0.3")

    with ExitStack() as frozen:

        def add_and_freeze(db: peewee.Database) -> None:
            add(db)
            frozen.enter_context(postgresql.silent())

        with pytest.raises(CommitOutcomeUnknown):
            run(database.write(add_and_freeze))
    assert len(names(database)) in (0, 1)


def test_statement_that_another_release_has_changed_runs_again(opened: Open, migrated_url: str) -> None:
    metrics = Metrics()
    database = opened(migrated_url, metrics=metrics, DATABASE_CONNECTIONS=1)
    run(database.write(add))

    def quantities(db: peewee.Database) -> list[Any]:
        return list(db.execute_sql("SELECT quantity FROM items").fetchall())

    for _ in range(10):
        run(database.read(quantities))
    with psycopg.connect(migrated_url) as other:
        other.execute("ALTER TABLE items ALTER quantity TYPE integer")
    assert run(database.read(quantities)) == [(0,)]
    assert repeated(metrics) == 1


# It takes too long


def test_statement_that_takes_too_long_is_stopped(opened: Open, migrated_url: str) -> None:
    database = opened(migrated_url, COMMIT_TIMEOUT_SECONDS="0.3")
    with pytest.raises(TransactionTooSlow):
        run(database.write(lambda db: db.execute_sql("SELECT pg_sleep(60)")))
    with pytest.raises(TransactionTooSlow):
        run(database.read(lambda db: db.execute_sql("SELECT pg_sleep(60)")))


def test_lock_of_another_program_is_waited_for_and_then_named(opened: Open, migrated_url: str) -> None:
    database = opened(migrated_url, BUSY_TIMEOUT_SECONDS="0.2")
    with psycopg.connect(migrated_url) as other:
        other.execute("LOCK TABLE items IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(DatabaseLocked, match="lock timeout"):
            run(database.write(add))
    run(database.write(add))


def test_server_that_is_frozen_is_not_waited_for_longer_than_a_request_may_take(
    opened: Open, postgresql: Cluster, migrated_url: str
) -> None:
    """It keeps its connections, and the machine answers their keepalives."""
    database = opened(migrated_url, COMMIT_TIMEOUT_SECONDS="0.3", DATABASE_CONNECTIONS=1)
    run(database.write(add))
    with postgresql.silent(), pytest.raises(DatabaseUnavailable):
        run(database.write(add))
    assert names(database) == ["n"]
