import asyncio
import base64
import copy
import importlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.errors import MaintenanceError
from infra.backups import open_backups
from infra.object_store import ObjectStore
from infra.settings import Settings

EVENTS = Path(__file__).parents[1] / "events"
ROOT = Path(__file__).parents[2]

Invoke = Callable[[dict[str, Any]], dict[str, Any]]
Start = Callable[[], Invoke]


class Context:
    function_name = "items"
    memory_limit_in_mb = 1024
    invoked_function_arn = "arn:aws:lambda:eu-central-1:123456789012:function:items"
    aws_request_id = "6f0b1f3e-3a4c-4a3e-9a68-7a4b8a1d2c33"
    tenant_id = None

    def get_remaining_time_in_millis(self) -> int:
        return 60_000


def event(name: str) -> dict[str, Any]:
    return dict(json.loads((EVENTS / f"{name}.json").read_text()))


def request(method: str, path: str, body: str | None = None) -> dict[str, Any]:
    made = copy.deepcopy(event("function_url_create"))
    made["rawPath"] = made["requestContext"]["http"]["path"] = path
    made["requestContext"]["http"]["method"] = method
    made["body"] = body
    return made


@pytest.fixture
def start(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start a function's process anew, as a cold start does: the module is imported again."""
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "items")
    monkeypatch.setenv("BACKUP_URL", s3)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    started = []

    def start() -> Invoke:
        sys.modules.pop("handler.aws_lambda", None)
        module = importlib.import_module("handler.aws_lambda")
        started.append(module)
        return lambda event: dict(module.handler(event, Context()))

    yield start
    logging.captureWarnings(False)
    for module in started:
        module._service.database.close()
        module._loop.close()
    asyncio.set_event_loop(None)


def logged(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("name", ["function_url_create", "rest_api_create"])
def test_create_is_answered_through_every_kind_of_gateway(start: Start, name: str) -> None:
    answer = start()(event(name))
    assert answer["statusCode"] == 201
    assert answer["isBase64Encoded"] is False
    assert json.loads(answer["body"])["price"] == "12.50"
    assert answer["headers"]["location"] == "/api/items/1"


def test_http_api_list_understands_query_and_cookies(start: Start) -> None:
    invoke = start()
    invoke(event("function_url_create"))
    answer = invoke(event("http_api_list"))
    assert [item["name"] for item in json.loads(answer["body"])["items"]] == ["Lamp"]


def test_problem_through_a_load_balancer_is_plain_json(start: Start) -> None:
    answer = start()(event("alb_read_missing"))
    assert (answer["statusCode"], answer["isBase64Encoded"]) == (404, False)
    assert json.loads(answer["body"])["detail"] == "There is no item 999."


def test_swagger_ui_is_served(start: Start) -> None:
    invoke = start()
    assert "swagger-ui" in invoke(request("GET", "/docs"))["body"]
    icon = invoke(request("GET", "/docs/favicon-32x32.png"))
    assert base64.b64decode(icon["body"]).startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["maintain", "eventbridge_scheduled"])
def test_scheduled_event_backs_up_and_a_cold_start_restores(start: Start, name: str) -> None:
    invoke = start()
    invoke(event("function_url_create"))
    assert invoke(event(name))["verified"]["rows"] == {"items": 1}
    invoke(request("POST", "/api/items", '{"name": "after the backup"}'))
    answer = start()(request("GET", "/api/items"))
    assert [item["name"] for item in json.loads(answer["body"])["items"]] == ["Lamp"]


def test_backup_of_an_earlier_instance_does_not_count_though_its_log_ended_at_the_same_number(start: Start) -> None:
    invoke = start()
    invoke(event("function_url_create"))
    first = invoke(event("maintain"))
    invoke = start()
    database, quantity = sys.modules["handler.aws_lambda"]._service.database, 0
    while f"{database.txid:016x}" < first["txid"]:
        quantity += 1
        invoke(request("PATCH", "/api/items/1", json.dumps({"quantity": quantity})))
    second = invoke(event("maintain"))
    assert (second["txid"], second["backup"] != "") == (first["txid"], True)
    assert json.loads(start()(request("GET", "/api/items/1"))["body"])["quantity"] == quantity


def test_each_process_has_a_directory_of_its_own(start: Start) -> None:
    paths = set()
    for _ in range(2):
        start()
        paths.add(sys.modules["handler.aws_lambda"]._service.database.path)
    assert len(paths) == 2


