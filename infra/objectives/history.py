"""What was counted, by the minute for a day and by the hour for a month: so many slots and no more.

Times are seconds since 1970. A clock that leaps moves all of it: what counts is how long ago something was.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from operator import attrgetter, sub
from typing import Any

from infra.objectives.status import Cause, Span, State
from infra.telemetry.metrics import Totals

MINUTE, HOUR, DAY = 60, 3600, 86400
A_FEW = 5  # bad events: with fewer, one more or less would say something else
SPANS: dict[Span, int] = {"5m": 5 * MINUTE, "1h": HOUR, "24h": DAY, "30d": 30 * DAY}

# What is kept of the gauges for each slot
_LAST = ("memory_bytes", "database_size_bytes", "database_wal_size_bytes")
_WORST = ("unsaved_seconds", "unbacked_seconds")
_MOST_CREDITED = 30.0  # seconds: what is longer than between two samples, nobody has looked at

_FIELDS = attrgetter(*(each.name for each in fields(Totals)))
_NOTHING = Totals()


@dataclass(slots=True)
class Slot:
    """What was seen in one minute, or hour, by its number since 1970."""

    number: int
    ready: float = 0.0  # seconds in which the service was there and could serve
    starts: int = 0  # of a process
    counts: Totals = _NOTHING
    gauges: dict[str, float] = field(default_factory=dict)

    def see(self, counts: Totals, gauges: Mapping[str, float], starts: int) -> None:
        """Add what has happened since the last look."""
        self.counts = total((self.counts, counts))
        self.starts += starts
        self.gauges |= {name: gauges[name] for name in _LAST if name in gauges}
        for name in _WORST:
            if name in gauges:
                self.gauges[name] = max(gauges[name], self.gauges.get(name, 0.0))


def total(all_counts: Iterable[Totals]) -> Totals:
    """Add up, column by column."""
    counted = [counts for counts in all_counts if counts is not _NOTHING]
    if len(counted) < 2:
        return counted[0] if counted else _NOTHING
    return Totals(*map(_sum, zip(*map(_FIELDS, counted), strict=True)))


def difference(now: Totals, before: Totals) -> Totals:
    """Return what came between; of what was counted from the beginning again, all."""
    if now == before:
        return _NOTHING
    if now.requests < before.requests or now.commits < before.commits:
        return now
    return Totals(*map(_less, _FIELDS(now), _FIELDS(before)))


def _sum(column: tuple[Any, ...]) -> Any:
    return tuple(map(sum, zip(*column, strict=True))) if isinstance(column[0], tuple) else sum(column)


def _less(now: Any, before: Any) -> Any:
    return tuple(map(sub, now, before)) if isinstance(now, tuple) else now - before


class Ring:
    """The newest slots of one length; a time of which nothing is known has none."""

    def __init__(self, seconds: int, most: int) -> None:
        self.seconds = seconds
        self.most = most
        self.slots: deque[Slot] = deque()

    def at(self, moment: float) -> Slot:
        """Return the slot of a moment; the newest one for one before it, as after a clock was set back a little."""
        number = int(moment // self.seconds)
        if not self.slots or self.slots[-1].number < number:
            self.slots.append(Slot(number))
            while self.slots[0].number <= number - self.most:
                self.slots.popleft()
        return self.slots[-1]

    def since(self, number: int) -> list[Slot]:
        """Return those of this number or a later one, oldest first."""
        found = []
        for slot in reversed(self.slots):
            if slot.number < number:
                break
            found.append(slot)
        return found[::-1]

    def move(self, seconds: float) -> None:
        """Move all of it in time, by whole slots."""
        by = round(seconds / self.seconds)
        for slot in self.slots:
            slot.number += by


@dataclass(frozen=True)
class Window:
    """What is known of the last minutes, hours or days."""

    span: Span
    seconds: float  # that have passed in it since the history began
    slots: list[Slot]

    @cached_property
    def counts(self) -> Totals:
        return total(slot.counts for slot in self.slots)

    @property
    def ready(self) -> float:
        return sum(slot.ready for slot in self.slots)

    @property
    def starts(self) -> int:
        return sum(slot.starts for slot in self.slots)

    def worst(self, gauge: str) -> float | None:
        """Return the largest value of a gauge, None when it was never known."""
        return max((slot.gauges[gauge] for slot in self.slots if gauge in slot.gauges), default=None)


@dataclass(slots=True)
class Noted:
    """What is to be known after a restart besides what was counted. Times are seconds since 1970."""

    state: State = "well"
    since: float = 0.0
    firing: dict[str, float] = field(default_factory=dict)  # since when, by the alert's name
    unready: str = ""  # why nothing could be served
    degraded: str = ""  # why not everything could, by the log
    cause: Cause = "store"  # what is the matter with it then
    unwritable: str = ""  # why no writes could, by the file
    txid: int = 0
    fell: float = 0.0  # when the TXID was seen to fall
    gauges: dict[str, float] = field(default_factory=dict)  # at the last look

    def move(self, seconds: float) -> None:
        """Follow a clock that has leapt, by so many seconds."""
        self.since += seconds
        self.firing = {name: since + seconds for name, since in self.firing.items()}
        self.fell = self.fell and self.fell + seconds


class History:
    """One thread's at a time."""

    def __init__(self, began: float) -> None:
        self.began = began  # when anything was first known
        self.until = began  # the last look
        self.noted = Noted(since=began)
        self.minutes = Ring(MINUTE, DAY // MINUTE + 1)
        self.hours = Ring(HOUR, 30 * DAY // HOUR + 1)

    def see(
        self,
        now: float,
        passed: float,
        counts: Totals,
        gauges: Mapping[str, float],
        *,
        is_ready: bool = True,
        starts: int = 0,
    ) -> None:
        """Take down what has happened in the seconds that have passed since the last look, and whether requests could
        be served.
        """
        now, passed = max(now, self.until), min(passed, _MOST_CREDITED)
        for ring in (self.minutes, self.hours):
            for start, end in _parts(now - passed, now, ring.seconds) if is_ready else ():
                ring.at(start).ready += end - start
            ring.at(now - passed / 2).see(counts, gauges, starts)  # in the slot that most of it lies in
        self.until = now
        self.noted.gauges = dict(gauges)

    def window(self, span: Span) -> Window:
        """Return what is known of a span, as "24h", that ends with the last look."""
        length = SPANS[span]
        ring = self.hours if length > DAY else self.minutes
        first = int(self.until // ring.seconds) - length // ring.seconds
        known = self.until - max(first * ring.seconds, self.began)
        return Window(span, known, ring.since(first))

    def move(self, seconds: float) -> None:
        """Follow a clock that has leapt, by so many seconds."""
        for ring in (self.minutes, self.hours):
            ring.move(seconds)
        self.noted.move(seconds)
        self.began += seconds
        self.until += seconds


def _parts(start: float, end: float, seconds: int) -> Iterator[tuple[float, float]]:
    """Of a time, by the slots that it lies in."""
    while start < end:
        border = min((start // seconds + 1) * seconds, end)
        yield start, border
        start = border
