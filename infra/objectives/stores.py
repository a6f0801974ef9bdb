"""What the stores know of log and backups, asked for on a thread of its own: nobody waits longer than he wants to."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from core.errors import ServiceError
from infra.backups.backups import open_backups
from infra.backups.retention import Backup
from infra.clock import Clock
from infra.commitlog import LogObject, open_log
from infra.commitlog.upkeep import COMMITS
from infra.maintenance.drill import Drill, read_drill
from infra.maintenance.report import Report, read_report
from infra.settings import Settings
from infra.storage.object_store import ObjectStore

logger = logging.getLogger(__name__)

MOST_COMMITS = 20
MOST_BACKUPS = 10

_GOOD_SECONDS = 30.0  # in a bucket, where each question is some requests: a dashboard asks every few seconds
_GOOD_IN_A_DIRECTORY_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Found:
    """Newest first; `troubles`: what could not be asked, and why."""

    commits: list[LogObject] = field(default_factory=list)
    backups: list[Backup] = field(default_factory=list)
    report: Report = field(default_factory=Report)
    drill: Drill | None = None
    troubles: list[str] = field(default_factory=list)


def drill_gauges(drill: Drill | None) -> dict[str, float]:
    """Return what the last drill has measured, and when one last succeeded, seconds; and if the last has failed."""
    gauges: dict[str, float] = {}
    if drill and drill.duration_seconds is not None:
        gauges["restore_drill_duration_seconds"] = drill.duration_seconds
    if drill and drill.last_success:
        gauges["restore_drill_last_success_timestamp_seconds"] = drill.last_success
    if drill and drill.problems:
        gauges["restore_drill_failed"] = 1.0
    return gauges


class Stores:
    """Asks, at most once at a time, and keeps what was found."""

    def __init__(
        self, ask: Callable[[], Found], clock: Callable[[], float] = time.monotonic, good_for: float = _GOOD_SECONDS
    ) -> None:
        """`good_for`: seconds in which what was found is shown again."""
        self.found: Found | None = None
        self._good_for = good_for
        self._ask = ask
        self._clock = clock
        self._asked = float("-inf")
        self._lock = threading.Lock()
        self._done: threading.Event | None = None  # of the question that is under way

    def ask(self, good_for: float | None = None) -> threading.Event:
        """Have it asked, unless what was found is new enough; returns what is set when there is an answer."""
        with self._lock:
            if self._done and not self._done.is_set():
                return self._done
            self._done = threading.Event()
            if self._clock() - self._asked < (good_for or self._good_for):
                self._done.set()
            else:
                # a daemon: the process must be able to end while a store does not answer
                threading.Thread(target=self._run, args=(self._done,), name="ask-stores", daemon=True).start()
            return self._done

    def _run(self, done: threading.Event) -> None:
        try:
            self.found = self._ask()
            self._asked = self._clock()
        except Exception:
            logger.exception("asking the stores has failed")
        finally:
            done.set()


def stores_of(settings: Settings, head: Callable[[], int]) -> Stores:
    """`head`: the newest commit that is known here, a TXID."""
    are_directories = all(url.startswith("file:") for url in (settings.replica_url, settings.backup_url) if url)
    good_for = _GOOD_IN_A_DIRECTORY_SECONDS if are_directories else _GOOD_SECONDS
    return Stores(lambda: _found(settings, head()), good_for=good_for)


def _found(settings: Settings, head: int) -> Found:
    found, troubles = Found(), []
    commits, backups, report, drill = found.commits, found.backups, found.report, found.drill
    try:
        if settings.replica_url:
            store = ObjectStore(settings.replica_url, retries=0)
            store.check_there()  # the start has made it
            report, drill = read_report(store), read_drill(store)
            listing = open_log(settings.replica_url, Clock()).objects
            commits = listing.level(COMMITS, max(head - MOST_COMMITS, 0), head)[: -MOST_COMMITS - 1 : -1]
    except ServiceError as error:
        troubles.append(f"the log: {error}")
    try:
        if settings.backup_url:
            place = open_backups(settings)
            complete = [backup for backup in place.list() if backup.complete]
            # the age of the newest counts: that of the others is as good as their names say
            backups = [*map(place.timed, complete[-1:]), *complete[-2 : -MOST_BACKUPS - 1 : -1]]
    except ServiceError as error:
        troubles.append(f"the backups: {error}")
    return Found(commits, backups, report, drill, troubles)
