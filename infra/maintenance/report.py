"""What the last run of maintenance did and found, kept beside the log for whoever asks."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from core.errors import ObjectMissing
from infra.commitlog.upkeep import MaintenanceStore, Misdated
from infra.maintenance.host_time import HostTime

logger = logging.getLogger(__name__)

NAME = "maintenance.json"

_CLOCK_TOLERANCE_SECONDS = 24 * 3600
_FAR_AWAY = 200_000_000_000  # seconds since 1970, in the year 8307
_MOST_CHUNKS = 4  # of some megabytes each; what is longer was cut off, and is no report

T = TypeVar("T")

Txid = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
Moment = Annotated[float, Field(ge=0, lt=_FAR_AWAY, allow_inf_nan=False)]


@dataclass(slots=True)
class Verified:
    """What was last restored into a scratch file and found sound."""

    snapshot: Txid
    backup: str  # name
    txid: Txid  # of that backup: snapshot and log lead there to the same rows
    rows: dict[str, int]
    at: Moment  # by the store's clock, seconds since 1970


@dataclass(slots=True)
class Report:
    """Times are by the store's clock, seconds since 1970; TXIDs are 16 hex digits."""

    started_at: Moment = 0.0
    finished_at: Moment = 0.0
    last_success: Moment = 0.0  # of this run or an earlier one
    txid: str = ""  # where the log ended
    runs_merged: int = 0
    snapshot: str = ""  # the TXID of the one that was made
    sidecar: str = ""  # the TXID of the snapshot for which one was made anew
    backup: str = ""  # the name of the one that was made
    deleted_objects: int = 0
    deleted_backups: int = 0
    verified: Verified | None = None
    unfinished: bool = False  # the time was over; the next run goes on
    problems: list[str] = field(default_factory=list)
    unsound: bool = False  # log or backup, by the last proof that came to a verdict
    misdated: Misdated | None = None  # among the commits that are kept by themselves
    unchecked: list[str] = field(default_factory=list)  # what SQLite lacks something for, by the last proof
    host: HostTime | None = None  # of a log in a directory

    @property
    def succeeded(self) -> bool:
        return not self.problems and not self.unfinished

    def warnings(self) -> list[str]:
        """What somebody should know, and needs nothing to be done for the log."""
        found = [str(self.misdated)] if self.misdated else []
        found += self.unchecked
        if self.host and (leap := self.host.leapt):
            found.append(
                f"this machine's clock has leapt ahead by {leap.by:,.0f} s: what was there before counts as so much "
                "younger"
            )
        return found


_REPORT = TypeAdapter(Report)


def read_report(store: MaintenanceStore) -> Report:
    """An empty one when there is none."""
    return read_note(store, NAME, _REPORT, lambda report: report.last_success, "python -m infra maintain") or Report()


def report_problem(store: MaintenanceStore, error: Exception) -> Report:
    """Add to the last report what keeps a run from its beginning, for whoever asks. Raises StoreError."""
    report = read_report(store)
    report.problems = [str(error)]
    write_report(store, report)
    return report


def report_of(found: Any) -> Report:
    """Make a report of what `asdict` has made of one, whoever has carried it here. Raises ValidationError."""
    return _REPORT.validate_python(found)


def read_note(
    store: MaintenanceStore, name: str, kind: TypeAdapter[T], moment: Callable[[T], float], command: str
) -> T | None:
    """Read what `command` has kept under this name beside the log; None, and a WARNING, for what cannot be believed."""
    try:
        note = kind.validate_json(b"".join(islice(store.read(name), _MOST_CHUNKS)))
        ahead = moment(note) - time.time()
        if ahead <= _CLOCK_TOLERANCE_SECONDS:
            return note
        _ignore(store, name, command, f"it is of a time to come, in {ahead / 3600:,.0f} hours: look at the clocks")
    except ObjectMissing:
        pass
    except ValidationError as error:
        first = error.errors()[0]
        _ignore(store, name, command, ": ".join([*map(str, first["loc"]), first["msg"]]))
    return None


def _ignore(store: MaintenanceStore, name: str, command: str, why: str) -> None:
    logger.warning(
        "%s/%s, the result of the last `%s`, is ignored and counts as none, until that command writes it anew: %s",
        store.url,
        name,
        command,
        why,
    )


def write_report(store: MaintenanceStore, report: Report) -> float:
    """Returns the time by the store's clock, seconds since 1970."""
    store.put(NAME, json.dumps(asdict(report)).encode())
    _, modified = store.read_end(NAME, 1)
    return modified.timestamp()
