"""Time that also passes while the machine sleeps."""

import threading
import time


class Clock:
    """A Lambda instance is frozen between requests, for minutes or hours, and a laptop is shut. The monotonic
    clock may stand still meanwhile, and the wall clock may be set back; the larger step of the two counts.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wall, self._monotonic = time.time(), time.monotonic()
        self._now = 0.0

    def now(self) -> float:
        """Seconds since this clock was made; never goes back."""
        with self._lock:
            wall, monotonic = time.time(), time.monotonic()
            self._now += max(wall - self._wall, monotonic - self._monotonic)
            self._wall, self._monotonic = wall, monotonic
            return self._now

    def timestamp(self) -> int:
        """Milliseconds since 1970."""
        return int(time.time() * 1000)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
