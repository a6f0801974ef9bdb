import json
import os
import re
import socket
import time
from contextlib import closing
from dataclasses import asdict

import pytest

from handler.service import open_server_service
from infra.__main__ import main
from infra.maintenance.drill import Drill
from infra.maintenance.report import Report, write_report
from infra.objectives.history_file import HistoryFile
from infra.objectives.status import Condition, moment_text
from infra.settings import Settings
from infra.sqlite.database import SqliteDatabase
from infra.storage.object_store import ObjectStore
from infra.telemetry.metrics import Totals


@pytest.fixture
def served(settings: Settings, monkeypatch: pytest.MonkeyPatch, quick_machine: None) -> SqliteDatabase:
    """By a server that was seen to be well, and whose history is kept."""
    monkeypatch.setenv("DATABASE_PATH", str(settings.database_path))
    service = open_server_service(settings)
    service.watch.resume()
    service.watch.look(Condition())
    assert service.maintenance
    service.maintenance.run()
    service.watch.keep()
    assert isinstance(service.database, SqliteDatabase)
    return service.database


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def test_status_of_a_running_service_is_by_what_it_has_kept(
    served: SqliteDatabase, capsys: pytest.CaptureFixture[str], settings: Settings
) -> None:
    with closing(served):
        assert main(["status"]) == 0
        out = said(capsys)
        assert out.startswith("state            well (since ")
        assert "objective        met      Availability ≥ 99.5 %: " in out
        assert "100 % of the budget left" in out
        file = HistoryFile(settings.database_path)
        history = file.read()
        assert history
        history.noted.degraded, history.noted.state = "the store is away", "degraded"
        history.noted.firing["StoreAway"] = history.noted.since = time.time() - 60
        history.see(time.time(), 10, Totals(locked=1), {})
        file.write(history)
        assert main(["status"]) == 3
        assert "alert            P1 StoreAway since 20" in (out := said(capsys))
        assert "See RUNBOOK.md#alert-storeaway" in out
        assert re.search(r"P2 DatabaseLocked .* The last refused request was at \S+; over by \S+\. See RUNBOOK", out)
        assert main(["status", "--json"]) == 3
        found = json.loads(said(capsys))
        assert (found["state"], found["since"]) == ("degraded", found["alerts"][0]["since"])
        assert {objective["name"] for objective in found["objectives"]} >= {"availability", "rto", "coverage"}
        history.noted.unready, history.noted.degraded = "the file was replaced", ""
        file.write(history)
        assert main(["status"]) == 4


def test_status_of_a_stopped_service_is_down_and_the_time_since_counts(
    served: SqliteDatabase, capsys: pytest.CaptureFixture[str], settings: Settings
) -> None:
    served.close()
    file = HistoryFile(settings.database_path)
    history = file.read()
    assert history
    history.move(-3600)
    file.write(history)
    before = file.path.read_bytes()
    assert main(["status", "--json"]) == 4
    found = json.loads(said(capsys))
    assert (found["state"], found["alerts"][0]["name"]) == ("down", "ServiceDown")
    assert (
        found["reason"]
        == (f"Nobody answers: the service is stopped: nobody has {settings.database_path} open.")
        + found["reason"].partition("open.")[2]
    )
    availability = next(objective for objective in found["objectives"] if objective["name"] == "availability")
    assert availability["values"]["1h"] < 0.01
    assert file.path.read_bytes() == before


def test_service_that_keeps_no_history_hangs_or_cannot_write(
    served: SqliteDatabase, capsys: pytest.CaptureFixture[str], settings: Settings
) -> None:
    file = HistoryFile(settings.database_path)
    history = file.read()
    assert history
    history.until -= 600
    file.write(history)
    with closing(served):
        assert main(["status", "--json"]) == 3
        found = json.loads(said(capsys))
        assert found["alerts"][0]["name"] == "WritesRefused"
        assert f"the service is there, and could not write {file.path} for 10 minutes" in found["reason"]
        assert found["since"] == found["alerts"][0]["since"] == moment_text(history.until)
        os.utime(file.path, (history.until, history.until))
        assert main(["status", "--json"]) == 4
        found = json.loads(said(capsys))
        assert found["alerts"][0]["name"] == "ServiceDown"
        assert "the service has given no sign of life for 10 minutes: it hangs, or has not started" in found["reason"]
        assert found["since"] == found["alerts"][0]["since"] == moment_text(history.until)


