"""Metrics of a Lambda function: CloudWatch's embedded metric format, one JSON line per invocation."""

from aws_lambda_powertools.metrics import Metrics as EmbeddedMetrics
from aws_lambda_powertools.metrics import MetricUnit

from infra.settings import SERVICE
from infra.telemetry.metrics import Gauges, Totals


class CloudWatchMetrics:
    """The `Metrics` of a Lambda function, printed at the end of each invocation."""

    def __init__(self) -> None:
        self._embedded = EmbeddedMetrics(namespace=SERVICE, service=SERVICE)
        self._cold = True

    def flush(self) -> None:
        """Print what was counted since the last flush; call at the end of each invocation."""
        if self._cold:
            self._cold = False
            self._embedded.add_metric("ColdStart", MetricUnit.Count, 1)
        if self._embedded.metric_set:
            self._embedded.flush_metrics()

    def request_finished(self, method: str, route: str, status: int, seconds: float) -> None:
        self._embedded.add_metric("Requests", MetricUnit.Count, 1)
        self._embedded.add_metric("Errors", MetricUnit.Count, 1 if status >= 500 else 0)
        self._embedded.add_metric("Duration", MetricUnit.Milliseconds, seconds * 1000)

    def caller_refused(self, reason: str) -> None:
        self._embedded.add_metric("CallersRefused", MetricUnit.Count, 1)  # the request's line in the log has the reason

    def database_locked(self) -> None:
        self._embedded.add_metric("DatabaseLocked", MetricUnit.Count, 1)

    def maintenance_finished(self, succeeded: bool, seconds: float) -> None:
        self._embedded.add_metric("MaintenanceSucceeded", MetricUnit.Count, int(succeeded))
        self._embedded.add_metric("MaintenanceFailed", MetricUnit.Count, int(not succeeded))
        self._embedded.add_metric("MaintenanceDuration", MetricUnit.Seconds, seconds)

    def totals(self) -> Totals:
        return Totals()

    def exposition(self, gauges: Gauges) -> tuple[bytes, str]:
        # The counters are in CloudWatch; an instance's own view of the database is all a scrape can see here
        from prometheus_client import CONTENT_TYPE_LATEST

        from infra.telemetry.prometheus import gauge_text

        return gauge_text(gauges), CONTENT_TYPE_LATEST
