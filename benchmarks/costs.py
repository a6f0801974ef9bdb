"""What a month costs at S3's list prices, in Markdown, from the requests that a day of the real code makes.

`make bench-costs`. The store is one in memory that counts, and time is virtual: a function of Lambda writes evenly, its
runs are merged every minute, and maintenance runs every hour. tests/test_costs.py does the same, and compares.
"""

import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import peewee

from core.errors import ObjectExists, ObjectMissing
from core.items import create_item
from core.migrations import migrate
from core.schemas import NewItem
from infra.backups.backups import Backups
from infra.backups.retention import Retention
from infra.clock import Clock
from infra.commitlog import CommitLog, Replica
from infra.commitlog.upkeep import Compactor, Keep
from infra.maintenance.job import Maintenance
from infra.storage.object_store import ObjectInfo

RATES = [1, 100, 10_000]  # writes an hour
ITEMS = 5_000  # in the database at the beginning: 1 MB
HOURS = {10_000: 2}  # what is measured, instead of a day; the rest follows from the retention
DAY = 24  # hours
MONTH = 730  # hours
KEPT = {"commits": 24, "runs": 7 * 24, "snapshots": 7 * 24, "backups": 7 * 24}  # hours
# Hours that the bucket of template.yaml keeps what was deleted or replaced
VERSIONS = {"commits": 30 * 24, "runs": 30 * 24, "snapshots": 30 * 24, "backups": 7 * 24}
PRICES = {"PUT": 0.005 / 1000, "LIST": 0.005 / 1000, "GET": 0.0004 / 1000}  # US dollars; us-east-1, S3 Standard
PER_GB = 0.023  # US dollars a month
_PART = 8 * 1024 * 1024


class VirtualClock(Clock):
    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def timestamp(self) -> int:
        return 1_700_000_000_000 + int(self.seconds * 1000)

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@dataclass
class CountingStore:
    """A bucket in memory. Requests as S3 counts them: uploads by parts, listings by the thousand names."""

    url: str
    clock: VirtualClock
    requests: Counter[str] = field(default_factory=Counter)
    written: Counter[str] = field(default_factory=Counter)  # bytes, by kind
    bodies: dict[str, tuple[bytes, datetime]] = field(default_factory=dict)

    def create(self, name: str, body: bytes | bytearray | Path, written_at: datetime | None = None) -> None:
        self.requests["PUT"] += 1
        if name in self.bodies:
            raise ObjectExists(name)
        self._store(name, body)

    def race(self, name: str, body: bytes, racers: int) -> int:
        self.requests["PUT"] += racers
        self.requests["GET"] += racers
        self._store(name, body)
        return 1

    def put(self, name: str, body: bytes | bytearray | Path, written_at: datetime | None = None) -> None:
        size = self._store(name, body)
        self.requests["PUT"] += 1 if size <= _PART else 2 + ceil(size / _PART)

    def _store(self, name: str, body: bytes | bytearray | Path) -> int:
        content = body.read_bytes() if isinstance(body, Path) else bytes(body)
        self.bodies[name] = content, datetime.fromtimestamp(self.clock.timestamp() / 1000, UTC)
        self.written[_kind(name)] += len(content)
        return len(content)

    def read(self, name: str) -> Iterator[bytes]:
        yield self._get(name)

    def read_range(self, name: str, begin: int, end: int) -> bytes:
        return self._get(name)[begin:end]

    def read_end(self, name: str, size: int) -> tuple[bytes, datetime]:
        return self._get(name)[-size:], self.bodies[name][1]

    def _get(self, name: str) -> bytes:
        self.requests["GET"] += 1
        if name not in self.bodies:
            raise ObjectMissing(name)
        return self.bodies[name][0]

    def objects(self, directory: str = "", after: str = "") -> list[ObjectInfo]:
        found = [
            ObjectInfo(name, len(self.bodies[name][0]), self.bodies[name][1])
            for name in sorted(name for name in self.bodies if name > after and name.rpartition("/")[0] == directory)
        ]
        self.requests["LIST"] += max(1, ceil(len(found) / 1000))
        return found

    def directories(self, directory: str = "") -> list[str]:
        self.requests["LIST"] += 1
        return sorted({name.partition("/")[0] for name in self.bodies if "/" in name})

    def delete(self, name: str) -> None:
        self.bodies.pop(name, None)  # a request that costs nothing

    def remove_unfinished(self) -> None:
        pass


@dataclass(frozen=True)
class Measured:
    """Of one month."""

    rate: int
    requests: dict[str, int]
    gigabytes: dict[str, float]  # stored, by kind, with what has been deleted and is kept as an old version

    @property
    def request_costs(self) -> float:
        return sum(PRICES[kind] * count for kind, count in self.requests.items())

    @property
    def storage_costs(self) -> float:
        return PER_GB * sum(self.gigabytes.values())


