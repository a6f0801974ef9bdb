"""Maintenance as the design of the log allows it: merge, snapshot, delete; safe to kill, and when two run at once."""

import random
from contextlib import suppress
from pathlib import Path

from core.errors import CommitError, ObjectExists, StoreError
from infra.commitlog import ltx
from infra.commitlog.chain import LogObject, Position, chain, check_follows
from infra.commitlog.log import CommitLog
from tests.simulation.instance import Surroundings
from tests.simulation.scheduler import SimulatedClock, Task
from tests.simulation.store import Connection, FaultyStore

MERGED = 4  # commits
_SNAPSHOT_AFTER = 3  # commits
_KEPT_SECONDS = 24 * 3600
_MERGED_KEPT_SECONDS = 7 * 24 * 3600
_MARKER = "maintenance"


class Maintenance:
    def __init__(self, around: Surroundings, number: int) -> None:
        self.name = f"maint{number}"
        self._around = around
        self._scheduler = around.scheduler
        self._rng = around.scheduler.rng
        connection = Connection(around.scheduler, around.bucket, around.faults, self)
        self._store = FaultyStore(connection, 60.0)
        clock = SimulatedClock(around.scheduler, 0.0, self.pause)
        self._log = CommitLog(self._store, self._store, clock, random.Random(number), parallel=1)
        self._image = around.root / f"{self.name}.db"
        self._task: Task | None = None

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
            self._task.pause(self._rng.uniform(0, 40 * 3600))

    def _run(self, task: Task) -> None:
        try:
            levels = {level: self._objects(level) for level in (0, 1, 9)}
            self._merge(levels[0], {item.min_txid for item in levels[1]})
            self._snapshot(levels)
            self._prune()
        except (StoreError, CommitError) as error:
            self._scheduler.say(self.name, f"gives up: {type(error).__name__}: {error}")
        finally:
            self._image.unlink(missing_ok=True)

    def _merge(self, commits: list[LogObject], merged: set[int]) -> None:
        by_txid = {item.min_txid: item for item in commits}
        for low in sorted({(txid - 1) // MERGED * MERGED + 1 for txid in by_txid} - merged):
            run = [by_txid[txid] for txid in range(low, low + MERGED) if txid in by_txid]
            if len(run) == MERGED:
                self._create(1, *self._merged(run))

    def _merged(self, run: list[LogObject]) -> tuple[ltx.Header, dict[int, bytes]]:
        pages: dict[int, bytes] = {}
        headers = []
        position = Position(run[0].min_txid - 1, 0, 0)
        for item in run:
            reader = ltx.Reader(self._store.read(_name(0, item.min_txid, item.max_txid)))
            pages |= dict(reader.pages())
            check_follows(reader.header, position)
            headers.append(reader.header)
            position = Position(item.max_txid, reader.checksum, reader.header.timestamp)
        last = headers[-1]
        header = ltx.Header(
            last.page_size,
            last.size,
            run[0].min_txid,
            run[-1].max_txid,
            last.timestamp,
            headers[0].predecessor,
            position.checksum,
        )
        return header, {number: page for number, page in pages.items() if number <= last.size}

    def _snapshot(self, levels: dict[int, list[LogObject]]) -> None:
        newest = max((item.max_txid for item in levels[9]), default=0)
        head = max((item.max_txid for items in levels.values() for item in items), default=0)
        if head < newest + _SNAPSHOT_AFTER:
            return
        position = self._log.restore(self._image)
        data = self._image.read_bytes()
        page_size = int.from_bytes(data[16:18], "big")
        pages = {index // page_size + 1: data[index : index + page_size] for index in range(0, len(data), page_size)}
        header = ltx.Header(page_size, len(pages), 1, position.txid, position.timestamp, 0, position.checksum)
        self._create(9, header, pages)

    def _create(self, level: int, header: ltx.Header, pages: dict[int, bytes]) -> None:
        body, _ = ltx.encode(header, sorted(pages.items()))
        try:
            self._store.create(_name(level, header.min_txid, header.max_txid), body)
            self._around.counts["merges" if level == 1 else "snapshots"] += 1
        except ObjectExists:
            pass  # another one was faster, and has made the same

    def _prune(self) -> None:
        """Level 0 in ascending order, never the newest; level 1 when a snapshot holds it."""
        now = self._store_time()
        merged, snapshots = self._objects(1), self._objects(9)
        reach = max((item.max_txid for item in chain(merged + snapshots, 0)), default=0)
        for item in self._objects(0)[:-1]:
            if item.max_txid > reach or now - item.modified.timestamp() <= _KEPT_SECONDS:
                break
            self._delete(item)
        snapshot = max((item.max_txid for item in snapshots), default=0)
        for item in merged:
            if item.max_txid <= snapshot and now - item.modified.timestamp() > _MERGED_KEPT_SECONDS:
                self._delete(item)

    def _delete(self, item: LogObject) -> None:
        self._store.delete(_name(item.level, item.min_txid, item.max_txid))
        self._around.counts["deletions"] += 1

    def _store_time(self) -> float:
        self._store.delete(_MARKER)
        with suppress(ObjectExists):
            self._store.create(_MARKER, b"")
        found = [info for info in self._store.objects() if info.name == _MARKER]
        return found[0].modified.timestamp() if found else 0.0  # another one is at work: delete nothing

    def _objects(self, level: int) -> list[LogObject]:
        found = []
        for info in self._store.objects(f"{level:04x}"):
            low, high = (int(text, 16) for text in Path(info.name).stem.split("-"))
            found.append(LogObject(level, low, high, info.size, info.modified))
        return found


def _name(level: int, low: int, high: int) -> str:
    return f"{level:04x}/{low:016x}-{high:016x}.ltx"
