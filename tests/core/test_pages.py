"""What a page costs, in rows and statements, and that it stays right."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import apsw
import pytest
from peewee import Database

from core import items, pages
from core.dialects import execute, is_postgresql
from core.schemas import ExportQuery, ItemPage, ItemQuery, NewItem, SortOrder


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_MOST_LOOKED_AT", 100)
    monkeypatch.setattr(pages, "_MOST_COUNTED", 1000)


def fill(db: Database, rows: int, year: int = 2026) -> None:
    """One in 500 has another name; ten at a time have the same time."""
    execute(
        db,
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
        "INSERT INTO items (name, created_at, updated_at) SELECT CASE i - i / 500 * 500 WHEN 0 THEN 'needle' "
        "ELSE 'hay' END, CAST(? AS TEXT) || '-01-01T' || CAST(10000000 + i / 10 AS TEXT), '' FROM n ORDER BY i",
        (rows, str(year)),
    )


@contextmanager
def statements(db: Database) -> Iterator[list[tuple[str, int]]]:
    """Each with the steps that SQLite's virtual machine has made for it."""
    found: list[tuple[str, int]] = []

    def note(event: Any) -> None:
        found.append((event["sql"], event["stmt_status"]["SQLITE_STMTSTATUS_VM_STEP"]))

    db.connection().trace_v2(apsw.SQLITE_TRACE_PROFILE, note)
    yield found
    db.connection().trace_v2(0, None)


def test_page_is_planned_once(on_sqlite: Database) -> None:
    fill(on_sqlite, 100)
    planned = []

    def note(*_: Any) -> int:
        """SQLite asks when it plans a statement."""
        planned.append(limit)
        return apsw.SQLITE_OK

    on_sqlite.connection().authorizer = note
    for limit in (10, 20, 10):
        items.list_items(on_sqlite, ItemQuery(limit=limit))
    on_sqlite.connection().authorizer = None
    assert set(planned) == {10}


def walk(db: Database, **query: Any) -> list[Any]:
    found: list[Any] = []
    cursor = None
    while True:
        page = items.list_items(db, ItemQuery(**query, cursor=cursor))
        found.append(page)
        if (cursor := page.next_cursor) is None:
            return found


