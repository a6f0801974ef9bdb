import gzip
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import apsw
import pytest

from core.errors import MaintenanceCancelled, StoreUnavailable
from infra.__main__ import main
from infra.backups.backups import Backups, open_backups
from infra.backups.retention import Backup
from infra.clock import Clock
from infra.commitlog import Position, Replica, open_log
from infra.commitlog.objects import ObjectNames
from infra.commitlog.paging.page_index import PageIndex
from infra.commitlog.upkeep import Compactor, Keep, Snapshots, compactor
from infra.commitlog.upkeep.merge import write_snapshot
from infra.inspection import Contents, inspect
from infra.maintenance.host_time import Boot, HostTime, Leap
from infra.maintenance.job import Maintenance, open_maintenance
from infra.maintenance.report import Report, read_report, write_report
from infra.maintenance.routine import MaintenanceRoutine
from infra.settings import Settings
from infra.storage.object_store import ObjectInfo, ObjectStore
from infra.telemetry.metrics import Metrics
from tests.conftest import spoiled
from tests.infra.commitlog.conftest import litestream_restore

RUN = 16
KEEP = Keep(timedelta(hours=24), timedelta(days=7), timedelta(days=30))


class Writer:
    """A server that does nothing but write."""

    def __init__(self, settings: Settings) -> None:
        settings.database_path.parent.mkdir(exist_ok=True)
        self._clock = Clock()
        log = open_log(settings.replica_url, self._clock)
        self.replica = Replica(settings.database_path, log, self._clock, lasting=True)
        self.replica.open()
        self("CREATE TABLE t (v)")

    def __call__(self, *statements: str) -> None:
        for statement in statements:
            self.replica.write(lambda db, s=statement: db.execute_sql(s), self._clock.now() + 10, 0)  # type: ignore[misc]

    def reach(self, txid: int) -> None:
        while self.replica.visible.txid < txid:
            self("INSERT INTO t VALUES (1)")


@pytest.fixture(autouse=True)
def environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the commands."""
    monkeypatch.setenv("DATABASE_PATH", str(settings.database_path))


@pytest.fixture
def write(settings: Settings) -> Iterator[Writer]:
    writer = Writer(settings)
    yield writer
    writer.replica.close()


@pytest.fixture
def backups(settings: Settings) -> Backups:
    return open_backups(settings)


@pytest.fixture
def maintenance(settings: Settings, backups: Backups) -> Maintenance:
    return open_maintenance(settings, backups)


@pytest.fixture
def store(settings: Settings) -> ObjectStore:
    return ObjectStore(settings.replica_url)


def level(store: ObjectStore, number: int) -> list[int]:
    """The last TXIDs of its objects."""
    return [int(info.name[-20:-4], 16) for info in store.objects(ObjectNames(store.url).directory(number))]


def aged(settings: Settings, backups: Backups, age: timedelta) -> Maintenance:
    """The same after a while, by the store's clock."""

    class Later(ObjectStore):
        def objects(self, directory: str = "", after: str = "") -> list[ObjectInfo]:
            found = super().objects(directory, after)
            return [ObjectInfo(info.name, info.size, info.modified - age) for info in found]

    clock, store = Clock(), Later(settings.replica_url)
    return Maintenance(Compactor(open_log(settings.replica_url, clock), store, clock), store, backups, KEEP, clock)


def test_a_run_merges_makes_snapshot_and_backup_and_proves_them(
    write: Writer, maintenance: Maintenance, backups: Backups, store: ObjectStore
) -> None:
    write.reach(RUN + 3)
    report = maintenance.run()
    assert (report.problems, report.runs_merged, report.snapshot) == ([], 1, f"{RUN + 3:016x}")
    [made] = backups.list()
    assert made.name == report.backup
    manifest = backups.newest_manifest()
    assert manifest
    assert manifest.txid == f"{RUN + 3:016x}"
    assert report.verified
    assert (report.verified.snapshot, report.verified.backup) == (report.snapshot, made.name)
    assert report.verified.rows == manifest.rows == {"t": RUN + 1}
    assert read_report(store) == report


