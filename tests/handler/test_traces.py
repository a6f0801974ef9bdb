"""What a collector is sent, over a real socket, and what becomes of a service whose collector is none."""

import asyncio
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from core import items
from core.schemas import NewItem
from handler.asgi import server_app
from handler.service import Service, open_server_service
from infra.sqlite.database import SqliteDatabase
from tests.collector import Collector, SentSpan, collecting
from tests.conftest import MakeSettings, serving, settings_in
from tests.e2e.processes import free_port, until
from tests.log_watch import kept_lines

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CALLER = {"traceparent": f"00-{TRACE}-{SPAN}-01"}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def traced(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Service:
    return open_server_service(
        settings_in(tmp_path_factory.mktemp("traced"), OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    )


@pytest.fixture(scope="module")
def client(traced: Service) -> Iterator[httpx2.Client]:
    with serving(traced) as client:
        yield client


@pytest.fixture(autouse=True)
def _fresh(collector: Collector) -> None:
    collector.spans.clear()


def flush(service: Service) -> None:
    assert service.tracing
    service.tracing.flush(seconds=60)


def request_sent(service: Service, collector: Collector) -> SentSpan:
    """The span of the one request that there was: it ends a little after the answer is there."""

    def found() -> list[SentSpan]:
        flush(service)
        return [span for span in collector.spans if "http.response.status_code" in span.attributes]

    until(lambda: bool(found()))
    [span] = found()
    return span


@pytest.mark.sqlite_only("the spans of a commit")
def test_write_is_a_span_of_its_caller_with_queue_transaction_and_put_beneath(
    client: httpx2.Client, traced: Service, collector: Collector
) -> None:
    with kept_lines("handler.request") as lines:
        client.post("/api/items?canary=canary", json={"name": "canary"}, headers=CALLER).raise_for_status()
        until(lambda: len(lines) == 1)
    request = request_sent(traced, collector)
    assert request.name == "POST /api/items"
    assert (request.trace_id, request.parent, request.service) == (TRACE, SPAN, "cloud-native-poc")
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/api/items",
        "http.response.status_code": 201,
        "url.path": "/api/items",
        "url.scheme": "http",
    }
    assert (lines[0]["trace_id"], lines[0]["span_id"]) == (TRACE, request.span_id)
    below = {span.name: span for span in collector.spans if span.parent == request.span_id}
    assert below.keys() == {"queue", "transaction", "PUT"}
    assert below["PUT"].links == [request.span_id]
    assert all(span.trace_id == TRACE and 0 <= span.seconds <= request.seconds for span in below.values())
    assert "canary" not in str(collector.spans)


def test_read_has_its_query_beneath(client: httpx2.Client, traced: Service, collector: Collector) -> None:
    client.get("/api/items")
    request = request_sent(traced, collector)
    assert request.name == "GET /api/items"
    assert request.parent == ""
    assert [span.parent for span in collector.named("query")] == [request.span_id]


def test_route_that_is_none_and_method_that_is_none_name_no_span(
    client: httpx2.Client, traced: Service, collector: Collector
) -> None:
    client.request("PROPFIND", "/canary")
    request = request_sent(traced, collector)
    assert (request.name, request.is_error) == ("_OTHER", False)


@pytest.mark.sqlite_only("the spans of a commit")
def test_commit_of_several_writes_is_one_put_that_is_linked_to_each(
    client: httpx2.Client, traced: Service, collector: Collector
) -> None:
    tracing, database, held = traced.tracing, traced.database, threading.Event()
    assert tracing
    assert isinstance(database, SqliteDatabase)

    async def request(number: int) -> str:
        with tracing.request("", "") as span:
            await database.write(lambda db: items.create_item(db, NewItem(name=str(number))))
            return span.trace.span_id

    async def together() -> list[str]:
        database._queue.run(held.wait)
        requests = [asyncio.ensure_future(request(number)) for number in range(3)]
        while len(database._queue) < 3:
            await asyncio.sleep(0)
        held.set()
        return await asyncio.gather(*requests)

    ids = asyncio.run(together())
    flush(traced)
    [put] = collector.named("PUT")
    assert put.links == ids
    assert put.parent == ids[0]
    assert sorted(span.parent for span in collector.named("transaction")) == sorted(ids)
    assert sorted(span.parent for span in collector.named("queue")) == sorted(ids)


def test_what_the_caller_has_not_sampled_is_not_sent(
    client: httpx2.Client, traced: Service, collector: Collector
) -> None:
    with kept_lines("handler.request") as lines:
        client.post("/api/items", json={"name": "x"}, headers={"traceparent": f"00-{TRACE}-{SPAN}-00"})
        until(lambda: len(lines) == 1)
    flush(traced)
    assert collector.spans == []
    assert lines[0]["trace_id"] == TRACE


def test_fault_is_an_error_and_what_it_says_stays_here(
    client: httpx2.Client, traced: Service, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("canary")

    monkeypatch.setattr(items, "get_item", fail)
    assert client.get("/api/items/1").status_code == 500
    request = request_sent(traced, collector)
    assert request.name == "GET /api/items/{item_id}"
    assert request.is_error
    assert request.attributes["error.type"] == "500"
    assert "canary" not in str(collector.spans)


def test_what_an_exception_says_is_not_sent(traced: Service, collector: Collector) -> None:
    assert traced.tracing
    with pytest.raises(RuntimeError), traced.tracing.request("", ""):
        raise RuntimeError("canary")
    flush(traced)
    assert len(collector.spans) == 1
    assert "canary" not in str(collector.spans)


def test_collector_that_hangs_holds_up_neither_requests_nor_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1000000")  # nothing but the service's own patience ends it
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    with collecting() as collector:
        collector.may_answer.clear()
        service = open_server_service(settings_in(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url))
        with serving(service) as client:
            client.get("/api/items")
            assert collector.asked.wait(30)
            for _ in range(10):
                client.post("/api/items", json={"name": "x"}).raise_for_status()
        assert collector.spans == []


def test_collector_that_is_away_or_refuses_is_said_once(tmp_path: Path) -> None:
    with collecting() as collector, kept_lines() as lines:
        service = open_server_service(settings_in(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url))
        with serving(service) as client:
            for status in (400, 400, 200, 200):
                collector.status = status
                client.get("/api/items").raise_for_status()
                flush(service)
    told = [(line["level"], line["message"]) for line in lines if "traces" in line["message"]]
    assert told == [
        ("WARNING", "the collector of OTEL_EXPORTER_OTLP_ENDPOINT takes no traces now; they are dropped"),
        ("INFO", "the collector of OTEL_EXPORTER_OTLP_ENDPOINT takes traces again"),
    ]
    assert not [line for line in lines if line["logger"].startswith("opentelemetry")]


def test_nothing_is_imported_when_there_is_no_collector(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("opentelemetry", "infra.telemetry.tracing", "handler.middleware.request_span")
    for module in [module for module in sys.modules if module.startswith(names)]:
        monkeypatch.delitem(sys.modules, module)
    with serving(open_server_service(make_settings())) as client:
        client.post("/api/items", json={"name": "x"}).raise_for_status()
    assert [module for module in sys.modules if module.startswith(names)] == []


def test_service_whose_packages_are_not_installed_says_what_to_do(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "infra.telemetry.tracing", raising=False)
    with kept_lines() as lines, pytest.raises(SystemExit) as end:
        server_app(make_settings(AUTH_MODE="none", OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}"))
    assert end.value.code == 2
    assert lines[-1]["message"] == (
        "cannot start: OTEL_EXPORTER_OTLP_ENDPOINT is set, and opentelemetry is not installed: "
        "pip install -r requirements-otel.txt, or build the image with TRACES=yes, or unset it"
    )
