"""Token buckets, one for each of a bounded number of keys."""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from math import ceil, floor
from typing import NamedTuple

MAX_BUCKETS = 10_000
_ROUNDING = 0.001  # of a token


class Level(NamedTuple):
    tokens: int  # below zero: so many are owed
    wait: int  # whole seconds until there is one more, or one at all


class Buckets:
    """Gives each key `burst` tokens, and `rate` new ones a second in place of those that were taken.

    All that is kept of a bucket is when it will be full again. Of too many buckets the one that was used the longest
    ago is forgotten, as if it were full.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self.burst = burst
        self._clock = clock
        self._full_at: OrderedDict[Hashable, float] = OrderedDict()

    def level(self, key: Hashable) -> Level:
        missing = max(0.0, self._full_at.get(key, 0.0) - self._clock()) * self.rate
        tokens = self.burst - missing
        whole = floor(tokens + _ROUNDING)
        return Level(whole, max(1, ceil((max(whole, 0) + 1 - tokens) / self.rate)))

    def take(self, key: Hashable) -> None:
        """Take a token. One that is not there is owed."""
        now = self._clock()
        self._full_at[key] = max(self._full_at.pop(key, now), now) + 1 / self.rate
        if len(self._full_at) > MAX_BUCKETS:
            self._full_at.popitem(last=False)

    def __len__(self) -> int:
        return len(self._full_at)