def main() -> None:
    print(table([measure(rate) for rate in (map(int, sys.argv[1:]) if sys.argv[1:] else RATES)]))


def measure(rate: int) -> Measured:
    """`rate`: writes an hour."""
    with TemporaryDirectory() as directory:
        clock = VirtualClock()
        log, backups = CountingStore("s3://bucket/log", clock), CountingStore("s3://bucket/backups", clock)
        live = _Service(Path(directory), log, backups, clock)
        for count in (1, ITEMS):
            live.write(count)
        live.maintain()  # the first snapshot, which comes once
        hours = HOURS.get(rate, DAY)
        for store in (log, backups):
            store.requests.clear()
            store.written.clear()
        for _ in range(hours):
            live.live_an_hour(rate)
        live.replica.close()
    requests = log.requests + backups.requests
    per_month = {kind: round(requests[kind] * MONTH / hours) for kind in PRICES}
    per_month["LIST"] += MONTH * _pages_still_missing(rate, hours)
    gigabytes = {
        kind: size / hours * (KEPT[kind] + VERSIONS[kind]) / 1e9
        for kind, size in (log.written + backups.written).items()
        if kind in KEPT
    }
    return Measured(rate, per_month, gigabytes)


class _Service:
    def __init__(self, directory: Path, log: Any, backups: Any, clock: VirtualClock) -> None:
        self._clock = clock
        self._merging = Compactor(_log(log, clock), log, clock)  # that of an instance which stays warm
        keep = Keep(timedelta(hours=24), timedelta(days=7), timedelta(days=30))
        kept_backups = Backups(
            backups,
            Retention(timedelta(days=7), timedelta(days=30)),
            now=lambda: datetime.fromtimestamp(clock.timestamp() / 1000, UTC),
        )
        self._maintenance = Maintenance(self._merging, log, kept_backups, keep, clock)
        self._scratch = directory
        self.replica = Replica(directory / "app.db", _log(log, clock), clock, lasting=False)
        self.replica.open()
        self.replica.write(migrate, clock.now() + 10, clock.now())

    def write(self, items: int) -> None:
        def use_case(db: peewee.Database) -> None:
            for number in range(items):
                create_item(db, NewItem(name=f"Item {number}", price="12.50"))  # type: ignore[arg-type]

        self.replica.write(use_case, self._clock.now() + 10, self._clock.now())

    def maintain(self) -> None:
        report = self._maintenance.run()
        if report.problems:
            raise SystemExit(f"maintenance failed: {report.problems}")

    def live_an_hour(self, rate: int) -> None:
        for minute in range(60):
            for _ in range(rate * (minute + 1) // 60 - rate * minute // 60):
                self.write(1)
            self._clock.seconds += 60
            self._merging.merge(self._scratch)
        self.maintain()


def _log(store: Any, clock: Clock) -> CommitLog:
    return CommitLog(store, store, clock, random.Random(1), parallel=1)


def _kind(name: str) -> str:
    level = name.partition("/")[0]
    if name.endswith(".db.gz"):
        return "backups"
    return {"0000": "commits", "0009": "snapshots"}.get(level, "runs" if level.isdigit() else "other")


def _pages_still_missing(rate: int, hours: int) -> int:
    """Maintenance lists all that is kept, which is more than there is after so few hours."""
    kept = KEPT["commits"] * rate + KEPT["runs"] * rate // 15
    there = hours * rate + hours * rate // 15
    return max(0, kept - there) // 1000


_COLUMNS: dict[str, Callable[[Measured], str]] = {
    "writes an hour": lambda month: f"{month.rate:,}",
    "PUT": lambda month: f"{month.requests['PUT']:,}",
    "LIST": lambda month: f"{month.requests['LIST']:,}",
    "GET": lambda month: f"{month.requests['GET']:,}",
    "requests, $": lambda month: f"{month.request_costs:.2f}",
    "commits, GB": lambda month: f"{month.gigabytes.get('commits', 0):.3f}",
    "runs, GB": lambda month: f"{month.gigabytes.get('runs', 0):.3f}",
    "snapshots, GB": lambda month: f"{month.gigabytes.get('snapshots', 0):.3f}",
    "backups, GB": lambda month: f"{month.gigabytes.get('backups', 0):.3f}",
    "storage, $": lambda month: f"{month.storage_costs:.2f}",
    "sum, $": lambda month: f"{month.request_costs + month.storage_costs:.2f}",
}


def table(months: list[Measured]) -> str:
    head = [f"| {' | '.join(_COLUMNS)} |", "|" + "---:|" * len(_COLUMNS)]
    return "\n".join(head + [row(month) for month in months])


def row(month: Measured) -> str:
    return f"| {' | '.join(text(month) for text in _COLUMNS.values())} |"


if __name__ == "__main__":
    main()