def test_sidecar_of_no_use_is_made_anew_and_told(
    write: Writer, maintenance: Maintenance, store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)"
    write(f"{rows} INSERT INTO t SELECT hex(randomblob(200)) FROM n")
    first = maintenance.run()
    name = ObjectNames(store.url).name(9, 1, int(first.snapshot, 16)).replace(".ltx", ".pages")
    made = b"".join(store.read(name))
    assert (first.sidecar, maintenance.preview().sidecar) == ("", False)
    store.put(name, spoiled(made))
    assert maintenance.preview().sidecar
    assert main(["maintain", "--dry-run"]) == 0
    assert "would make the sidecar of the newest snapshot anew\n" in capsys.readouterr().out
    assert main(["maintain"]) == 0
    assert f"sidecar made anew for the snapshot at TXID {first.snapshot}\n" in capsys.readouterr().out
    assert b"".join(store.read(name)) == made
    report = maintenance.run()
    assert (report.sidecar, report.problems) == ("", [])


def test_backup_is_what_litestream_makes_of_the_log(
    write: Writer, maintenance: Maintenance, settings: Settings, backups: Backups, tmp_path: Path
) -> None:
    write.reach(5)
    maintenance.run()
    theirs = litestream_restore(settings.replica_url, tmp_path / "theirs.db").read_bytes()
    ours = gzip.decompress((Path(backups.store.url.removeprefix("file://")) / "app-latest.db.gz").read_bytes())
    page_size = int.from_bytes(ours[16:18], "big")
    assert ours[page_size:] == theirs[page_size:]  # the first page also says which journal it has


def test_nothing_new_means_nothing_to_do_until_a_day_has_passed(
    write: Writer, maintenance: Maintenance, settings: Settings, backups: Backups, store: ObjectStore
) -> None:
    first = maintenance.run()
    again = maintenance.run()
    assert (again.snapshot, again.backup, again.verified) == ("", "", first.verified)
    assert again.verified
    again.verified.at -= timedelta(days=1, seconds=1).total_seconds()
    write_report(store, again)
    proven = maintenance.run()
    assert proven.verified
    assert proven.verified.at >= first.started_at
    assert len(backups.list()) == 1
    write("INSERT INTO t VALUES (1)")
    assert maintenance.run().backup != ""
    assert len(backups.list()) == 2


def test_what_is_old_goes_and_the_log_restores(
    write: Writer, maintenance: Maintenance, settings: Settings, backups: Backups, store: ObjectStore, tmp_path: Path
) -> None:
    write.reach(2 * RUN + 3)
    maintenance.run()
    report = aged(settings, backups, timedelta(hours=25)).run()
    assert (report.problems, report.deleted_objects) == ([], 2 * RUN)
    assert level(store, 0) == [33, 34, 35]
    assert level(store, 1) == [16, 32]
    report = aged(settings, backups, timedelta(days=8)).run()
    assert level(store, 1) == []
    assert report.problems == []
    litestream_restore(settings.replica_url, tmp_path / "theirs.db")
    assert main(["verify"]) == 0


def test_backup_of_another_log_does_not_count_though_it_ends_at_the_same_number(
    write: Writer, maintenance: Maintenance, backups: Backups
) -> None:
    write("INSERT INTO t VALUES (1)")
    here = write.replica.visible
    backups.store.check()
    other = maintenance.steps.log.restore(image := Path(backups.store.url.removeprefix("file://")) / "image")
    backups.create(image, replace(other, checksum=other.checksum ^ 1))
    assert maintenance.run().backup != ""
    newest = backups.newest_manifest()
    assert newest
    assert newest.is_of(here)


