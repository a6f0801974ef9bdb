"""One simulation from its seed: who takes part, what happens when, what must hold at the end."""

import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path

import apsw

from core.errors import CommitNotStored, LogDamaged, TxidNotKept
from infra.commitlog import CommitLog, Paging, Replica, ltx
from infra.commitlog.chain import chain, restorable
from infra.commitlog.paging.page_index import PageIndex
from infra.commitlog.upkeep import sidecars
from tests.simulation.instance import Instance, Stop, Surroundings, Vacuum
from tests.simulation.maintenance import RUN, Maintainer
from tests.simulation.model import Model
from tests.simulation.newer_release import NewerRelease
from tests.simulation.paged import check_pages, small_blocks
from tests.simulation.scheduler import EPOCH, Scheduler, SimulatedClock, Violation
from tests.simulation.spoilt import flipped
from tests.simulation.store import Bucket, Faults
from tests.simulation.workload import Read, Write, state_of

_MEMORY = Path("/dev/shm")
_GAPS = (5.0, 400.0, 3 * 3600.0, 26 * 3600.0, 50 * 3600.0)
_SPANS = (1.0, 10.0, 120.0)
_A_DAY = 24.5 * 3600
_TURNS = 30  # at most, of all clients who wait for an answer; whose instance has the smallest cache waits longest
_MOST_READS = 1 + 4 * (RUN - 1) + RUN - 1


@dataclass(frozen=True)
class Result:
    seed: int
    counts: Counter[str]
    digest: str  # of the trace
    failure: str = ""
    trace: tuple[str, ...] = ()  # its end, when it failed


def simulate(seed: int, tell: Callable[[str], None] | None = None) -> Result:
    """Never raises what the simulation finds; `tell` gets every line of the trace."""
    root = Path(tempfile.mkdtemp(prefix="simulation-", dir=_MEMORY if _MEMORY.is_dir() else None))
    scheduler = Scheduler(seed, tell)
    with small_blocks(scheduler, random.Random(f"blocks {seed}")):
        return _simulated(scheduler, root)


def _simulated(scheduler: Scheduler, root: Path) -> Result:
    world = World(scheduler, root)
    failure = ""
    try:
        world.run()
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
        if not isinstance(error, Violation):
            failure += _place_of(error)
    finally:
        scheduler.stop()
        shutil.rmtree(root, ignore_errors=True)
    return Result(scheduler.seed, world.counts, scheduler.digest(), failure, tuple(scheduler.trace) if failure else ())


