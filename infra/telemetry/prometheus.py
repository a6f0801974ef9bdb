"""Metrics as Prometheus reads them."""

from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from infra.telemetry.build import build
from infra.telemetry.catalogue import BUILD_INFO, METRICS, Metric
from infra.telemetry.instruments import Histogram
from infra.telemetry.metrics import Gauges, Metrics

MEDIA_TYPE = CONTENT_TYPE_LATEST


def as_text(metrics: Metrics, gauges: Gauges) -> bytes:
    """Write what was counted, and the gauges, read now."""
    registry = CollectorRegistry()
    registry.register(_Collector(metrics, gauges))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Collector(Collector):
    def __init__(self, metrics: Metrics, gauges: Gauges) -> None:
        self._metrics = metrics
        self._gauges = gauges

    def describe(self) -> list[Family]:
        return []  # asked for before anybody wants to see it

    def collect(self) -> Iterator[Family]:
        gauges = self._gauges()
        for metric in METRICS:
            match metric.kind:
                case "counter":
                    yield self._counter(metric)
                case "histogram":
                    yield self._histogram(metric)
                case "gauge" if metric is BUILD_INFO:
                    yield _build_info()
                case "gauge" if metric.name in gauges:
                    yield GaugeMetricFamily(metric.name, metric.help, value=gauges[metric.name])

    def _counter(self, metric: Metric) -> Family:
        family = CounterMetricFamily(metric.name, metric.help, labels=list(metric.labels))
        for labels, counter in list(self._metrics.counters.get(metric.name, {}).items()):
            family.add_metric(labels, counter.value)
        return family

    def _histogram(self, metric: Metric) -> Family:
        family = HistogramMetricFamily(metric.name, metric.help, labels=list(metric.labels))
        bounds = [*map(floatToGoString, metric.buckets), "+Inf"]
        for labels, histogram in list(self._metrics.histograms.get(metric.name, {}).items()):
            family.add_metric(labels, list(zip(bounds, _cumulative(histogram), strict=True)), histogram.sum)
        return family


def _build_info() -> Family:
    family = GaugeMetricFamily(BUILD_INFO.name, BUILD_INFO.help, labels=list(BUILD_INFO.labels))
    family.add_metric([build()[label] for label in BUILD_INFO.labels], 1)
    return family


def _cumulative(histogram: Histogram) -> list[float]:
    total, found = 0, []
    for count in list(histogram.counts):
        total += count
        found.append(float(total))
    return found
