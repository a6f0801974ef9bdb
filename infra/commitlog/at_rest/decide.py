"""What becomes of the file at a start: the table under "Start, and files that others touch" in docs/commit-log.md.

`decide` has an arm for each row, in the table's order. Nothing here looks at a file or asks the log: `evidence` finds
the facts, and `local_file` carries the verdict out.
"""

from dataclasses import dataclass
from enum import Enum, auto

_OLDER = (
    "was in an older state than it was left in: its -wal was removed, an older copy of both was put in their place, or "
    "the power failed; the log's newest state is served"
)
_EARLIER = (
    "it has an earlier state, or pages of several, and nothing tells whether somebody has put that over it or a "
    "checkpoint of another program was killed"
)
_ON_LESS = "it was changed after a crash, perhaps without what the log has of before that"
_MIXTURE = "it was overwritten while the WAL of another file lay beside it"
_TORN_AND_CHANGED = "it was changed by another program before it was whole again"
_EMPTY_WITH_WAL = "it is empty, and its -wal has what the log does not"


class File(Enum):
    """What the file is, as far as it was looked at."""

    MISSING = auto()
    AS_LEFT = auto()  # by a clean stop, at a commit that the log has
    EMPTY = auto()  # of 0 bytes
    HALF_WRITTEN = auto()  # this service was killed while it wrote to it past SQLite
    MIXED = auto()  # it is not the file to which the WAL beside it belongs
    UNOPENED = auto()  # none of these; SQLite has not been asked yet
    DAMAGED = auto()
    WHOLE = auto()


class Log(Enum):
    """Where the log's head is, beside the commit that the file was at."""

    UNREAD = auto()
    EMPTY = auto()
    UNCHANGED = auto()  # at that very commit
    CHANGED = auto()  # elsewhere, or nobody knows which commit the file was at


class OnTop(Enum):
    """Whether all that differs was changed on top of everything that was committed."""

    NO = auto()
    PERHAPS = auto()  # or it is what a checkpoint has left that was killed half way
    YES = auto()


class Unknown(Enum):
    """Whether something in the file is as the log had it at no commit since the file's last checkpoint."""

    UNASKED = auto()
    NOTHING = auto()
    SOMETHING = auto()
    UNTOLD = auto()  # the log no longer has each of these commits


class Fit(Enum):
    """Whether the database may become a commit."""

    UNASKED = auto()
    NEW = auto()  # there is nothing in it
    SERVED = auto()
    OLDER = auto()  # once it was migrated
    REFUSED = auto()


class Content(Enum):
    """What is in the file, beside the log's newest state."""

    THE_SAME = auto()
    AN_EDIT = auto()  # changed on top of everything that was committed
    THE_LOGS = auto()  # pages of several commits, as a crash leaves them
    UNKNOWN = auto()  # something that the log never had
    UNTOLD = auto()


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found. What could decide nothing was not asked, and has its default."""

    file: File
    log: Log = Log.UNREAD
    differs: bool = True  # from the log's newest state
    on_top: OnTop = OnTop.NO
    unknown: Unknown = Unknown.UNASKED
    fit: Fit = Fit.UNASKED
    rows: bytes | None = None  # what was changed, if row by row is all there is to say of it; see row_changes.py
    why: str = ""  # against the file, in words

    @property
    def content(self) -> Content:
        match self.differs, self.on_top, self.unknown:
            case False, _, _:
                return Content.THE_SAME
            case (_, OnTop.YES, _) | (_, OnTop.PERHAPS, Unknown.SOMETHING):
                return Content.AN_EDIT
            case _, _, Unknown.NOTHING:
                return Content.THE_LOGS
            case _, _, Unknown.SOMETHING:
                return Content.UNKNOWN
            case _:
                return Content.UNTOLD


class Do(Enum):
    """What is to be done with the file."""

    CATCH_UP = auto()  # serve it as it is; what has followed in the log is applied later
    SERVE = auto()  # as it is: the log's newest state
    WRITE_ANEW = auto()  # in place, with the log's newest state
    FILL = auto()  # the same, without the WAL that is there
    NEXT_COMMIT = auto()
    KEEP_BESIDE = auto()  # a copy of it and its WAL, and write it anew
    DO_ROWS_AGAIN = auto()  # keep them, write the file anew, and commit them on top of that
    MIGRATE_THEN_COMMIT = auto()
    FIRST_COMMIT = auto()
    REFUSE = auto()  # to start, with nothing done to the file
    BUILD = auto()  # from the log, or as the first commit of an empty one
    ASK_THE_LOG = auto()  # not decided yet: restore its newest state
    LOOK_INSIDE = auto()  # not decided yet: let SQLite open the file, which mixes it with the WAL beside it


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done with the file, and why."""

    do: Do
    reason: str = ""  # for the log lines


