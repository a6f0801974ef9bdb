"""The plan that SQLite has for each statement of the service, collected while it serves every operation."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import apsw
import httpx2
import pytest

from core import pages
from core.migrations import scripts
from core.statements import first_word
from handler.service import Service, open_server_service
from tests.conftest import MakeSettings, serving
from tests.handler.test_authentication import bearer, new_key

pytestmark = pytest.mark.sqlite_only("SQLite's plans")

ITEM = {"name": "Lamp"}
KEY = {"Idempotency-Key": "k"}
SEARCHES: list[dict[str, Any]] = [{}, {"q": "amp"}, {"q": "amp", "count": True}, {"count": True}]
OF_ITEMS = r"SCAN \w+ USING (COVERING )?INDEX idx_items_created"
# Why a plan may have a scan: what the scan is, and what the statement is like that may have it
REASONS = {
    "the first page begins where the index begins, and ends at its LIMIT": (
        OF_ITEMS,
        r"ORDER BY.* LIMIT CAST\(\? AS INTEGER\)$",
    ),
    "the window of q is so many rows from the index": (OF_ITEMS, r"ORDER BY.* LIMIT \S+ OFFSET \S+$"),
    "an export is of all items": (OF_ITEMS, r"AS BLOB\) FROM .*ORDER BY [^?]*$"),
    "whoever asks for a count is told how many items there are": (OF_ITEMS, r"^SELECT COUNT\(1\)"),
    "a count of q looks at so many items": (r"SCAN \w+", r"^SELECT COUNT\(\*\), SUM.* LIMIT \S+\)"),
    "to be ready is to read a row": (r"SCAN items", r"LIMIT 1$"),
    "keys are looked for in each hour that they are kept": (r"SCAN hours", r"^WITH RECURSIVE hours"),
    "a schema has some rows": (
        r"SCAN (sqlite_(master|schema)|pragma_table_info .*)",
        r"FROM (sqlite_schema|pragma_table_info)",
    ),
}


@pytest.fixture
def statements() -> Iterator[set[str]]:
    """What any connection is asked from now on, each text once."""
    found: set[str] = set()

    def trace(connection: apsw.Connection) -> None:
        connection.trace_v2(apsw.SQLITE_TRACE_STMT, lambda event: found.add(event["sql"].strip()))

    apsw.connection_hooks.append(trace)
    yield found
    apsw.connection_hooks.remove(trace)


@pytest.fixture
def service(statements: set[str], make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.setattr(pages, "_MOST_LOOKED_AT", 3)
    return open_server_service(make_settings(AUTH_MODE="keys"))


def requests() -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Of every operation, in every way that makes other statements of it."""
    yield from ((name, "GET", f"/{name}", {}) for name in ("health", "ready", "metrics"))
    yield from ((name, "GET", f"/ops/{name}", {}) for name in ("status", "history"))
    for options in ({}, {"headers": KEY}, {"headers": KEY}):
        yield "create_item", "POST", "/api/items", {"json": ITEM, **options}
        yield "create_items", "POST", "/api/items/batch", {"json": {"items": [ITEM] * 5}, **options}
    for query in SEARCHES:
        for order in ("created_at", "-created_at"):
            for cursor in ({}, {"cursor": "2026-01-31T12:00:00.000000Z~2"}, {"cursor": "~2"}):
                yield "list_items", "GET", "/api/items", {"params": {**query, **cursor, "order": order, "limit": 2}}
    for q in ("", "amp"):
        yield "export_items", "GET", "/api/items/export", {"params": {"q": q}}
    for options in ({}, {"headers": {"If-Match": '"0"'}}):
        yield "get_item", "GET", "/api/items/1", options
        yield "replace_item", "PUT", "/api/items/1", {"json": ITEM, **options}
        yield "patch_item", "PATCH", "/api/items/1", {"json": ITEM, **options}
        yield "delete_item", "DELETE", "/api/items/2", options
    yield from (("get_item", "GET", "/api/items/99", {}), ("delete_item", "DELETE", "/api/items/99", {}))


def keep_old_keys(service: Service) -> None:
    row = "INSERT INTO idempotency_keys VALUES (1, '', 'old', x'', 201, '{}', x'')"
    asyncio.run(service.database.write(lambda db: db.execute_sql(row)))


def test_no_statement_scans_or_sorts(service: Service, statements: set[str]) -> None:
    keep_old_keys(service)
    key = bearer(new_key(service, "read", "write", "ops"))
    with serving(service) as client:
        described: dict[str, Any] = client.get("/openapi.json").json()["paths"]
        operations = {verb["operationId"] for path in described.values() for verb in path.values()}
        assert {operation for operation, *_ in requests()} == operations
        for _, method, path, options in requests():
            answer(client, method, path, {**options, "headers": {**key, **options.get("headers", {})}})
    assert any(statement.startswith("DELETE FROM idempotency_keys") for statement in statements)
    given = set()
    for statement, step in steps_of(statements):
        reasons = {
            reason
            for reason, (scan, of) in REASONS.items()
            if re.fullmatch(scan, step) and re.search(of, statement, re.DOTALL)
        }
        assert reasons, f"{step}: {statement}"
        given |= reasons
    assert given == set(REASONS)


def answer(client: httpx2.Client, method: str, path: str, options: dict[str, Any]) -> None:
    assert client.request(method, path, **options).status_code < 500


def steps_of(statements: set[str]) -> Iterator[tuple[str, str]]:
    """Of their plans, those that grow with a table."""
    with closing(apsw.Connection(":memory:")) as connection:
        for script in scripts():
            connection.execute(script)
        for statement in sorted(statements):
            if first_word(statement) in ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH"):
                plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", [None] * statement.count("?"))
                yield from ((statement, step) for *_, step in plan if "SCAN" in step or "TEMP B-TREE" in step)
