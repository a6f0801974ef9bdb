import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from infra.backups.retention import Backup, ExpiredBackup, Retention, expired_backups, list_backups
from infra.storage.object_store import ObjectInfo, ObjectStore

KEEP = Retention(hourly=timedelta(days=7), daily=timedelta(days=30))

NOW = datetime(2026, 3, 31, 12, 30, tzinfo=UTC)


def made(age: timedelta, label: str | None = None, complete: bool = True) -> Backup:
    time = NOW - age
    return Backup(f"app-{time:%Y%m%d-%H%M}", time, label, 1, time, complete)


def expired(backups: list[Backup]) -> list[Backup]:
    return [one.backup for one in expired_backups(backups, KEEP)]


def test_hourly_backups_are_kept_a_week_and_daily_ones_a_month() -> None:
    hourly = [made(timedelta(hours=hours)) for hours in reversed(range(24 * 40))]
    gone = expired(hourly)
    kept = [backup for backup in hourly if backup not in gone]
    now = hourly[-2].time
    young = [backup for backup in kept if now - backup.time <= timedelta(days=7)]
    assert len(young) == 7 * 24 + 2
    old = [backup for backup in kept if backup not in young]
    assert {(backup.time.hour, backup.time.minute) for backup in old} == {(23, 30)}
    # one a day for days 7 to 30
    assert len({backup.time.date() for backup in old}) == len(old) == 23


def test_why_a_backup_goes_is_said() -> None:
    daily, hourly, last_of_its_day = (made(timedelta(days=days)) for days in (40, 8.1, 8))
    found = expired_backups([daily, hourly, last_of_its_day, made(timedelta(hours=1)), made(timedelta())], KEEP)
    assert found == [ExpiredBackup(daily, "older than 30 days"), ExpiredBackup(hourly, "older than 7 days")]


def test_the_newest_good_backup_and_labelled_ones_are_never_pruned() -> None:
    year = timedelta(days=365)
    labelled, older = made(3 * year, "pre-deploy"), made(2 * year)
    before, newest_good, half_made = made(year), made(year / 2), made(2 * year - timedelta(days=1), complete=False)
    assert expired([labelled, older, half_made, before, newest_good]) == [older, half_made]


def test_half_made_backup_does_not_count_as_the_newest() -> None:
    year = timedelta(days=365)
    newest_good, half_made = made(year), [made(timedelta(hours=hours), complete=False) for hours in (2, 1)]
    assert expired([newest_good, *half_made]) == []


def test_labelled_backup_does_not_use_up_the_slot_of_its_day() -> None:
    daily = made(timedelta(days=10, hours=1))
    labelled = made(timedelta(days=10), "pre-deploy")
    assert expired([daily, labelled, made(timedelta(hours=1)), made(timedelta())]) == []


class DatedStore(ObjectStore):
    """Its clock shows what a test wants."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.dates: dict[str, datetime] = {}

    def objects(self, directory: str = "", after: str = "") -> list[ObjectInfo]:
        return [
            replace(info, modified=self.dates.get(info.name, info.modified))
            for info in super().objects(directory, after)
        ]


@pytest.fixture
def store(tmp_path: Path) -> DatedStore:
    return DatedStore((tmp_path / "backups").as_uri())


def put(store: DatedStore, name: str, modified: datetime | None = None) -> str:
    """A complete backup."""
    for part in (name, name + ".json"):
        store.put(part, b"x")
        if modified:
            store.dates[part] = modified
    return name


def named(time: datetime, suffix: str = "") -> str:
    return f"app-{time:%Y%m%d-%H%M}{suffix}.db.gz"


def names(store: ObjectStore) -> list[str]:
    return [backup.name for backup in list_backups(store)]


def test_clock_that_leaps_ahead_does_not_prune(store: DatedStore) -> None:
    now = datetime.now(UTC)
    earlier = [put(store, named(now - timedelta(hours=hours))) for hours in (3, 2, 1)]
    # in a directory the store's clock is the machine's, and wrong as well
    leap = now + timedelta(days=365)
    put(store, named(leap), leap)
    assert names(store)[:3] == earlier
    assert expired(list_backups(store)) == []


def test_the_stores_clock_counts_when_only_the_machines_is_ahead(store: DatedStore) -> None:
    now = datetime.now(UTC)
    earlier = [put(store, named(now - timedelta(hours=hours))) for hours in (3, 2, 1)]
    for days in (365, 366):
        put(store, named(now + timedelta(days=days)), now)
    assert names(store)[:3] == earlier
    assert expired(list_backups(store)) == []


def test_name_with_a_time_to_come_counts_as_of_when_it_was_stored(
    store: DatedStore, caplog: pytest.LogCaptureFixture
) -> None:
    now = datetime.now(UTC)
    newest = put(store, named(now))
    future = put(store, "app-20990101-0000.db.gz", now - timedelta(days=1))
    put(store, named(now + timedelta(minutes=4), "-tolerated"))
    assert names(store)[:2] == [future, newest]
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert warning.message.startswith(f"{future} is named after a time to come")
    store.delete(future)
    store.delete(future + ".json")
    old = put(store, "app-20990101-0000.db.gz", now - timedelta(days=40))
    assert [backup.name for backup in expired(list_backups(store))] == [old], "or it would be the newest for decades"


def test_after_a_leap_of_the_clock_ages_are_told_from_a_time_before_it() -> None:
    first = datetime(2026, 3, 1, tzinfo=UTC)
    leap = timedelta(days=9)

    def counted(time: datetime) -> datetime:
        return time + leap if time < first + timedelta(days=10) else time

    times = [first + timedelta(days=days) for days in (0, 0.1, 8, 17.1)]
    backups = [Backup(f"app-{time:%Y%m%d-%H%M}.db.gz", time, None, 1, time, True) for time in times]
    keep = Retention(hourly=timedelta(days=7), daily=timedelta(days=30))
    assert [one.backup for one in expired_backups(backups, keep, counted)] == backups[:1]
    assert [one.backup for one in expired_backups(backups[:2] + backups[3:], keep, counted)] == []
