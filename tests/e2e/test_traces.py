"""A server whose requests are traced, as a process."""

import signal
from collections.abc import Callable

import pytest

from tests.collector import collecting
from tests.e2e.conftest import Server

pytestmark = pytest.mark.e2e

StartServer = Callable[..., Server]


def test_traces_reach_the_collector_at_a_stop_at_the_latest(start_server: StartServer) -> None:
    with collecting() as collector:
        server = start_server(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_EXPORTER_OTLP_HEADERS="x-team=items")
        server.client.post("/api/items", json={"name": "x"}).raise_for_status()
        assert server.process.end() in (0, -signal.SIGTERM)
        assert {span.name for span in collector.spans} == {"POST /api/items", "queue", "transaction", "PUT"}
        assert collector.headers["x-team"] == "items"


def test_collector_that_hangs_does_not_keep_a_server_from_stopping(start_server: StartServer) -> None:
    with collecting() as collector:
        collector.may_answer.clear()
        server = start_server(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_EXPORTER_OTLP_TIMEOUT="1000000")
        server.client.post("/api/items", json={"name": "x"}).raise_for_status()
        assert server.process.end() in (0, -signal.SIGTERM)
        assert not [line for line in server.process.log if line["level"] == "CRITICAL"]
