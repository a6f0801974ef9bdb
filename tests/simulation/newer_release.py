"""An instance of a newer release, which migrates the database to a schema that the others do not know, and back."""

import random
from collections import Counter
from pathlib import Path

from infra.commitlog import CommitLog, Replica
from infra.commitlog.schema import AnySchema
from infra.storage.object_store import SMALL_OBJECT_SECONDS
from tests.simulation.model import Model
from tests.simulation.scheduler import Scheduler, SimulatedClock, Task
from tests.simulation.store import Bucket, Connection, Faults, FaultyStore
from tests.simulation.workload import SCHEMA_ONLY, VERSION


class NewerRelease:
    """Nothing goes wrong with it: what counts is what the others make of its commits."""

    name = "newer"

    def __init__(
        self, scheduler: Scheduler, bucket: Bucket, model: Model, directory: Path, counts: Counter[str]
    ) -> None:
        self._scheduler = scheduler
        self._model = model
        self._path = directory / "newer.db"
        self._counts = counts
        self._rng = random.Random(scheduler.seed)
        self._clock = SimulatedClock(scheduler, 0.0, self.pause)
        self._connection = Connection(scheduler, bucket, Faults(), self, counts)

    def pause(self, seconds: float) -> None:
        task = self._scheduler.running
        assert task
        task.pause(seconds)

    def migrate(self, seconds: float) -> None:
        """Commit a schema of the release after the next one, and so much later the one that the others know."""
        if self._model.chain.head > SCHEMA_ONLY:
            self._model.upgraded()
            self._counts["upgrades"] += 1
            self._scheduler.start(lambda task: self._migrate(task, seconds))

    def _migrate(self, task: Task, seconds: float) -> None:
        self._commit(VERSION + 1)
        task.pause(seconds)
        self._commit(VERSION)

    def _commit(self, version: int) -> None:
        log = CommitLog(
            FaultyStore(self._connection, SMALL_OBJECT_SECONDS),
            FaultyStore(self._connection, SMALL_OBJECT_SECONDS),
            self._clock,
            self._rng,
            parallel=1,
        )
        replica = Replica(self._path, log, self._clock, lasting=False, schema=AnySchema())
        replica.open()
        replica.write(lambda db: db.execute_sql(f"PRAGMA user_version = {version}"), float("inf"), self._clock.now())
        replica.close(self._clock.now())
