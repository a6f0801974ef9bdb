"""Where the log ends, and whether what was seen of it is still so."""

from collections.abc import Callable
from contextlib import suppress

from core.errors import (
    CommitConflict,
    LogDamaged,
    LogInUse,
    LogReplaced,
    ObjectMissing,
)
from infra.clock import Clock
from infra.commitlog import ltx
from infra.commitlog.chain import (
    START,
    LogObject,
    Position,
    chain,
    end_of,
    newest_in,
)
from infra.commitlog.commit_clock import CommitClock
from infra.commitlog.objects import Objects, commit_object

LIKELY_SECONDS = 0.2  # in a bucket, where each question is a request; see Head
LOOKS = 5  # at a log that changes meanwhile
_LOOK_SECONDS = 0.05  # before the second one, twice as long before the third, and so on


class Head:
    """What this instance knows of the log's end, and what it asks to know whether that is still so.

    No clock decides what is true. Objects of level 0 are deleted in ascending order, the newest never: so if a commit
    still stands there, no number after it was ever free again. Whatever follows from a number being free, or taken,
    counts only when the commit before it stands *afterwards*; see "I4" in docs/commit-log.md.

    One thread's, but for `seen_at` and `is_still_at`, which any thread may ask: what these set is replaced as a whole.
    Raises what CommitLog raises.
    """

    def __init__(
        self, objects: Objects, clock: Clock, commit_clock: CommitClock, likely_seconds: float | None = None
    ) -> None:
        """`likely_seconds`: how long a number counts as the next after a commit was found in its place; as a rule not
        at all in a directory, where to ask costs little.
        """
        if likely_seconds is None:
            likely_seconds = 0.0 if objects.url.startswith("file:") else LIKELY_SECONDS
        self._objects = objects
        self._clock = clock
        self._commit_clock = commit_clock
        self._likely_seconds = likely_seconds
        self._stood_at = float("-inf")  # by the clock: when a commit that was seen here was last found in its place
        self._seen = float("-inf"), 0  # by the clock: when the log was last seen to end, and at which TXID

    # What was seen

    def remember(self, asked: float, txid: int) -> None:
        """Take down that the log ended at this TXID; `asked`: by the clock, before the store was asked."""
        self._seen = asked, txid

    @property
    def known_end(self) -> int:
        """The TXID at which the log was last seen to end."""
        return self._seen[1]

    def seen_at(self, txid: int) -> float:
        """Return when the log was last seen to end at this TXID, by the clock; -inf when it was seen to be longer."""
        moment, end = self._seen
        return moment if txid >= end else float("-inf")

    # What the store says

    def is_still_at(self, position: Position) -> bool:
        """Ask whether nothing follows this commit; False also when only a listing could tell."""
        asked = self._clock.now()
        try:
            self._header_after(position)
        except ObjectMissing:
            if self.stands(position):
                self._seen = max(self._seen, (asked, position.txid))
                return True
        return False

    def stands(self, position: Position) -> bool:
        """Ask whether this very commit is in the log, by itself: then no number after it was ever free again."""
        if not position.txid:
            return False
        with suppress(ObjectMissing):
            checksum, modified = self._objects.commit_end(position.txid)
            if checksum == position.checksum:
                self._stood_at = self._clock.now()
                self._commit_clock.learned(position.txid, int(modified.timestamp() * 1000))
                return True
        self._stood_at = float("-inf")  # perhaps this is another log by now: the next create looks first
        return False

    def is_confirmed(self, position: Position, before: Position) -> bool:
        """Ask whether what was read, or created, is a commit of the log beyond doubt: the next one names it or, if
        there is none, the one `before` it still stands, or a listing made now ends with it.

        An object of level 0 alone proves nothing: it may have been created long after its number was free again.
        """
        for _ in range(LOOKS):
            try:
                return self._header_after(position).predecessor in (position.checksum, 0)
            except ObjectMissing:
                if self.stands(before) or self._listing_ends_with(position, before):
                    return True
        return False

    def check_confirmed(self, position: Position, before: Position) -> None:
        """Raise ObjectMissing for a commit that may be none of the log."""
        if not self.is_confirmed(position, before):
            raise ObjectMissing(self._objects.url_of(commit_object(position.txid)))

    def check_number_is_next(self, position: Position) -> None:
        """Raise CommitConflict when the log has gone on past this commit, LogDamaged when it is another one.

        After some time the next number may be free although it was taken long ago, or because this is another log. The
        look after the create finds that as well, but by then the object is there.
        """
        if self._clock.now() - self._stood_at < self._likely_seconds or self.stands(position):
            return
        for _ in range(2):
            listed = self.listing_past(position)
            if newest_in(listed) > position.txid:
                raise CommitConflict(f"{self._objects.url} has gone on while this instance was asleep")
            if self.is_last_in(listed, position):
                return
        raise self.another_at(position)

    def check_written_here(self, position: Position) -> None:
        """Raise LogInUse when this, the newest commit, is of another program, as Litestream when it replicates there.

        Commits of this one have an id, and merged runs the checksum of their last commit, where Litestream writes 0.
        And whatever has the log's id is of this one.
        """
        if position == START or position.log_id:
            return
        if not (position.checksum and self._has_commit_id(position.txid)):
            raise LogInUse(
                f"{self._objects.url} is being written by another program, such as `litestream replicate`: TXID "
                f"{position.txid:016x} is not of this service. Both would destroy each other's commits, so nothing was "
                "written. Set REPLICA_URL to a prefix of its own; to take the data over, end that program, `litestream "
                "restore -o` the database to DATABASE_PATH, and start with the new prefix"
            )

    # What a listing says

    def listing_past(self, position: Position, ask: Callable[[], list[LogObject]] | None = None) -> list[LogObject]:
        """List what it takes to build the newest state, or whatever `ask` lists, and return it.

        Raises LogDamaged unless that leads from the first commit to the last one without a gap, and past `position`.
        """
        for looks_left in reversed(range(LOOKS)):
            listed = (ask or self._objects.towards_the_head)()
            newest, end = newest_in(listed), end_of(chain(listed, 0))
            if end == newest:
                break
            call_it_a_gap_unless(looks_left > 0, ObjectMissing(self._objects.url_of(commit_object(end + 1))))
            self._clock.sleep(_LOOK_SECONDS * (LOOKS - looks_left))
        if newest < position.txid:
            raise self._replaced(f"ends at TXID {newest:016x}, but this instance has seen {position.txid:016x}")
        return listed

    def is_last_in(self, listed: list[LogObject], position: Position) -> bool:
        """Ask whether a listing that ends at this TXID has this very commit there, and not another log's."""
        if not position.checksum:
            return True  # only its number was ever told
        merged = [item for item in listed if item.level and item.max_txid == position.txid]
        checksums = {self._objects.header(item).node_id for item in merged}
        if not checksums:
            return self.stands(position)
        return bool(checksums & {position.checksum, 0})  # 0: Litestream leaves it out

    def another_at(self, position: Position) -> LogReplaced:
        """Return what to raise when the log has another commit in this one's place."""
        return self._replaced(f"has another commit under TXID {position.txid:016x} than this instance has seen")

    def _listing_ends_with(self, position: Position, before: Position) -> bool:
        """Whether a listing ends with this very commit, after the one before it."""
        listed = self.listing_past(position)
        if newest_in(listed) > position.txid:
            return False
        if any(item.level and item.max_txid == position.txid for item in listed):
            return self.is_last_in(listed, position)
        rest = [item for item in listed if item.max_txid < position.txid]
        return (
            end_of(chain(rest, 0)) == before.txid == position.txid - 1
            and self.is_last_in(rest, before)
            and self.stands(position)
        )

    def _header_after(self, position: Position) -> ltx.Header:
        return self._objects.header(commit_object(position.txid + 1))

    def _has_commit_id(self, txid: int) -> bool:
        try:
            return self._objects.header(commit_object(txid)).node_id != 0
        except ObjectMissing:
            return True  # merged, and so looked at already

    def _replaced(self, what: str) -> LogReplaced:
        return LogReplaced(
            f"{self._objects.url} {what}: the log was emptied or replaced. Nothing is written to it; restore its "
            "objects, or use a new prefix"
        )


def call_it_a_gap_unless(look_again: bool, error: ObjectMissing) -> None:
    """Raise LogDamaged after the last look: maintenance may merge and delete between a listing and the reading of
    what it listed.
    """
    if not look_again:
        if isinstance(error.__context__, LogDamaged):
            raise error.__context__
        raise LogDamaged(f"{error}: this object is missing, and no merged one holds it") from error
