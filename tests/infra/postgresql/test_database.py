"""The pool, a server that is away, the start and the end."""

import asyncio
import logging
import threading
import time
from functools import partial
from typing import Any

import peewee
import psycopg
import pytest

from core.errors import (
    DatabaseLocked,
    DatabaseRefused,
    DatabaseUnavailable,
    NotServed,
    StatementRefused,
    TooManyCopies,
    TooManyWrites,
)
from core.items import export_items, probe
from core.schemas import ExportQuery
from infra.postgresql import transactions
from infra.postgresql.connections import Connection
from infra.telemetry.metrics import Metrics
from tests.e2e.processes import until
from tests.infra.postgresql.conftest import Open
from tests.infra.postgresql.proxy import proxy_before
from tests.infra.postgresql.test_transactions import add, backend_of, names, run
from tests.postgresql import Cluster

# Threads


async def started(database: Any, busy: threading.Event, *, times: int = 1) -> list["asyncio.Task[None]"]:
    """Use cases that keep their connections until `busy` is set."""
    under_way = threading.Semaphore(0)

    def keep(db: peewee.Database) -> None:
        under_way.release()
        busy.wait(30)

    tasks = [asyncio.create_task(database.write(keep)) for _ in range(times)]
    for _ in range(times):
        assert await asyncio.to_thread(under_way.acquire, timeout=30)
    return tasks


def test_who_finds_no_connection_free_is_told_so(opened: Open, migrated_url: str) -> None:
    metrics = Metrics()
    database = opened(migrated_url, metrics=metrics, DATABASE_CONNECTIONS=2, BUSY_TIMEOUT_SECONDS="0.1")
    ran: list[int] = []

    async def main() -> None:
        busy = threading.Event()
        tasks = await started(database, busy, times=2)
        with pytest.raises(DatabaseLocked, match="No connection to the database was free"):
            await database.write(lambda db: ran.append(1))
        with pytest.raises(DatabaseLocked):
            await database.read(lambda db: ran.append(1))
        busy.set()
        await asyncio.gather(*tasks)
        await database.read(probe)

    run(main())
    assert ran == []


def test_so_many_wait_and_no_more(opened: Open, migrated_url: str) -> None:
    database = opened(migrated_url, DATABASE_CONNECTIONS=1, WRITE_QUEUE_LIMIT=1)

    async def main() -> None:
        busy = threading.Event()
        tasks = await started(database, busy)
        waiting = asyncio.create_task(database.write(add))
        await asyncio.sleep(0)
        assert database.gauges()["database_writes_waiting"] == 1
        with pytest.raises(TooManyWrites):
            await database.write(add)
        with pytest.raises(DatabaseLocked, match="wait for a connection already"):
            await database.read(probe)
        busy.set()
        await asyncio.gather(waiting, *tasks)
        assert database.gauges()["database_writes_waiting"] == 0

    run(main())
    assert names(database) == ["n"]


def test_write_for_which_nobody_waits_any_more_is_not_begun(opened: Open, migrated_url: str) -> None:
    database = opened(migrated_url, DATABASE_CONNECTIONS=1)

    async def main() -> None:
        busy = threading.Event()
        tasks = await started(database, busy)
        waiting = asyncio.create_task(database.write(add))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        busy.set()
        await asyncio.gather(*tasks)

    run(main())
    assert names(database) == []


def test_connections_are_kept(opened: Open, migrated_url: str) -> None:
    database = opened(migrated_url, DATABASE_CONNECTIONS=3)
    meet = threading.Barrier(3)

    def which(db: peewee.Database) -> int:
        meet.wait(30)
        return backend_of(db)

    async def together() -> set[int]:
        return set(await asyncio.gather(*(database.read(which) for _ in range(3))))

    first = run(together())
    assert len(first) == 3
    assert run(together()) == first


