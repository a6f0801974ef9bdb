"""Holds a history against the log that came out of it; every promise that is checked is a function here.

`docs/commit-log.md` has the promises. Nothing here asks a server or a store, so that hand-made histories can be
judged as well (test_checks.py).
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from tests.checker.commits import Change, Log
from tests.checker.history import NO_ANSWER, History, Operation, Row, Window

SHELL = "shell-"  # how the names of rows begin that an operator's shell has inserted
_EXPECTED = {
    "create": {201, 503},
    "invalid": {422, 503},
    "patch": {200, 404, 503},
    "delete": {204, 404, 503},
    "item": {200, 404, 503},
    "list": {200, 503},
}
_NEVER = 1 << 62
_SLACK = 0.05  # seconds, for the clocks' own grain

State = frozenset[Row]
Span = tuple[int, int]  # the TXIDs from one to before another


@dataclass(frozen=True, slots=True)
class Violation:
    rule: str
    text: str
    operations: list[Operation] = field(default_factory=list)


def violations(history: History, log: Log) -> list[Violation]:
    """Everything in the history that the log says cannot be, rule by rule."""
    facts = _Facts(history, log)
    return [violation for rule in _RULES for violation in rule(facts)]


class _Facts:
    """The log, looked at by name, by item and by query; and which answers were there first."""

    def __init__(self, history: History, log: Log) -> None:
        self.log = log
        self.windows = history.windows
        self.operations = sorted(history.operations, key=lambda operation: operation.invoked)
        self.writes = [operation for operation in self.operations if operation.is_write]
        self.created: dict[str, list[Change]] = defaultdict(list)  # by name
        self.by_item: dict[int, list[Change]] = defaultdict(list)
        for change in log.changes:
            if change.row and not any(before.row for before in self.by_item[change.item][-1:]):
                self.created[change.row.name].append(change)
            self.by_item[change.item].append(change)
        self._views: dict[tuple[int, str], dict[State, list[Span]]] = {}

    def landings(self, write: Operation) -> list[int]:
        """The TXIDs of the commits in which the write can be seen. For an acknowledged change that others of the same
        commit have overwritten it is the commit that reached its version.
        """
        match write.kind:
            case "create" | "invalid":
                return [change.txid for change in self.created[write.value]]
            case "patch":
                found = [
                    change.txid
                    for change in self.by_item[write.item]
                    if change.row and change.row.description == write.value
                ]
                return found or ([self._overwritten(write)] if self._overwritten(write) else [])
            case _:
                return [change.txid for change in self.by_item[write.item] if change.row is None]

    def _overwritten(self, write: Operation) -> int:
        if not write.is_acknowledged or not write.rows:
            return 0
        version = write.rows[0].version
        before = 0
        for change in self.by_item[write.item]:
            if change.row and change.row.version >= version:
                return change.txid if before < version < change.row.version else 0
            before = change.row.version if change.row else before
        return 0

    def spans(self, read: Operation) -> list[Span]:
        """The states of the log, as TXIDs, that look as the answer says."""
        key = (0, read.q) if read.kind == "list" else (read.item, "")
        if key not in self._views:
            self._views[key] = self._view(*key)
        shown = frozenset(read.rows) if read.status == 200 else frozenset()
        return self._views[key].get(shown, [])

    def _view(self, item: int, q: str) -> dict[State, list[Span]]:
        changes = (
            self.by_item[item]
            if item
            else [
                change
                for change in self.log.changes
                if any(past.row and q in past.row.name for past in self.by_item[change.item])
            ]
        )
        view: dict[State, list[Span]] = defaultdict(list)
        rows: dict[int, Row] = {}
        begin = 0
        for change in changes:
            if change.txid > begin:
                view[frozenset(rows.values())].append((begin, change.txid))
                begin = change.txid
            if change.row and q in change.row.name:
                rows[change.item] = change.row
            else:
                rows.pop(change.item, None)
        view[frozenset(rows.values())].append((begin, _NEVER))
        return view

    def reached(self, answer: Operation) -> int:
        """The newest TXID that was in the log when this answer came: its token may be newer than what it shows."""
        return max(answer.token, self.shown(answer))

    def shown(self, answer: Operation) -> int:
        """The oldest TXID that the answer can be of."""
        if answer.is_acknowledged:
            return next(iter(self.landings(answer)), 0)
        return next((begin for begin, _ in self.spans(answer)), 0)

    def while_(self, kind: str, operation: Operation) -> bool:
        return any(window.kind == kind and window.overlaps(operation) for window in self.windows)

    def cannot_know_its_age(self, read: Operation) -> bool:
        """Of its state, after the server's clocks stood still; with freshness 0 it need not know it."""
        return bool(read.freshness) and any(
            window.kind == "asleep"
            and window.server == read.server
            and read.returned > window.begin
            and read.invoked < window.end + read.freshness + _SLACK
            for window in self.windows
        )