class World:
    def __init__(self, scheduler: Scheduler, root: Path) -> None:
        self.counts: Counter[str] = Counter()
        self._scheduler = scheduler
        self._rng = rng = scheduler.rng
        self._model = Model()
        self._bucket = Bucket(scheduler, self._stored)
        self._bucket.skew = rng.choice((0.0, 0.0, 3600.0, -86_400.0))
        self._around = Surroundings(
            scheduler,
            self._bucket,
            self._model,
            Faults.drawn(rng, self._bucket.listings, self._bucket.pages),
            self.counts,
            root,
            root / "backups",
            [],
            [],
            self._go_on_without,
            self._write_of_others,
        )
        servers = rng.choice((0.0, 0.3, 1.0))
        self._instances = [
            Instance(self._around, number, rng.random() < servers) for number in range(1, rng.randint(1, 5) + 1)
        ]
        self._is_vacuumed = self._bucket.pages.random() < 0.2
        self._is_upgraded = not self._around.faults.operator and self._bucket.pages.random() < 0.3
        self._writes = 0
        self._with_key: list[Write] = []
        self._maintenances = 0

    def run(self) -> None:
        """Raises Violation."""
        for instance in self._instances:
            self._scheduler.at(self._rng.random(), instance.start)
        self._plan()
        self._scheduler.run()
        self._recover()
        self.counts["leftovers"] = len(self._model.leftovers)
        self._check_restores()
        self._check_maintenance()
        self._check_sidecars()
        if self._bucket.pages.random() < 0.3:
            self._check_damage_is_no_answer()
        for instance in self._instances:
            instance.take_note_of_kept_files()
        self._model.check_writes_of_others()
        if self._rng.random() < 0.2:
            self._check_other_history_is_refused()
        elif self._rng.random() < 0.3:
            self._check_replaced_log_is_refused()
        if self._rng.random() < 0.05:
            self._check_careless_store_is_refused()

    def _plan(self) -> None:
        """Bursts of requests, between them silence for seconds or days, with maintenance at any time."""
        moment = 0.0
        for _ in range(self._rng.randint(2, 6)):
            span = self._rng.choice(_SPANS)
            for _ in range(self._rng.randint(4, 25)):
                self._scheduler.at(moment + self._rng.random() * span, self._request)
            if self._rng.random() < 0.5:
                self._scheduler.at(moment + self._rng.random() * span, self._maintain)
            gap = self._rng.choice(_GAPS)
            for _ in range(self._rng.randint(0, 2)):
                self._scheduler.at(moment + span + self._rng.random() * gap, self._maintain)
            if self._rng.random() < 0.3:
                self._scheduler.at(moment + span + self._rng.random() * gap, self._recycle)
            if self._rng.random() < 0.1 and not self._is_upgraded:
                self._scheduler.at(moment + span * self._rng.random(), self._empty)
            if self._is_vacuumed:
                self._scheduler.at(moment + self._bucket.pages.random() * (span + gap), self._vacuum)
            if any(instance.is_paged for instance in self._instances):
                self._plan_snapshots(moment, span, gap)
            if self._bucket.listings.random() < self._around.faults.long_listing / 2:
                self._plan_listings(moment + span)
            moment += span + gap
        self._scheduler.at(moment, self._around.faults.stop)
        if self._is_upgraded:
            newer = NewerRelease(self._scheduler, self._bucket, self._model, self._around.root, self.counts)
            since = moment * self._bucket.pages.random()
            seconds = (moment - since) * self._bucket.pages.random()
            self._scheduler.at(since, partial(newer.migrate, seconds))

    def _plan_snapshots(self, begin: float, span: float, gap: float) -> None:
        """For who reads only them, and not in the time of the others: also when hardly any run of maintenance ends."""
        chance = self._bucket.pages
        for _ in range(chance.randint(0, 3)):
            moment = begin + span * chance.random() + chance.choice((0, 0, gap)) * chance.random()
            self._scheduler.at(moment, self._maintain_in_peace)

    def _plan_listings(self, begin: float) -> None:
        """While others write."""
        chance = self._bucket.listings
        for _ in range(30):
            self._scheduler.at(begin + 30 * chance.random(), self._request)
        for act in (self._maintain, self._maintain, self._recycle):
            self._scheduler.at(begin + 15 * chance.random(), act)

    def _request(self) -> None:
        request = self._drawn_request(self._rng.random() < 0.4)
        self._rng.choice(self._instances).submit(request)
        if isinstance(request, Write) and request.has_key:
            for _ in range(self._rng.randint(0, 3)):
                self._scheduler.at(
                    self._rng.choice((0.0, 0.1, 20.0, 600.0)) * self._rng.random(), partial(self._send_again, request)
                )

    def _send_again(self, write: Write) -> None:
        """By a client that has waited for an answer, or has lost it: to any instance, with the same key."""
        at_least = self._around.tokens[-1] if self._around.tokens and self._rng.random() < 0.3 else 0
        self._model.sent_again(write)
        self._rng.choice(self._instances).submit(write.sent_again(self._scheduler.now(), at_least))

    def _drawn_request(self, read: bool) -> Read | Write:
        rng = self._rng
        now = self._scheduler.now()
        freshness = rng.choice((0.0, 0.0, 0.0, 2.0, 60.0))
        at_least = self._around.tokens[-1] if self._around.tokens and rng.random() < 0.3 else 0
        if read:
            return Read(now, at_least, freshness)
        self._writes += 1
        write = Write(now, at_least, freshness, self._writes)
        match rng.randrange(6):
            case 0 | 1:
                write.increments = True
                if self._around.counters and rng.random() < 0.3:
                    write.if_counter = self._around.counters[-1]
            case 2:
                write.rows, write.row_bytes = rng.randint(2, 5), rng.choice((20, 5000))
                write.changes_mind = rng.random() < 0.5
            case 3:
                write.ends = rng.choice(("error", "nothing", "abort"))
            case _:
                write.rows, write.row_bytes = 1, 100
        if write.ends == "commit" and rng.random() < 0.5:
            write.has_key = True
            if write.if_counter is None:  # or it may never be done
                self._with_key.append(write)
        return write

    def _write_of_others(self) -> Write:
        self._writes += 1
        return Write(
            self._scheduler.now(), 0, 0.0, self._writes, increments=self._rng.random() < 0.5, rows=1, row_bytes=20
        )

    def _go_on_without(self, sleeper: Instance, seconds: float) -> None:
        """What a sleeper had seen last is merged and deleted when it wakes."""
        others = [instance for instance in self._instances if instance is not sleeper]
        if not others or seconds < _A_DAY:
            return
        for _ in range(self._rng.randint(0, 6)):
            other = self._rng.choice(others)
            self._scheduler.at(
                self._rng.choice((0.1, 600.0)) * self._rng.random(),
                partial(self._submit, other),
            )
        for _ in range(2):
            self._scheduler.at(self._rng.uniform(_A_DAY, seconds), self._maintain)

    def _submit(self, instance: Instance) -> None:
        instance.submit(self._drawn_request(False))

    def _maintainer(self, thorough: bool, around: Surroundings | None = None) -> Maintainer:
        self._maintenances += 1
        return Maintainer(around or self._around, self._maintenances, thorough)

    def _maintain(self) -> None:
        self._maintainer(False).start()

    def _maintain_in_peace(self) -> None:
        self._maintainer(True, replace(self._around, faults=Faults())).start()

    def _recycle(self) -> None:
        self._rng.choice(self._instances).submit(Stop())

    def _vacuum(self) -> None:
        self._bucket.pages.choice(self._instances).submit(Vacuum())

    def _empty(self) -> None:
        """Somebody moves the log away, and puts it back some time later."""
        bucket = self._bucket
        starting = any(
            instance.is_opening for instance in self._instances
        )  # it could not know that it is not a new log
        if not starting and not bucket.is_emptied and self._model.chain.head > 1:
            self._scheduler.say("world", "the log is moved away")
            self.counts["emptied"] += 1
            bucket.empty()
            self._scheduler.at(self._rng.choice((1.0, 30.0, 3600.0)) * self._rng.random(), self._refill)

    def _refill(self) -> None:
        self._scheduler.say("world", "the log is put back")
        self._bucket.refill()

    def _stored(self, name: str, body: bytes, modified: datetime) -> None:
        try:
            self._model.stored(name, body, modified)
        except Violation as error:
            self._scheduler.fail(error)  # raised here it would go through the code under test

    # The end

    def _recover(self) -> None:
        """Without any more trouble every instance reads and writes again."""
        self._scheduler.say("world", "everybody is idle")
        for instance in self._instances:
            for read in (True, False, True):
                before = self.counts["answered"]
                request = self._drawn_request(read)
                request.at_least = self._model.newest_acknowledged
                request.freshness = 0.0
                instance.submit(request)
                self._scheduler.run()
                if self.counts["answered"] == before:
                    raise Violation(f"liveness: {instance.name} does not answer although nothing is wrong any more")
        waiting = self._with_key
        for _ in range(_TURNS):
            for write in waiting:
                self._send_again(write)
            self._scheduler.run()
            waiting = self._model.not_done(self._with_key)
            if not waiting:
                return
        raise Violation(f"liveness: sent again and again, and not done: {[write.number for write in waiting]}")

    def _check_restores(self) -> None:
        log = self._plain_log(self._bucket)
        points = [item.max_txid for item in restorable(log.objects.everything())]
        head = self._model.chain.head
        if points[-1] != head:
            raise Violation(f"I7: the log ends at TXID {head}, and the newest that can be restored is {points[-1]}")
        for txid in {head, *self._rng.sample(points, min(3, len(points)))}:
            path = self._around.root / f"restored-{txid}.db"
            try:
                log.restore(path, None if txid == head else txid)
            except (TxidNotKept, LogDamaged):
                if txid == head or not self._model.leftovers:
                    raise
                path.unlink()  # a leftover under that number or the one before
                continue
            self._check_restored(path, txid)
            path.unlink()

    def _check_maintenance(self) -> None:
        """Without trouble it finds nothing wrong, and what it leaves is short to read."""
        maintainer = self._maintainer(True)
        maintainer.start()
        self._scheduler.run()
        if maintainer.problems:
            raise Violation(f"false alarm by maintenance: {maintainer.problems}")
        plan = chain(self._plain_log(self._bucket).objects.everything(), 0)
        if len(plan) > _MOST_READS:
            raise Violation(f"a start reads {len(plan)} objects of TXID 1-{self._model.chain.head}")
        self._check_restores()

    def _check_sidecars(self) -> None:
        """The newest snapshot has the one that it should have, and none is there that has long been without its own."""
        log = self._plain_log(self._bucket)
        newest, has_sidecar = log.objects.snapshots()[0]
        if sidecars.pays(newest):
            if not has_sidecar:
                raise Violation("sidecars: the newest snapshot has none")
            body = self._bucket.content(log.objects.names.name_of(newest))
            PageIndex.decode(log.objects.sidecar(newest)).check_is_of(lambda: [body])
        snapshots = {item.max_txid for item, _ in log.objects.snapshots()}
        for item in log.objects.sidecars():
            age = EPOCH + self._scheduler.now() + self._bucket.skew - item.modified.timestamp()
            if item.max_txid not in snapshots and age > _A_DAY:
                raise Violation(f"sidecars: one has been without its snapshot for {age:.0f} s: TXID {item.max_txid}")

    def _check_damage_is_no_answer(self) -> None:
        """Somebody flips a bit of the newest snapshot, or of its sidecar, and an instance begins to read its pages."""
        log, chance = self._plain_log(self._bucket), self._bucket.pages
        newest, has_sidecar = log.objects.snapshots()[0]
        name = log.objects.names.name_of(newest)
        if is_sidecar := has_sidecar and chance.random() < 0.5:
            name = log.objects.names.sidecar_of(newest)
        sound = self._bucket.content(name)
        self._bucket.put(name, flipped(sound, chance))
        try:
            self._check_shown_page_by_page(log)
        except LogDamaged as error:
            if is_sidecar or name not in str(error):
                raise Violation(f"I8: {name} is damaged, and what is said of it is: {error}") from error
        finally:
            self._bucket.put(name, sound)

    def _check_shown_page_by_page(self, log: CommitLog) -> None:
        clock = SimulatedClock(self._scheduler, 0.0, lambda seconds: None)
        directory = self._around.root / "damaged"
        directory.mkdir()
        replica = Replica(directory / "app.db", log, clock, lasting=False, paging=Paging(above=0, cache=0))
        try:
            replica.open()
            replica.refresh(clock.now())
            check_pages(replica, self._model)
        finally:
            replica.close()

    def _check_restored(self, path: Path, txid: int) -> None:
        image = bytearray(path.read_bytes())
        image[18:20] = b"\1\1"
        connection = apsw.Connection(":memory:")
        connection.deserialize("main", bytes(image))
        state = state_of(lambda sql: connection.execute(sql).fetchall())
        [(found,)] = connection.execute("PRAGMA integrity_check(1)").fetchall()
        connection.close()
        if state != self._model.chain.states[txid - 1] or found != "ok":
            raise Violation(f"I8: the log restores at TXID {txid} as {state} ({found})")
        if txid == self._model.chain.head and (missing := self._model.acknowledged_writes - set(state.writes)):
            raise Violation(f"I1: acknowledged, and not in the restored database: {sorted(missing)}")

    def _check_other_history_is_refused(self) -> None:
        """An object under the next number that follows some other commit, or none that is there."""
        chain, missing = self._model.chain, self._rng.randrange(2)
        txid = chain.head + 1 + missing
        predecessor = chain.checksum if missing else chain.checksum ^ 1
        page = chain.pages[1]
        header = ltx.Header(len(page), max(chain.pages), txid, txid, chain.timestamp, predecessor, 1)
        body, _ = ltx.encode(header, [(1, page)])
        self._bucket.put(f"0000/{txid:016x}-{txid:016x}.ltx", bytes(body))
        path = self._around.root / "other.db"
        try:
            self._plain_log(self._bucket).restore(path)
        except LogDamaged:
            return
        raise Violation("I8: a commit of another history, or after a gap, was restored")

    def _check_replaced_log_is_refused(self) -> None:
        """Another history of the same length: whoever has been in the old one neither reads nor writes."""
        self._bucket.replace_by_another_history()
        before = self._bucket.objects("0000")
        running = [instance for instance in self._instances if instance.is_running]
        for instance in running:
            for read in (True, False, True):
                answered = self.counts["answered"]
                request = self._drawn_request(read)
                request.freshness = 0.0
                instance.submit(request)
                self._scheduler.run()
                if self.counts["answered"] != answered:
                    raise Violation(f"I9: {instance.name} answered, although the log was replaced by another")
        if [info.name for info in self._bucket.objects("0000")] != [info.name for info in before]:
            raise Violation("I9: a commit was added to a log that was replaced by another")

    def _check_careless_store_is_refused(self) -> None:
        bucket = Bucket(self._scheduler, lambda name, body, modified: None)
        if self._rng.random() < 0.5:
            bucket.keeps_create_if_absent = False
        else:
            bucket.is_atomic = False
        clock = SimulatedClock(self._scheduler, 0.0, lambda seconds: None)
        directory = self._around.root / "careless"
        directory.mkdir()
        replica = Replica(directory / "app.db", self._plain_log(bucket), clock, lasting=False)
        try:
            replica.open()
        except CommitNotStored:
            return
        finally:
            replica.close()
        raise Violation("I9: a store that overwrites was used")

    def _plain_log(self, bucket: Bucket) -> CommitLog:
        clock = SimulatedClock(self._scheduler, 0.0, lambda seconds: None)
        return CommitLog(bucket, bucket, clock, random.Random(0), parallel=1)


def _place_of(error: BaseException) -> str:
    """The last lines of the traceback: where the code under test, or this one, went wrong."""
    places = []
    traceback = error.__traceback__
    while traceback:
        code = traceback.tb_frame.f_code
        places.append(f"{Path(code.co_filename).name}:{traceback.tb_lineno} {code.co_name}")
        traceback = traceback.tb_next
    return " at " + " > ".join(places[-4:])