def decide(facts: Facts) -> Verdict:
    """Say what is to be done with a file of which these facts were found."""
    match facts.file, facts.log, facts.content:
        # as a clean stop left it
        case File.AS_LEFT, _, _:
            return Verdict(Do.CATCH_UP)
        # overwritten while the service ran, and not to be told from a checkpoint of another program that was killed
        case File.WHOLE, Log.UNCHANGED, Content.THE_LOGS if facts.on_top is OnTop.PERHAPS:
            return Verdict(Do.KEEP_BESIDE, _EARLIER)
        # as a crash left it
        case File.WHOLE, Log.UNCHANGED | Log.CHANGED, Content.THE_SAME:
            return Verdict(Do.SERVE)
        case File.WHOLE, Log.UNCHANGED, Content.THE_LOGS:
            return Verdict(Do.WRITE_ANEW, _OLDER)
        case File.WHOLE | File.HALF_WRITTEN, Log.UNCHANGED | Log.CHANGED, Content.THE_LOGS:
            return Verdict(Do.WRITE_ANEW)
        # changed by somebody since, on top of all that it had, and the log was not
        case File.WHOLE, Log.UNCHANGED, Content.AN_EDIT if facts.fit is Fit.SERVED:
            return Verdict(Do.NEXT_COMMIT)
        # changed on top of less than that
        case File.WHOLE, Log.UNCHANGED, Content.UNKNOWN:
            return Verdict(Do.KEEP_BESIDE, _ON_LESS)
        case File.MIXED, Log.UNCHANGED | Log.CHANGED, _:
            return Verdict(Do.KEEP_BESIDE, _MIXTURE)
        # changed on top of all that it had, as its WAL shows, and so was the log
        case File.WHOLE, Log.CHANGED, Content.UNKNOWN if facts.rows is not None:
            return Verdict(Do.DO_ROWS_AGAIN)
        # changed otherwise, and so was the log, or the log cannot tell
        case File.WHOLE, Log.CHANGED, _:
            return Verdict(Do.KEEP_BESIDE, facts.why)
        case File.WHOLE, Log.UNCHANGED, Content.UNTOLD:
            return Verdict(Do.KEEP_BESIDE, facts.why)
        case File.HALF_WRITTEN, Log.UNCHANGED | Log.CHANGED, _:
            return Verdict(Do.KEEP_BESIDE, _TORN_AND_CHANGED)
        # damaged
        case File.DAMAGED, Log.UNCHANGED | Log.CHANGED, Content.THE_LOGS:
            return Verdict(Do.WRITE_ANEW)
        case File.DAMAGED, Log.UNCHANGED | Log.CHANGED, _:
            return Verdict(Do.KEEP_BESIDE, facts.why)
        # whole, but not this service's
        case File.WHOLE, Log.UNCHANGED, Content.AN_EDIT if facts.fit is not Fit.OLDER:
            return Verdict(Do.KEEP_BESIDE, facts.why)
        # of an older release's schema
        case File.WHOLE, Log.UNCHANGED, Content.AN_EDIT:
            return Verdict(Do.MIGRATE_THEN_COMMIT)
        # of 0 bytes
        case File.EMPTY, Log.UNCHANGED | Log.CHANGED, Content.THE_LOGS:
            return Verdict(Do.FILL)
        case File.EMPTY, Log.UNCHANGED | Log.CHANGED, _:
            return Verdict(Do.KEEP_BESIDE, _EMPTY_WITH_WAL)
        # there, and the log is empty
        case File.EMPTY | File.UNOPENED, Log.EMPTY, _ if facts.fit is not Fit.REFUSED:
            return Verdict(Do.LOOK_INSIDE)
        case File.WHOLE, Log.EMPTY, _ if facts.fit is not Fit.REFUSED:
            return Verdict(Do.FIRST_COMMIT)
        case File.EMPTY | File.HALF_WRITTEN | File.MIXED | File.UNOPENED | File.DAMAGED | File.WHOLE, Log.EMPTY, _:
            return Verdict(Do.REFUSE, facts.why)
        # not there
        case File.MISSING, _, _:
            return Verdict(Do.BUILD)
        # Not yet to be told
        case _, Log.UNREAD, _:
            return Verdict(Do.ASK_THE_LOG)
        case _:
            return Verdict(Do.LOOK_INSIDE)
