"""All items at once, of one state, over real sockets."""

import asyncio
import csv
import io
import json
import logging
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.schemas import ItemView
from handler import export
from handler.export import CSV, FORMS, NDJSON
from handler.service import Service, open_server_service
from infra.database import MOST_COPIES
from tests.conftest import MakeSettings, assert_problem, open_at, serving

VIEW = ItemView(1, "Lamp", None, "0.00", 0, "", "", 1)
COLUMNS = ["id", "name", "description", "price", "quantity", "created_at", "updated_at", "version"]


def batch(client: httpx2.Client, *names: str, **fields: object) -> list[dict[str, Any]]:
    answer = client.post("/api/items/batch", json={"items": [{"name": name, **fields} for name in names]})
    assert answer.status_code == 201
    return list(answer.json()["items"])


def ndjson(answer: httpx2.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == NDJSON
    assert answer.text == "" or answer.text.endswith("\n")
    return [json.loads(line) for line in answer.text.split("\n")[:-1]]


def listed(client: httpx2.Client, query: str = "") -> list[dict[str, Any]]:
    return list(client.get(f"/api/items?limit=100{query}").json()["items"])


def rows_of(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline=""), strict=True))


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where copies are made."""
    directory = tmp_path / "scratch"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


def test_ndjson_has_what_the_list_shows(client: httpx2.Client) -> None:
    assert ndjson(client.get("/api/items/export")) == []
    batch(client, "Lamp", "Torch\n", "\u2028 é", price="12.50")
    answer = client.get("/api/items/export")
    assert ndjson(answer) == listed(client)
    assert answer.headers["content-disposition"] == 'attachment; filename="items.ndjson"'
    assert "Accept" in answer.headers["vary"].split(", ")
    assert ndjson(client.get("/api/items/export?order=-created_at&q=t")) == listed(client, "&order=-created_at&q=t")


def test_csv_has_a_line_of_names_and_follows_the_rfc(client: httpx2.Client) -> None:
    assert client.get("/api/items/export?format=csv").text == ",".join(COLUMNS) + "\r\n"
    item, _ = batch(client, 'a "b", c\r\nd', "plain")
    client.patch(f"/api/items/{item['id']}", json={"description": "x"})
    answer = client.get("/api/items/export?format=csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == 'attachment; filename="items.csv"'
    first, second, third = rows_of(answer.text)
    assert first == COLUMNS
    shown = listed(client)
    assert second == [str(shown[0][name]) for name in COLUMNS]
    assert third[1:4] == ["plain", "", "0.00"]
    assert '"a ""b"", c\r\nd",x,' in answer.text


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"])
def test_cell_that_a_spreadsheet_would_run_gets_an_apostrophe(shared_client: httpx2.Client, start: str) -> None:
    name = f"{start}1+cmd|'/c calc'!A0"
    item = batch(shared_client, name, description=name)[0]
    rows = rows_of(shared_client.get("/api/items/export?format=csv").text)
    assert [row[1:3] for row in rows if row[0] == str(item["id"])] == [[f"'{name}", f"'{name}"]]
    assert item in ndjson(shared_client.get("/api/items/export"))  # which has it as it is


@pytest.mark.parametrize(
    ("name", "shown"), [("x;=1+1", "x;'=1+1"), ("x\t-1", "x\t'-1"), ('q"; "@a', 'q"; "\'@a'), ("=a;=b", "'=a;'=b")]
)
def test_cell_within_a_cell_gets_an_apostrophe_too(shared_client: httpx2.Client, name: str, shown: str) -> None:
    item = batch(shared_client, name)[0]
    rows = rows_of(shared_client.get("/api/items/export?format=csv").text)
    assert [row[1] for row in rows if row[0] == str(item["id"])] == [shown]


@pytest.mark.parametrize("name", ["-5", "-1.50", "'quoted", "a=b", " =x", "x; y", "a;b=c"])
def test_other_cells_stay_as_they_are(shared_client: httpx2.Client, name: str) -> None:
    item = batch(shared_client, name)[0]
    rows = rows_of(shared_client.get("/api/items/export?format=csv").text)
    assert [row[1] for row in rows if row[0] == str(item["id"])] == [name]


@given(st.lists(st.tuples(st.text(), st.text() | st.none()), max_size=5))
def test_csv_of_any_text_is_read_back_by_others(texts: list[tuple[str, str | None]]) -> None:
    form = next(form for form in FORMS if form.name == "csv")
    views = [replace(VIEW, name=name, description=description) for name, description in texts]
    written = b"".join(form.lines(["name", "description"], views)).decode()
    found = rows_of(written)[1:]
    for given_row, row in zip(texts, found, strict=True):
        for cell, read_back in zip(given_row, row, strict=True):
            assert read_back.replace("'", "") == (cell or "").replace(
                "'", ""
            )  # which are the only thing that is put in
            assert not read_back.startswith(("=", "+", "@", "\t", "\r"))


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (None, NDJSON),
        ("*/*", NDJSON),
        ("text/html, application/xhtml+xml, */*;q=0.8", NDJSON),
        ("text/csv", CSV),
        ("TEXT/CSV", CSV),
        ("text/*", CSV),
        ("text/csv;header=present", CSV),
        ("text/csv;q=0.5, application/x-ndjson;q=0.4", CSV),
        ("text/csv;q=0.5, application/x-ndjson", NDJSON),
        ("application/x-ndjson;q=0, */*;q=0.1", CSV),
        ("text/csv, text/csv", CSV),
        ("nonsense, text/csv", CSV),
        ("text/csv;q=0.001", CSV),
        ("application/json", None),
        ("text/csv;q=0", None),
        ("text/csv;q=2", None),
        ("text/csv;q=", None),
        ("*/*;q=0", None),
        ("nonsense", None),
        ("", NDJSON),
        ("\xff/\xff", None),
    ],
)
def test_accept_decides(shared_client: httpx2.Client, accept: str | None, media_type: str | None) -> None:
    headers = [] if accept is None else [(b"accept", accept.encode("latin-1"))]
    request = httpx2.Request("GET", shared_client.base_url.join("/api/items/export"), headers=headers)
    answer = shared_client.send(request)
    if media_type:
        assert answer.headers["content-type"].partition(";")[0] == media_type
    else:
        problem = assert_problem(answer, 406)
        assert (problem["code"], "?format=csv" in problem["detail"]) == ("not_acceptable", True)
        assert (
            shared_client.send(
                httpx2.Request("GET", request.url.copy_add_param("format", "csv"), headers=headers)
            ).status_code
            == 200
        )


def test_several_accept_fields_are_one_list(shared_client: httpx2.Client) -> None:
    fields = [("accept", "application/json"), ("accept", "text/csv;q=0.1")]
    assert shared_client.get("/api/items/export", headers=fields).headers["content-type"].startswith(CSV)


@pytest.mark.parametrize("query", ["format=xml", "format=", "limit=5", "cursor=x", "order=name", "q=a%00b"])
def test_wrong_query_is_422(shared_client: httpx2.Client, query: str) -> None:
    assert_problem(shared_client.get(f"/api/items/export?{query}"), 422)


def test_export_is_no_item(shared_client: httpx2.Client) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        answer = shared_client.request(method, "/api/items/export")
        assert_problem(answer, 405)
        assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}


@pytest.mark.sqlite_only("a copy built out of the log")
def test_head_says_what_get_would_and_builds_nothing(client: httpx2.Client, scratch: Path) -> None:
    made = batch(client, "Lamp")
    assert made
    head = client.head("/api/items/export?format=csv")
    assert list(scratch.iterdir()) == []
    get = client.get("/api/items/export?format=csv")
    assert head.content == b""
    for name in ("content-type", "content-disposition", "x-commit-txid"):
        assert head.headers[name] == get.headers[name]
    assert "content-length" not in head.headers


@pytest.mark.sqlite_only("a copy built out of the log")
def test_export_shows_what_the_caller_has_seen_and_names_its_commit(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    def instance(name: str) -> Service:
        return open_server_service(
            make_settings(
                DATABASE_PATH=tmp_path / name / "app.db",
                REPLICA_URL=(tmp_path / "log").as_uri(),
                READ_FRESHNESS_SECONDS=1000,
            )
        )

    with serving(instance("one")) as one, serving(instance("two")) as two:
        written = one.post("/api/items", json={"name": "Lamp"})
        seen = {"x-commit-txid": written.headers["x-commit-txid"]}
        answer = two.get("/api/items/export", headers=seen)
        assert ndjson(answer) == [written.json()]
        assert answer.headers["x-commit-txid"] == seen["x-commit-txid"]
        ahead = f"{int(seen['x-commit-txid'], 16) + 1:016x}"
        assert_problem(two.get("/api/items/export", headers={"x-commit-txid": ahead}), 412)


@pytest.fixture
def slow_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few items are several of them."""
    monkeypatch.setattr(export, "_CHUNK_BYTES", 1000)


