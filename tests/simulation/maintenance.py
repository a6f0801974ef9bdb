"""The real maintenance over a store full of trouble: killed and put to sleep anywhere, and often two at once."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from core.errors import LogDamaged, ServiceError
from infra.backups.backups import Backups
from infra.backups.retention import Retention
from infra.commitlog import CommitLog
from infra.commitlog.upkeep import Compactor, Keep
from infra.maintenance.job import Maintenance
from infra.storage.object_store import ObjectStore
from tests.simulation.instance import Surroundings
from tests.simulation.scheduler import EPOCH, SimulatedClock, Task, Violation
from tests.simulation.store import Connection, FaultyStore

RUN = 4  # of commits, and of runs
_KEEP = Keep(commits=timedelta(hours=24), runs=timedelta(days=2), daily=timedelta(days=4))
_KEEP_LITTLE = Keep(commits=timedelta(hours=24), runs=timedelta(hours=24), daily=timedelta(hours=24))
_BUDGETS = (0.05, 1.0, 60.0, float("inf"))  # seconds


class Maintainer:
    def __init__(self, around: Surroundings, number: int, thorough: bool) -> None:
        """`thorough`: all of it, and in time."""
        self.name = f"maint{number}"
        self._around = around
        self._scheduler = around.scheduler
        self._rng = around.scheduler.rng
        self._number = number
        self._thorough = thorough
        self._clock = SimulatedClock(around.scheduler, 0.0, self.pause)
        self._connection = Connection(around.scheduler, around.bucket, around.faults, self, around.counts)
        self.problems: list[str] = []
        self._task: Task | None = None
        self._naps = 0

    def start(self) -> None:
        self._task = self._scheduler.start(self._run)

    def pause(self, seconds: float) -> None:
        assert self._task
        self._task.pause(seconds)
        roll = self._rng.random()
        if roll < self._around.faults.crash:
            self._scheduler.say(self.name, "crashes")
            self._task.die()
        elif roll < self._around.faults.crash + self._around.faults.freeze:
            self._scheduler.say(self.name, "freezes")
            self._naps += 1
            self._task.pause(self._rng.uniform(0, 40 * 3600))

    def _run(self, task: Task) -> None:
        store = FaultyStore(self._connection, 60.0)
        log = CommitLog(store, store, self._clock, random.Random(self._number), parallel=1)
        begun = self._scheduler.now()
        maintenance = _Watched(
            lambda error: self._check_excused(error, begun),
            Compactor(log, store, self._clock, RUN, self._rng.choice((500, 1 << 20))),
            store,
            Backups(
                ObjectStore(self._around.backups.as_uri()),
                Retention(timedelta(days=7), timedelta(days=30)),
                now=lambda: datetime.fromtimestamp(EPOCH + self._scheduler.now(), UTC),
            ),
            _KEEP_LITTLE if self._around.bucket.keeps_little else _KEEP,
            self._clock,
            self._scratch,
        )
        try:
            if not self._thorough and self._rng.random() < 0.3:
                self._scheduler.say(self.name, f"merged {maintenance.merge()}")
            else:
                report = maintenance.run(_BUDGETS[-1] if self._thorough else self._rng.choice(_BUDGETS))
                self._scheduler.say(self.name, f"TXID {report.txid} {report.problems} {report.deleted_objects}")
                self.problems = report.problems
        except ServiceError as error:
            self._check_excused(error, begun)
            self.problems = [str(error)]
            self._scheduler.say(self.name, f"gives up: {type(error).__name__}: {error}")
        self._around.counts += maintenance.steps.counts

    def _check_excused(self, error: ServiceError, begun: float) -> None:
        """That the log is damaged, and nothing in the surroundings explains it, since this run was begun."""
        bucket = self._around.bucket
        emptied = bucket.is_emptied or max(bucket.last_emptied, self._connection.last_emptied) > begun
        if isinstance(error, LogDamaged) and not (self._naps > 1 or emptied or bucket.is_replaced):
            raise Violation(f"false alarm by maintenance: {error}") from error

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        with TemporaryDirectory(dir=self._around.root) as directory:
            yield Path(directory)


class _Watched(Maintenance):
    """Tells of what ends its work."""

    def __init__(self, tell: Callable[[ServiceError], None], *arguments: Any) -> None:
        super().__init__(*arguments)
        self._tell = tell

    def _work(self, *arguments: Any) -> None:
        try:
            super()._work(*arguments)
        except ServiceError as error:
            self._tell(error)
            raise