def test_server_that_cannot_keep_its_history_says_that_it_is_there(settings: Settings) -> None:
    service = open_server_service(settings)
    with closing(service.database):
        service.watch.resume()
        service.watch.keep()
        file = HistoryFile(settings.database_path)
        os.utime(file.path, (0, 0))
        file.path.with_name(file.path.name + ".new").mkdir()
        service.watch.keep()
        assert file.seen_at() > time.time() - 60


def test_disk_is_asked_and_not_the_history(
    served: SqliteDatabase, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = {"data_volume_free_bytes": 0.0, "data_volume_size_bytes": 100.0}
    monkeypatch.setattr("infra.disk.volume.gauges", lambda directory: full)
    with closing(served):
        assert main(["status"]) == 3
    out = said(capsys)
    assert "P1 WritesRefused" in out
    assert "P2 DiskFilling" in out


def test_drill_that_has_failed_is_said_and_not_what_the_one_before_has_measured(
    served: SqliteDatabase, capsys: pytest.CaptureFixture[str], settings: Settings
) -> None:
    file, store = HistoryFile(settings.database_path), ObjectStore(settings.replica_url)
    history = file.read()
    assert history
    history.noted.gauges["restore_drill_duration_seconds"] = 0.089
    file.write(history)
    store.put("drill.json", json.dumps(asdict(Drill(time.time(), problems=["app-1.db.gz is damaged"]))).encode())
    with closing(served):
        assert main(["status", "--json"]) == 1
    found = json.loads(said(capsys))
    rto = next(objective for objective in found["objectives"] if objective["name"] == "rto")
    assert (rto["values"]["30d"], rto["state"], rto["reason"]) == (None, "broken", "the last drill has failed")
    assert [alert["name"] for alert in found["alerts"]] == ["DrillOld"]
    assert found["problems"] == ["the last restore drill has failed: app-1.db.gz is damaged"]


def test_store_that_stays_silent_is_named_and_asked_once(
    served: SqliteDatabase, capsys: pytest.CaptureFixture[str], s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.operators.status._STORE_SECONDS", 0.2)
    with closing(served), socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{silent.getsockname()[1]}")
        for name, whose in (("BACKUP_URL", "the backups were"), ("REPLICA_URL", "the log was")):
            with monkeypatch.context() as patch:
                patch.setenv(name, s3)
                assert main(["status", "--json"]) == 1
            [problem] = json.loads(said(capsys))["problems"]
            assert problem.startswith(f"{whose} not asked: {s3}: ")
            silent.accept()[0].close()
            silent.setblocking(False)
            with pytest.raises(BlockingIOError):
                silent.accept()
            silent.setblocking(True)


def test_status_without_a_history_is_by_the_rest(
    served: SqliteDatabase, capsys: pytest.CaptureFixture[str], settings: Settings
) -> None:
    HistoryFile(settings.database_path).path.unlink()
    with closing(served):
        assert main(["status", "--json"]) == 0
        found = json.loads(said(capsys))
        assert (found["state"], found["since"]) == ("well", None)
        write_report(ObjectStore(settings.replica_url), Report(problems=["damaged"], unsound=True))
        assert main(["status"]) == 4


def test_service_that_has_stopped_is_down_whatever_else_is_gone(
    served: SqliteDatabase, capsys: pytest.CaptureFixture[str], settings: Settings
) -> None:
    served.close()
    for gone in (HistoryFile(settings.database_path).path, settings.database_path):
        gone.unlink()
        assert main(["status", "--json"]) == 4
        found = json.loads(said(capsys))
        assert (found["state"], found["since"], found["alerts"][0]["name"]) == ("down", None, "ServiceDown")


def test_history_that_is_damaged_is_said_and_harms_no_answer(
    served: SqliteDatabase, capsys: pytest.CaptureFixture[str], settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    HistoryFile(settings.database_path).path.write_bytes(b"garbage")
    with closing(served):
        assert main(["status"]) == 0
    assert main(["status"]) == 4
    assert "is begun anew" in caplog.text
