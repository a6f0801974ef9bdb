"""Metrics of a server, kept in the process and scraped from /metrics."""

from collections.abc import Iterator

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from infra.telemetry.metrics import DURATION_BUCKETS, Gauges, Totals


class PrometheusMetrics:
    """The `Metrics` of a server, kept until it ends."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "http_requests", "Requests answered", ["method", "route", "status"], registry=self._registry
        )
        self._durations = Histogram(
            "http_request_duration_seconds",
            "Time from request to answer",
            ["method", "route"],
            registry=self._registry,
            buckets=DURATION_BUCKETS,
        )
        self._refused = Counter(
            "callers_refused", "Requests of callers not let in", ["reason"], registry=self._registry
        )
        self._locked = Counter(
            "database_locked", "Requests refused because the database was locked", registry=self._registry
        )
        self._maintenance = Counter("maintenance_runs", "Runs of maintenance", ["result"], registry=self._registry)
        self._maintenance_duration = Histogram(
            "maintenance_duration_seconds",
            "Time a run of maintenance took",
            registry=self._registry,
            buckets=(1, 5, 15, 60, 300, 900),
        )

    def request_finished(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, str(status)).inc()
        self._durations.labels(method, route).observe(seconds)

    def caller_refused(self, reason: str) -> None:
        self._refused.labels(reason).inc()

    def database_locked(self) -> None:
        self._locked.inc()

    def maintenance_finished(self, succeeded: bool, seconds: float) -> None:
        self._maintenance.labels("succeeded" if succeeded else "failed").inc()
        self._maintenance_duration.observe(seconds)

    def totals(self) -> Totals:
        return Totals()

    def exposition(self, gauges: Gauges) -> tuple[bytes, str]:
        return generate_latest(self._registry) + gauge_text(gauges), CONTENT_TYPE_LATEST


class _GaugeCollector(Collector):
    def __init__(self, gauges: Gauges) -> None:
        self._gauges = gauges

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for name, value in self._gauges().items():
            yield GaugeMetricFamily(name, name.replace("_", " ").capitalize(), value=value)


def gauge_text(gauges: Gauges) -> bytes:
    """Write the gauges, read now, as Prometheus text."""
    registry = CollectorRegistry()
    registry.register(_GaugeCollector(gauges))
    return generate_latest(registry)
