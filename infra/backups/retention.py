"""Which backups there are, in what order, and which of them may go."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from infra.storage.object_store import ObjectInfo, ObjectStore

logger = logging.getLogger(__name__)

_NAME = re.compile(r"app-(\d{8}-\d{4}(?:\d{2})?)(?:-([a-z][a-z0-9-]{0,39}))?\.db\.gz", re.ASCII)
_CLOCK_TOLERANCE = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Backup:
    """What a listing tells."""

    name: str
    time: datetime  # UTC; the name's, or `modified` when the name's is not to be believed
    label: str | None
    size: int  # bytes of the .gz
    modified: datetime  # by the store's clock, UTC
    complete: bool  # has a manifest


@dataclass(frozen=True, slots=True)
class Retention:
    """How long backups are kept: `daily`, the last one of each day; `hourly`, the others."""

    hourly: timedelta
    daily: timedelta


@dataclass(frozen=True, slots=True)
class ExpiredBackup:
    """A backup that may go, and why."""

    backup: Backup
    why: str


def is_label(text: str) -> bool:
    """Tell whether a backup's name can carry this label."""
    return _NAME.fullmatch(f"app-20000101-0000-{text}.db.gz") is not None


def list_backups(store: ObjectStore) -> list[Backup]:
    """Oldest first."""
    objects = {info.name: info for info in store.objects()}
    found = [_parse(info, info.name + ".json" in objects) for info in objects.values()]
    return sorted((backup for backup in found if backup), key=_age_order)


def expired_backups(
    backups: list[Backup], keep: Retention, counted: Callable[[datetime], datetime] = lambda time: time
) -> list[ExpiredBackup]:
    """Older than `keep.hourly` unless the last of their day, and all older than `keep.daily`; oldest first.

    Never a labelled one, never the newest complete one. What counts is the time of the backup before that one, not
    the present: a clock that leaps ahead would make everything look old at once. `counted`: what a time counts as.
    """
    complete = [backup for backup in backups if backup.complete]
    if len(complete) < 2:
        return []
    newest, now = complete[-1], counted(complete[-2].time)
    last_of_day = {backup.time.date(): backup.name for backup in complete if backup.label is None}
    return [
        ExpiredBackup(backup, f"older than {(keep.daily if is_daily else keep.hourly).days} days")
        for backup in backups
        if backup.label is None and backup != newest
        for is_daily in [last_of_day.get(backup.time.date()) == backup.name]
        if now - counted(backup.time) > (keep.daily if is_daily else keep.hourly)
    ]


def _age_order(backup: Backup) -> tuple[datetime, datetime, datetime]:
    # Within a minute the name tells little: the store knows which came later
    return backup.time.replace(second=0, microsecond=0), backup.modified, backup.time


def _parse(info: ObjectInfo, complete: bool) -> Backup | None:
    match = _NAME.fullmatch(info.name)
    if match is None:
        return None
    stamp, label = match.groups()
    try:
        time = datetime.strptime(stamp, "%Y%m%d-%H%M%S" if len(stamp) == 15 else "%Y%m%d-%H%M").replace(tzinfo=UTC)
    except ValueError:
        return None
    if time > info.modified + _CLOCK_TOLERANCE:
        logger.warning("%s is named after a time to come: it counts as of %s", info.name, info.modified.isoformat())
        time = info.modified
    return Backup(info.name, time, label, info.size, info.modified, complete)
