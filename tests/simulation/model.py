"""What must be true, seen from outside: the objects that the store took, and the answers that clients got."""

from bisect import bisect_right
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime

import apsw

from core.errors import NotServed
from infra.commitlog import is_new, ltx
from infra.commitlog.dates import corrected
from tests.simulation.scheduler import Violation
from tests.simulation.workload import SCHEMA_ONLY, VERSION, SimulatedSchema, State, Write, answer_on, state_of


@dataclass
class Chain:
    """The true history: the first object under each number."""

    states: list[State] = field(default_factory=list)  # after TXID 1, 2, 3 ...
    pages: dict[int, bytes] = field(default_factory=dict)
    checksum: int = 0
    timestamp: int = 0
    is_begun: bool = False  # whether there has been anything in the database

    @property
    def head(self) -> int:
        return len(self.states)


class Model:
    def __init__(self) -> None:
        self.chain = Chain()
        self.leftovers: set[str] = set()  # objects created under a number whose object had been deleted
        self.acknowledged_writes: set[int] = set()
        self.newest_acknowledged = 0  # TXID
        self._txid_of: dict[int, int] = {}  # by write
        self._base_of: dict[int, State] = {}  # by write: the state it was applied to
        self._failed: set[int] = set()
        self._unknown: dict[int, int] = {}  # by write: the TXID that its answer named, as the only one it may have
        self._sent_again: set[int] = set()  # what has become of one attempt says nothing of the next
        self._undone: set[int] = set()  # by an old copy in the place of a file, which does not have their keys
        self._writes: dict[int, Write] = {}
        self._reach: dict[State, int] = {}  # the newest TXID with this state
        self._first: dict[tuple[int, ...], int] = {}  # the oldest TXID with a state of these writes
        self._first_within: dict[tuple[int, ...], int] = {}  # the same of states that only those saw who shared it
        self._within: dict[State, int] = {}  # the same of states that only those saw who shared a commit
        self._put_in_place: set[State] = set()  # by operators: old copies over files
        self._mixtures: set[State] = set()  # what operators have left of files, of which nothing tells that it is one
        self._by_others: set[int] = set()  # writes by other programs, which nobody holds back
        self._kept: set[int] = set()  # of these, those in files that were kept
        self.newer_since: int | None = None  # the TXID from which on the schema is one that only a newer release knows
        self._is_upgraded = False  # once: there is such a release
        self._mangled = 0  # how often other programs have changed pages and nothing else
        self._seen: list[tuple[float, int]] = []  # (moment, newest TXID that any client knew of), both ascending

    # The store

    def stored(self, name: str, body: bytes, modified: datetime) -> None:
        """The store took an object, at this time by its clock. Raises Violation."""
        level, _, file = name.partition("/")
        if level != "0000":
            return
        txid = int(file[:16], 16)
        if txid <= self.chain.head:
            self.leftovers.add(name)
            return
        reader = ltx.Reader([body])
        pages = dict(reader.pages())
        header = reader.header
        chain = self.chain
        _check("I4 no gap", header.min_txid == header.max_txid == txid == chain.head + 1, lambda: f"{name} {header}")
        _check("I8 predecessor", header.predecessor == chain.checksum, lambda: f"of {name}")
        _check("I8 time never goes back", header.timestamp >= chain.timestamp, lambda: f"{name} {header.timestamp}")
        chain.pages = {number: page for number, page in (chain.pages | pages).items() if number <= header.size}
        # Whoever has the commit from a merged run knows it by the date that was corrected when it was merged
        chain.checksum, chain.timestamp = reader.checksum, corrected(header.timestamp, modified)
        with closing(_opened(chain.pages, header.page_size)) as connection:
            self._check_served(connection, txid)
            self._extend(txid, state_of(lambda sql: connection.execute(sql).fetchall()))

    def _check_served(self, connection: apsw.Connection, txid: int) -> None:
        """Whatever was put in the place of a file, or done to it."""
        if not self.chain.is_begun and is_new(connection):
            return
        self.chain.is_begun = True
        [(found,)] = connection.execute("PRAGMA integrity_check(1)").fetchall()
        is_newer = self._is_upgraded and connection.pragma("user_version") == VERSION + 1
        self.newer_since = (self.newer_since or txid) if is_newer else None
        if is_newer:
            _check("I11 what becomes a commit", found == "ok", lambda: f"TXID {txid}, {found}")
            return
        try:
            served = SimulatedSchema().check(connection)
        except NotServed as error:
            raise Violation(f"I11 what becomes a commit: TXID {txid}: {error}") from error
        _check("I11 what becomes a commit", served and found == "ok", lambda: f"TXID {txid}, {served}, {found}")

    def _extend(self, txid: int, state: State) -> None:
        before = self.chain.states[-1] if self.chain.states else State()
        is_later = state.writes[: len(before.writes)] == before.writes
        was_put_in_place = not is_later and self._is_on(self._put_in_place, state)
        if was_put_in_place or (not self._appended(before, state) and self._is_on(self._mixtures, state)):
            self._go_back(txid, state)
            return
        new = state.writes[len(before.writes) :]
        if not is_later:
            raise Violation(f"I4 history: TXID {txid} turns {before} into {state}")
        if not new and self._mangled == 0:
            expected = txid <= SCHEMA_ONLY or txid in self._unknown.values()  # somebody has to take that number
            _check("a commit that nobody made", expected, lambda: f"TXID {txid}")
        between = before
        for number in new:  # those that share the commit, in their order
            self._within[between] = txid
            self._first_within.setdefault(between.writes, txid)
            self._base_of[number] = between
            if self._writes[number].if_counter not in (None, between.counter):
                raise Violation(f"no update is lost: write {number} as TXID {txid}")
            between = self._writes[number].applied_to(between)
            if number in self._txid_of and not (number in self._sent_again and number in self._undone):
                raise Violation(f"none is applied twice: write {number} again as TXID {txid}")
            if number in self._failed and number not in self._sent_again:
                raise Violation(f"I5 what failed is not there: write {number} is TXID {txid}")
            self._txid_of[number] = txid
            self._check_named(number)
        _check("a write is whole", state == between, lambda: f"TXID {txid} {state}")
        self._within[state] = self._reach[state] = txid
        self._first.setdefault(state.writes, txid)
        self.chain.states.append(state)

    def _is_on(self, bases: set[State], state: State) -> bool:
        """Whether it is one of them, perhaps with more by other programs on top."""
        return any(
            self._appended(base, state) and set(state.writes[len(base.writes) :]) <= self._by_others for base in bases
        )

    def _appended(self, before: State, after: State) -> bool:
        """Whether some writes make the one of the other."""
        if after.writes[: len(before.writes)] != before.writes:
            return False
        for number in after.writes[len(before.writes) :]:
            before = self._writes[number].applied_to(before)
        return before == after

    def _go_back(self, txid: int, state: State) -> None:
        """What somebody has put in the place of a file, or left of it, is the next commit."""
        for number in state.writes:
            self._txid_of.setdefault(number, txid)  # by another program, and not stored before
        self.acknowledged_writes &= set(state.writes)
        self._undone |= self._txid_of.keys() - set(state.writes)
        self.chain.states.append(state)
        self._within[state] = self._reach[state] = txid
        self._first.setdefault(state.writes, txid)

    # Other programs

    def put_in_place(self, state: State) -> None:
        self._put_in_place.add(state)

    def left_without_wal(self, state: State) -> None:
        """Somebody has removed a WAL of which the service knows nothing. If half of it had been moved into the file,
        that is no state that ever was.
        """
        bases = (State(), *self.chain.states, *self._put_in_place, *self._mixtures)
        if not any(self._appended(base, state) for base in bases):
            self._mixtures.add(state)

    def mangled(self) -> None:
        self._mangled += 1

    def upgraded(self) -> None:
        """A newer release may commit its schema from now on, and those who are at work go on with that."""
        self._is_upgraded = True
        self.mangled()

    def by_others(self, write: Write) -> None:
        """Another program has committed to a file."""
        self.begun(write)
        self._by_others.add(write.number)

    def kept(self, state: State) -> None:
        """What a file held that the log's state has replaced."""
        self._kept |= set(state.writes)

    def torn(self, state: State) -> None:
        """A power cut has taken what a file held."""
        self._kept |= set(state.writes)

    def check_writes_of_others(self) -> None:
        lost = self._by_others - self._txid_of.keys() - self._kept
        _check("what another program wrote is in the log or in a file that was kept", not lost, lambda: str(lost))

    # The clients

    def begun(self, write: Write) -> None:
        self._writes[write.number] = write

    def sent_again(self, write: Write) -> None:
        self._sent_again.add(write.number)

    def acknowledged(self, write: Write, now: float) -> int:
        txid = self._txid_of.get(write.number)
        if txid is None:
            raise Violation(f"I1: write {write.number} was acknowledged and is not in the log")
        _check(
            "serializable",
            self._base_of[write.number] == write.seen,
            lambda: f"write {write.number}, TXID {txid}, was made on the state {write.seen}",
        )
        self._saw(txid, now)
        self.acknowledged_writes.add(write.number)
        self.newest_acknowledged = max(txid, self.newest_acknowledged)
        return txid

    def repeated(self, write: Write, shown: int) -> None:
        """Answered as an attempt before. `shown`: the TXID that the answer named."""
        number, txid = write.number, self._txid_of.get(write.number)
        if txid is None:
            raise Violation(f"I1: write {number} was answered as before, and is not in the log")
        if number in self._undone:
            return
        first = answer_on(self._base_of[number])
        found = write.answer and write.answer.body
        _check("every answer of a key is the first", found == first, lambda: f"write {number}: {found!r}, {first!r}")
        _check("what an answer names", shown >= txid, lambda: f"write {number} is TXID {txid}, its answer says {shown}")
        self.acknowledged_writes.add(number)
        self.newest_acknowledged = max(txid, self.newest_acknowledged)

    def not_done(self, writes: list[Write]) -> list[Write]:
        """Return those that are not in the log's newest state."""
        done = set(self.chain.states[-1].writes) | self._undone
        return [write for write in writes if write.number not in done]

    def failed(self, write: Write) -> None:
        """Answered with an error that says that nothing was stored."""
        if write.number in self._sent_again:
            return
        _check("I5 what failed is not there", write.number not in self._txid_of, lambda: f"write {write.number}")
        self._failed.add(write.number)

    def unknown(self, write: Write, txid: int) -> None:
        """Answered with an error that says that it may be stored under this number, or may yet be."""
        self._unknown[write.number] = txid
        self._check_named(write.number)

    def _check_named(self, number: int) -> None:
        found = self._txid_of.get(number)
        named = self._unknown.get(number, found) if number not in self._sent_again else found
        _check("what is unknown has its number or none", found in (named, None), lambda: f"{number} is TXID {found}")

    def read(
        self, state: State, shown: int, at_least: int, not_before: float, now: float, shared: bool = False
    ) -> None:
        """A client read a state. `shown`: the TXID that its answer named; `not_before`: how fresh it had to be;
        `shared`: in a transaction of several.
        """
        reach = self._within.get(state, 0) if shared else 0
        reach = reach or self.looked(state, shown)
        known = self._known(not_before)
        _check("freshness", reach >= known, lambda: f"a read saw TXID {reach}, but {known} was known at {not_before}")
        _check("read your writes", reach >= at_least, lambda: f"a read saw TXID {reach}, its session {at_least}")
        self._saw(reach, now)

    def looked(self, state: State, shown: int) -> int:
        """Any connection saw a state; returns the newest TXID that it may be."""
        reach = self._reach.get(self._without_others(state))
        if reach is None:
            raise Violation(f"I3: a reader saw a state that was never stored: {state}")
        _check("what an answer names", reach >= shown, lambda: f"a read saw TXID {reach}, its answer says {shown}")
        return reach

    def named(self, state: State, token: int, shared: bool = False) -> None:
        """An answer from this state carried a TXID: whoever hands it on must not be shown less.

        What other programs have written last is left out: a reader of their file sees it before it has a number.
        """
        writes = state.writes
        oldest = self._first_within.get(writes, 0) if shared and writes not in self._first else 0
        while not oldest and writes and (writes[-1] in self._by_others or writes not in self._first):
            writes = writes[:-1]
        oldest = oldest or self._first.get(writes, 0)
        _check("a token is not older", token >= oldest, lambda: f"a read saw TXID {oldest}, its token is {token}")

    def settled(self, txid: int) -> None:
        """An instance has seen to it that this number is taken."""
        _check("what is unknown gets its number", self.chain.head >= txid, lambda: f"TXID {txid} is still free")

    def _without_others(self, state: State) -> State:
        """Before what other programs have appended, which is not held back until it is stored."""
        if state in self._reach:
            return state
        appended = self._by_others - self._txid_of.keys()
        candidates = [before for before in self._reach if set(state.writes[len(before.writes) :]) <= appended]
        return next((before for before in candidates if self._appended(before, state)), state)

    def _known(self, moment: float) -> int:
        index = bisect_right(self._seen, (moment, 1 << 63))
        return self._seen[index - 1][1] if index else 0

    def _saw(self, txid: int, now: float) -> None:
        self._seen.append((now, max(txid, self._seen[-1][1] if self._seen else 0)))


def _check(invariant: str, holds: bool, details: Callable[[], str]) -> None:
    if not holds:
        raise Violation(f"{invariant}: {details()}")


def _opened(pages: dict[int, bytes], page_size: int) -> apsw.Connection:
    image = bytearray(b"".join(pages.get(number, bytes(page_size)) for number in range(1, max(pages) + 1)))
    image[18:20] = b"\1\1"  # not WAL: a database in memory has none
    connection = apsw.Connection(":memory:")
    connection.deserialize("main", bytes(image))
    return connection
