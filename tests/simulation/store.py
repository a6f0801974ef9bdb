"""A bucket in memory, and clients of it whose requests and replies go astray."""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn, Protocol, TypeVar

from core.errors import ObjectExists, ObjectMissing, StoreRefused
from infra.commitlog import ltx
from infra.storage.object_store import ObjectInfo
from tests.simulation import client_errors
from tests.simulation.client_errors import URL, Request, request_for, translated
from tests.simulation.scheduler import EPOCH, Crash, Scheduler, Task, Violation
from tests.simulation.spoilt import KINDS, SIDECAR, SNAPSHOT, damaged, spoilt

T = TypeVar("T")

_LEADING_ZEROS = re.compile(r"\b0+(?=[0-9a-f])|\.ltx\b")
_FIRST = f"0000/{1:016x}-{1:016x}.ltx"
_DELAYS = (0.1, 2.0, 20.0, 300.0, 900.0, 30 * 3600.0)  # seconds
_ENDS = {"unreachable": "unsent", "error": "error", "error_done": "error", "refused": "refusal"}
_SIGNED_SECONDS = 900.0  # S3 refuses a request that was signed longer ago


class Bucket:
    """Objects, in the order in which the store took them; `created` is called with each new one."""

    def __init__(self, scheduler: Scheduler, created: Callable[[str, bytes, datetime], None]) -> None:
        self.url = URL
        self.keeps_create_if_absent = True
        self.is_atomic = True  # otherwise it looks, and stores a moment later
        self.skew = 0.0  # seconds by which its clock is wrong
        self.listings = random.Random(scheduler.seed)  # of its own: it changes nothing else
        self.pages = random.Random(f"pages {scheduler.seed}")  # the same, for what is read page by page
        self.keeps_little = self.pages.random() < 0.5  # no snapshot for longer than a commit
        self.moves = 0  # how often all of it was moved away or put back
        self.emptied_since = float("inf")
        self.last_emptied = float("-inf")  # when it last was
        self.is_replaced = False
        self._scheduler = scheduler
        self._created = created
        self._objects: dict[str, tuple[bytes, datetime]] = {}
        self._moved_away: dict[str, tuple[bytes, datetime]] = {}

    def create(self, name: str, body: bytes | bytearray, written_at: datetime | None = None) -> None:
        if name in self._objects and self.keeps_create_if_absent:
            raise ObjectExists(name)
        if name.startswith("0000/") and name in self._moved_away and self.is_emptied:
            raise StoreRefused(f"{name}: its earlier attempt would be put back over it")
        self.put(name, bytes(body))
        self._created(name, *self._objects[name])

    def race(self, name: str, body: bytes, racers: int) -> int:
        self.create(name, body)
        return 1 if self.is_atomic else racers

    def put(self, name: str, body: bytes) -> None:
        self._objects[name] = (body, datetime.fromtimestamp(EPOCH + self._scheduler.now() + self.skew, UTC))

    def empty(self) -> None:
        """Somebody moves all of it away."""
        self.moves += 1
        self._moved_away, self._objects = self._objects, {}
        self.emptied_since = self._scheduler.now()

    def refill(self) -> None:
        """And puts it back."""
        self.moves += 1
        self._objects |= self._moved_away
        self.emptied_since, self.last_emptied = float("inf"), self._scheduler.now()

    @property
    def is_emptied(self) -> bool:
        return self.emptied_since < float("inf")

    @property
    def has_snapshot(self) -> bool:
        """Also one that a run of maintenance has stored after all else was moved away: then there is a log again."""
        return any(name.startswith("0009/") and name.endswith(SNAPSHOT) for name in self._objects)

    def replace_by_another_history(self) -> None:
        """As long as the one that was here, with the same pages, by others, who have left the sidecars."""
        commits = [body for name, (body, _) in sorted(self._objects.items()) if name.startswith("0000/")]
        merged = [
            body
            for name, (body, _) in sorted(self._objects.items())
            if name.startswith("0009/") and name.endswith(SNAPSHOT)
        ]
        self._objects = {name: found for name, found in self._objects.items() if name.endswith(SIDECAR)}
        self.is_replaced = True
        predecessor = 0
        for level, body in [*((9, body) for body in merged[-1:]), *((0, body) for body in commits)]:
            reader = ltx.Reader([body])
            header = replace(reader.header, log_id=1, node_id=reader.header.node_id ^ 1, predecessor=predecessor)
            new, checksum = ltx.encode(header, reader.pages())
            predecessor = checksum if not level else 0
            self.put(f"{level:04x}/{header.min_txid:016x}-{header.max_txid:016x}.ltx", bytes(new))

    def read(self, name: str) -> Iterator[bytes]:
        yield self.content(name)

    def read_range(self, name: str, begin: int, end: int) -> bytes:
        return self.content(name)[begin:end]

    def read_end(self, name: str, size: int) -> tuple[bytes, datetime]:
        return self.content(name)[-size:], self._objects[name][1]

    def content(self, name: str) -> bytes:
        if name not in self._objects:
            raise ObjectMissing(name)
        return self._objects[name][0]

    def objects(self, directory: str = "", after: str = "") -> list[ObjectInfo]:
        return [
            ObjectInfo(name, len(body), modified)
            for name, (body, modified) in sorted(self._objects.items())
            if name.rpartition("/")[0] == directory and name > after
        ]

    def directories(self, directory: str = "") -> list[str]:
        return sorted({name.partition("/")[0] for name in self._objects if "/" in name})

    def delete(self, name: str) -> None:
        self._objects.pop(name, None)


