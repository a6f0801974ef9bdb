"""What a request leaves in the log, and what never gets there."""

import asyncio
import io
import json
import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

import apsw
import httpx2
import pytest
from starlette.types import Receive, Scope, Send

from handler.__main__ import Server, server_config
from handler.middleware.request_log import RequestLog, is_in_sample
from handler.service import open_server_service
from infra.__main__ import main
from infra.telemetry import line_handler
from infra.telemetry.line_handler import LineHandler
from infra.telemetry.metrics import Metrics
from tests.conftest import MakeSettings, serving, settings_in
from tests.e2e.processes import until
from tests.handler.test_authentication import bearer, new_key
from tests.log_watch import kept_lines

Lines = list[dict[str, Any]]

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def lines() -> Iterator[Lines]:
    with kept_lines() as lines:
        yield lines


@pytest.fixture
def request_lines() -> Iterator[Lines]:
    with kept_lines("handler.request") as lines:
        yield lines


def logged(status: int = 200, seconds: float = 0.0, request_id: str = "", **options: Any) -> Lines:
    """The lines of a request that is answered so, as quickly."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        time.sleep(seconds)  # noqa: ASYNC251
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def nothing(*_: Any) -> Any:
        pass

    headers = [(b"x-request-id", request_id.encode())]
    scope = {"type": "http", "method": "GET", "path": "/x", "headers": headers}
    with kept_lines("handler.request") as lines:
        asyncio.run(RequestLog(app, Metrics(), **options)(scope, nothing, nothing))
    return lines


@pytest.mark.parametrize(("status", "level"), [(200, "INFO"), (304, "INFO"), (404, "INFO"), (499, "INFO")])
def test_what_is_no_fault_of_the_service_is_info(status: int, level: str) -> None:
    assert [line["level"] for line in logged(status)] == [level]


@pytest.mark.parametrize("status", [500, 503, 507])
def test_what_is_a_fault_of_the_service_is_an_error_however_slow(status: int) -> None:
    assert [line["level"] for line in logged(status)] == ["ERROR"]
    (line,) = logged(status, 0.002, slow_ms=1)
    assert line["level"] == "ERROR"
    assert line["message"].startswith(f"GET /x {status} after ")


def test_slow_request_is_one_warning_with_its_route_and_duration() -> None:
    (line,) = logged(seconds=0.002, slow_ms=1)
    assert line["level"] == "WARNING"
    assert line["message"] == f"GET /x 200 after {int(line['duration_ms'])} ms"
    assert line["duration_ms"] > 1
    assert line["route"] == "none"
    assert [line["level"] for line in logged(seconds=0.002, slow_ms=0)] == ["INFO"]


def test_sample_keeps_its_share_and_the_same_each_time() -> None:
    ids = [uuid4().hex for _ in range(10_000)]
    kept = {id for id in ids if is_in_sample(id, 0.25)}
    assert 2000 < len(kept) < 3000
    assert kept <= {id for id in ids if is_in_sample(id, 0.5)}
    for id in ids[:20]:
        assert len(logged(request_id=id, sample=0.25)) == (id in kept)


def test_sample_of_nothing_keeps_errors_and_what_is_slow() -> None:
    assert logged(200, sample=0.0) == logged(304, sample=0.0) == []
    for status in (400, 404, 499, 503):
        assert len(logged(status, sample=0.0)) == 1
    assert len(logged(200, 0.002, sample=0.0, slow_ms=1)) == 1


def test_line_has_the_route_and_the_path_without_its_query(shared_client: httpx2.Client, request_lines: Lines) -> None:
    shared_client.get("/api/items/12345", params={"q": "canary"})
    shared_client.get("/api/nothing?canary#canary")
    until(lambda: len(request_lines) == 2)
    assert [(line["route"], line["path"]) for line in request_lines] == [
        ("/api/items/{item_id}", "/api/items/12345"),
        ("none", "/api/nothing"),
    ]
    assert "canary" not in json.dumps(request_lines)


@pytest.mark.parametrize("more", ["", "-and-more"])
def test_trace_of_the_caller_is_in_the_line(shared_client: httpx2.Client, request_lines: Lines, more: str) -> None:
    version = "01" if more else "00"
    shared_client.get("/health", headers={"traceparent": f"{version}-{TRACE}-{SPAN}-01{more}"})
    until(lambda: len(request_lines) == 1)
    assert (request_lines[0]["trace_id"], request_lines[0]["span_id"]) == (TRACE, SPAN)


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "canary",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-and-more",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
    ],
)
def test_what_is_no_trace_is_ignored(shared_client: httpx2.Client, request_lines: Lines, traceparent: str) -> None:
    shared_client.get("/health", headers={"traceparent": traceparent})
    until(lambda: len(request_lines) == 1)
    assert not {"trace_id", "span_id"} & request_lines[0].keys()


# Canaries: what nobody may find in the log

CANARY = "c4n4ry"
TOKEN = (  # {"alg":"RS256","kid":"c4n4ry"}.{"sub":"c4n4ry"}.c4n4ry
    f"eyJhbGciOiJSUzI1NiIsImtpZCI6ImM0bjRyeSJ9.eyJzdWIiOiJjNG40cnkifQ.{CANARY}"
)
HOSTILE = [CANARY, f"'{CANARY}", f'"{CANARY}\n', f"%s {CANARY} %(x)s {{}}", f"\x1b[31m{CANARY}", f"{CANARY}\ud800"]


def told_of_canaries(lines: Lines) -> Lines:
    ours = [line for line in lines if not line["logger"].startswith("httpx")]  # of the client in this test
    return [line for line in ours if CANARY in str(line) or TOKEN.split(".")[1] in str(line)]


@pytest.mark.sqlite_only("a shell that writes into the file")
def test_nothing_that_a_client_or_an_operator_hands_over_is_logged(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lines: Lines,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = settings_in(tmp_path, AUTH_MODE="keys", READ_FRESHNESS_SECONDS=0, SLOW_REQUEST_MS=1, SLOW_STATEMENT_MS=1)
    monkeypatch.setenv("DATABASE_PATH", str(settings.database_path))
    service = open_server_service(settings)
    key = new_key(service, "read", "write", "ops")
    own = bearer(key)
    with serving(service) as client:
        for text in HOSTILE:
            body = json.dumps({"name": text, "description": text}).encode()
            fields = {**own, "content-type": "application/json", "idempotency-key": f"{CANARY}-{len(lines)}"}
            client.post("/api/items", content=body, headers=fields)
            client.post("/api/items", content=body, headers=fields)  # again
            client.post("/api/items", content=body[:-9], headers=fields)  # another, and broken
            client.post("/api/items", content=json.dumps({text: text, "price": text}).encode(), headers=fields)
            client.get("/api/items", params={"q": text.encode(errors="replace").decode(), CANARY: CANARY}, headers=own)
            client.get("/api/items", params={"q": CANARY, "cursor": CANARY}, headers=own)
        for name in ("cookie", "user-agent", "x-forwarded-for", "if-match", "x-commit-txid", "traceparent", "accept"):
            client.get("/api/items/1", headers={**own, name: CANARY})
        client.get("/api/items", headers={**own, "x-request-id": f"{CANARY} is none"})
        for secret in (CANARY, TOKEN, f"cnp_aaaaaaaa_{CANARY * 6}", key[:-1]):
            client.get("/api/items", headers={"authorization": f"Bearer {secret}"})
            client.get("/api/items", headers={"x-api-key": secret})
            client.get("/api/items", headers={"authorization": f"Basic {secret}"})
        with closing(apsw.Connection(str(settings.database_path))) as shell:
            shell.execute("UPDATE items SET description = ?", (CANARY + "-shell",))
        until(lambda: any("another program's changes" in line["message"] for line in lines))
        assert main(["sql", f"UPDATE items SET description = '{CANARY}-sql'"]) == 0
        assert main(["sql", f"UPDATE items SET nothing = '{CANARY}'"]) == 1
        assert CANARY not in capsys.readouterr().out
        assert client.get("/api/items", headers=own).json()["items"][0]["description"] == f"{CANARY}-sql"
        client.post("/api/items", content=b"{", headers=own)
    assert len([line for line in lines if line["logger"] == "handler.request"]) > 50
    assert told_of_canaries(lines) == []
    assert key.split("_")[2] not in json.dumps(lines)


def test_token_is_not_logged_whatever_becomes_of_it(tmp_path: Path, lines: Lines) -> None:
    nowhere = {"JWT_JWKS_URL": "https://127.0.0.1:9/keys", "JWT_ISSUER": "x", "JWT_AUDIENCE": "x"}
    with serving(open_server_service(settings_in(tmp_path, AUTH_MODE="jwt", **nowhere))) as client:
        for token in (CANARY, TOKEN, f"{TOKEN}.x", CANARY * 4000):
            client.get("/api/items", headers={"authorization": f"Bearer {token}"})
    assert "ERROR" in [line["level"] for line in lines]  # of the keys that cannot be had
    assert told_of_canaries(lines) == []


def test_second_signal_ends_the_process_with_all_lines_written(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, written = io.StringIO(), []

    def end(code: int) -> NoReturn:
        written.append((code, stream.getvalue()))
        raise SystemExit

    monkeypatch.setattr(line_handler, "_TOGETHER_SECONDS", 60)
    monkeypatch.setattr(os, "_exit", end)
    handler = LineHandler(stream).start()
    logging.getLogger().addHandler(handler)
    try:
        logging.getLogger("handler.request").info("answered")
        server = Server(server_config("", make_settings()))
        server.should_exit = True
        with pytest.raises(SystemExit):
            server.handle_exit(signal.SIGTERM, None)
    finally:
        logging.getLogger().removeHandler(handler)
        handler.stop()
    assert written == [(128 + signal.SIGTERM, "answered\n")]
