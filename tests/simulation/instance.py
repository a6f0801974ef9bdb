"""One instance of the service: a real Replica over real files, a process that dies, sleeps and starts again."""

import os
import random
import shutil
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import apsw
import peewee

from core.errors import (
    CommitOutcomeUnknown,
    DatabaseDamaged,
    DatabaseLocked,
    ItemNotFound,
    LogDamaged,
    ServiceError,
    SnapshotGone,
    StoreRefused,
    StoreUnavailable,
    TxidNotReached,
    WriteRefused,
)
from infra.commitlog import CommitLog, Replica
from infra.commitlog import group as group_module
from infra.commitlog.wal import FILE_HEADER, FRAME_HEADER, page_size_in
from infra.storage.object_store import LARGE_OBJECT_SECONDS, SMALL_OBJECT_SECONDS
from tests.simulation.model import Model
from tests.simulation.operator import Operator
from tests.simulation.paged import PageReads, check_by_chance, drawn_paging
from tests.simulation.scheduler import Crash, Scheduler, SimulatedClock, Task, Violation
from tests.simulation.store import Bucket, Connection, Faults, FaultyStore
from tests.simulation.workload import Read, SimulatedSchema, State, Write, create_schema, has_schema, state_in

_COMMIT_SECONDS = 10.0
_START_SECONDS = 60.0
_PEEKS = 0.2  # of all pauses
_AHEAD = 0.2  # of all requests of a paged file
_MOST_CRASHES = 100  # or a start with more steps than machines last would never end
_SLEEPS = (20.0, 400.0, 5 * 3600.0, 40 * 3600.0, 80 * 3600.0, 80 * 3600.0)


class Stop:
    """A request to end in an orderly way; the next process starts a little later."""


class Vacuum:
    """An operator has the database made anew, without the room that nothing takes any more."""


Request = Read | Write | Stop | Vacuum


@dataclass
class Surroundings:
    """What all actors share."""

    scheduler: Scheduler
    bucket: Bucket
    model: Model
    faults: Faults
    counts: Counter[str]
    root: Path
    backups: Path
    counters: list[int]  # what clients have read
    tokens: list[int]  # the TXIDs that clients got, and hand on to others
    somebody_sleeps: "Callable[[Instance, float], None]"
    write_of_others: Callable[[], Write]  # a new one, by another program


