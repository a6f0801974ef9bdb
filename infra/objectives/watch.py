"""What watches over the objectives in this process: it looks every few seconds, and judges what it has seen."""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace

from infra.commitlog import kept_files
from infra.maintenance.report import Report
from infra.objectives import process
from infra.objectives.alerts import Facts
from infra.objectives.history import History, difference
from infra.objectives.history_file import HistoryFile
from infra.objectives.judgement import Judgement, judge
from infra.objectives.points import points_of
from infra.objectives.status import Condition, HistoryView, StatusView
from infra.objectives.stores import Found, Stores
from infra.objectives.telling import tell
from infra.settings import Settings
from infra.telemetry.metrics import Totals

logger = logging.getLogger(__name__)

LOOK_SECONDS = 10.0
KEEP_SECONDS = 60.0

_LEAP_SECONDS = 30.0
_KEPT_AS = {"unbacked_seconds": "backup_lag_seconds", "unsaved_seconds": "commit_log_unsaved_seconds"}  # in a slot


class Watch:
    """Any thread may ask it; no event loop ever waits for it."""

    def __init__(
        self,
        settings: Settings,
        stores: Stores,
        *,
        totals: Callable[[], Totals],
        gauges: Callable[[], dict[str, float]],
        report: Callable[[], Report],
        writes: Callable[[], dict[int, int]] = dict,
        lasting: bool,
        started: float | None = None,
        now: Callable[[], float] = time.time,
        elapsed: Callable[[], float] = process.elapsed,
    ) -> None:
        """`report`: the newest that this process has of maintenance. `writes`: how many share each commit that it knows
        of, by TXID. `lasting`: a server; else one of Lambda's instances. `started`, of the process, and `now`: seconds
        since 1970. `elapsed`: seconds of a clock that nobody sets, and that goes on while the machine sleeps.
        """
        self._looked = elapsed()
        self._kept = float("-inf")  # so that a start is kept at once: the next one may follow soon
        self._looked_at = now()
        self._started = self._looked_at if started is None else started
        self.history = History(self._looked_at)
        self.stores = stores
        self._settings = settings
        self._totals = totals
        self._gauges = gauges
        self._report = report
        self._writes = writes
        self._lasting = lasting
        self._now = now
        self._elapsed = elapsed
        self._counted = Totals()
        self._seen: dict[str, float] = {}  # at the last look, gauges that nobody else has
        self._starts = 0  # that no slot has yet
        self._file: HistoryFile | None = None
        self._is_keeping_failing = False
        self._seeing = threading.Lock()
        self._stopping = threading.Event()

    def start(self, probe: Callable[[], Condition]) -> None:
        """Go on with the history that was kept, and look every few seconds from now on. `probe`: asked on a thread, and
        may take a moment.
        """
        self.resume()
        # a daemon: the process must be able to end whatever it waits for
        threading.Thread(target=self._run, args=(probe,), name="objectives", daemon=True).start()

    def stop(self) -> None:
        """Look once more, and keep what was seen."""
        self._stopping.set()
        self.look(Condition(self.history.noted.unready, None))
        self.keep()

    def resume(self) -> None:
        """Go on with the history that was kept, if there is one; the time since then, nobody was there."""
        self._file = HistoryFile(self._settings.database_path)
        if history := self._file.read():
            if (ahead := history.until - self._now()) > _LEAP_SECONDS:
                history.move(-ahead)  # the clock was set back meanwhile, nobody knows when
            self.history, self._starts = history, 1

    def gauges(self, head: int, own: dict[str, float]) -> dict[str, float]:
        """Return what is known of log and backups, by whom it may be: `own`, what this process knows from maintaining
        them, or what it has found in their stores; and what was seen at the last look. `head`: the newest commit that
        is known here, a TXID.
        """
        found = self.stores.found or Found()
        known = found.gauges(head, self.history.began, self._now())
        is_newer = found.report.started_at >= self._report().started_at
        return {**own, **known, **self._seen} if is_newer else {**known, **own, **self._seen}

    def look(self, condition: Condition) -> None:
        """Take down what has happened since the last look, and judge it."""
        if not self._settings.database_url:
            self._seen = {"database_kept_files": len(kept_files(self._settings.database_path))}
        totals, gauges = self._totals(), self._known_gauges()
        with self._seeing:
            now, elapsed = self._now(), self._elapsed()
            passed, self._looked = max(0.0, elapsed - self._looked), elapsed
            leap, self._looked_at = now - (self._looked_at + passed), now
            if abs(leap) > _LEAP_SECONDS:
                logger.warning("the clock has leapt by %s s, and the history goes with it", f"{leap:,.0f}")
                self.history.move(leap)
                self._started += leap
            counts, self._counted = difference(totals, self._counted), totals
            starts, self._starts = self._starts, 0
            if condition.degraded is None:
                condition = replace(condition, degraded=self.history.noted.degraded, cause=self.history.noted.cause)
            noted = self.history.noted
            noted.unready, noted.unwritable = condition.unready, condition.unwritable
            noted.degraded, noted.cause = condition.degraded or "", condition.cause
            self.history.see(now, passed, counts, gauges, is_ready=not condition.unready, starts=starts)
            judgement = self._judgement(gauges)
            txid = int(gauges.get("commit_log_txid", noted.txid))  # not known while the start waits
            noted.fell = now if txid < noted.txid else noted.fell
            noted.txid = txid
            noted.firing = {alert.name: noted.firing.get(alert.name, now) for alert, _ in judgement.alerts}
            if judgement.state != noted.state:
                noted.state, noted.since = judgement.state, now
                self._kept = float("-inf")  # whoever looks into the file sees that soon

    def keep(self) -> None:
        """Write the history to its file, if it has one; what cannot be written is said once."""
        if self._file is None:
            return
        self._kept = self._elapsed()
        try:
            with self._seeing:
                self._file.write(self.history)
            self._is_keeping_failing = False
        except OSError as error:
            if not self._is_keeping_failing:
                logger.warning("%s cannot be written, so a restart forgets it: %s", self._file.path, error.strerror)
            self._is_keeping_failing = True
            with suppress(OSError):
                self._file.touch()

    def status(self, not_asked: list[str]) -> StatusView:
        """Say how it is, by what was seen last. `not_asked`: what nobody could be asked just now."""
        gauges, found = self._known_gauges(), self.stores.found or Found()
        with self._seeing:
            return tell(
                self._judgement(gauges),
                found,
                writes=self._writes(),
                shown_gauges=self._gauges(),
                replica_url=None if self._settings.database_url else self._settings.replica_url,
                started=self._started,
                per_instance=not self._lasting,
                not_asked=[*not_asked, *found.troubles],
            )

    def points(self, span: str) -> HistoryView:
        """Return the last hour, or day, for plots."""
        with self._seeing:
            return points_of(self.history, "day" if span == "day" else "hour")

    def _run(self, probe: Callable[[], Condition]) -> None:
        while not self._stopping.is_set():
            try:
                self.stores.ask(seldom=True)
                condition = probe()
                if not self._stopping.is_set():
                    self.look(condition)
                    if self._elapsed() - self._kept >= KEEP_SECONDS:
                        self.keep()
            except Exception:
                if self._stopping.is_set():
                    return  # and so has whoever was asked
                logger.exception("looking at the objectives has failed")
            self._stopping.wait(LOOK_SECONDS)

    def _judgement(self, gauges: Mapping[str, float]) -> Judgement:
        interval = self._settings.maintenance_interval_seconds if self._lasting else 0
        facts = Facts(
            now=self.history.until,
            history=self.history,
            gauges=gauges,
            report=self._newest_report(),
            maintained_within=2.0 * interval,
            started=self._started,
        )
        return judge(facts, per_instance=not self._lasting, has_log=not self._settings.database_url)

    def _known_gauges(self) -> dict[str, float]:
        gauges = {**process.gauges(), **self._gauges()}
        if self.stores.found and self.stores.found.drill and self.stores.found.drill.problems:
            gauges["restore_drill_failed"] = 1.0
        for kept, shown in _KEPT_AS.items():
            if shown in gauges:
                gauges[kept] = gauges[shown]
        return {name: value for name, value in gauges.items() if math.isfinite(value)}

    def _newest_report(self) -> Report:
        found = self.stores.found.report if self.stores.found else Report()
        return max(self._report(), found, key=lambda report: report.started_at)