@pytest.mark.sqlite_only("a copy built out of the log")
def test_state_is_one_while_others_write_and_the_file_is_checkpointed_and_replaced(
    slow_chunks: None, make_settings: MakeSettings, tmp_path: Path
) -> None:
    log = (tmp_path / "log").as_uri()
    service = open_server_service(make_settings(REPLICA_URL=log))
    with serving(service) as client:
        batch(client, *(f"item {n}" for n in range(500)), description="d" * 2000)
        batch(client, *(f"more {n}" for n in range(400)), description="d" * 2000)
        before = client.get("/api/items").headers["x-commit-txid"]
        with client.stream("GET", "/api/items/export", headers={"accept-encoding": "identity"}) as answer:
            lines = answer.iter_lines()
            found = [json.loads(next(lines))]
            # more than the sockets' buffers hold is still to come
            assert client.delete("/api/items/900").status_code == 204
            assert client.patch("/api/items/899", json={"name": "changed"}).status_code == 200
            other = open_at(tmp_path / "other" / "app.db", REPLICA_URL=log)  # its commits are put into the file
            asyncio.run(other.write(lambda db: db.execute_sql("UPDATE items SET quantity = 7")))
            other.close()
            assert client.get("/api/items/1", headers={"x-commit-txid": f"{other.txid:016x}"}).json()["quantity"] == 7
            with closing(apsw.Connection(str(service.settings.database_path))) as shell:
                assert shell.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            found += [json.loads(line) for line in lines]
            assert answer.headers["x-commit-txid"] == before
        assert [item["id"] for item in found] == list(range(1, 901))
        assert {item["quantity"] for item in found} == {0}
        assert found[-2]["name"] == "more 398"