@dataclass
class Faults:
    """How often each kind of trouble comes, as a share of all requests."""

    unreachable: float = 0.0  # the request was never sent
    lost: float = 0.0  # it never arrived
    late: float = 0.0  # it arrives seconds or minutes after the client has given up
    dropped: float = 0.0  # it was done, the reply is lost
    error: float = 0.0  # 500 or 503, nothing done
    error_done: float = 0.0  # 500 or 503, and yet it was done
    spurious_exists: float = 0.0  # 409, nothing stored
    echoed_exists: float = 0.0  # 412 for an object that this very request has stored
    refused: float = 0.0  # 403
    cut: float = 0.0  # the body of a reply ends in an error
    misleading: float = 0.0  # of what went wrong: the error's text speaks of another end
    late_delete: float = 0.0  # the same of a delete
    emptied: float = 0.0  # one listing finds nothing: the bucket is lost
    long_listing: float = 0.0
    slow: float = 0.0
    crash: float = 0.0  # of the process, at a pause
    freeze: float = 0.0  # of the process, for hours or days
    still: float = 0.0  # a freeze stops the clocks of the machine as well
    leap: float = 0.0  # of a machine's clock, at a pause
    operator: float = 0.0  # another program at the file of a server, at a pause
    spoilt_sidecar: float = 0.0  # of what one reader finds
    damaged_range: float = 0.0  # a part of a snapshot is not what it was: but it is when it is read once more

    @classmethod
    def drawn(cls, rng: random.Random, listings: random.Random, pages: random.Random) -> "Faults":
        """Few kinds, but often: what only several of one kind together bring about shows itself, too."""
        kinds = sorted(cls.__dataclass_fields__.keys() - {"long_listing", "spoilt_sidecar", "damaged_range"})
        drawn = {kind: rng.uniform(0.01, 0.15) if rng.random() < 0.4 else 0.0 for kind in kinds}
        still = rng.choice((0.0, 0.5, 1.0))
        misleading = rng.choice((0.0, 0.3, 0.8))
        rarer = {"crash": drawn["crash"] / 6, "freeze": drawn["freeze"] / 4, "still": still, "leap": drawn["leap"] / 10}
        long_listing = listings.choice((0.0, 0.0, 0.0, 0.5, 1.0))
        paged = {"spoilt_sidecar": pages.choice((0.0, 0.5)), "damaged_range": pages.choice((0.0, 0.1, 0.5))}
        return cls(**drawn | rarer | paged | {"misleading": misleading, "long_listing": long_listing})

    def stop(self) -> None:
        for kind in self.__dataclass_fields__:
            setattr(self, kind, 0.0)


class Process(Protocol):
    """Whoever makes the requests. `pause` is where it may be killed or put to sleep."""

    name: str

    def pause(self, seconds: float) -> None: ...


@dataclass
class Connection:
    """What all clients of one process share."""

    scheduler: Scheduler
    bucket: Bucket
    faults: Faults
    process: Process
    counts: Counter[str]
    opening: bool = False
    touched: bool = False  # another program has been at the file that is being opened
    has_seen_log: bool = False  # only then can it know that an empty listing is wrong
    emptied_at: float = field(default=float("-inf"))  # the last listing found nothing, at this time; or -inf
    last_emptied: float = field(default=float("-inf"))  # when any listing last found nothing
    damaged_for: set[Task | None] = field(default_factory=set)  # the threads for whom the last part of a snapshot was


