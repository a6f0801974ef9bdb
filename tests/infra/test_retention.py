import logging
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from infra.object_store import ObjectStore
from infra.retention import Backup, Retention, expired, list_backups, prune

KEEP = Retention(hourly=timedelta(days=7), daily=timedelta(days=30))

NOW = datetime(2026, 3, 31, 12, 30, tzinfo=UTC)


def made(age: timedelta, label: str | None = None, complete: bool = True) -> Backup:
    time = NOW - age
    return Backup(f"app-{time:%Y%m%d-%H%M}", time, label, 1, time, complete)


def test_hourly_backups_are_kept_a_week_and_daily_ones_a_month() -> None:
    hourly = [made(timedelta(hours=hours)) for hours in reversed(range(24 * 40))]
    gone = {backup.name for backup in expired(hourly, NOW, KEEP)}
    kept = [backup for backup in hourly if backup.name not in gone]
    young = [backup for backup in kept if NOW - backup.time <= timedelta(days=7)]
    assert len(young) == 7 * 24 + 1
    old = [backup for backup in kept if backup not in young]
    assert {(backup.time.hour, backup.time.minute) for backup in old} == {(23, 30)}
    # one a day for days 7 to 30
    assert len({backup.time.date() for backup in old}) == len(old) == 23


def test_the_newest_good_backup_and_labelled_ones_are_never_pruned() -> None:
    year = timedelta(days=365)
    labelled, older = made(2 * year, "pre-deploy"), made(year + timedelta(days=1))
    newest_good, half_made = made(year), made(year - timedelta(days=1), complete=False)
    assert expired([labelled, older, newest_good, half_made], NOW, KEEP) == [older, half_made]


def test_labelled_backup_does_not_use_up_the_slot_of_its_day() -> None:
    daily = made(timedelta(days=10, hours=1))
    labelled = made(timedelta(days=10), "pre-deploy")
    assert expired([daily, labelled, made(timedelta())], NOW, KEEP) == []


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore((tmp_path / "backups").as_uri())


def put(store: ObjectStore, name: str, modified: datetime | None = None) -> str:
    """A complete backup."""
    for part in (name, name + ".json"):
        store.put(part, b"x")
        if modified:
            path = Path(store.url.removeprefix("file://")) / part
            os.utime(path, (modified.timestamp(), modified.timestamp()))
    return name


def named(time: datetime, suffix: str = "") -> str:
    return f"app-{time:%Y%m%d-%H%M}{suffix}.db.gz"


def names(store: ObjectStore) -> list[str]:
    return [backup.name for backup in list_backups(store)]


def test_pruning_deletes_what_is_expired_and_nothing_else(store: ObjectStore) -> None:
    now = datetime.now(UTC)
    kept = put(store, "app-20200102-0000-keep.db.gz")
    put(store, "app-20200101-0000.db.gz")
    before, newest = put(store, named(now - timedelta(hours=1))), put(store, named(now))
    store.put("notes.txt", b"x")
    prune(store, newest, KEEP)
    assert names(store) == [kept, before, newest]
    assert len(store.objects()) == 7


def test_pruning_deletes_the_manifest_before_the_data(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(UTC)
    old = put(store, "app-20200101-0000.db.gz")
    put(store, named(now - timedelta(hours=1)))
    deleted: list[str] = []
    monkeypatch.setattr(ObjectStore, "delete", lambda store, name: deleted.append(name))
    prune(store, put(store, named(now)), KEEP)
    assert deleted == [old + ".json", old]


def test_clock_that_leaps_ahead_does_not_prune(store: ObjectStore) -> None:
    now = datetime.now(UTC)
    earlier = [put(store, named(now - timedelta(hours=hours))) for hours in (3, 2, 1)]
    # in a directory the store's clock is the machine's, and wrong as well
    leap = now + timedelta(days=365)
    prune(store, put(store, named(leap), leap), KEEP)
    assert names(store)[:3] == earlier


def test_the_stores_clock_counts_when_only_the_machines_is_ahead(store: ObjectStore) -> None:
    now = datetime.now(UTC)
    earlier = [put(store, named(now - timedelta(hours=hours))) for hours in (3, 2, 1)]
    for days in (365, 366):
        prune(store, put(store, named(now + timedelta(days=days)), now), KEEP)
    assert names(store)[:3] == earlier


def test_name_with_a_time_to_come_counts_as_of_when_it_was_stored(
    store: ObjectStore, caplog: pytest.LogCaptureFixture
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
    prune(store, newest, KEEP)
    assert old not in names(store), "or it would be the newest for decades"