def test_connection_is_made_anew_before_it_is_an_hour_old(
    opened: Open, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = opened(migrated_url, DATABASE_CONNECTIONS=1)
    first, second = (run(database.read(backend_of)) for _ in range(2))
    passed = 0.0
    monkeypatch.setattr(transactions, "monotonic", lambda: time.monotonic() + passed)
    passed = 40 * 60
    assert run(database.read(backend_of)) == second == first
    passed = 56 * 60
    assert run(database.read(backend_of)) != first


def test_connection_that_was_forgotten_while_it_rested_is_not_waited_for(
    opened: Open, postgresql: Cluster, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a firewall, or while Lambda has kept the process frozen: nobody answers, and nobody says why."""
    metrics = Metrics()
    with proxy_before(postgresql.port) as proxy:
        url = migrated_url.replace(str(postgresql.port), str(proxy.port))
        database = opened(url, metrics=metrics, DATABASE_CONNECTIONS=1)
        run(database.write(add))
        proxy.forget()
        monkeypatch.setattr(transactions, "monotonic", lambda: time.monotonic() + 61)
        run(database.write(add))
    assert metrics._retries.value == 0


# The server is away


def test_while_it_is_away_nobody_waits_and_soon_after_it_is_back_all_is_well(
    opened: Open, postgresql: Cluster, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = opened(migrated_url, COMMIT_TIMEOUT_SECONDS="0.2")
    run(database.write(add))
    with postgresql.away():
        with pytest.raises(DatabaseUnavailable, match="No connection to"):
            run(database.write(add))
        tried: list[object] = []
        monkeypatch.setattr(Connection, "connect", lambda **parameters: tried.append(parameters))
        with pytest.raises(DatabaseUnavailable, match="No connection to"):
            run(database.read(probe))
        assert tried == []  # it was away a moment ago
        monkeypatch.undo()
    run(_until_there(database))
    assert names(database) == ["n"]


async def _until_there(database: Any) -> None:
    for _ in range(500):
        try:
            await database.read(probe)
            return
        except DatabaseUnavailable:
            await asyncio.sleep(0.02)
    raise AssertionError("it did not come back")


def test_start_waits_for_a_server_that_is_away(
    opened: Open, postgresql: Cluster, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with postgresql.away():
        with pytest.raises(DatabaseUnavailable):
            opened(database_url)
        database = opened(database_url, give_up=pytest.fail)
        with pytest.raises(DatabaseUnavailable, match="The start waits"):
            database.check()
        with pytest.raises(DatabaseUnavailable, match="The start waits"):
            run(database.write(add))
    until(lambda: "the start goes on" in caplog.text)
    run(database.write(add))  # with the schema that the start has made


def test_start_that_waits_gives_up_when_only_somebody_can_help(
    opened: Open, postgresql: Cluster, database_url: str
) -> None:
    given_up: list[Exception] = []
    with postgresql.away():
        opened(database_url.replace("app-secret", "wrong-secret"), give_up=given_up.append)
    until(lambda: bool(given_up))
    assert isinstance(given_up[0], DatabaseRefused)
    assert "wrong-secret" not in str(given_up[0])


def test_start_does_not_wait_where_only_somebody_can_help(opened: Open, postgresql: Cluster, database_url: str) -> None:
    wrong = {
        "password authentication failed": postgresql.url("postgres", password="wrong-secret"),
        'database "missing" does not exist': postgresql.url("missing"),
        "no password supplied": f"postgresql://app@127.0.0.1:{postgresql.port}/postgres",
        "does not support SSL": f"{database_url}?sslmode=require",
    }
    for said, url in wrong.items():
        with pytest.raises(DatabaseRefused, match=said) as error:
            opened(url, give_up=pytest.fail)
        assert "secret" not in str(error.value)


def test_user_who_may_not_create_tables_is_told_so(opened: Open, postgresql: Cluster) -> None:
    with pytest.raises(StatementRefused, match="permission denied"):
        opened(postgresql.url("postgres"), give_up=pytest.fail)


def test_database_of_another_program_is_not_served(opened: Open, database_url: str) -> None:
    with psycopg.connect(database_url) as db:
        db.execute("CREATE TABLE customers (name text)")
    with pytest.raises(NotServed):
        opened(database_url, give_up=pytest.fail)


def test_server_that_is_only_read_serves_reads_and_says_so(
    opened: Open, postgresql: Cluster, migrated_url: str
) -> None:
    database = opened(migrated_url, DATABASE_CONNECTIONS=1)
    run(database.write(add))
    database.check_writable()
    name = migrated_url.rpartition("/")[2]
    with postgresql.superuser() as db:
        db.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        db.execute("SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity WHERE datname = %s", (name,))
    assert names(database) == ["n"]
    with pytest.raises(DatabaseUnavailable, match="set to be only read"):
        database.check_writable()
    with pytest.raises(DatabaseUnavailable, match="takes no writes"):
        run(database.write(add))
    with postgresql.superuser() as db:
        db.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    run(database.write(add))
    database.check_writable()


def test_server_whose_connections_others_have_is_no_server_that_is_away(
    opened: Open, postgresql: Cluster, migrated_url: str
) -> None:
    database = opened(migrated_url, DATABASE_CONNECTIONS=2, COMMIT_TIMEOUT_SECONDS="0.2")
    run(database.read(probe))  # on one of the two
    with postgresql.superuser() as db:
        db.execute("ALTER ROLE app CONNECTION LIMIT 1")
    try:

        async def both() -> list[object]:
            busy = threading.Event()
            tasks = await started(database, busy)
            other = await asyncio.gather(database.read(probe), return_exceptions=True)
            busy.set()
            await asyncio.gather(*tasks)
            await database.read(probe)  # nobody takes it for one that is away
            return list(other)

        [error] = run(both())
        assert isinstance(error, DatabaseUnavailable)
        assert "too many connections" in str(error)
    finally:
        with postgresql.superuser() as db:
            db.execute("ALTER ROLE app CONNECTION LIMIT -1")


def test_closed_one_refuses_and_leaves_no_connection(opened: Open, postgresql: Cluster, migrated_url: str) -> None:
    database = opened(migrated_url)
    run(database.write(add))
    database.close()
    database.close()
    with pytest.raises(DatabaseUnavailable, match="closed"):
        run(database.read(probe))
    with pytest.raises(DatabaseUnavailable, match="closed"):
        database.check()
    with postgresql.superuser() as db:
        name = migrated_url.rpartition("/")[2]
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
        until(lambda: db.execute(query, (name,)).fetchone() == (0,))


# Copies


def test_copy_is_one_state_for_as_long_as_it_is_read(opened: Open, migrated_url: str) -> None:
    database = opened(migrated_url)
    for name in "abc":
        run(database.write(partial(add, name=name)))
    with database.copy(0) as copy:
        found = export_items(copy.db, ExportQuery())
        first = next(found)
        run(database.write(partial(add, name="d")))
        assert [first.name, *(item.name for item in found)] == ["a", "b", "c"]
        assert copy.txid == 0
        with pytest.raises(DatabaseUnavailable):
            add(copy.db)


def test_so_many_copies_and_no_more(opened: Open, migrated_url: str) -> None:
    database = opened(migrated_url)
    with database.copy(0), database.copy(0), database.copy(0), database.copy(0), pytest.raises(TooManyCopies):
        database.copy(0).__enter__()
    with database.copy(0):
        pass
