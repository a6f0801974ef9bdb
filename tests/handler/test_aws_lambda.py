import asyncio
import base64
import copy
import gzip
import importlib
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest

from core.errors import MaintenanceError
from handler import gateways
from handler.callers.iam import verified_arn
from infra.__main__ import main
from infra.backups.backups import open_backups
from infra.objectives.status import Condition
from infra.settings import Settings
from infra.storage.object_store import ObjectStore
from tests.collector import collecting
from tests.postgresql import Cluster

EVENTS = Path(__file__).parents[1] / "events"
ROOT = Path(__file__).parents[2]

# What most requests to a function do not need, so that no cold start waits for it
NOT_AT_A_START = {
    "argparse",
    "boto3",
    "cryptography",
    "flask_swagger_ui",
    "handler.openapi.document",
    "infra.backups",
    "infra.maintenance",
    "infra.objectives.watch",
    "infra.operators",
    "infra.postgresql",
    "jinja2",
    "joserfc",
    "multiprocessing",
    "opentelemetry",
    "prometheus_client",
    "psycopg",
    "tqdm",
    "urllib.request",
    "uvicorn",
}
MOST_MODULES_AT_A_START = 550

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
    monkeypatch.setenv("AUTH_MODE", "none")
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


def test_cold_start_loads_only_what_a_request_needs(tmp_path: Path) -> None:
    script = (
        "import json, sys, handler.aws_lambda ; from core.schemas import NewItem;"
        "print(json.dumps([NewItem.__pydantic_complete__, *sys.modules]))"
    )
    environment = os.environ | {
        **{"AWS_LAMBDA_FUNCTION_NAME": "items", "AUTH_MODE": "keys", "TMPDIR": str(tmp_path)},
        **{"REPLICA_URL": (tmp_path / "log").as_uri(), "BACKUP_URL": ""},
    }
    for name in [name for name in environment if name.startswith(("COV_CORE_", "COVERAGE_"))]:
        del environment[name]  # what measures the tests brings modules of its own
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    is_built, *loaded = json.loads(done.stdout.splitlines()[-1])
    assert not is_built
    assert {name for name in NOT_AT_A_START if name in loaded} == set()
    assert len(loaded) <= MOST_MODULES_AT_A_START


@pytest.mark.parametrize("name", ["function_url_create", "rest_api_create"])
def test_create_is_answered_through_every_kind_of_gateway(start: Start, name: str) -> None:
    answer = start()(event(name))
    assert answer["statusCode"] == 201
    assert answer["isBase64Encoded"] is False
    assert json.loads(answer["body"])["price"] == "12.50"
    assert answer["headers"]["location"] == ("/prod/api/items/1" if name == "rest_api_create" else "/api/items/1")


