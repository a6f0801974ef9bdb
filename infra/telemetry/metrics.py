"""What is counted, whoever shows it."""

from collections.abc import Callable
from typing import Protocol

# Read when somebody asks for metrics; a value that cannot be read now is left out
Gauges = Callable[[], dict[str, float]]


class Metrics(Protocol):
    """What the service counts. Implemented for Prometheus and for CloudWatch."""

    def request_finished(self, method: str, route: str, status: int, seconds: float) -> None: ...

    def caller_refused(self, reason: str) -> None: ...

    def database_locked(self) -> None: ...

    def maintenance_finished(self, succeeded: bool, seconds: float) -> None: ...

    def exposition(self, gauges: Gauges) -> tuple[bytes, str]:
        """Prometheus text and its media type."""
