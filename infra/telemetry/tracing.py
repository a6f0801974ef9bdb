"""Spans, exported by OpenTelemetry's protocol over HTTP. Imported only where OTEL_EXPORTER_OTLP_ENDPOINT is set.

A request has one span; beneath it are its wait in the queue, its transaction and its queries. The PUT of a commit is
beneath the first request that it stores, and linked to all of them. What else OpenTelemetry's SDK reads from the
environment, such as OTEL_EXPORTER_OTLP_HEADERS or OTEL_TRACES_SAMPLER, it reads by itself.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from core import __version__
from infra.settings import SERVICE
from infra.telemetry.trace_context import WORKED_FOR, Trace

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 1.0  # a stop has nine for everything


class RequestSpan:
    """Of a request that is being answered."""

    def __init__(self, span: Span) -> None:
        self._span = span
        context = span.get_span_context()
        self.trace = Trace(trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id))

    def answered(self, method: str, route: str, path: str, scheme: str, status: int) -> None:
        """Say what it was, in OpenTelemetry's words for HTTP. The query may hold what nobody else may know."""
        self._span.update_name(method if route == "none" else f"{method} {route}")
        self._span.set_attributes(
            {
                "http.request.method": method,
                "url.path": path,
                "url.scheme": scheme,
                "http.response.status_code": status,
                **({"http.route": route} if route != "none" else {}),
                **({"error.type": str(status)} if status >= 500 else {}),
            }
        )
        if status >= 500:
            self._span.set_status(StatusCode.ERROR)


class Tracing:
    """Makes spans. Whatever becomes of the collector, nobody waits for it: what it does not take is dropped."""

    def __init__(self, endpoint: str) -> None:
        """`endpoint`: where the collector is, without `/v1/traces`. Makes no request yet."""
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # _Reporting says it once
        exporter = _Reporting(OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces"))
        own = Resource({"service.name": SERVICE, "service.version": __version__})
        resource = Resource.create().merge(own).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(SERVICE, __version__)
        self._sending: threading.Thread | None = None

    @contextmanager
    def request(self, traceparent: str, tracestate: str) -> Iterator[RequestSpan]:
        """Whatever is done meanwhile, in this context or a copy of it, is part of it."""
        parent = TraceContextTextMapPropagator().extract({"traceparent": traceparent, "tracestate": tracestate})
        with self._tracer.start_as_current_span(
            "HTTP",
            parent,
            SpanKind.SERVER,
            record_exception=False,  # what it says is for the log alone
            set_status_on_exception=False,
        ) as span:
            yield RequestSpan(span)

    def worked(self, name: str, seconds: float) -> None:
        """Note what has just ended, as part of the request at hand, if there is one."""
        parent = trace.get_current_span()
        if parent.is_recording():
            now = time.time_ns()
            self._tracer.start_span(name, start_time=now - int(seconds * 1e9)).end(now)

    def stored(self, seconds: float, answered: bool) -> None:
        """Note the PUT that has just ended, for those whose writes are in it."""
        spans = [context.run(trace.get_current_span) for context in WORKED_FOR.get()]
        spans = [span for span in spans if span.is_recording()]
        if not spans:
            return
        now = time.time_ns()
        put = self._tracer.start_span(
            "PUT",
            trace.set_span_in_context(spans[0]),
            SpanKind.CLIENT,
            {"http.request.method": "PUT"},
            [Link(span.get_span_context()) for span in spans],
            now - int(seconds * 1e9),
        )
        if not answered:
            put.set_status(StatusCode.ERROR)
        put.end(now)

    def flush(self, seconds: float = CLOSE_SECONDS) -> None:
        """Send what there is, but wait no longer than this; a function calls it before it is frozen."""
        self._within(seconds, self._provider.force_flush)

    def close(self) -> None:
        """Send what there is, and end."""
        self._within(CLOSE_SECONDS, self._provider.shutdown)

    def _within(self, seconds: float, send: Callable[[], object]) -> None:
        """On a thread that nobody waits for when it takes longer; while one does, there is no other."""
        if self._sending and self._sending.is_alive():
            return
        self._sending = threading.Thread(target=send, name="traces", daemon=True)
        self._sending.start()
        self._sending.join(seconds)


class _Reporting(SpanExporter):
    """Says once that the collector does not take what it is sent, and once that it does again."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._fails = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._exporter.export(spans)
        except Exception:  # of a library: a broken answer, say
            result = SpanExportResult.FAILURE
        fails = result is not SpanExportResult.SUCCESS
        if fails and not self._fails:
            logger.warning("the collector of OTEL_EXPORTER_OTLP_ENDPOINT takes no traces now; they are dropped")
        elif self._fails and not fails:
            logger.info("the collector of OTEL_EXPORTER_OTLP_ENDPOINT takes traces again")
        self._fails = fails
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()