def test_what_is_known_stays_in_the_report_until_the_next_run_is_over(
    write: Writer, maintenance: Maintenance, store: ObjectStore
) -> None:
    write_report(store, Report(txid="1a4", problems=["something"], last_success=1.0))

    def stop() -> NoReturn:
        raise MaintenanceCancelled("now")

    write.reach(RUN)
    with pytest.raises(MaintenanceCancelled):
        maintenance.run(check=stop)
    assert read_report(store) == Report(txid="1a4", problems=["something"], last_success=1.0)
    assert level(store, 1) == [], "it stops before the first run is merged"


def test_labelled_backups_stay(write: Writer, maintenance: Maintenance, backups: Backups) -> None:
    assert main(["backup", "--label", "pre-deploy"]) == 0
    report = maintenance.run()
    assert report.verified
    assert report.verified.backup.endswith("-pre-deploy.db.gz"), "there is one of this state already"
    for _ in range(2):
        write("INSERT INTO t VALUES (1)")
        maintenance.run()
    assert [backup.label for backup in backups.list()].count("pre-deploy") == 1


@contextmanager
def altered(store: ObjectStore, name: str) -> Iterator[None]:
    """One byte in the middle."""
    body = b"".join(store.read(name))
    middle = len(body) // 2
    store.put(name, body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :])
    yield
    store.put(name, body)


Damage = Callable[[Maintenance, ObjectStore, Report], tuple[ObjectStore, str]]


def snapshot_of(maintenance: Maintenance, store: ObjectStore, report: Report) -> tuple[ObjectStore, str]:
    return store, ObjectNames(store.url).name(9, 1, int(report.snapshot, 16))


def backup_of(maintenance: Maintenance, store: ObjectStore, report: Report) -> tuple[ObjectStore, str]:
    return maintenance.backups.store, report.backup


