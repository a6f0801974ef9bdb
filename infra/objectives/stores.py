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
from infra.maintenance.gauges import drill_is_due, gauges_of, gauges_of_drill
from infra.maintenance.report import Report, read_report
from infra.settings import Settings
from infra.storage.object_store import ObjectStore

logger = logging.getLogger(__name__)

MOST_COMMITS = 20
MOST_BACKUPS = 10

# How long it is good for whoever wants to see it, as a dashboard every few seconds
_GOOD_SECONDS = 30.0  # in a bucket, where each question is some requests, and has a price
_GOOD_IN_A_DIRECTORY_SECONDS = 2.0
# and for the process itself
_SELDOM_SECONDS = 3600.0
_SELDOM_WITHOUT_A_TIMER_SECONDS = 300.0  # what it shows of maintenance is what it finds
_SELDOM_IN_A_DIRECTORY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Found:
    """Newest first; `troubles`: what could not be asked, and why. `of_log`: whether report and drill were asked for."""

    commits: list[LogObject] = field(default_factory=list)
    backups: list[Backup] = field(default_factory=list)
    report: Report = field(default_factory=Report)
    drill: Drill | None = None
    troubles: list[str] = field(default_factory=list)
    of_log: bool = False

    def gauges(self, head: int, began: float, now: float) -> dict[str, float]:
        """Return what is known of log and backups. `head`: the newest commit, a TXID; `began`: the history; that and
        `now` in seconds since 1970.
        """
        if not self.of_log:
            return {}
        found = gauges_of(self.report, next(iter(self.backups), None), head, now) | gauges_of_drill(self.drill)
        return found | {"restore_drill_due_timestamp_seconds": drill_is_due(self.drill, began)}


class Stores:
    """Asks, at most once at a time, and keeps what was found."""

    def __init__(
        self,
        ask: Callable[[], Found],
        clock: Callable[[], float] = time.monotonic,
        good_for: float = _GOOD_SECONDS,
        seldom: float = _SELDOM_SECONDS,
    ) -> None:
        """`good_for`: seconds in which what was found is shown again; `seldom`: the same for the process itself."""
        self.found: Found | None = None
        self._good_for = good_for
        self._seldom = seldom
        self._ask = ask
        self._clock = clock
        self._asked = float("-inf")
        self._lock = threading.Lock()
        self._done: threading.Event | None = None  # of the question that is under way

    def ask(self, *, seldom: bool = False) -> threading.Event:
        """Have it asked, unless what was found is new enough; returns what is set when there is an answer."""
        good_for = self._seldom if seldom else self._good_for
        with self._lock:
            if self._done and not self._done.is_set():
                return self._done
            self._done = threading.Event()
            if self._clock() - self._asked < good_for:
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

    def ask() -> Found:
        return _found(settings, head())

    if all(url.startswith("file:") for url in (settings.replica_url, settings.backup_url) if url):
        return Stores(ask, good_for=_GOOD_IN_A_DIRECTORY_SECONDS, seldom=_SELDOM_IN_A_DIRECTORY_SECONDS)
    return Stores(
        ask, seldom=_SELDOM_SECONDS if settings.maintenance_interval_seconds else _SELDOM_WITHOUT_A_TIMER_SECONDS
    )


def _found(settings: Settings, head: int) -> Found:
    found, troubles = Found(), []
    commits, backups, report, drill, of_log = found.commits, found.backups, found.report, found.drill, False
    try:
        if settings.replica_url:
            store = ObjectStore(settings.replica_url, retries=0)
            store.check_there()  # the start has made it
            report, drill, of_log = read_report(store), read_drill(store), True
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
    return Found(commits, backups, report, drill, troubles, of_log)
