import gzip
import json
import logging
import time
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from infra.__main__ import main
from infra.backups.backups import open_backups
from infra.clock import Clock
from infra.commitlog import open_log
from infra.maintenance import drill
from infra.maintenance.drill import Drill, Restored, read_drill, run_drill
from infra.settings import Settings
from infra.storage.object_store import ObjectStore
from tests.conftest import open_at, spoiled, write

pytestmark = pytest.mark.usefixtures("served_database")


@pytest.fixture
def store(settings: Settings) -> ObjectStore:
    return ObjectStore(settings.replica_url)


def drilled(settings: Settings) -> Drill:
    return run_drill(open_log(settings.replica_url, Clock()), ObjectStore(settings.replica_url), open_backups(settings))


def add(settings: Settings, name: str) -> None:
    with closing(open_at(settings.database_path)) as database:
        write(database, name)


def test_drill_restores_both_and_keeps_what_it_has_measured(
    settings: Settings, store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_drill(store) is None
    add(settings, "kept")
    main(["backup"])
    capsys.readouterr()
    assert main(["drill", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    found = read_drill(store)
    assert found
    assert found.log
    assert found.backup
    assert (found.log.rows["items"], found.backup.rows["items"]) == (1, 1)
    assert found.log.txid == found.backup.txid
    assert (found.log.lacks_seconds, found.backup.lacks_seconds) == (0, 0)
    assert found.duration_seconds == max(found.log.seconds, found.backup.seconds) == shown["duration_seconds"] > 0
    assert found.last_success == found.at > 0
    assert main(["drill"]) == 0
    out = capsys.readouterr().out
    assert f"{settings.replica_url}, TXID {found.log.txid}: 1 items" in out
    assert "(RTO); the objective is 600 s" in out


def test_writes_that_the_newest_backup_lacks_are_its_recovery_point(settings: Settings) -> None:
    add(settings, "kept")
    main(["backup"])
    add(settings, "later")
    found = drilled(settings)
    assert found.log
    assert found.backup
    assert (found.log.rows["items"], found.backup.rows["items"]) == (2, 1)
    assert found.log.lacks_seconds == 0 < found.backup.lacks_seconds


def test_damaged_object_is_the_logs_problem_and_the_backup_is_tried_all_the_same(
    settings: Settings, store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    add(settings, "kept")
    main(["backup"])
    before = drilled(settings)
    newest = max(info.name for info in store.objects("ltx/0"))
    path = Path(settings.replica_url.removeprefix("file://")) / newest
    path.write_bytes(spoiled(path.read_bytes()))
    capsys.readouterr()
    assert main(["drill"]) == 1
    assert newest in capsys.readouterr().out
    found = read_drill(store)
    assert found
    assert (found.log, found.duration_seconds) == (None, None)
    assert found.backup
    assert found.last_success == before.last_success < found.at


def test_damaged_backup_is_a_problem_and_the_log_is_restored_all_the_same(settings: Settings) -> None:
    add(settings, "kept")
    main(["backup"])
    backup = next(Path(settings.backup_url.removeprefix("file://")).glob("app-2*.db.gz"))
    backup.write_bytes(gzip.compress(b"no database"))
    found = drilled(settings)
    assert [backup.name in problem for problem in found.problems] == [True]
    assert found.log
    assert (found.backup, found.last_success) == (None, 0)


def test_backup_with_other_rows_than_the_log_at_its_txid_is_a_problem(settings: Settings, tmp_path: Path) -> None:
    image = tmp_path / "image"
    position = open_log(settings.replica_url, Clock()).restore(image)
    with closing(apsw.Connection(str(image))) as connection:
        connection.execute(
            "INSERT INTO items (name, price_cents, quantity, created_at, updated_at, version) "
            "VALUES ('x', 0, 0, '2026-01-01T00:00:00.000000Z', '2026-01-01T00:00:00.000000Z', 1)"
        )
    open_backups(settings).create(image, position)
    assert ["the log at its TXID has" in problem for problem in drilled(settings).problems] == [True]


def test_missing_backup_is_a_problem(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drill"]) == 1
    assert "problem: There is no complete backup" in capsys.readouterr().out


def test_recovery_that_takes_longer_than_the_objective_is_a_problem(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["backup"])
    monkeypatch.setattr(drill, "RTO_SECONDS", 0.0)
    found = drilled(settings)
    assert ["the objective is 0 s" in problem for problem in found.problems] == [True, True]
    assert found.last_success == 0


def test_drill_of_an_empty_log_says_so_and_leaves_it_empty(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REPLICA_URL", f"file://{tmp_path}/empty")
    assert main(["drill"]) == 1
    assert "is empty: there is nothing to restore" in capsys.readouterr().err
    assert not list(tmp_path.glob("empty/*.json"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"at": "yesterday"}',
        '{"at": 9999999999}',
        '{"at": 1, "log": {"source": "x", "txid": "", "rows": {"items": -1}, "seconds": 1, "lacks_seconds": 0}}',
        '{"at": 1, "log": {"source": "x", "txid": "", "rows": {}, "seconds": -1, "lacks_seconds": 0}}',
    ],
)
def test_result_that_cannot_be_believed_is_ignored_with_a_warning(
    store: ObjectStore, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    store.put("drill.json", text.encode())
    assert read_drill(store) is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"{store.url}/drill.json, the result of the last `python -m infra drill`, is ignored" in caplog.text


def test_slower_of_both_ways_is_the_time_to_recover() -> None:
    fast, slow = (Restored("x", "", {}, seconds, 0) for seconds in (1, 2))
    assert Drill(time.time(), log=fast, backup=slow).duration_seconds == 2
    assert Drill(time.time(), log=slow).duration_seconds is None