class Instance:
    def __init__(self, around: Surroundings, number: int, lasting: bool) -> None:
        """`lasting`: a server, whose file outlives its process; otherwise a Lambda function's instance."""
        self._paging = None if lasting else drawn_paging(around.bucket.pages)
        self.name = f"{'server' if lasting else 'paged' if self._paging else 'lambda'}{number}"
        self._around = around
        self._scheduler = around.scheduler
        self._model = around.model
        self._rng = around.scheduler.rng
        self._lasting = lasting
        self._queue: deque[Request] = deque()
        self._process = 0
        self._failed_starts = 0  # in a row
        self._directory = self._new_directory()
        self._task: Task | None = None
        self._clock: SimulatedClock | None = None
        self._connection: Connection | None = None
        self._replica: Replica | None = None
        self._page_reads: PageReads | None = None
        self._idle = False
        self._swapping = False
        self._frozen = False
        self._thaws_at = 0.0
        self._naps = 0  # in the present request
        self._begun = 0.0  # the present request
        self._owed = 0  # the TXID that this process has named as that of an unknown outcome
        self._not_for_us: int | None = None  # from this TXID on, which was there when this process began to open
        self._touches = 0  # of another program, since this instance has looked
        self._operator = Operator(around.model, self._rng, around.write_of_others, around.counts)

    def start(self) -> None:
        if self._around.bucket.is_emptied:  # it could not know
            self._scheduler.at(5.0, self.start)
            return
        self._task = self._scheduler.start(self._live)

    @property
    def is_running(self) -> bool:
        return self._replica is not None

    @property
    def is_paged(self) -> bool:
        return self._paging is not None

    @property
    def is_opening(self) -> bool:
        return self._replica is not None and self._connection is not None and self._connection.opening

    def submit(self, request: Request) -> None:
        """A client's request arrives."""
        if isinstance(request, Read) and self._lasting and self._can_be_read() and not self.is_opening:
            self._answer_at_once_or_ask(request)
        else:
            self._enqueue(request)

    def _answer_at_once_or_ask(self, request: Read) -> None:
        """Beside a write that may be under way."""
        if self._is_fresh_for(request):
            self._answer_read(request)
        elif self._idle:
            self._enqueue(request)
        else:
            replica, process = self._replica, self._process
            assert replica
            self._scheduler.start(lambda task: self._ask(request, replica, process))

    def _ask(self, request: Read, replica: Replica, process: int) -> None:
        """On a second thread of the process: one question to the store, which may spare the read its wait."""
        begun = self._scheduler.now()  # the first thread may begin another request meanwhile
        try:
            current = replica.is_current()
            if current:
                replica.check_reached(request.at_least)
        except ServiceError as error:
            self._refused(error, begun)
            return
        if process != self._process or self._replica is not replica:
            return  # dead meanwhile
        if current and self._can_be_read():
            self._around.counts["probes"] += 1
            self._answer_read(request)
        else:
            self._enqueue(request)

    def _enqueue(self, request: Request) -> None:
        self._queue.append(request)
        if self._idle:
            self._idle = False
            assert self._task
            self._scheduler.at(0, self._task.resume)

    def pause(self, seconds: float) -> None:
        """Where other actors take their turns; this process may never come back from here, or much later."""
        task, process = self._scheduler.running, self._process
        assert task
        if task is not self._task:
            task.pause(seconds)
            if self._frozen:
                task.pause(self._thaws_at - self._scheduler.now())
            if process != self._process or not self._replica:
                task.die()
            return
        self._look()
        self._operate()
        task.pause(seconds)
        self._operate()
        roll = self._rng.random()
        if roll < self._around.faults.crash and self._process <= _MOST_CRASHES:
            self._crash()
        elif roll < self._around.faults.crash + self._around.faults.freeze:
            self._sleep()
        elif self._clock and self._rng.random() < self._around.faults.leap:
            self._leap()
        self._look()

    # A process

    def _live(self, task: Task) -> None:
        self._process += 1
        self._swapping = self._frozen = self._idle = False
        self._owed = 0
        self._say(f"starts, process {self._process}")
        self._around.counts["starts"] += 1
        self._clock = SimulatedClock(self._scheduler, self._drawn_skew(), self.pause)
        self._connection = Connection(
            self._scheduler, self._around.bucket, self._around.faults, self, self._around.counts
        )
        self._connection.has_seen_log = (self._directory / "app.db.position").exists() and self._process > 1
        log = CommitLog(
            FaultyStore(self._connection, SMALL_OBJECT_SECONDS),
            FaultyStore(self._connection, LARGE_OBJECT_SECONDS),
            self._clock,
            random.Random(self._rng.getrandbits(64)),
            parallel=1,
        )
        self._page_reads = PageReads(log, self._around.bucket, self._around.counts)
        self._replica = Replica(
            self._directory / "app.db",
            log,
            self._clock,
            lasting=self._lasting,
            busy_timeout=0,
            rng=random.Random(self._rng.getrandbits(64)),
            swap=self._swap,
            schema=SimulatedSchema(),
            paging=self._paging,
        )
        _after(self._replica.at_rest.position_file, "note", self._noted)
        _after(self._replica.file, "_on_commit", self._committed)
        old = self._directory
        if self._lasting and self._process > 1 and self._around.faults.operator:
            self._touches += self._operator.visit(self._directory / "app.db", self._say)
        self._connection.touched = self._touches > 0
        try:
            if self._open(self._replica):
                self._serve()
            self._replica.close(self._clock.now())
            self._check_alive()
            if not self._lasting:
                self._directory = self._new_directory()
        finally:
            replica, self._replica = self._replica, None
            self._leave(replica)
            self.take_note_of_kept_files(old)
            if self._directory != old:
                shutil.rmtree(old)
            self._scheduler.at(min(2.0 ** min(self._failed_starts, 20), 40_000) * self._rng.random(), self.start)

    def _leave(self, replica: Replica) -> None:
        """All that is left to do for a process that was killed."""
        if not self._paging:
            replica.file.close()
            return
        assert self._page_reads
        with self._page_reads.at_once(), suppress(apsw.Error):
            replica.file.close()
        replica.at_rest.close(None, replica.file.known)

    def _open(self, replica: Replica) -> bool:
        self._begin()
        assert self._clock
        assert self._connection
        try:
            self._connection.opening = True
            self._not_for_us = self._model.newer_since
            replica.open()
            self._connection.opening = self._operator.keeps_off = False
            self._connection.has_seen_log = True
            if not has_schema(replica.reader):
                replica.look_past_snapshot()
            if not has_schema(replica.reader):
                replica.write(create_schema, self._clock.now() + _START_SECONDS, self._clock.now())
        except ServiceError as error:
            self._check_alive()
            self._check_excused(error, self._begun)
            self._say(f"cannot start: {_named(error)}")
            self._around.counts["failed starts"] += 1
            self._failed_starts += 1
            return False
        self._failed_starts = 0
        return True

    def _serve(self) -> None:
        assert self._task
        while True:
            while not self._queue:
                self._idle = True
                self._task.wait()
            request = self._queue.popleft()
            group = [request] if isinstance(request, Write) else []
            while group and self._queue and isinstance(following := self._queue[0], Write):
                group.append(following)
                self._queue.popleft()
            self._begin()
            if isinstance(request, Stop):
                self._say("stops")
                return
            try:
                self.pause(0.0)
                self._checkpoint_by_chance()
                self._read_ahead_by_chance()
                match request:
                    case Read():
                        self._read(request)
                    case Vacuum():
                        self._vacuum()
                    case Write():
                        self._write(group)
                self._watch_by_chance()
            except Crash:
                self._around.counts["cut off by a crash"] += 1
                raise

    def _checkpoint_by_chance(self) -> None:
        """Without waiting for so many frames that SQLite does it, so that logs are begun anew often."""
        if self._replica and self._can_be_read() and self._rng.random() < 0.2:
            with suppress(DatabaseLocked, apsw.BusyError, StoreUnavailable, StoreRefused):
                self._replica.file.checkpoint()

    def _read_ahead_by_chance(self) -> None:
        """On a second thread of the process, as the function does while it answers."""
        replica, process = self._replica, self._process

        def read_ahead(task: Task) -> None:
            assert replica
            try:
                for _ in replica.read_ahead():
                    self._around.counts["read ahead"] += 1
                    self.pause(0.0)
                    if process != self._process or self._replica is not replica:
                        return
            except SnapshotGone:
                self._say("reads no further ahead")  # whoever needs a page of it opens a newer one
            except ServiceError as error:
                self._check_excused(error, self._begun)
                self._say(f"reads no further ahead: {_named(error)}")

        if self._paging and self._around.bucket.pages.random() < _AHEAD:
            self._scheduler.start(read_ahead)

    def _watch_by_chance(self) -> None:
        if self._replica and self._clock and self._lasting and self._rng.random() < 0.3:
            try:
                self._replica.watch(self._clock.now())
                self._model.settled(self._owed)
            except ServiceError as error:
                self._check_excused(error, self._begun)
                self._say(f"watches in vain: {_named(error)}")

    def _operate(self) -> None:
        """Another program does something, in the middle of whatever is going on here."""
        if self._lasting and self._connection and self._rng.random() < self._around.faults.operator:
            self._touches += 1
            self._connection.touched = True
            self._operator.interfere(self._directory / "app.db", self._say)

    def take_note_of_kept_files(self, directory: Path | None = None) -> None:
        for kept in sorted((directory or self._directory).glob("*.diverged-*")):
            if not kept.name.endswith("-wal"):
                self._around.counts["diverged"] += 1
                self._operator.take_note_of(kept)
        for kept in (directory or self._directory).glob("*.diverged-*"):
            kept.unlink()
        for kept in (directory or self._directory).glob("*.changes-*"):  # which a later process tries again
            self._around.counts["row changes"] += 1
            self._operator.take_note_of_changes(kept)

    def _swap(self, change: Callable[[], None]) -> None:
        self._swapping = True
        try:
            change()
        finally:
            self._swapping = False

    def _noted(self, *_: object, **__: object) -> None:
        """Between a commit's arrival in the store and SQLite's own file, among other moments."""
        self.pause(0.0)

    def _committed(self, *_: object, **__: object) -> None:
        """When SQLite shows a commit, and the code behind it has not yet gone on."""
        self._look(0.5)

    def _crash(self) -> None:
        """kill -9, or for a server also a power cut: what is on disk at this moment is what the next process gets."""
        self._say("crashes")
        self._around.counts["crashes"] += 1
        old, self._directory = self._directory, self._new_directory()
        if self._lasting:
            for path in sorted(old.iterdir()):
                shutil.copy2(path, self._directory)
            _link_again(old, self._directory)
            if self._rng.random() < 0.4:
                self._operator.forget(self._directory / "app.db")
                _tear(self._directory / "app.db-wal", self._rng)
        assert self._task
        self._task.die()

    def _sleep(self) -> None:
        assert self._task
        seconds = self._rng.choice(_SLEEPS) * self._rng.uniform(0.5, 1.5)
        self._say(f"freezes for {seconds:.0f} s")
        self._around.counts["freezes"] += 1
        self._naps += 1
        self._around.somebody_sleeps(self, seconds)
        self._frozen = True
        self._thaws_at = self._scheduler.now() + seconds
        if self._clock and self._rng.random() < self._around.faults.still:
            self._say("and its clocks with it")
            self._clock.stand_still(seconds)
        self._task.pause(seconds)
        self._frozen = False

    def _leap(self) -> None:
        assert self._clock
        seconds = self._rng.choice((30.0, 3600.0, 48 * 3600.0)) * self._rng.choice((-1, 1))
        self._say(f"its clock leaps by {seconds:.0f} s")
        self._around.counts["leaps"] += 1
        self._clock.leap(seconds)

    # Requests

    def _begin(self) -> None:
        self._naps = 0
        self._begun = self._scheduler.now()

    def _read(self, request: Read) -> None:
        assert self._replica
        assert self._clock
        not_before = self._clock.at(request.arrived) - request.freshness
        try:
            if not self._replica.is_fresh(not_before, request.at_least):
                self._replica.refresh(not_before, request.at_least)
        except ServiceError as error:
            self._refused(error)
            return
        self._settle_unknown()
        self._answer_read(request)

    def _settle_unknown(self) -> None:
        """As the function does with each look at the log; a server does it while it watches."""
        if self._replica and self._clock and self._connection and not self._lasting:
            emptied_at = self._connection.emptied_at
            try:
                self._replica.settle_unknown(self._clock.now())
                self._model.settled(self._owed)
            except ServiceError as error:
                self._check_excused(error, self._begun)
                self._say(f"settles in vain: {_named(error)}")
                self._connection.emptied_at = emptied_at  # what the request asks for was proven before

    def _answer_read(self, request: Read) -> None:
        assert self._replica
        try:
            shown, state = self._shown(request)
        except ServiceError as error:  # a page that cannot be read
            self._refused(error)
            return
        if state is None:
            self._answer_later(request)
            return
        token = self._replica.stored.txid  # as the service takes it
        self._check_is_for_us(shown)
        self._model.named(state, token)
        answered = self._answered(f"read at TXID {shown}", self._fresh_since(request), request.freshness > 0)
        self._model.read(state, shown, request.at_least, self._fresh_since(request), answered)
        self._around.tokens.append(token)
        self._around.counters.append(state.counter)
        self._around.counts["reads"] += 1

    def _shown(self, request: Read) -> tuple[int, State | None]:
        """The TXID that the answer names, and what it shows; as the service, on a newer snapshot where the one whose
        pages are read has gone.
        """
        assert self._replica
        try:
            return self._replica.visible.txid, self._state_seen(1.0)
        except SnapshotGone:
            self._replica.lose_pages()
        self._say("opens a newer snapshot")
        assert self._clock
        self._replica.refresh(self._clock.at(request.arrived) - request.freshness, request.at_least)
        return self._replica.visible.txid, self._state_seen(1.0)

    def _answer_later(self, request: Read) -> None:
        """Another program has taken away what the request asks for, and the service puts it back when it looks."""
        self._say("cannot read what another program has left")
        assert self._replica
        assert self._clock
        if self._scheduler.running is self._task:
            try:
                self._replica.watch(self._clock.now())
            except ServiceError as error:
                self._refused(error)
                return
        self._enqueue(request)

    def _state_seen(self, thoroughly: float = 0.0) -> State | None:
        """None for what only another program can have made of the file. `thoroughly`: how often all of a paged file is
        compared, at most.
        """
        assert self._replica
        try:
            state = state_in(self._replica.reader)
            if self._paging:
                check_by_chance(self._replica, self._model, self._around.bucket.pages, thoroughly)
        except ServiceError:
            self._check_alive()
            raise
        except (apsw.Error, peewee.DatabaseError):
            self._check_alive()
            if not self._touches:
                raise
            return None
        return state

    def _write(self, group: list[Write]) -> None:
        assert self._replica
        assert self._clock
        assert self._connection
        attempts = []
        for write in group:
            self._model.begun(write)
            attempts.append(group_module.Write(write, self._clock.at(write.arrived) - write.freshness, write.at_least))
        touches = self._touches
        self._replica.write_together(attempts, _COMMIT_SECONDS)
        self._check_alive()
        if touches == self._touches and not any(attempt.error for attempt in attempts):
            self._touches = 0  # what was there has been stored before
        if any(attempt.error for attempt in attempts):
            self._connection.emptied_at = float("-inf")  # perhaps they ran one by one, and others are done
        self._around.counts["shared commits"] += len(group) > 1
        for write, attempt in zip(group, attempts, strict=True):
            self._conclude(write, attempt, len(group) > 1)
            self._around.counts["run again"] += max(write.runs - 1, 0)

    def _vacuum(self) -> None:
        assert self._replica
        assert self._clock
        self._model.mangled()
        try:
            self._replica.run_alone(_vacuum, self._clock.now() + _COMMIT_SECONDS)
            self._around.counts["vacuums"] += 1
        except ServiceError as error:
            self._refused(error)
            self._owed = max(error.txid if isinstance(error, CommitOutcomeUnknown) else 0, self._owed)

    def _conclude(self, write: Write, attempt: group_module.Write, shared: bool) -> None:
        match attempt.error:
            case None if write.is_repeated:
                self._model.repeated(write, attempt.shown)
                self._around.counts["repeated"] += 1
                self._answer_from(write, attempt.shown, shared)
            case None if write.ends == "commit":
                txid = self._model.acknowledged(write, self._answered(f"write {write.number} done", write.arrived))
                self._check_is_for_us(txid)
                if txid != attempt.shown:
                    raise Violation(f"what an answer names: TXID {attempt.shown} for a commit that is {txid}")
                self._around.tokens.append(txid)
                self._around.counts["commits"] += 1
            case None | ItemNotFound():
                self._answer_from(write, attempt.shown, shared)
            case CommitOutcomeUnknown() as error:
                self._say(f"write {write.number}: {_named(error)}")
                self._model.unknown(write, error.txid)
                self._owed = max(error.txid, self._owed)
                self._around.counts["unknown"] += 1
            case WriteRefused() if write.ends == "abort":
                self._model.failed(write)
                self._answered(f"write {write.number} aborted")
            case ServiceError() as error:
                self._model.failed(write)
                self._refused(error)
            case error:
                raise error

    def _check_is_for_us(self, txid: int) -> None:
        """Whoever was at work when a newer release migrated goes on; nobody begins with what it does not know."""
        if self._not_for_us and self._model.newer_since == self._not_for_us <= txid:
            raise Violation(f"I11: {self.name} has begun with a schema that is not for it, at TXID {txid}")

    def _answer_from(self, write: Write, shown: int, shared: bool) -> None:
        """One that committed nothing was a read."""
        self._check_is_for_us(shown)
        now = self._answered(
            f"write {write.number} without a commit at TXID {shown}", self._fresh_since(write), write.freshness > 0
        )
        self._model.read(write.seen, shown, write.at_least, self._fresh_since(write), now, shared)
        self._model.named(write.seen, shown, shared)
        self._model.failed(write)
        self._around.counts["reads"] += 1

    def _fresh_since(self, request: Read | Write) -> float:
        """By this machine's clock: who allows some age believes it. And not if all was put back in the meantime."""
        assert self._clock
        since = self._clock.earliest(self._clock.at(request.arrived) - request.freshness)
        return since if since > self._around.bucket.last_emptied else float("-inf")

    def _answered(self, event: str, asked: float = float("-inf"), trusting: bool = False) -> float:
        """`asked`: since when the store must have been there; `trusting`: whoever has asked allows some age."""
        self._check_alive()
        self._say(event)
        assert self._connection
        if self._around.bucket.emptied_since < asked and not self._around.bucket.has_snapshot:
            raise Violation(f"I9: {self.name} answered although there is no log any more: {event}")
        if not trusting and self._scheduler.running is self._task and self._connection.emptied_at > self._begun:
            raise Violation(f"I9: {self.name} answered although its last listing was empty: {event}")
        self._around.counts["answered"] += 1
        return self._scheduler.now()

    def _refused(self, error: ServiceError, begun: float | None = None) -> None:
        self._check_alive()
        self._check_excused(error, self._begun if begun is None else begun)
        self._say(f"refuses: {_named(error)}")
        self._around.counts["refused"] += 1

    def _check_excused(self, error: ServiceError, begun: float) -> None:
        """Errors that nothing in the surroundings explains, since what failed was begun."""
        assert self._connection
        bucket = self._around.bucket
        if isinstance(error, TxidNotReached) and bucket.last_emptied < begun:
            raise Violation(f"read your writes: {error}") from error
        emptied = bucket.is_emptied or max(bucket.last_emptied, self._connection.last_emptied) > begun
        excused = self._naps > 1 or emptied or bucket.is_replaced
        if isinstance(error, LogDamaged | DatabaseDamaged) and not excused:
            raise Violation(f"false alarm: {error}") from error
        in_time = self._scheduler.now() < begun + _COMMIT_SECONDS
        twins = self._around.faults.spoilt_sidecar and "is not the object" in str(error)  # there may be two of them
        if isinstance(error, SnapshotGone) and in_time and not (excused or self._naps or twins):
            raise Violation(f"liveness: there is a newer snapshot: {error}") from error

    def _is_fresh_for(self, request: Read) -> bool:
        if not self._replica or not self._clock or not self._can_be_read():
            return False
        return self._replica.is_fresh(self._clock.at(request.arrived) - request.freshness, request.at_least)

    def _can_be_read(self) -> bool:
        return bool(self._replica and not self._swapping and not self._frozen and self._replica.is_fresh(float("-inf")))

    def _look(self, share: float = _PEEKS) -> None:
        """Read over the other connection, in the middle of whatever is going on."""
        assert self._page_reads
        if self._page_reads.is_under_way:  # there is one connection that reads, and it may be at it
            return
        if self._rng.random() < share and self._can_be_read():
            assert self._replica
            self._around.counts["looks"] += 1
            try:
                with self._page_reads.at_once(), suppress(SnapshotGone):
                    shown = self._replica.visible.txid
                    state = self._state_seen()
                    if state is not None:
                        self._model.looked(state, shown)
                        self._model.named(state, self._replica.stored.txid)
            except Violation as error:
                self._scheduler.fail(error)  # raised here it would go through the code under test

    def _say(self, event: str) -> None:
        # Whatever differs from run to run must not be in the trace
        self._scheduler.say(self.name, event.replace(str(self._around.root), ""))

    def _check_alive(self) -> None:
        """SQLite has made an error of its own of it that the process was killed while it waited for a page."""
        if running := self._scheduler.running:
            running.check_alive()

    def _drawn_skew(self) -> float:
        return self._rng.choice((0.0, 1.0, 100.0, 36_000.0)) * self._rng.uniform(-1, 1)

    def _new_directory(self) -> Path:
        directory = self._around.root / f"{self.name}-{self._process}"
        directory.mkdir()
        return directory


def _after(actor: object, name: str, then: Callable[..., None]) -> None:
    """Call something after each call of a method."""
    method = getattr(actor, name)

    def both(*arguments: object, **named: object) -> object:
        result: object = method(*arguments, **named)
        then(*arguments, **named)
        return result

    setattr(actor, name, both)


def _link_again(original: Path, copy: Path) -> None:
    """Of the WAL's two names a copy has made two files."""
    wal, second = "app.db-wal", "app.db.last-wal"
    if (original / wal).exists() and (original / second).exists() and (original / wal).samefile(original / second):
        (copy / second).unlink()
        os.link(copy / wal, copy / second)


def _tear(wal: Path, rng: random.Random) -> None:
    """The last frame reached the disk in part only."""
    size = wal.stat().st_size if wal.exists() else 0
    if size <= FILE_HEADER:
        return
    torn = rng.randrange(1, min(size - FILE_HEADER, FRAME_HEADER + page_size_in(wal)) + 1)
    with wal.open("r+b") as file:
        if rng.random() < 0.5:
            file.truncate(size - torn)
        else:
            file.seek(size - torn)
            file.write(rng.randbytes(min(torn, 512)))


def _vacuum(database: peewee.Database) -> None:
    database.execute_sql("VACUUM")


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