def test_function_serves_from_postgresql(
    start: Start, migrated_url: str, postgresql: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BACKUP_URL")
    monkeypatch.setenv("DATABASE_URL", migrated_url)
    invoke = start()
    answer = invoke(event("function_url_create"))
    assert (answer["statusCode"], "x-commit-txid" in answer["headers"]) == (201, False)
    with postgresql.away():  # between two invocations
        pass
    assert json.loads(invoke(request("GET", "/api/items/1"))["body"])["price"] == "12.50"


@pytest.mark.usefixtures("quick_machine")
def test_instance_says_of_its_status_that_it_is_its_own(start: Start) -> None:
    invoke = start()
    for _ in range(2):
        invoke(event("function_url_create"))
    module = sys.modules["handler.aws_lambda"]
    assert "watch" not in vars(module._service), "made at a cold start"
    found = json.loads(invoke(request("GET", "/ops/status"))["body"])
    assert (found["state"], found["service"]["per_instance"], found["not_asked"]) == ("well", True, [])
    objectives = {objective["name"]: objective for objective in found["objectives"]}
    assert objectives["error_rate"]["per_instance"]
    assert objectives["error_rate"]["values"]["5m"] == 0
    assert objectives["availability"]["values"]["5m"] is None
    assert objectives["availability"]["reason"].startswith("an instance on Lambda comes and goes")
    assert not objectives["rpo_backup"]["per_instance"]
    assert len(found["log"]["commits"]) == 0  # of a log that only this instance has
    assert json.loads(invoke(request("GET", "/ops/history"))["body"])["step_seconds"] == 60


def test_invocations_look_as_often_as_a_server(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    invoke = start()
    module: Any = sys.modules["handler.aws_lambda"]
    looks: list[Condition] = []
    monkeypatch.setattr(module._service.watch, "look", looks.append)
    invoke(request("GET", "/health"))
    assert looks == []
    module._looked -= 10
    for _ in range(2):
        invoke(request("GET", "/health"))
    assert looks == [Condition()]


def test_batch_is_one_commit_of_a_function_too(start: Start) -> None:
    invoke = start()
    answer = invoke(request("POST", "/api/items/batch", json.dumps({"items": [{"name": "a"}, {"name": "b"}]})))
    assert answer["statusCode"] == 201
    assert [item["id"] for item in json.loads(answer["body"])["items"]] == [1, 2]


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
    assert invoke(event(name))["verified"]["rows"]["items"] == 1
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
    environment = {**os.environ, "TMPDIR": str(tmp_path), "AWS_LAMBDA_FUNCTION_NAME": "items", "AUTH_MODE": "none"}
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
    assert line["http_requests_total"] == line["cold_starts_total"] == [1.0]
    assert invoke(request("GET", "/metrics"))["statusCode"] == 200


def test_event_of_another_kind_is_refused(start: Start) -> None:
    invoke = start()
    edge: dict[str, Any] = {"Records": [{"cf": {"request": {}}}]}
    context = event("function_url_create")["requestContext"]
    others: list[Any] = [{"Records": []}, edge, edge | {"requestContext": context}, {"requestContext": 1}, [], None]
    for other in others:
        with pytest.raises(ValueError, match="unknown event"):
            invoke(other)


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


@pytest.mark.parametrize(
    ("field", "value", "detail"),
    [
        ("rawQueryString", "q=\ud800", "text that is not UTF-8"),
        ("body", "\ud800", "text that is not UTF-8"),
        ("body", "é", "The body is not base64"),
        ("body", "abc", "The body is not base64"),
    ],
)
def test_event_that_is_no_request_is_400_and_says_why(start: Start, field: str, value: str, detail: str) -> None:
    made = request("POST", "/api/items", "{}")
    made[field] = value
    made["isBase64Encoded"] = "base64" in detail
    answer = start()(made)
    assert answer["statusCode"] == 400
    problem = json.loads(answer["body"])
    assert detail in problem["detail"]
    assert problem["code"] == ("malformed_body" if "base64" in detail else "malformed_request")
    assert problem["request_id"] == answer["headers"]["x-request-id"]


@pytest.mark.parametrize("name", ["function_url_create", "rest_api_create", "alb_read_missing"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("headers", {"accept": 1}),
        ("headers", "text"),
        ("multiValueHeaders", {"accept": "text"}),
        ("queryStringParameters", []),
        ("multiValueQueryStringParameters", {"q": [None]}),
        ("body", {"name": "x"}),
        ("isBase64Encoded", "yes"),
        ("cookies", "a=1"),
    ],
)
def test_event_that_no_gateway_sends_is_400_and_names_the_field(
    start: Start, name: str, field: str, value: object
) -> None:
    answer = start()(event(name) | {field: value})
    assert answer["statusCode"] == 400
    assert f"no gateway sends such a {field}" in json.loads(answer["body"])["detail"]


@pytest.mark.parametrize(
    ("name", "gone"), [("function_url_create", "http"), ("rest_api_create", "path"), ("alb_read_missing", "httpMethod")]
)
def test_event_that_lacks_what_makes_a_request_is_400(start: Start, name: str, gone: str) -> None:
    made = event(name)
    made.pop(gone, None)
    made["requestContext"].pop(gone, None)
    answer = start()(made)
    assert answer["statusCode"] == 400
    assert f"it lacks {'requestContext.http.method' if gone == 'http' else gone}" in answer["body"]


ODD_HEADERS = {
    "x-forwarded-port": ["443,80", "", "x"],
    "host": ["", "a:b", "a:b:c", "[::1]", "[::1]:3000", "example.com:", "example.com:99999999999"],
    "x-forwarded-proto": ["https,http", ""],
    "x-forwarded-for": ["203.0.113.7, unknown", ""],
}


@pytest.mark.parametrize("name", ["function_url_create", "rest_api_create", "alb_read_missing", "http_api_list"])
def test_headers_that_nothing_here_needs_stop_no_request(start: Start, name: str) -> None:
    invoke = start()
    usual = invoke(event(name))["statusCode"]
    assert usual < 500
    for field, values in ODD_HEADERS.items():
        for value in values:
            made = event(name)
            made["headers"] = {key: kept for key, kept in made["headers"].items() if key.lower() != field}
            made["headers"][field] = value
            if "multiValueHeaders" in made:
                made["multiValueHeaders"].pop(field.title(), None)
                made["multiValueHeaders"][field] = [value]
            assert invoke(made)["statusCode"] == usual, (field, value)


def from_address(name: str, address: str, forwarded: str) -> dict[str, Any]:
    """What the gateway makes of a request from there, whose sender had written `forwarded` before."""
    made = copy.deepcopy(event(name))
    if "elb" in made["requestContext"]:
        made["headers"]["x-forwarded-for"] = f"{forwarded}, {address}"
        return made
    made["headers"] = {key: value for key, value in made["headers"].items() if key.lower() != "x-forwarded-for"}
    made["headers"]["x-forwarded-for"] = forwarded
    if "multiValueHeaders" in made:
        made["multiValueHeaders"].pop("X-Forwarded-For")
        made["multiValueHeaders"]["x-forwarded-for"] = [forwarded]
    made["requestContext"].get("http", made["requestContext"].get("identity"))["sourceIp"] = address
    return made


@pytest.mark.parametrize("name", ["function_url_create", "rest_api_create", "alb_read_missing", "http_api_list"])
def test_rate_counts_for_the_address_that_the_gateway_was_called_from(
    start: Start, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("RATE_LIMIT", "0.001")
    monkeypatch.setenv("RATE_BURST", "2")
    invoke = start()
    claims = ("203.0.113.1", "203.0.113.2", "203.0.113.3", "")
    answers = [invoke(from_address(name, "192.0.2.1", claim)) for claim in claims]
    assert [answer["statusCode"] == 429 for answer in answers] == [False, False, True, True]
    assert json.loads(answers[2]["body"])["code"] == "rate_limited"
    assert invoke(from_address(name, "192.0.2.2", "192.0.2.1"))["statusCode"] != 429


def test_answers_have_the_security_headers_whoever_makes_them(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HSTS_SECONDS", "60")
    invoke = start()
    refused = invoke({**request("POST", "/api/items"), "body": "a", "isBase64Encoded": True})
    served = invoke(event("http_api_list"))
    for answer, status, kept in ((served, 200, "private, no-cache"), (refused, 400, "no-store")):
        assert answer["statusCode"] == status
        assert answer["headers"]["x-content-type-options"] == "nosniff"
        assert answer["headers"]["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert answer["headers"]["cache-control"] == kept
    assert json.loads(refused["body"])["detail"] == "The body is not base64, as the event says."
    assert served["headers"]["strict-transport-security"] == "max-age=60"


def test_event_without_headers_is_served(start: Start) -> None:
    """As the console's test of a method sends it."""
    assert start()({**event("rest_api_create"), "headers": None, "multiValueHeaders": None})["statusCode"] == 415


def http_api(outside: str, stage: str, domain: str, version: str) -> dict[str, Any]:
    """HTTP API: `outside` has its named stage in front, whatever the domain."""
    made = event("http_api_list" if version == "2.0" else "rest_api_create") | {"version": version}
    made["requestContext"] |= {"stage": stage, "domainName": domain}
    if version == "2.0":
        made["rawPath"] = made["requestContext"]["http"]["path"] = outside
    else:
        made["path"] = made["requestContext"]["path"] = outside
        made |= {"resource": "$default", "pathParameters": None}
    return made


def rest_api(outside: str, path: str, resource: str, parameters: dict[str, str] | None) -> dict[str, Any]:
    made = event("rest_api_create")
    made |= {"path": path, "resource": resource, "pathParameters": parameters}
    made["requestContext"] |= {"path": outside, "resourcePath": resource}
    return made


OWN = "http-api.example.com"
PROXY = "/{proxy+}"
EVENTS_AT = {
    "HTTP API": (http_api("/api/items", "$default", "a1b2c3d4e5.execute-api.x.amazonaws.com", "2.0"), ""),
    "named stage": (http_api("/prod/api/items", "prod", "a1b2c3d4e5.execute-api.x.amazonaws.com", "2.0"), "/prod"),
    "stage called api": (http_api("/api/api/items", "api", "a1b2c3d4e5.execute-api.x.amazonaws.com", "2.0"), "/api"),
    "named stage, own domain": (http_api("/prod/api/items", "prod", OWN, "2.0"), ""),
    "payload 1.0": (http_api("/prod/api/items", "prod", "f6g7h8i9j0.execute-api.x.amazonaws.com", "1.0"), "/prod"),
    "REST": (rest_api("/prod/api/items", "/api/items", PROXY, {"proxy": "api/items"}), "/prod"),
    "REST, own domain": (rest_api("/api/items", "/api/items", PROXY, {"proxy": "api/items"}), ""),
    "REST, base path": (rest_api("/v1/api/items", "/v1/api/items", PROXY, {"proxy": "api/items"}), "/v1"),
    "REST, nested base path": (rest_api("/a/b/api/items", "/a/b/api/items", PROXY, {"proxy": "api/items"}), "/a/b"),
    "REST, base path called api": (rest_api("/api/api/items", "/api/api/items", PROXY, {"proxy": "api/items"}), "/api"),
    "REST, resources": (rest_api("/prod/api/items", "/api/items", "/api/{what}", {"what": "items"}), "/prod"),
}


@pytest.mark.parametrize("name", EVENTS_AT)
def test_location_is_where_the_caller_finds_the_item(start: Start, name: str) -> None:
    made, outside = EVENTS_AT[name]
    created = event("rest_api_create")
    made = copy.deepcopy(made) | {"body": created["body"], "isBase64Encoded": True}
    made["headers"] = created["headers"]
    if "http" in made["requestContext"]:
        made["requestContext"]["http"]["method"] = "POST"
    answer = start()(made)
    assert (answer["statusCode"], answer["headers"].get("location")) == (201, f"{outside}/api/items/1"), answer


GATEWAYS = ["function URL", "REST", "load balancer"]


def through(gateway: str, method: str, path: str, **headers: str) -> dict[str, Any]:
    made = {
        "function URL": request(method, path),
        "REST": rest_api(f"/prod{path}", path, PROXY, {"proxy": path[1:]}),
        "load balancer": event("alb_read_missing") | {"path": path},
    }[gateway]
    made |= {"httpMethod": method, "body": None, "isBase64Encoded": False, "headers": headers}
    if "multiValueHeaders" in made:
        made["multiValueHeaders"] = {name: [value] for name, value in headers.items()}
    return made


@pytest.mark.parametrize("gateway", GATEWAYS)
def test_conditions_count_through_every_kind_of_gateway(start: Start, gateway: str) -> None:
    invoke = start()
    tag = invoke(event("function_url_create"))["headers"]["etag"]
    ask = partial(through, gateway, path="/api/items/1")
    known = invoke(ask("GET", **{"if-none-match": f'"other", W/{tag}'}))
    assert (known["statusCode"], known["headers"]["etag"], known["body"]) == (304, tag, "")
    for value, status in (('"other"', 412), ("\N{LATIN SMALL LETTER E WITH ACUTE}", 400), (tag, 204)):
        assert invoke(ask("DELETE", **{"if-match": value}))["statusCode"] == status


def test_problem_names_the_address_that_the_caller_used(start: Start) -> None:
    made = rest_api("/v1/nowhere", "/v1/nowhere", PROXY, {"proxy": "nowhere"})
    assert json.loads(start()(made)["body"])["instance"] == "/v1/nowhere"
    invoke = start()
    for path in ("/v1", "/v1/"):
        assert invoke(rest_api(path, path, "/", None))["statusCode"] == 404


def test_page_states_the_limits() -> None:
    page = (EVENTS.parents[1] / "docs/lambda.md").read_text()
    assert f"| function URL | {gateways.FUNCTION_LIMIT // 10**6} MB |" in page
    assert f"| load balancer (ALB) | {gateways.LOAD_BALANCER_LIMIT // 10**6} MB |" in page


def test_pages_find_their_parts_behind_a_stage(start: Start) -> None:
    invoke = start()

    def get(path: str) -> dict[str, Any]:
        made = rest_api(f"/prod{path}", path, PROXY, {"proxy": path[1:]})
        return invoke(made | {"httpMethod": "GET", "body": None, "isBase64Encoded": False})

    links = [
        link for page in ("/docs", "/dashboard") for link in re.findall(r'(?:src|href)="([^"]+)"', get(page)["body"])
    ]
    assert {"docs/start.js", "dashboard/page.js"} <= set(links)
    for link in links:
        address = urljoin("https://x/prod/docs", link).removeprefix("https://x/prod")
        assert get(address)["statusCode"] == 200, link
    server = json.loads(get("/openapi.json")["body"])["servers"][0]["url"]
    assert urljoin("https://x/prod/openapi.json", server) == "https://x/prod/"


def long_items(invoke: Invoke) -> None:
    for n in range(100):
        body = json.dumps({"name": f"item {n}", "description": "\N{GRINNING FACE}" * 2000})
        assert invoke(request("POST", "/api/items", body))["statusCode"] == 201


def test_long_answer_is_compressed_for_who_asks(start: Start) -> None:
    invoke = start()
    long_items(invoke)
    made = event("alb_read_missing") | {"path": "/api/items", "queryStringParameters": {"limit": "100"}}
    refused = invoke(made)
    assert refused["statusCode"] == 413
    problem = json.loads(refused["body"])
    assert problem["code"] == "answer_too_large"
    assert "1000000 at most" in problem["detail"]
    assert problem["request_id"] == refused["headers"]["x-request-id"]
    multiple = made | {"multiValueHeaders": {"host": ["x"]}, "multiValueQueryStringParameters": {"limit": ["100"]}}
    assert invoke(multiple)["multiValueHeaders"]["content-type"] == ["application/problem+json"]
    made["headers"]["accept-encoding"] = "gzip, br"
    answer = invoke(made)
    assert (answer["statusCode"], answer["isBase64Encoded"]) == (200, True)
    assert answer["headers"]["content-encoding"] == "gzip"
    assert len(json.dumps(answer)) < 1_000_000
    assert len(json.loads(gzip.decompress(base64.b64decode(answer["body"])))["items"]) == 100


@pytest.mark.parametrize("gateway", GATEWAYS)
def test_export_is_one_answer_or_says_that_it_would_not_fit(
    start: Start, gateway: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    invoke = start()
    batch = json.dumps({"items": [{"name": "x" * 200, "description": "\N{GRINNING FACE}" * 400}] * 100})
    assert invoke(request("POST", "/api/items/batch", batch))["statusCode"] == 201
    made = through(gateway, "GET", "/api/items/export")
    answer = invoke(made)
    assert (answer["statusCode"], answer["isBase64Encoded"]) == (200, False)
    assert [json.loads(line)["id"] for line in answer["body"].splitlines()] == list(range(1, 101))
    assert invoke(through(gateway, "GET", "/api/items/export", accept="text/csv"))["body"].startswith("id,name,")
    for limit in ("FUNCTION_LIMIT", "LOAD_BALANCER_LIMIT"):
        monkeypatch.setattr(gateways, limit, 100_000)
    refused = invoke(made)
    problem = json.loads(refused["body"])
    assert (refused["statusCode"], problem["code"]) == (413, "answer_too_large")
    assert "page by page" in problem["detail"]  # found out before all of it was made: that would be another detail


def test_docs_pass_a_load_balancer_for_a_browser_and_say_why_not_for_others(start: Start) -> None:
    invoke = start()
    made = event("alb_read_missing") | {"path": "/docs/swagger-ui-bundle.js"}
    plain = invoke(made)
    assert len(json.dumps(plain)) < 1_000_000
    made["headers"]["accept-encoding"] = "gzip, deflate, br, zstd"
    answer = invoke(made)
    assert (answer["statusCode"], answer["headers"]["content-encoding"]) == (200, "gzip")
    assert len(json.dumps(answer)) < 1_000_000


def test_rest_api_gets_no_compressed_answer_since_it_would_hand_on_base64(start: Start) -> None:
    made = rest_api("/prod/docs/swagger-ui.css", "/docs/swagger-ui.css", PROXY, {"proxy": "docs/swagger-ui.css"})
    for headers, value in (("headers", "gzip"), ("multiValueHeaders", ["gzip"])):
        made[headers]["Accept-Encoding"] = value
    made |= {"httpMethod": "GET", "body": None, "isBase64Encoded": False}
    answer = start()(made)
    assert (answer["statusCode"], answer["isBase64Encoded"]) == (200, False)


# Who may come in

ARN = "arn:aws:iam::123456789012:user/somebody"
_NAMED = {"accessKey": "AKIAEXAMPLE", "accountId": "123456789012", "userArn": ARN}
IDENTITIES = {
    "function_url_create": {"authorizer": {"iam": {**_NAMED, "cognitoIdentity": None, "principalOrgId": None}}},
    "http_api_list": {"authorizer": {"iam": {**_NAMED, "cognitoIdentity": None, "principalOrgId": "o-1"}}},
    "rest_api_create": {"identity": {**_NAMED, "sourceIp": "203.0.113.7", "user": "AIDA", "caller": "AIDA"}},
}


def signed(name: str, path: str = "", arn: str = ARN) -> dict[str, Any]:
    """What AWS makes of a request whose signature is right."""
    made = event(name)
    made["requestContext"] |= json.loads(json.dumps(IDENTITIES[name]).replace(ARN, arn))
    if path:
        made["rawPath"] = made["requestContext"]["http"]["path"] = path
        made["requestContext"]["http"]["method"] = "GET"
    return made


@pytest.fixture
def iam(monkeypatch: pytest.MonkeyPatch, s3: str) -> None:
    monkeypatch.setenv("REPLICA_URL", f"{s3}-log")
    monkeypatch.setenv("AUTH_MODE", "iam")
    monkeypatch.setenv("IAM_OPS_ARNS", "arn:aws:sts::1:assumed-role/Operators/*, arn:aws:iam::1:user/root")


@pytest.mark.parametrize("name", IDENTITIES)
def test_identity_that_aws_has_verified_comes_in(
    start: Start, iam: None, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    invoke = start()
    assert invoke(signed(name))["statusCode"] in (200, 201)
    (line,) = [line for line in logged(capsys) if "status_code" in line]
    assert line["caller"] == ARN


FORGED = [
    {},
    {"authorizer": None},
    {"authorizer": {}},
    {"authorizer": {"iam": None}},
    {"authorizer": {"iam": {"userArn": None}}},
    {"authorizer": {"iam": {"userArn": ""}}},
    {"authorizer": {"iam": "arn:aws:iam::1:user/x"}},
    {"authorizer": "iam"},
    {"authorizer": {"lambda": {"iam": {"userArn": ARN}, "userArn": ARN}}},
    {"authorizer": {"jwt": {"claims": {"sub": "x", "userArn": ARN}, "scopes": ["read", "write"]}}},
    {"authorizer": {"principalId": "x", "userArn": ARN, "claims": {"sub": "x"}}},
    {"identity": {"userArn": None, "sourceIp": "203.0.113.7"}},
    {"identity": {"sourceIp": "203.0.113.7", "apiKey": "x", "cognitoIdentityId": "x", "caller": "x", "user": "x"}},
    {"identity": {"sourceIp": "203.0.113.7", "userArn": [ARN]}},
    {"userArn": ARN},
]


@pytest.mark.parametrize("name", [*IDENTITIES, "alb_read_missing"])
def test_without_such_an_identity_nobody_comes_in(iam_function: Invoke, name: str) -> None:
    """As behind a function URL with AuthType NONE."""
    headers = {"x-amzn-iam-userarn": ARN, "authorization": f"AWS4-HMAC-SHA256 Credential={ARN}", "x-user-arn": ARN}
    for context in FORGED:
        made = event(name)
        made["requestContext"] |= context
        made["headers"] = {**(made.get("headers") or {}), **headers}
        answer = iam_function(made)
        assert answer["statusCode"] == 403, context
        assert json.loads(answer["body"])["code"] == "forbidden"


@pytest.fixture
def iam_function(start: Start, iam: None) -> Invoke:
    return start()


def test_operators_are_named_by_their_arns(iam_function: Invoke) -> None:
    for arn, status in (
        ("arn:aws:sts::1:assumed-role/Operators/anna", 200),
        ("arn:aws:iam::1:user/root", 200),
        ("arn:aws:sts::1:assumed-role/Operator", 403),
        ("arn:aws:iam::1:user/root2", 403),
        (ARN, 403),
    ):
        assert iam_function(signed("function_url_create", "/metrics", arn))["statusCode"] == status, arn
    assert iam_function(request("GET", "/health"))["statusCode"] == 200


def keyed(method: str, path: str, key: str, body: str | None = None) -> dict[str, Any]:
    made = request(method, path, body)
    made["headers"] = {**made["headers"], "x-api-key": key}
    return made


def test_keys_come_in_behind_a_signature_too(
    start: Start, s3: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REPLICA_URL", f"{s3}-log")
    monkeypatch.setenv("AUTH_MODE", "keys")
    invoke = start()
    capsys.readouterr()
    assert main(["keys", "create", "x", "--scope", "write"]) == 0
    key = capsys.readouterr().out.split()[-1]
    for headers in ({"x-api-key": key, "authorization": "AWS4-HMAC-SHA256 x"}, {"authorization": f"Bearer {key}"}):
        made = request("POST", "/api/items", '{"name": "x"}')
        made["headers"] = {**made["headers"], **headers}
        assert invoke(made)["statusCode"] == 201
    answer = invoke(request("GET", "/api/items"))
    assert answer["statusCode"] == 401
    assert answer["headers"]["www-authenticate"] == 'Bearer realm="cloud-native-poc"'
    assert invoke(keyed("GET", "/api/items", key))["statusCode"] == 403
    assert key.split("_")[2] not in capsys.readouterr().out


def test_a_keys_request_asks_the_store_once(
    start: Start, s3: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the day of its last use costs one commit, of the first request."""
    monkeypatch.setenv("REPLICA_URL", f"{s3}-log")
    invoke = start()
    asked: list[str] = []

    def noting(verb: str) -> Callable[..., Any]:
        method = getattr(ObjectStore, verb)

        def noted(*arguments: Any, **options: Any) -> Any:
            asked.append(verb)
            return method(*arguments, **options)

        return noted

    for verb in ("read", "read_range", "read_end", "objects", "create"):
        monkeypatch.setattr(ObjectStore, verb, noting(verb))

    def questions(event: dict[str, Any]) -> list[str]:
        asked.clear()
        assert invoke(event)["statusCode"] in (200, 201)
        return list(asked)

    open_read = questions(request("GET", "/api/items"))
    open_write = questions(request("POST", "/api/items", '{"name": "x"}'))
    monkeypatch.setenv("AUTH_MODE", "keys")
    capsys.readouterr()
    main(["keys", "create", "x", "--scope", "read", "--scope", "write"])
    key = capsys.readouterr().out.split()[-1]
    invoke = start()
    assert "create" in questions(keyed("GET", "/api/items", key))
    assert len(questions(keyed("GET", "/api/items", key))) == len(open_read)
    assert len(questions(keyed("POST", "/api/items", key, '{"name": "x"}'))) == len(open_read + open_write)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"AUTH_MODE": ""}, "AUTH_MODE is not set: say whom the function lets in"),
        ({"AUTH_MODE": "keys"}, "AUTH_MODE=keys needs REPLICA_URL"),
    ],
)
def test_function_does_not_start_before_it_is_said_whom_it_lets_in(
    start: Start,
    environment: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        start()
    assert ended.value.code == 2
    assert message in logged(capsys)[-1]["message"]


# Tokens that the HTTP API has verified


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch, s3: str) -> None:
    monkeypatch.setenv("REPLICA_URL", f"{s3}-log")
    monkeypatch.setenv("AUTH_MODE", "jwt")
    monkeypatch.setenv("JWT_SCOPE_PREFIX", "items/")


@pytest.fixture
def jwt_function(start: Start, tokens: None) -> Invoke:
    return start()


def with_claims(claims: Any, method: str = "GET", path: str = "/api/items", body: str | None = None) -> dict[str, Any]:
    made = event("http_api_list")
    made["rawPath"] = made["requestContext"]["http"]["path"] = path
    made["requestContext"]["http"]["method"] = method
    made["body"] = body
    made["headers"] = {**made["headers"], "content-type": "application/json"}
    made["requestContext"]["authorizer"] = {"jwt": {"claims": claims, "scopes": None}}
    return made


def test_claims_that_the_http_api_has_verified_come_in(
    start: Start, tokens: None, capsys: pytest.CaptureFixture[str]
) -> None:
    invoke = start()
    claims = {"sub": "somebody", "iss": "https://login.example", "exp": "1700000000", "scope": "items/read openid"}
    assert invoke(with_claims(claims))["statusCode"] == 200
    assert invoke(with_claims(claims, "POST", body='{"name": "x"}'))["statusCode"] == 403
    listed = {"sub": "somebody", "scp": "[items/write items/ops]"}  # as the event has a list
    assert invoke(with_claims(listed, "POST", body='{"name": "x"}'))["statusCode"] == 201
    assert invoke(with_claims(listed, path="/metrics"))["statusCode"] == 200
    assert {line["caller"] for line in logged(capsys) if "status_code" in line} == {"somebody"}


@pytest.mark.parametrize("claims", [None, [], "x", {}, {"sub": ""}, {"sub": None}, {"sub": 7}, {"scope": "items/read"}])
def test_without_claims_nobody_comes_in(jwt_function: Invoke, claims: Any) -> None:
    assert jwt_function(with_claims(claims))["statusCode"] == 401


def test_token_that_nobody_has_verified_lets_nobody_in(jwt_function: Invoke) -> None:
    """Of a function URL, say: what the header holds is the caller's word."""
    for made in (request("GET", "/api/items"), signed("function_url_create", "/api/items"), event("alb_read_missing")):
        claimed = base64.urlsafe_b64encode(b'{"sub": "x", "scope": "items/read"}').decode()
        made["headers"] = {**(made.get("headers") or {}), "authorization": f"Bearer e30.{claimed}.x"}
        answer = jwt_function(made)
        assert answer["statusCode"] == 401
    assert jwt_function(request("GET", "/health"))["statusCode"] == 200


def test_method_that_no_answer_can_repeat_is_405(start: Start) -> None:
    made = event("http_api_list")
    made["requestContext"]["http"]["method"] = "\ud800"
    assert start()(made)["statusCode"] == 405


def test_load_balancer_vouches_for_nobody() -> None:
    identity = {"identity": {"userArn": "arn:aws:iam::1:user/a"}}
    assert verified_arn(identity) == "arn:aws:iam::1:user/a"
    assert verified_arn({**identity, "elb": {}}) == verified_arn({**identity, "http": {}}) == ""


def test_traces_are_sent_within_the_invocation_which_waits_for_no_collector_long(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1000000")
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        invoke = start()
        assert invoke(request("GET", "/api/items"))["statusCode"] == 200
        assert [span.name for span in collector.spans] == ["query", "GET /api/items"]
        collector.may_answer.clear()
        for _ in range(2):
            assert invoke(request("GET", "/api/items"))["statusCode"] == 200
        assert len(collector.spans) == 2
