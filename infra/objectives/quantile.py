"""Quantiles of what was only counted in buckets."""

from collections.abc import Sequence
from itertools import accumulate

from infra.telemetry.catalogue import DURATION_BUCKETS


def quantile(q: float, counts: Sequence[int], bounds: Sequence[float] = DURATION_BUCKETS) -> float | None:
    """Interpolate within the bucket that holds it, as Prometheus' histogram_quantile does; None of nothing.

    `counts`: not cumulative, one for each bound and one for all beyond, where the last bound is all that is known.
    """
    total = sum(counts)
    if not total:
        return None
    rank = q * total
    sums = list(accumulate(counts))
    index = next(index for index, up_to in enumerate(sums) if up_to >= rank and (up_to or index == len(sums) - 1))
    if index >= len(bounds):
        return bounds[-1]
    low, high = bounds[index - 1] if index else 0.0, bounds[index]
    below = sums[index] - counts[index]
    return low + (high - low) * (rank - below) / counts[index]


def beyond(bound: float, counts: Sequence[int], bounds: Sequence[float] = DURATION_BUCKETS) -> int:
    """Return how many may be above one of the bounds."""
    return sum(counts[bounds.index(bound) + 1 :])