def read_some(client: httpx2.Client) -> socket.socket:
    """A client that takes the first bytes and no more."""
    assert client.base_url.port is not None
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(20)
    connection.connect((client.base_url.host, client.base_url.port))
    connection.sendall(b"GET /api/items/export HTTP/1.1\r\nHost: x\r\n\r\n")
    assert connection.recv(100).startswith(b"HTTP/1.1 200")
    return connection


def wait_until(condition: Callable[[], object]) -> None:
    pause = threading.Event()
    while not condition():
        pause.wait(0.01)


@pytest.fixture
def large(service: Service, scratch: Path) -> Iterator[httpx2.Client]:
    """More than what lies between two sockets."""
    with serving(service) as client:
        for _ in range(10):
            batch(client, *["x" * 200] * 400, description="d" * 2000)
        yield client


@pytest.mark.sqlite_only("a copy built out of the log")
def test_client_that_goes_away_frees_its_copy(large: httpx2.Client, scratch: Path) -> None:
    connections = [read_some(large) for _ in range(MOST_COPIES)]
    assert len(list(scratch.iterdir())) == MOST_COPIES
    problem = assert_problem(large.get("/api/items/export"), 503)
    assert problem["code"] == "too_many_exports"
    for connection in connections:
        connection.close()
    wait_until(lambda: not list(scratch.iterdir()))
    assert len(ndjson(large.get("/api/items/export"))) == 4000


