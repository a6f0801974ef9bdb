"""The function that looks after the log; its runs in the real runtime are in tests/e2e/test_maintenance.py."""

import importlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from core.errors import MaintenanceError
from infra.backups.retention import list_backups
from infra.storage.object_store import ObjectStore
from tests.conftest import open_at
from tests.handler.test_aws_lambda import Context, event

pytestmark = pytest.mark.sqlite_only("maintenance of the log")

Invoke = Callable[[dict[str, Any]], dict[str, Any]]
Start = Callable[[], Invoke]


@pytest.fixture
def log(s3: str) -> str:
    return s3.replace("backups", "log")


@pytest.fixture
def start(s3: str, log: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    for name, value in (("AWS_LAMBDA_FUNCTION_NAME", "maintenance"), ("BACKUP_URL", s3), ("REPLICA_URL", log)):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])

    def start() -> Invoke:
        sys.modules.pop("handler.aws_maintenance", None)
        module = importlib.import_module("handler.aws_maintenance")
        return lambda event: dict(module.handler(event, Context()))

    yield start
    logging.captureWarnings(False)


@pytest.mark.parametrize("name", ["maintain", "eventbridge_scheduled"])
def test_schedule_looks_after_log_and_backups(
    start: Start, log: str, s3: str, tmp_path: Any, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    open_at(tmp_path / "app.db", REPLICA_URL=log).close()
    report = start()(event(name))
    assert (report["problems"], report["verified"]["rows"]["items"]) == ([], 0)
    assert ObjectStore(s3).objects() != []
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    [line] = [line for line in lines if "_aws" in line]
    assert (line["maintenance_runs_total"], line["result"]) == ([1.0], "succeeded")
    [manifest] = [backup for backup in list_backups(ObjectStore(s3)) if backup.complete]
    assert 0 <= line["backup_newest_timestamp_seconds"][0] - manifest.time.timestamp() < 60
    assert line["commit_log_commits_since_snapshot"] == [0.0]


def test_merge_does_no_more(start: Start, log: str, s3: str, tmp_path: Any) -> None:
    open_at(tmp_path / "app.db", REPLICA_URL=log).close()
    assert start()(event("merge")) == {"runs_merged": 0}
    assert ObjectStore(s3).objects() == []


def test_too_little_time_is_no_success(
    start: Start, log: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    open_at(tmp_path / "app.db", REPLICA_URL=log).close()
    invoke = start()
    monkeypatch.setattr(Context, "get_remaining_time_in_millis", lambda _: 0)
    assert invoke(event("maintain"))["unfinished"] is True
    assert '"result": "failed"' in capsys.readouterr().out


def test_problem_fails_the_invocation(start: Start, log: str, tmp_path: Any) -> None:
    open_at(tmp_path / "app.db", REPLICA_URL=log).close()
    ObjectStore(log).put(f"0000/{1:016x}-{1:016x}.ltx", b"damaged")
    with pytest.raises(MaintenanceError, match="is cut short"):
        start()(event("maintain"))


def test_request_is_not_for_this_function(start: Start) -> None:
    with pytest.raises(ValueError, match="unknown event"):
        start()(event("function_url_create"))


@pytest.mark.parametrize("missing", ["REPLICA_URL", "BACKUP_URL"])
def test_start_without_a_place_for_log_or_backups_is_refused(
    start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    monkeypatch.delenv(missing)
    with pytest.raises(SystemExit) as caught:
        start()
    assert caught.value.code == 2
    assert "REPLICA_URL and BACKUP_URL must be set" in capsys.readouterr().out