class _Newest:
    """The newest TXID that any of some answers had reached before a moment."""

    def __init__(self, reached: Callable[[Operation], int], operations: Iterable[Operation]) -> None:
        answers = sorted(operations, key=lambda operation: operation.returned)
        self._answers = answers
        self._times = [operation.returned for operation in answers]
        self._txids = list(accumulate(map(reached, answers), max))

    def before(self, moment: float) -> int:
        end = bisect_left(self._times, moment)
        return self._txids[end - 1] if end else 0

    def witness(self, moment: float) -> Operation:
        """The first answer that had reached this."""
        return self._answers[bisect_left(self._txids, self.before(moment))]


# What became of each write


def lost(facts: _Facts) -> Iterator[Violation]:
    """I1: an acknowledged write is in the log."""
    for write in facts.writes:
        if write.is_acknowledged and not facts.landings(write):
            yield Violation("lost", "acknowledged, but in no commit", [write])


def doubled(facts: _Facts) -> Iterator[Violation]:
    """I5: no write is there twice, whatever was answered."""
    for write in facts.writes:
        landed = facts.landings(write)
        if len(landed) > 1:
            yield Violation("doubled", f"in the commits {_hex(landed)}", [write])
    patches: dict[int, list[Operation]] = defaultdict(list)
    for write in facts.writes:
        if write.kind == "patch":
            patches[write.item].append(write)
    for item, writes in patches.items():
        yield from _versions_without_a_write(facts, item, writes)


def _versions_without_a_write(facts: _Facts, item: int, writes: list[Operation]) -> Iterator[Violation]:
    """Each change of an item makes its next version, also one that another of the same commit has hidden."""
    last = max((change.row.version for change in facts.by_item[item] if change.row), default=1)
    acknowledged = [write for write in writes if write.is_acknowledged]
    others = [write for write in writes if not write.is_acknowledged and (write.is_unknown or facts.landings(write))]
    if last - 1 > len(acknowledged) + len(others):
        text = f"item {item} has version {last} after {len(acknowledged)} acknowledged changes and {len(others)} others"
        yield Violation("doubled", text, writes[-3:])
    taken = Counter(row.version for write in acknowledged for row in write.rows)
    for version, count in taken.items():
        if count > 1:
            same = [write for write in acknowledged if write.rows and write.rows[0].version == version]
            yield Violation("forked", f"{count} changes made version {version} of item {item}", same)


def stored_no(facts: _Facts) -> Iterator[Violation]:
    """`"stored": "no"` is certain, and so is every refusal."""
    for write in facts.writes:
        if write.kind == "delete" or write.is_acknowledged or write.is_unknown:
            continue
        landed = facts.landings(write)
        if landed:
            rule = "stored no" if write.status == 503 else "refused"
            yield Violation(rule, f"answered {write.status} {write.stored}, but is in {_hex(landed)}", [write])


def deleted_after_no(facts: _Facts) -> Iterator[Violation]:
    """A delete that was not stored leaves the item, unless another delete of it may have been."""
    deletes: dict[int, list[Operation]] = defaultdict(list)
    for write in facts.writes:
        if write.kind == "delete":
            deletes[write.item].append(write)
    for writes in deletes.values():
        if not any(write.is_acknowledged or write.is_unknown for write in writes) and facts.landings(writes[0]):
            yield Violation("stored no", f"deleted in {_hex(facts.landings(writes[0]))}", writes)


def named_txid(facts: _Facts) -> Iterator[Violation]:
    """A write of unknown outcome names its TXID: it is there, or it is not there."""
    for write in facts.writes:
        if write.named and write.kind != "delete" and write.is_unknown:
            landed = facts.landings(write)
            if landed and landed != [write.named]:
                yield Violation("wrong txid", f"named {write.named:016x}, but is in {_hex(landed)}", [write])


def absence_is_final(facts: _Facts) -> Iterator[Violation]:
    """Once a read names the TXID of a write of unknown outcome, or a later one, its answer is final."""
    unknown = [
        write for write in facts.writes if write.named and write.is_unknown and write.kind in ("create", "patch")
    ]
    landed = [(write, txid) for write in unknown for txid in facts.landings(write)[:1]]
    for read in facts.operations:
        if not read.shows_state or read.is_write or facts.while_("moving", read):
            continue
        for write, txid in landed:
            concerns = write.value.startswith(read.q) if read.kind == "list" else read.item == write.item
            if concerns and read.token >= write.named and not _has(facts.spans(read), txid, _NEVER):
                text = f"a read named {read.token:016x} without it, and it is in {txid:016x}"
                yield Violation("not final", text, [write, read])


def reused(facts: _Facts) -> Iterator[Violation]:
    """An id stays its item's when that is gone."""
    for item, changes in facts.by_item.items():
        names = list(dict.fromkeys(change.row.name for change in changes if change.row))
        rows = [None, *(change.row for change in changes)]
        came = sum(now is not None and before is None for before, now in pairwise(rows))
        if len(names) > 1 or came > 1:
            yield Violation("reused", f"item {item} has been {', then '.join(names)}, and begun {came} times")