@pytest.mark.parametrize("damage", [snapshot_of, backup_of])
def test_damage_is_found_said_and_keeps_everything(
    damage: Damage,
    write: Writer,
    maintenance: Maintenance,
    settings: Settings,
    backups: Backups,
    store: ObjectStore,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    write.reach(RUN + 3)
    first = maintenance.run()
    assert first.verified
    first.verified.at = 0
    write_report(store, first)  # a day later it is looked at again
    metrics = Metrics()
    with altered(*damage(maintenance, store, first)):
        job = MaintenanceRoutine(aged(settings, backups, timedelta(hours=25)), metrics)
        report = job.run()
        assert report.deleted_objects == 0
        assert len(level(store, 0)) == RUN + 3
        assert main(["status"]) == 4
        assert main(["maintain"]) == 1
    [problem] = report.problems
    assert "checksum" in problem or "is damaged" in problem or "uncompressed" in problem
    assert f"problem          {problem}" in capsys.readouterr().out
    assert [record.message for record in caplog.records if record.levelno == logging.ERROR] == [
        f"maintenance found a problem, and deletes nothing: {problem}"
    ]
    assert 'maintenance_runs_total{result="failed"} 1.0' in metrics.exposition(dict)[0].decode()
    assert aged(settings, backups, timedelta(hours=25)).run().deleted_objects == RUN, "and when it is mended it goes on"


def test_log_that_was_cut_short_is_a_problem_and_nothing_is_made_of_it(
    write: Writer, maintenance: Maintenance, backups: Backups, store: ObjectStore
) -> None:
    write.reach(6)
    maintenance.run()
    for info in [*store.objects("ltx/9"), *store.objects("ltx/0", ObjectNames(store.url).name(0, 4, 4))]:
        store.delete(info.name)
    [problem] = maintenance.run().problems
    assert "ends at TXID 0000000000000004, but was proven at 0000000000000006" in problem
    assert len(backups.list()) == 1


def test_backup_with_other_rows_than_the_log_is_a_problem(
    write: Writer, maintenance: Maintenance, backups: Backups, store: ObjectStore, tmp_path: Path
) -> None:
    """Sound by itself, and of another state than it says."""
    image = tmp_path / "other.db"
    connection = apsw.Connection(str(image))
    connection.execute("CREATE TABLE t (v)")
    connection.close()
    write("INSERT INTO t VALUES (1)")
    backups.create(image, write.replica.visible)
    [problem] = maintenance.run().problems
    assert "has the rows {'t': 0}, the log at its TXID has {'t': 1}" in problem


def in_runs_of_four(settings: Settings, backups: Backups) -> Maintenance:
    clock, store = Clock(), ObjectStore(settings.replica_url)
    log = Compactor(open_log(settings.replica_url, clock), store, clock, run=4)
    return Maintenance(log, store, backups, KEEP, clock)


def test_it_is_the_snapshot_that_is_proven_though_a_run_holds_more(
    write: Writer, settings: Settings, backups: Backups, store: ObjectStore
) -> None:
    write.reach(5)
    maintenance = in_runs_of_four(settings, backups)
    first = maintenance.run()
    write.reach(16)
    maintenance.merge()
    assert level(store, 2) == [16]
    with altered(*snapshot_of(maintenance, store, first)):
        assert len(maintenance.run().problems) == 1


def test_new_snapshot_that_is_not_what_was_written_is_a_problem(
    write: Writer,
    maintenance: Maintenance,
    backups: Backups,
    store: ObjectStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def write_another(image: Path, position: Position, path: Path) -> PageIndex:
        other = tmp_path / "other"
        other.write_bytes(spoiled(image.read_bytes()))
        return write_snapshot(other, position, path)

    monkeypatch.setattr("infra.commitlog.upkeep.compactor.write_snapshot", write_another)
    [problem] = maintenance.run().problems
    assert "the snapshot at TXID 0000000000000002 is not what was written" in problem
    assert backups.list() == []
    assert level(store, 9) == [], "or every start would begin with it"


def test_snapshot_of_an_image_that_has_changed_since_it_was_inspected_is_discarded(
    write: Writer, maintenance: Maintenance, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def inspect_and_spoil(image: Path) -> Contents:
        contents = inspect(image)
        image.write_bytes(spoiled(image.read_bytes()))
        return contents

    monkeypatch.setattr("infra.maintenance.job.inspect", inspect_and_spoil)
    [problem] = maintenance.run().problems
    assert "the snapshot at TXID 0000000000000002 is not what was written" in problem
    assert level(store, 9) == []


def test_a_run_goes_on_where_another_was_killed(
    write: Writer, settings: Settings, backups: Backups, store: ObjectStore
) -> None:
    write.reach(12)
    maintenance = in_runs_of_four(settings, backups)
    maintenance.run()
    write.reach(16)
    in_runs_of_four(settings, backups).run()
    store.delete(ObjectNames(store.url).name(2, 1, 16))  # as if it had been killed before this one
    store.delete(ObjectNames(store.url).name(1, 5, 8))  # and somebody has removed a damaged run
    maintenance.run()
    assert level(store, 2) == [16]
    assert level(store, 1) == [4, 8, 12, 16]


@pytest.mark.parametrize("step", ["snapshots", "store_snapshot"])
def test_a_run_that_stood_still_while_its_snapshot_was_deleted_proves_the_newest_one(
    step: str,
    write: Writer,
    maintenance: Maintenance,
    settings: Settings,
    backups: Backups,
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write.reach(2)
    if step == "snapshots":
        maintenance.run()
        write.reach(3)
    monkeypatch.setattr(Snapshots, "is_due", lambda state, _: not state.newest or state.newest.max_txid < state.head)
    work, times = getattr(maintenance.steps, step), count(1)

    def work_and_sleep(*arguments: Any) -> Any:
        result = work(*arguments)
        if next(times) == 1:
            write.reach(3)
            open_maintenance(settings, backups).run()
            store.delete(ObjectNames(store.url).name(9, 1, 2))
        return result

    monkeypatch.setattr(maintenance.steps, step, work_and_sleep)
    report = maintenance.run()
    assert (report.problems, report.unsound, report.txid, report.snapshot) == ([], False, f"{3:016x}", "")
    assert report.verified
    assert report.verified.snapshot == f"{3:016x}"
    assert level(store, 9) == [3]


def test_a_run_that_stood_still_while_its_backup_was_deleted_proves_the_newest_one(
    write: Writer, maintenance: Maintenance, settings: Settings, backups: Backups, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = maintenance.run().backup
    write.reach(3)
    find, times = backups.newest, count(1)

    def find_and_sleep() -> Backup | None:
        found = find()
        if next(times) == 1:
            open_maintenance(settings, open_backups(settings)).run()
            for name in (f"{old}.json", old):
                backups.store.delete(name)
        return found

    monkeypatch.setattr(backups, "newest", find_and_sleep)
    report = maintenance.run()
    assert (report.problems, report.unsound, report.txid) == ([], False, f"{3:016x}")


def test_out_of_time_it_goes_on_with_the_next_run(
    write: Writer, maintenance: Maintenance, store: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    write.reach(2 * RUN)
    report = maintenance.run(seconds=0)
    assert (report.unfinished, report.problems, report.last_success, report.succeeded) == (True, [], 0, False)
    assert level(store, 9) == []
    assert "the next one goes on" in caplog.text
    assert maintenance.run().last_success > 0
    assert level(store, 1) == [16, 32]


def test_out_of_time_it_still_says_why_the_log_is_unsound(
    write: Writer, maintenance: Maintenance, store: ObjectStore
) -> None:
    write.reach(1)
    write_report(store, Report(problems=["damaged"], unsound=True))
    report = maintenance.run(seconds=0)
    assert (report.unfinished, report.unsound, report.problems) == (True, True, ["damaged"])


def test_store_that_fails_is_a_problem_of_the_report_and_of_the_next_run_none(
    write: Writer, maintenance: Maintenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    write.reach(RUN)

    def fail(*_: object) -> NoReturn:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(Compactor, "store_snapshot", fail)
        assert maintenance.run().problems == ["away"]
    assert maintenance.run().problems == []


def test_dry_run_says_what_would_go_and_why_and_does_nothing(
    write: Writer,
    maintenance: Maintenance,
    settings: Settings,
    backups: Backups,
    store: ObjectStore,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write.reach(RUN + 1)
    before = store.objects(), [level(store, number) for number in (0, 1, 9)], backups.list()
    assert main(["maintain", "--dry-run"]) == 0
    assert "would merge 1 runs or more\nwould make a snapshot and a backup\n" in capsys.readouterr().out
    assert (store.objects(), [level(store, number) for number in (0, 1, 9)], backups.list()) == before
    maintenance.run()
    monkeypatch.setattr("infra.__main__.open_maintenance", lambda *_: aged(settings, backups, timedelta(hours=25)))
    assert main(["maintain", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("would delete level 0 ") == RUN
    assert "older than 24 h, and merged into 0000000000000001-0000000000000010 of level 1" in printed
    assert f"would delete {RUN} objects of the log and 0 backups, if the snapshot at TXID {RUN + 1:016x}" in printed
    assert len(level(store, 0)) == RUN + 1
    assert main(["maintain", "--dry-run", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["objects"]) == RUN


def test_backups_expire_with_the_same_job(write: Writer, maintenance: Maintenance, backups: Backups) -> None:
    now = datetime.now(UTC)
    manifest = b'{"name": "", "created_at": "", "size": 0, "sha256": "", "rows": {}, "schema_version": 0}'
    for days in (40, 9, 8):
        name = f"app-{now - timedelta(days=days):%Y%m%d}-0000.db.gz"
        backups.store.put(name, b"")
        backups.store.put(name + ".json", manifest)
    assert maintenance.run().deleted_backups == 1
    assert len(backups.list()) == 3


def test_what_killed_writers_have_left_goes_after_a_day(
    write: Writer, maintenance: Maintenance, backups: Backups, store: ObjectStore
) -> None:
    left = [
        Path(place.url.removeprefix("file://")) / directory / f".being-written-{name}.partial"
        for place, directory in ((store, "ltx/0"), (backups.store, "."))
        for name in ("old", "new")
    ]
    backups.store.check()
    for path in left:
        path.write_bytes(b"x")
        if "old" in path.name:
            os.utime(path, (0, 0))
    assert maintenance.run().problems == []
    assert [path.exists() for path in left] == [False, True, False, True]


def test_log_under_other_names_is_not_taken_for_an_empty_one(settings: Settings, maintenance: Maintenance) -> None:
    ObjectStore(settings.replica_url).put("generations/0123456789abcdef/snapshots/00000000.snapshot.lz4", b"x")
    [problem] = maintenance.run().problems
    assert "a replica of Litestream 0.3" in problem


def test_empty_log_is_nothing_to_look_after(settings: Settings, maintenance: Maintenance) -> None:
    report = maintenance.run()
    assert (report.problems, report.verified, report.txid) == ([], None, "")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("garbage", "Invalid JSON: expected value at line 1 column 1"),
        ("[]", "Input should be an object"),
        ('{"last_success": "yesterday"}', "last_success: Input should be a valid number"),
        ('{"last_success": 1e400}', "last_success: Input should be"),
        ('{"finished_at": 1e300}', "finished_at: Input should be less than 200000000000"),
        ('{"last_success": 9999999999}', "it is of a time to come, in "),
        (
            '{"verified": {"snapshot": "zz", "backup": "", "txid": "", "rows": {}, "at": 0}}',
            "verified: snapshot: String",
        ),
    ],
)
def test_report_that_cannot_be_believed_is_ignored_and_the_next_run_writes_it(
    write: Writer, maintenance: Maintenance, store: ObjectStore, caplog: pytest.LogCaptureFixture, text: str, why: str
) -> None:
    store.put("maintenance.json", text.encode())
    assert maintenance.last_report() == Report()
    assert (
        f"{store.url}/maintenance.json, the result of the last `python -m infra maintain`, is ignored and counts as "
        f"none, until that command writes it anew: {why}"
    ) in caplog.text
    assert main(["status"]) == 4  # nobody serves the database
    assert main(["maintain", "--dry-run"]) == 0
    assert maintenance.run().problems == []
    assert maintenance.last_report().verified


def test_what_proofs_of_create_if_absent_have_left_goes_as_well(
    write: Writer, maintenance: Maintenance, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("INSERT INTO t VALUES (1)")
    name = f"create-if-absent-{7:016x}"
    store.create(name, b"x")
    assert maintenance.run().succeeded
    assert name in {info.name for info in store.objects()}
    monkeypatch.setattr(compactor, "_A_DAY", timedelta(seconds=-60))
    assert maintenance.run().succeeded
    assert name not in {info.name for info in store.objects()}


HOUR = 3600.0


class Host:
    """A machine whose clock a directory goes by."""

    def __init__(self, settings: Settings, backups: Backups) -> None:
        self.passed = 0.0  # seconds, really
        self.leapt = 0.0  # seconds
        self.boot = "this one"
        store = _DirectoryOf(self, settings.replica_url)
        clock = Clock()
        self._parts = Compactor(open_log(settings.replica_url, clock), store, clock), store, backups
        self._clock = clock

    def maintenance(self, knows: bool = True) -> Maintenance:
        """One that keeps commits for two hours. `knows`: how long the machine has been up."""
        keep = replace(KEEP, commits=timedelta(hours=2))
        boot = (lambda: Boot(self.boot, time.monotonic() + self.passed)) if knows else None
        return Maintenance(*self._parts, keep, self._clock, boot=boot)


class _DirectoryOf(ObjectStore):
    """What is written through it is of the host's time."""

    def __init__(self, host: Host, url: str) -> None:
        super().__init__(url)
        self._host = host
        self._shifts: dict[str, float] = {}

    def create(self, name: str, body: Path | bytes | bytearray, written_at: datetime | None = None) -> None:
        super().create(name, body, written_at)
        self._shifts[name] = self._host.passed + self._host.leapt

    def put(self, name: str, body: Path | bytes, written_at: datetime | None = None) -> None:
        super().put(name, body, written_at)
        self._shifts[name] = self._host.passed + self._host.leapt

    def objects(self, directory: str = "", after: str = "") -> list[ObjectInfo]:
        return [
            replace(info, modified=info.modified + self._shift(info.name)) for info in super().objects(directory, after)
        ]

    def read_end(self, name: str, size: int) -> tuple[bytes, datetime]:
        end, modified = super().read_end(name, size)
        return end, modified + self._shift(name)

    def _shift(self, name: str) -> timedelta:
        return timedelta(seconds=self._shifts.get(name, 0.0))


@pytest.fixture
def host(settings: Settings, backups: Backups) -> Host:
    return Host(settings, backups)


def test_machine_is_asked_only_for_a_directory(
    write: Writer, maintenance: Maintenance, make_settings: Callable[..., Settings], s3: str
) -> None:
    assert maintenance.run().host
    elsewhere = make_settings(REPLICA_URL=s3.replace("backups", "log"), BACKUP_URL=s3)
    assert open_maintenance(elsewhere, open_backups(elsewhere)).run().host is None


def test_without_knowing_how_long_it_has_been_up_a_leap_would_delete_what_is_minutes_old(
    write: Writer, host: Host
) -> None:
    """So that the next tests show something."""
    write.reach(RUN + 3)
    host.maintenance(knows=False).run()
    host.leapt = 3 * HOUR
    assert host.maintenance(knows=False).run().deleted_objects == RUN


def test_leap_of_the_clock_deletes_nothing_early_and_is_said(
    write: Writer, host: Host, store: ObjectStore, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    write.reach(RUN + 3)
    host.maintenance().run()
    host.passed, host.leapt = 0.1 * HOUR, 3 * HOUR
    report = host.maintenance().run()
    assert (report.deleted_objects, report.problems) == (0, [])
    [record] = [record for record in caplog.records if record.name == "infra.maintenance.job"]
    assert record.levelno == logging.WARNING
    assert "this machine's clock has leapt ahead by 10,800 s since " in record.message
    assert report.warnings() == [
        "this machine's clock has leapt ahead by 10,800 s: what was there before counts as so much younger"
    ]
    main(["status"])
    assert "clock            has leapt ahead by 10,800 s, noticed at " in capsys.readouterr().out
    host.passed = 1.9 * HOUR
    assert host.maintenance().run().deleted_objects == 0, "it is remembered"
    host.passed = 2.2 * HOUR
    assert host.maintenance().run().deleted_objects == RUN
    assert level(store, 0) == [17, 18, 19]


def test_time_that_really_passes_deletes_what_is_old(write: Writer, host: Host) -> None:
    write.reach(RUN + 3)
    host.maintenance().run()
    host.passed = 2.2 * HOUR
    report = host.maintenance().run()
    assert (report.deleted_objects, report.warnings()) == (RUN, [])


def test_very_first_run_counts_ages_from_itself(write: Writer, host: Host) -> None:
    write.reach(RUN + 3)
    host.leapt = 3 * HOUR
    assert host.maintenance().run().deleted_objects == 0
    host.passed = 2.2 * HOUR
    assert host.maintenance().run().deleted_objects == RUN


def test_leap_back_deletes_nothing_early(write: Writer, host: Host) -> None:
    write.reach(RUN + 3)
    host.maintenance().run()
    host.passed, host.leapt = HOUR, -3 * HOUR
    assert host.maintenance().run().deleted_objects == 0
    host.passed, host.leapt = 1.9 * HOUR, 0
    assert host.maintenance().run().deleted_objects == 0


def test_leap_in_the_middle_of_a_run_deletes_nothing_early(write: Writer, host: Host) -> None:
    write.reach(RUN + 3)
    host.maintenance().run()
    write.reach(2 * RUN + 3)

    def leap() -> None:
        host.leapt = 3 * HOUR

    report = host.maintenance().run(check=leap)
    assert (report.runs_merged, report.deleted_objects) == (1, 0)
    host.passed = 0.1 * HOUR
    report = host.maintenance().run()
    assert (report.deleted_objects, len(report.warnings())) == (0, 1)


def test_after_a_start_of_the_machine_ages_are_as_the_directory_tells(write: Writer, host: Host) -> None:
    write.reach(RUN + 3)
    host.maintenance().run()
    host.boot, host.leapt = "the next one", 3 * HOUR
    assert host.maintenance().run().deleted_objects == RUN


def test_after_a_leap_a_dry_run_says_what_would_go_and_what_is_being_written_stays(
    write: Writer, host: Host, store: ObjectStore
) -> None:
    write.reach(RUN + 3)
    host.maintenance().run()
    host.passed, host.leapt = 0.1 * HOUR, 3 * HOUR
    host.maintenance().run()
    partial = Path(store.url.removeprefix("file://")) / "ltx/0/.being-written-x.partial"
    partial.write_bytes(b"x")
    os.utime(partial, (0, 0))
    host.passed = 0.2 * HOUR
    host.maintenance().run()
    assert partial.exists()
    assert host.maintenance().preview().objects == []


def test_backups_are_as_old_as_they_are_whatever_the_clock_leapt(
    write: Writer, host: Host, backups: Backups, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names tell the time of a clock; the times of two of them after a leap of nine days look right."""
    made = datetime.now(UTC).replace(hour=0, minute=0)
    for days in (0.0, 0.1, 0.2, 9.1, 9.2):  # by the clock
        name = f"app-{made + timedelta(days=days - 10):%Y%m%d-%H%M}.db.gz"
        backups.store.put(name, b"")
        backups.store.put(name + ".json", b"{}")
    assert len(backups.expired()) == 2
    leap = Leap((made + timedelta(days=-1)).timestamp(), 9 * 24 * HOUR)
    known = HostTime(Boot("a", 1), made.timestamp(), 0.0, [leap])
    assert backups.expired(known.without_leaps) == []
    write_report(store, Report(host=replace(known, boot=Boot(host.boot, time.monotonic()))))
    monkeypatch.setattr(Backups, "newest_manifest", lambda _: None)
    assert host.maintenance().run().deleted_backups == 0


def test_runs_remember_commits_whose_date_cannot_be_right_until_those_are_gone(
    write: Writer,
    settings: Settings,
    backups: Backups,
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Though what finds them is a server's merging between two runs, or a function's."""
    with monkeypatch.context() as patch:
        patch.setattr(Clock, "timestamp", lambda _: int((time.time() + 2 * HOUR) * 1000))
        write("INSERT INTO t VALUES (1)")
    write.reach(RUN + 1)
    assert main(["verify"]) == 0
    printed = capsys.readouterr().out
    first = write.replica.visible.txid - (RUN + 1) + 3
    assert re.search(rf"^warning  .* \(TXID {first:016x}.*\) cannot be of the date", printed, re.M)
    main(["backup"])
    open_maintenance(settings, backups).merge()
    expected = rf".* \(TXID {first:016x}.*\) cannot be of the date"
    assert main(["maintain"]) == 0
    assert re.search(f"^warning: {expected}", capsys.readouterr().out, re.M)
    assert main(["status"]) == 4
    assert re.search(f"^warning          {expected}", capsys.readouterr().out, re.M)
    assert main(["verify"]) == 0
    assert "is sound" in capsys.readouterr().out
    for _ in range(2):
        report = aged(settings, backups, timedelta(hours=25)).run()
    assert report.misdated is None