def test_client_that_does_not_read_is_given_up(
    large: httpx2.Client, scratch: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(export, "SLOWEST_SECONDS", 0.1)
    with closing(read_some(large)) as connection, caplog.at_level(logging.WARNING):
        wait_until(lambda: "an export is given up: its client has not taken" in caplog.text)
        wait_until(lambda: not list(scratch.iterdir()))
        rest = b"".join(iter(partial(connection.recv, 65536), b""))
        assert not rest.endswith(b"0\r\n\r\n")  # so that nobody takes it for all
    assert large.get("/health").status_code == 200


def test_memory_does_not_grow_with_the_table() -> None:
    made = 0

    def views() -> Iterator[ItemView]:
        nonlocal made
        while True:
            made += 1
            yield replace(VIEW, id=made, name="x" * 200)

    for form in FORMS:
        made = 0
        chunks = export._chunks(form.lines(["id", "name"], views()))
        assert len(next(chunks)) < export._CHUNK_BYTES + 1000
        assert made < export._CHUNK_BYTES // 200


@pytest.mark.sqlite_only("a copy built out of the log")
def test_full_disk_is_507_and_says_where(client: httpx2.Client, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch(client, "Lamp")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("infra.commitlog.log.write_pages", full)
        problem = assert_problem(client.get("/api/items/export"), 507)
    assert (problem["code"], "temporary files" in problem["detail"]) == ("database_full", True)
    assert list(scratch.iterdir()) == []
    for _ in range(MOST_COPIES + 1):
        assert len(ndjson(client.get("/api/items/export"))) == 1


@pytest.mark.sqlite_only("a copy built out of the log")
def test_store_that_is_away_is_503(client: httpx2.Client, service: Service, scratch: Path) -> None:
    batch(client, "Lamp")
    log = service.settings.database_path.parent / "replica" / "ltx"
    log.rename(log.with_name("away"))
    assert_problem(client.get("/api/items/export"), 503)
    log.with_name("away").rename(log)
    assert list(scratch.iterdir()) == []
    assert len(ndjson(client.get("/api/items/export"))) == 1


@pytest.mark.sqlite_only("what a shell writes past the types")
def test_odd_rows_are_exported_as_the_list_shows_them(service: Service) -> None:
    with serving(service) as client:
        with closing(apsw.Connection(str(service.settings.database_path))) as shell:
            shell.set_busy_timeout(5000)
            shell.execute(
                "PRAGMA ignore_check_constraints = 1;"
                "INSERT INTO items (id, name, created_at, updated_at, price_cents, quantity) VALUES"
                " (-3, CAST(x'4cf6' AS TEXT), x'ff', '=1', -5, 'many'), (0, x'00', 'a', 'b', 1.5, -2)"
            )
        batch(client, "more")  # and what a shell has done is in the log as well
        shown = listed(client)
        assert len(shown) == 3
        assert ndjson(client.get("/api/items/export")) == shown
        rows = rows_of(client.get("/api/items/export?format=csv").text)
        assert {row[0]: row[3] for row in rows[1:]} == {"-3": "-0.05", "0": "0.01", "1": "0.00"}


def test_compressed_for_who_asks(large: httpx2.Client) -> None:
    answer = large.get("/api/items/export", headers={"accept-encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"
    assert set(answer.headers["vary"].split(", ")) == {"Accept", "Accept-Encoding"}
    assert len(ndjson(answer)) == 4000
