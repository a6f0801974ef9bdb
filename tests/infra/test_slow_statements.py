import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peewee
import pytest

from core.errors import TransactionTooSlow
from infra.sqlite.database import SqliteDatabase
from infra.telemetry.logs import CONTEXT_KEYS
from tests.conftest import open_at
from tests.log_watch import kept_lines

NEVER = "1000000000"
SLOW = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) SELECT "


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteDatabase]:
    database = open_at(tmp_path_factory.mktemp("slow") / "app.db", SLOW_STATEMENT_MS="1")
    yield database
    database.close()


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    with kept_lines("infra.sqlite.slow_statements") as lines:
        yield lines


def told(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of those that are made to be slow: on a busy machine any may be."""
    return [line for line in lines if line["sql"].startswith("WITH")]


def count_slowly(db: peewee.Database) -> Any:
    return db.execute_sql(SLOW + "count(*), 'canary-literal' FROM n WHERE 'x' <> ?", (100_000, "canary")).fetchone()


def fetch_slowly(db: peewee.Database) -> int:
    return len(db.execute_sql(SLOW + "i FROM n", (100_000,)).fetchall())


def test_slow_statement_is_a_warning_with_its_plan_and_no_values(
    database: SqliteDatabase, lines: list[dict[str, Any]]
) -> None:
    assert asyncio.run(database.read(count_slowly))[0] == 100_000
    (line,) = told(lines)
    assert line["level"] == "WARNING"
    assert line["duration_ms"] > 1
    assert line["sql"].startswith("WITH RECURSIVE n(i) AS (SELECT ? UNION ALL SELECT i + ? FROM n WHERE i < ?)")
    assert line["sql"].endswith("SELECT count(*), ? FROM n WHERE ? <> ?")
    assert line["plan"] == "CO-ROUTINE n"
    assert "canary" not in str(line)


def test_statement_lasts_while_its_rows_are_fetched(database: SqliteDatabase, lines: list[dict[str, Any]]) -> None:
    assert asyncio.run(database.read(fetch_slowly)) == 100_000
    assert [line["sql"].rpartition(") ")[2] for line in told(lines)] == ["SELECT i FROM n"]


def test_slow_statement_of_a_write_has_the_id_of_its_request(
    database: SqliteDatabase, lines: list[dict[str, Any]]
) -> None:
    async def request(request_id: str) -> None:
        CONTEXT_KEYS.set({"request_id": request_id})
        await database.write(count_slowly)
        CONTEXT_KEYS.set({})

    async def both() -> None:
        await asyncio.gather(request("one"), request("two"))

    asyncio.run(both())
    assert sorted(line["request_id"] for line in told(lines)) == ["one", "two"]


def test_slow_statement_outside_of_any_transaction_is_told(
    database: SqliteDatabase, lines: list[dict[str, Any]]
) -> None:
    assert asyncio.run(database.write_alone(count_slowly))[0] == 100_000
    assert len(told(lines)) == 1


def test_statement_that_fails_after_long_is_told(database: SqliteDatabase, lines: list[dict[str, Any]]) -> None:
    def fail_slowly(db: peewee.Database) -> None:
        count_slowly(db)
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        asyncio.run(database.write(fail_slowly))
    assert len(told(lines)) == 1
    asyncio.run(database.write(lambda db: db.execute_sql("SELECT 1").fetchall()))  # it is as it was
    assert len(told(lines)) == 1


def test_statement_that_was_stopped_is_told(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    path = tmp_path / "app.db"
    database = open_at(path, SLOW_STATEMENT_MS="1", COMMIT_TIMEOUT_SECONDS="0.1")
    try:
        with pytest.raises(TransactionTooSlow):
            asyncio.run(database.write(lambda db: db.execute_sql(SLOW + "count(*) FROM n", (10**12,)).fetchall()))
    finally:
        database.close()
    assert told(lines)


@pytest.mark.parametrize("milliseconds", ["0", NEVER])
def test_what_is_not_slow_is_not_told(tmp_path: Path, lines: list[dict[str, Any]], milliseconds: str) -> None:
    database = open_at(tmp_path / "app.db", SLOW_STATEMENT_MS=milliseconds)
    try:
        asyncio.run(database.read(count_slowly))
    finally:
        database.close()
    assert told(lines) == []