# What the answers show


def order(facts: _Facts) -> Iterator[Violation]:
    """A write that began after another's answer has a later TXID, and no answer's token is older than its commit."""
    newest = _Newest(facts.reached, [write for write in facts.writes if write.is_acknowledged])
    for write in facts.writes:
        landed = facts.landings(write)[:1] if write.is_acknowledged else []
        if landed and write.token < landed[0]:
            yield Violation("old token", f"{write.token:016x} for a commit that is {landed[0]:016x}", [write])
        if landed and landed[0] <= newest.before(write.invoked):
            text = f"is {landed[0]:016x}, but {newest.before(write.invoked):016x} had been acknowledged"
            yield Violation("order", text, [newest.witness(write.invoked), write])


def states(facts: _Facts) -> Iterator[Violation]:
    """Each answer shows the log as it was after one commit: not newer than its token, not older than it has to be."""
    answers = [operation for operation in facts.operations if operation.is_acknowledged or operation.shows_state]
    everywhere = _Newest(facts.reached, answers)
    servers = {operation.server for operation in answers}
    at = {server: _Newest(facts.shown, (op for op in answers if op.server == server)) for server in servers}
    for read in answers:
        if read.is_acknowledged or any(row.name.startswith(SHELL) for row in read.rows):
            continue  # a shell's rows can be seen before they are in the log
        spans = facts.spans(read)
        if not spans:
            yield Violation("no such state", "the log was never like this", [read])
            continue
        if not _has(spans, 0, read.token):
            text = f"{read.token:016x} beside a state that begins at {spans[0][0]:016x}"
            yield Violation("old token", text, [read])
            continue
        yield from _too_old(facts, read, spans, everywhere, at[read.server])


def _too_old(
    facts: _Facts, read: Operation, spans: list[Span], everywhere: _Newest, here: _Newest
) -> Iterator[Violation]:
    fresh_at = read.invoked - (read.freshness + _SLACK if read.freshness else 0)
    if not _has(spans, read.sent, read.token):
        yield Violation("less than the token", f"asked for {read.sent:016x}, shown {_shown(spans, read)}", [read])
    if not _has(spans, here.before(read.invoked), read.token):
        text = f"this server had shown {here.before(read.invoked):016x}, then {_shown(spans, read)}"
        yield Violation("backwards", text, [here.witness(read.invoked), read])
    if not facts.cannot_know_its_age(read):
        newest = everywhere.before(fresh_at)
        if not _has(spans, newest, read.token):
            text = f"{newest:016x} had been answered, shown {_shown(spans, read)}"
            yield Violation("stale", text, [everywhere.witness(fresh_at), read])


def statuses(facts: _Facts) -> Iterator[Violation]:
    """No input gives a 500, a 503 to a write says whether it was stored, and a token from an answer is no 412."""
    for operation in facts.operations:
        if operation.status == NO_ANSWER:
            continue
        expected = _EXPECTED[operation.kind] | ({412} if facts.while_("moving", operation) else set())
        if operation.status not in expected:
            yield Violation("status", f"{operation.status} for {operation.kind}", [operation])
        if operation.is_write and operation.status == 503 and operation.stored not in ("no", "unknown"):
            yield Violation("status", f'a 503 with "stored": {operation.stored!r}', [operation])


def emptied(facts: _Facts) -> Iterator[Violation]:
    """I9: nothing is acknowledged into a log that was emptied, and no state is said to be its newest."""
    for window in facts.windows:
        if window.kind == "empty":
            yield from _answered_while_empty(facts, window)


def _answered_while_empty(facts: _Facts, window: Window) -> Iterator[Violation]:
    for operation in filter(window.holds, facts.operations):
        if operation.is_acknowledged:
            yield Violation("empty log", "acknowledged while the log was empty", [operation])
        fresh_at = operation.invoked - (operation.freshness + _SLACK if operation.freshness else 0)
        if operation.shows_state and fresh_at > window.begin and not facts.cannot_know_its_age(operation):
            yield Violation("empty log", "answered as the newest state while the log was empty", [operation])


_RULES: list[Callable[[_Facts], Iterator[Violation]]] = [
    lost,
    doubled,
    stored_no,
    deleted_after_no,
    named_txid,
    absence_is_final,
    reused,
    order,
    states,
    statuses,
    emptied,
]


def _has(spans: list[Span], first: int, last: int) -> bool:
    """Whether any of the states is between these two TXIDs, both included."""
    return any(begin <= last and end > first for begin, end in spans if first <= last)


def _shown(spans: list[Span], read: Operation) -> str:
    begin, end = [span for span in spans if span[0] <= read.token][-1]
    return f"{begin:016x} to {end - 1:016x}" if end < _NEVER else f"{begin:016x}"


def _hex(txids: list[int]) -> str:
    return ", ".join(f"{txid:016x}" for txid in txids)