def test_runtimes_that_were_killed_or_failed_leave_no_databases_behind(
    s3: str, moto_endpoint: str, tmp_path: Path
) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "AWS_LAMBDA_FUNCTION_NAME": "items"}
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", "import handler.aws_lambda, sys; print('here', flush=True); sys.stdin.read()"],
            cwd=ROOT,
            env={**environment, "REPLICA_URL": f"{s3}-log"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as runtime:
            assert runtime.stdout
            assert any(line == b"here\n" for line in runtime.stdout)
            assert len(list(tmp_path.glob("*/app.db"))) == 1
            runtime.kill()
    assert len(list(tmp_path.iterdir())) == 1
    failed = subprocess.run(
        [sys.executable, "-c", "import handler.aws_lambda"],
        cwd=ROOT,
        env={**environment, "REPLICA_URL": "s3://absent/log"},
        capture_output=True,
    )
    assert failed.returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_log_lines_carry_correlation_id_and_cold_start(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    invoke = start()
    starting = logged(capsys)
    assert any("backup-only mode" in line["message"] for line in starting)
    assert any("starting with an empty database" in line["message"] for line in starting)
    invoke(event("function_url_create"))
    line = next(line for line in logged(capsys) if line.get("path") == "/api/items")
    assert line["correlation_id"] == "5a1c4e7e-9a41-4a5b-8b0e-2f6f6f0f6d11"
    assert line["request_id"] == Context.aws_request_id
    assert line["function_name"] == "items"
    assert isinstance(line["cold_start"], bool)
    invoke(event("alb_read_missing"))
    line = next(line for line in logged(capsys) if "status_code" in line)
    assert line["correlation_id"].startswith("Root=1-")
    assert line["cold_start"] is False


def test_metrics_are_one_embedded_line_per_invocation(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    invoke = start()
    capsys.readouterr()
    invoke(event("function_url_create"))
    line = next(line for line in logged(capsys) if "_aws" in line)
    assert line["Requests"] == line["ColdStart"] == [1.0]
    assert invoke(request("GET", "/metrics"))["statusCode"] == 200


def test_event_of_another_kind_is_refused(start: Start) -> None:
    with pytest.raises(ValueError, match="unknown event"):
        start()({"Records": []})


def test_failed_maintenance_fails_the_invocation(start: Start) -> None:
    invoke = start()
    invoke(event("function_url_create"))
    log = sys.modules["handler.aws_lambda"]._service.database.path.parent / "replica"
    (log / "ltx" / "0" / f"{2:016x}-{2:016x}.ltx").write_bytes(b"damaged")
    with pytest.raises(MaintenanceError, match=str(log)):
        invoke(event("maintain"))


def test_merge_event_merges_and_does_no_more(start: Start, s3: str) -> None:
    invoke = start()
    for n in range(16):
        invoke(request("POST", "/api/items", json.dumps({"name": f"item {n}"})))
    assert invoke(event("merge")) == {"runs_merged": 1}
    assert invoke(event("merge")) == {"runs_merged": 0}
    assert ObjectStore(s3).objects() == []


@pytest.mark.parametrize("name", ["maintain", "merge", "eventbridge_scheduled"])
def test_with_a_log_maintenance_is_another_functions(
    start: Start, s3: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("REPLICA_URL", s3.replace("backups", "log"))
    with pytest.raises(ValueError, match="unknown event: expected an HTTP request"):
        start()(event(name))
    assert ObjectStore(s3).objects() == []


def test_cold_start_refuses_what_would_lose_data(
    start: Start, s3: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backups = open_backups(Settings.from_environment({"BACKUP_URL": s3}))
    start()(event("maintain"))
    newest = backups.newest()
    assert newest is not None
    backups.store.put(newest.name, b"damaged")
    for url, message in ((s3, "is damaged"), ("s3://nowhere/x", "no such bucket"), ("", "REPLICA_URL must be set")):
        monkeypatch.setenv("BACKUP_URL", url)
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            start()
        assert caught.value.code == 2
        assert message in logged(capsys)[-1]["message"]


def test_with_a_log_every_acknowledged_write_outlives_the_instance(
    start: Start, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPLICA_URL", s3.replace("backups", "log"))
    first, second = start(), start()
    for n in range(3):
        for invoke in (first, second):
            assert invoke(request("POST", "/api/items", json.dumps({"name": f"item {n}"})))["statusCode"] == 201
    for invoke in (first, second, start()):
        answer = invoke(request("GET", "/api/items"))
        assert [item["id"] for item in json.loads(answer["body"])["items"]] == [1, 2, 3, 4, 5, 6]
        assert answer["headers"]["x-commit-txid"] == f"{8:016x}"


def test_private_log_of_backup_only_mode_is_not_shown(start: Start) -> None:
    assert "x-commit-txid" not in start()(event("function_url_create"))["headers"]


@pytest.mark.parametrize(("field", "value"), [("rawQueryString", "q=\ud800"), ("body", "\ud800"), ("body", "é")])
def test_event_that_is_no_request_is_400(start: Start, field: str, value: str) -> None:
    made = request("POST", "/api/items", "{}")
    made[field] = value
    made["isBase64Encoded"] = value == "é"
    answer = start()(made)
    assert answer["statusCode"] == 400
    assert json.loads(answer["body"])["request_id"] == answer["headers"]["x-request-id"]
