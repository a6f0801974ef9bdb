"""A collector that takes OTLP over HTTP and keeps what it is sent."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class SentSpan:
    trace_id: str
    span_id: str
    parent: str
    name: str
    attributes: dict[str, Any]
    links: list[str]  # ids of spans
    events: str
    is_error: bool
    seconds: float
    service: str


class Collector:
    def __init__(self) -> None:
        self.spans: list[SentSpan] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.status = 200
        self.asked = threading.Event()
        self.headers: dict[str, str] = {}
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.headers = {name.lower(): value for name, value in self.headers.items()}
                collector.asked.set()
                collector.may_answer.wait()
                if collector.status == 200 and self.path == "/v1/traces":
                    collector.spans += _spans_in(body)
                self.send_response(collector.status if self.path == "/v1/traces" else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def named(self, name: str) -> list[SentSpan]:
        return [span for span in list(self.spans) if span.name == name]


def _spans_in(body: bytes) -> Iterator[SentSpan]:
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        service = _values(resource.resource.attributes)["service.name"]
        for span in (span for scope in resource.scope_spans for span in scope.spans):
            yield SentSpan(
                span.trace_id.hex(),
                span.span_id.hex(),
                span.parent_span_id.hex(),
                span.name,
                _values(span.attributes),
                [link.span_id.hex() for link in span.links],
                str(span.events),
                span.status.code == span.status.STATUS_CODE_ERROR,
                (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
                service,
            )


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield collector
    finally:
        collector.may_answer.set()
        collector.server.shutdown()
        thread.join()
        collector.server.server_close()