@pytest.mark.parametrize("order", ["created_at", "-created_at"])
@pytest.mark.parametrize("rows", [99, 100, 101, 1234])
def test_search_finds_all_that_match_in_order(db: Database, order: str, rows: int) -> None:
    fill(db, rows)
    if not is_postgresql(db):
        db.execute_sql("UPDATE items SET created_at = CAST(x'ff' AS TEXT) WHERE id % 100 = 0")  # where looks end, too
    everything = [item for page in walk(db, order=order, limit=100) for item in page.items]
    assert len(everything) == rows
    for q in ("needle", "hay", "absent"):
        found = walk(db, order=order, limit=7, q=q)
        assert [item for page in found for item in page.items] == [item for item in everything if item.name == q]
    assert len(walk(db, order=order, q="absent")) == -(-rows // 100)


def test_one_page_looks_at_so_many_rows_however_many_there_are(on_sqlite: Database) -> None:
    fill(on_sqlite, 2000)
    cursor = walk(on_sqlite, q="absent")[4].next_cursor

    def steps(**query: Any) -> int:
        with statements(on_sqlite) as found:
            items.list_items(on_sqlite, ItemQuery(**query))
        return sum(made for _, made in found)

    queries: list[dict[str, Any]] = [
        {"q": "absent"},
        {"q": "absent", "cursor": cursor},
        {"q": "absent", "count": True},
        {"limit": 100},
    ]
    before = [steps(**query) for query in queries]
    fill(on_sqlite, 20_000, 2027)
    assert [steps(**query) for query in queries] == before


@pytest.mark.parametrize(("order", "before", "last"), [("created_at", 19_998, 20_000), ("-created_at", 3, 1)])
@pytest.mark.parametrize("tied", [True, False])
def test_page_10000_takes_as_many_steps_as_the_second(
    on_sqlite: Database, order: SortOrder, before: int, last: int, tied: bool
) -> None:
    fill(on_sqlite, 20_000)
    if tied:
        on_sqlite.execute_sql("UPDATE items SET created_at = '2026'")

    def page(cursor: str | None) -> tuple[Any, int]:
        with statements(on_sqlite) as found:
            page = items.list_items(on_sqlite, ItemQuery(limit=2, cursor=cursor, order=order))
        return page, sum(made for _, made in found)

    first, steps_of_first = page(None)
    _, steps_of_second = page(first.next_cursor)
    end, steps_of_10000th = page(f"~{before}")
    assert (end.items[-1].id, end.next_cursor) == (last, None)
    assert steps_of_10000th <= steps_of_second < 3 * steps_of_first


def test_plain_page_is_one_statement_and_a_search_reads_one_state(on_sqlite: Database) -> None:
    fill(on_sqlite, 500)
    with statements(on_sqlite) as found:
        items.list_items(on_sqlite, ItemQuery(limit=5))
    assert len(found) == 1
    with statements(on_sqlite) as found:
        items.list_items(on_sqlite, ItemQuery(q="x", count=True))
    assert (found[0][0].strip(" ;").upper(), found[-1][0].strip(" ;").upper()) == ("BEGIN", "COMMIT")


@pytest.mark.parametrize("q", ["", "needle"])
@pytest.mark.parametrize("order", ["created_at", "-created_at"])
def test_no_page_sorts_or_scans(on_sqlite: Database, q: str, order: SortOrder) -> None:
    fill(on_sqlite, 500)
    cursor = items.list_items(on_sqlite, ItemQuery(limit=5, order=order)).next_cursor
    with statements(on_sqlite) as found:
        items.list_items(on_sqlite, ItemQuery(q=q, order=order, cursor=cursor))
    for sql, _ in found:
        if sql.startswith("SELECT"):
            plan = " ".join(
                row[3] for row in on_sqlite.execute_sql(f"EXPLAIN QUERY PLAN {sql}", [None] * sql.count("?"))
            )
            assert "TEMP B-TREE" not in plan
            assert "SCAN" not in plan
            assert "INDEX idx_items_created ((created_at,rowid)" in plan or "PRIMARY KEY" in plan


def test_total_is_of_all_that_match(db: Database) -> None:
    fill(db, 1000)
    page = items.list_items(db, ItemQuery(limit=1, count=True))
    assert isinstance(page, ItemPage)
    assert page.total == 1000
    for q, total in (("NEEDLE", 2), ("absent", 0), ("a", 998)):
        assert [page.total for page in walk(db, q=q, limit=100, count=True)][:1] == [total]
    items.create_item(db, NewItem(name="needle"))
    [search, plain] = [items.list_items(db, ItemQuery(q=q, count=True)) for q in ("needle", "")]
    assert (search.model_dump()["total"], plain.model_dump()["total"]) == (None, 1001)


def test_total_of_nothing_is_0(db: Database) -> None:
    for q in ("", "x"):
        assert items.list_items(db, ItemQuery(q=q, count=True)).model_dump()["total"] == 0


def test_nobody_is_told_a_total_who_has_not_asked(db: Database) -> None:
    assert set(items.list_items(db, ItemQuery()).model_dump()) == {"items", "next_cursor"}


@pytest.mark.parametrize("order", ["created_at", "-created_at"])
@pytest.mark.parametrize("rows", [1, 500, 501, 1234])
def test_export_has_all_that_match_in_order(db: Database, order: SortOrder, rows: int) -> None:
    fill(db, rows)
    db.execute_sql("UPDATE items SET created_at = '2026' WHERE id > 400")  # so pages end between equal times
    ids = [*range(401, rows + 1), *range(1, min(rows, 400) + 1)][:: -1 if order == "-created_at" else 1]
    assert [item.id for item in items.export_items(db, ExportQuery(order=order))] == ids
    needles = [item.id for item in items.export_items(db, ExportQuery(order=order, q="NEEDLE"))]
    assert needles == [number for number in ids if number % 500 == 0]