class FaultyStore:
    """One client. Each request: a pause on the way there, what the store does, a pause on the way back."""

    def __init__(self, connection: Connection, timeout: float) -> None:
        self.url = URL
        self._timeout = timeout
        self._connection = connection
        self._scheduler = connection.scheduler
        self._bucket = connection.bucket
        self._rng = connection.scheduler.rng

    def create(self, name: str, body: bytes | bytearray, written_at: datetime | None = None) -> None:
        content, request = bytes(body), request_for("create", name)
        fault = self._drawn(
            "unreachable",
            "lost",
            "late",
            "dropped",
            "error",
            "error_done",
            "spurious_exists",
            "echoed_exists",
            "refused",
        )
        self._say(f"create {name} {fault}".rstrip())
        if fault == "late":
            self._land_later(name, content)
        try:
            self._travel()
        except Crash:
            if not fault and self._rng.random() < 0.5:
                self._land_later(name, content)
            raise
        if fault in ("unreachable", "lost", "late", "error", "refused"):
            self._fail(fault, request)
        if fault == "spurious_exists" and name in (info.name for info in self._bucket.objects(name.rpartition("/")[0])):
            fault = ""
        if fault == "spurious_exists":
            self._travel()
            raise translated(client_errors.CONFLICT(request))
        exists = False
        try:
            self._bucket.create(name, content)
        except ObjectExists:
            exists = True
        self._say(f"{'exists' if exists else 'stored'} {name}")
        untouched = self._connection.opening and not self._connection.touched
        if untouched and not exists and name.startswith("0000/") and name != _FIRST:
            self._scheduler.fail(Violation(f"I6: {name} was made by a start; nobody touched the file meanwhile"))
        if fault in ("dropped", "error_done"):
            self._fail(fault, request)
        self._travel(request)
        if exists or fault == "echoed_exists":
            raise translated(client_errors.EXISTS(request))

    def race(self, name: str, body: bytes, racers: int) -> int:
        return self._answer("race", name, lambda: self._bucket.race(name, body, racers))

    def put(self, name: str, body: Path | bytes, written_at: datetime | None = None) -> None:
        content, request = body if isinstance(body, bytes) else body.read_bytes(), request_for("put", name)
        fault = self._drawn("unreachable", "lost", "late", "dropped", "error", "error_done", "refused")
        self._say(f"put {name} {fault}".rstrip())
        if fault == "late":
            self._scheduler.at(self._delay(), lambda: self._bucket.put(name, content))
        self._travel()
        if fault in ("unreachable", "lost", "late", "error", "refused"):
            self._fail(fault, request)
        self._bucket.put(name, content)
        if fault in ("dropped", "error_done"):
            self._fail(fault, request)
        self._travel(request)

    def read(self, name: str) -> Iterator[bytes]:
        body = self._answer("read", name, lambda: self._found(name))
        if self._drawn("cut"):
            yield body[: self._rng.randrange(len(body))]
            self._travel()
            raise translated(client_errors.cut_body(request_for("read", name)))
        middle = len(body) // 2
        yield body[:middle]
        yield body[middle:]

    def read_range(self, name: str, begin: int, end: int) -> bytes:
        found = self._answer(f"read {begin}-{end} of", name, lambda: self._bucket.read_range(name, begin, end))
        connection, chance = self._connection, self._bucket.pages
        connection.counts["page reads"] += begin > 0
        was_damaged = self._scheduler.running in connection.damaged_for
        connection.damaged_for.discard(self._scheduler.running)
        if not begin or was_damaged or chance.random() >= connection.faults.damaged_range:
            return found
        connection.damaged_for.add(self._scheduler.running)
        connection.counts["damaged ranges"] += 1
        self._say(f"damaged {name}")
        at = chance.randrange(begin + 1)
        return damaged(found, lambda: self._bucket.read_range(name, at, at + end - begin), chance)

    def read_end(self, name: str, size: int) -> tuple[bytes, datetime]:
        found = self._answer("read the end of", name, lambda: self._bucket.read_end(name, size))
        self._connection.emptied_at = float("-inf")  # a commit that stands there says more than an empty listing
        return found

    def objects(self, directory: str = "", after: str = "") -> list[ObjectInfo]:
        moves, before = self._bucket.moves, self._bucket.objects(directory, after)
        self._answer("list", f"{directory} {after}".rstrip(), self._list)
        if self._connection.emptied_at >= 0:
            return []
        found = self._bucket.objects(directory, after)
        return self._mixed(before, found) if moves == self._bucket.moves else found

    def directories(self, directory: str = "") -> list[str]:
        found = self._answer("list", "the levels", self._bucket.directories)
        emptied = self._connection.has_seen_log and self._drawn("emptied")
        self._connection.emptied_at = self._scheduler.now() if emptied else float("-inf")
        if emptied:
            self._connection.last_emptied = self._connection.emptied_at
            self._say("emptied")
        return [] if emptied else found

    def delete(self, name: str) -> None:
        if self._drawn("late_delete"):
            self._say(f"delete {name} late")
            self._scheduler.at(self._delay(), lambda: self._bucket.delete(name))
            self._fail("late", request_for("delete", name))
        self._answer("delete", name, lambda: self._bucket.delete(name))

    def remove_unfinished(self) -> None:
        pass

    def _found(self, name: str) -> bytes:
        """An object, or what is in the place of a sidecar."""
        found, chance = self._bucket.content(name), self._bucket.pages
        self._connection.counts["sidecar reads"] += name.endswith(SIDECAR)
        if not name.endswith(SIDECAR) or chance.random() >= self._connection.faults.spoilt_sidecar:
            return found
        kind = chance.choice(KINDS)
        self._connection.counts["spoilt sidecars"] += 1
        self._say(f"{kind} {name}")
        if kind == "gone":
            raise ObjectMissing(name)
        snapshot = self._bucket.content(name.replace(SIDECAR, SNAPSHOT))
        sidecars = [info.name for info in self._bucket.objects("0009") if info.name.endswith(SIDECAR)]
        others = [self._bucket.content(other) for other in sidecars if other != name]
        return spoilt(kind, found, snapshot, others, chance)

    def _mixed(self, before: list[ObjectInfo], after: list[ObjectInfo]) -> list[ObjectInfo]:
        """Of what came or went while the store listed, some."""
        lasting = {info.name for info in before} & {info.name for info in after}
        shown = {info.name: info for info in (*before, *after)}
        self._connection.counts["mixed listings"] += len(lasting) < len(shown)
        chance = self._bucket.listings
        return [info for name, info in sorted(shown.items()) if name in lasting or chance.random() < 0.5]

    def _list(self) -> None:
        """Piece by piece."""
        chance = self._bucket.listings
        if chance.random() < self._connection.faults.long_listing:
            self._connection.process.pause(chance.choice((2.0, 20.0)) * chance.random())

    def _answer(self, verb: str, name: str, work: Callable[[], T]) -> T:
        fault = self._drawn("unreachable", "lost", "error", "refused")
        request = request_for(verb, name)
        self._say(f"{verb} {name} {fault}".rstrip())
        self._travel()
        if fault:
            self._fail(fault, request)
        try:
            return work()
        except ObjectMissing:
            raise translated(client_errors.MISSING(request)) from None
        finally:
            self._travel(request)

    def _fail(self, fault: str, request: Request) -> NoReturn:
        """With what the client says of it, and as the service classifies that."""
        misleading = self._rng.random() < self._connection.faults.misleading
        text = client_errors.drawn(self._rng, _ENDS.get(fault, "silent"), misleading)
        if text is client_errors.timed_out:
            self._connection.process.pause(self._timeout)
        elif fault != "unreachable":
            self._travel()
        self._connection.counts["misleading errors"] += text in client_errors.MISLEADING
        raise translated(text(request))

    def _travel(self, replied_to: Request | None = None) -> None:
        """`replied_to`: on the way back."""
        slow = self._drawn("slow")
        if slow and replied_to and self._rng.random() < 0.3:
            self._fail("dropped", replied_to)
        self._connection.process.pause(self._rng.uniform(0.2, 0.9) * self._timeout if slow else self._latency())

    def _land_later(self, name: str, content: bytes) -> None:
        sent = self._scheduler.now()

        def land() -> None:
            if self._scheduler.now() - sent > _SIGNED_SECONDS and self._rng.random() < 0.5:
                return self._say(f"late and refused {name}")  # a directory, and some other stores, look at no signature
            try:
                self._bucket.create(name, content)
            except (ObjectExists, StoreRefused):
                self._say(f"late and exists {name}")
            else:
                self._say(f"late and stored {name}")

        self._scheduler.at(self._delay(), land)

    def _delay(self) -> float:
        return self._rng.choice(_DELAYS) * self._rng.random()

    def _latency(self) -> float:
        return self._rng.choice((0.001, 0.01, 0.05)) * self._rng.uniform(0.5, 2)

    def _drawn(self, *kinds: str) -> str:
        """One of these kinds of trouble, or mostly none."""
        roll = self._rng.random()
        for kind in kinds:
            roll -= getattr(self._connection.faults, kind)
            if roll < 0:
                return kind
        return ""

    def _say(self, event: str) -> None:
        self._scheduler.say(self._connection.process.name, _LEADING_ZEROS.sub("", event))
