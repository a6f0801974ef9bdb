"""What a process has counted, whoever shows it. Any thread may count."""

import threading
from bisect import bisect_left
from collections.abc import Sequence


class Counter:
    """A number that only grows."""

    __slots__ = ("_lock", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self._lock = threading.Lock()

    def add(self, amount: float = 1.0) -> None:
        """Count it."""
        with self._lock:
            self.value += amount


class Histogram:
    """How many values there were in each bucket, and their sum."""

    __slots__ = ("_bounds", "_lock", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # not cumulative; in the last one what exceeds all bounds
        self.sum = 0.0
        self._lock = threading.Lock()

    def observe(self, value: float) -> None:
        """Count it in the first bucket whose bound it does not exceed."""
        bucket = bisect_left(self._bounds, value)
        with self._lock:
            self.counts[bucket] += 1
            self.sum += value

    def add(self, counts: Sequence[int], total: float) -> None:
        """Take over what one with the same bounds has counted elsewhere."""
        with self._lock:
            self.counts[:] = map(sum, zip(self.counts, counts, strict=True))
            self.sum += total
