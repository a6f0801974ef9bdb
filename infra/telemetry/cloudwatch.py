"""Metrics of a Lambda function: CloudWatch's embedded metric format, one JSON line per invocation."""

import json
import sys
from collections.abc import Iterator
from typing import Any

from aws_lambda_powertools.metrics import Metrics as EmbeddedMetrics

from infra.settings import SERVICE
from infra.telemetry import catalogue
from infra.telemetry.build import build
from infra.telemetry.catalogue import METRICS, Metric
from infra.telemetry.instruments import Histogram
from infra.telemetry.metrics import Gauges, Metrics

_MOST_VALUES = 100  # of one metric in a line, says CloudWatch
_PRINTED_GAUGES = [metric.name for metric in METRICS if metric.kind == "gauge" and metric.on_lambda]


class _Remembering(Histogram):
    """Keeps the values themselves until they are printed."""

    __slots__ = ("_fresh",)

    def __init__(self, bounds: tuple[float, ...]) -> None:
        super().__init__(bounds)
        self._fresh: list[float] = []

    def observe(self, value: float) -> None:
        super().observe(value)
        with self._lock:
            self._fresh.append(value)

    def take(self) -> list[float]:
        with self._lock:
            taken, self._fresh = self._fresh, []
            return taken


class CloudWatchMetrics(Metrics):
    """The `Metrics` of a Lambda function, printed at the end of each invocation."""

    def __init__(self) -> None:
        super().__init__(_Remembering)
        self._embedded = EmbeddedMetrics(namespace=SERVICE, service=SERVICE)
        self._printed: dict[tuple[str, tuple[str, ...]], float] = {}  # of the counters
        self.counter(catalogue.COLD_STARTS).add()

    def flush(self, gauges: Gauges = dict) -> None:
        """Print what was counted since the last flush; call at the end of each invocation. `gauges`: printed along."""
        values: dict[str, list[float]] = {}
        series: dict[str, int] = {}
        dimensions: dict[str, dict[str, str]] = {}
        for metric, labels, fresh in self._fresh():
            values.setdefault(metric.name, []).extend(fresh)
            if labels:
                series[_series(metric, labels)] = len(fresh) if metric.kind == "histogram" else int(sum(fresh))
            if metric.dimension:
                value = labels[list(metric.labels).index(metric.dimension)]
                dimensions[metric.name] = {metric.dimension: _in_classes(metric.dimension, value)}
        if values:
            found = gauges()
            values |= {name: [found[name]] for name in _PRINTED_GAUGES if name in found}
            sys.stdout.write(json.dumps(self._line(values, series, dimensions)) + "\n")

    def _fresh(self) -> Iterator[tuple[Metric, tuple[str, ...], list[float]]]:
        """What was counted since the last time, series by series."""
        for metric in filter(lambda metric: metric.on_lambda, METRICS):
            for labels, histogram in list(self.histograms.get(metric.name, {}).items()):
                if isinstance(histogram, _Remembering) and (taken := histogram.take()):
                    yield metric, labels, taken
            for labels, counter in list(self.counters.get(metric.name, {}).items()):
                before, now = self._printed.get((metric.name, labels), 0.0), counter.value
                if now > before:
                    self._printed[metric.name, labels] = now
                    yield metric, labels, [now - before]

    def _line(
        self, values: dict[str, list[float]], series: dict[str, int], dimensions: dict[str, dict[str, str]]
    ) -> dict[str, Any]:
        units = {name: catalogue.BY_NAME[name].unit for name in values}
        metrics = {name: {"Unit": units[name], "Value": _at_most(found)} for name, found in values.items()}
        properties = {**build(), "series": series}
        line: dict[str, Any] = dict(self._embedded.serialize_metric_set(metrics, {"service": SERVICE}, properties))
        for name, dimension in dimensions.items():
            line |= dimension
            line["_aws"]["CloudWatchMetrics"].append(
                {
                    "Namespace": SERVICE,
                    "Dimensions": [["service", *dimension]],
                    "Metrics": [{"Name": name, "Unit": units[name]}],
                }
            )
        return line


def _series(metric: Metric, labels: tuple[str, ...]) -> str:
    """As Prometheus writes it."""
    pairs = (f'{name}="{value}"' for name, value in zip(metric.labels, labels, strict=True))
    return f"{metric.name}{{{','.join(pairs)}}}"


def _in_classes(dimension: str, value: str) -> str:
    """Each value of a dimension is paid for: a status is one of `2xx`, `3xx`, `4xx`, `5xx`."""
    return f"{value[0]}xx" if dimension == "status" else value


def _at_most(values: list[float]) -> list[float]:
    """So many of them, evenly taken."""
    return values if len(values) <= _MOST_VALUES else values[:: len(values) // _MOST_VALUES + 1]
