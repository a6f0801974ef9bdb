"""What clients other than the tests' own make of HTTP, over real sockets."""

import asyncio
import http.client
import json
import logging
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from contextlib import closing
from typing import Any

import httpx2
import pytest
from starlette.responses import Response
from starlette.types import Message

from handler.middleware import early_answers
from handler.middleware.early_answers import EarlyAnswers
from handler.middleware.request_log import RequestLog
from infra.telemetry.metrics import Metrics
from tests.conftest import assert_problem
from tests.log_watch import kept_lines

BODY = b'{"name": "Lamp"}'
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAA\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNKS = b"5;extension=1\r\n" + BODY[:5] + b"\r\n%x\r\n" % len(BODY[5:]) + BODY[5:] + b"\r\n0\r\n"


@pytest.fixture
def address(client: httpx2.Client) -> tuple[str, int]:
    assert client.base_url.port is not None
    return client.base_url.host, client.base_url.port


def head(fields: bytes, content_type: bytes = b"application/json") -> bytes:
    return b"POST /api/items HTTP/1.1\r\nHost: x\r\nContent-Type: " + content_type + b"\r\n" + fields + b"\r\n"


def answer_on(connection: socket.socket) -> tuple[int, bytes, dict[str, str]]:
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}


@pytest.mark.parametrize("upgrade", [b"", H2C])
def test_trailer_that_comes_along_with_the_head_is_no_header(address: tuple[str, int], upgrade: bytes) -> None:
    with socket.create_connection(address, 20) as connection:
        connection.sendall(head(upgrade + CHUNKED) + CHUNKS + b"X-Request-ID: from-the-trailer\r\n\r\n")
        status, _, headers = answer_on(connection)
    assert status == 201
    assert headers["x-request-id"] != "from-the-trailer"


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        (H2C + LENGTH, BODY),
        (H2C + CHUNKED, CHUNKS + b"\r\n"),
        (b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" + LENGTH, BODY),
        (b"Connection: keep-alive, upgrade\r\nUpgrade: TLS/1.3\r\n" + LENGTH, BODY),
        (b"Upgrade: h2c\r\n" + LENGTH, BODY),
        (CHUNKED, CHUNKS + b"\r\n"),
        (b"Trailer: X-Sum\r\n" + CHUNKED, CHUNKS + b"X-Sum: 1\r\n\r\n"),
        (b"X-Long: " + b"y" * 30_000 + b"\r\n" + LENGTH, BODY),
    ],
    ids=["h2c", "h2c chunked", "websocket", "tls", "upgrade alone", "chunked", "trailers", "long head"],
)
def test_whole_body_is_read_however_it_is_sent(
    address: tuple[str, int], caplog: pytest.LogCaptureFixture, fields: bytes, body: bytes
) -> None:
    with socket.create_connection(address, timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for apart in (True, False):  # and the connection goes on
            if apart:
                connection.sendall(head(fields)[:20_000])
                connection.sendall(head(fields)[20_000:])
                connection.sendall(body[:7])
                connection.sendall(body[7:])
            else:
                connection.sendall(head(fields) + body)
            status, item, _ = answer_on(connection)
            assert (status, json.loads(item)["name"]) == (201, "Lamp")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_body_is_asked_for_only_when_it_is_wanted(address: tuple[str, int]) -> None:
    expecting = b"Expect: 100-continue\r\n" + LENGTH
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(head(expecting))
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        assert answer_on(connection)[0] == 201
        connection.sendall(head(expecting, b"text/plain"))
        assert answer_on(connection)[0] == 415


REFUSED = [
    ("POST", "/api/items", "text/plain", 415),
    ("POST", "/api/items", "application/json", 413),
    ("POST", "/nowhere", "application/json", 404),
    ("PUT", "/api/items", "application/json", 405),
]
SIZE = 12_000_000  # more than the sockets' buffers take


@pytest.mark.parametrize(("method", "path", "content_type", "status"), REFUSED)
def test_every_client_gets_the_answer_that_does_not_wait_for_its_body(
    client: httpx2.Client, address: tuple[str, int], method: str, path: str, content_type: str, status: int
) -> None:
    url, headers = str(client.base_url.join(path)), {"Content-Type": content_type}
    for body in (b"x" * SIZE, iter([b"x" * 50_000] * (SIZE // 50_000))):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(url, body, headers, method=method), timeout=20)
        with caught.value as refusal:
            assert json.load(refusal)["status"] == status
    with closing(http.client.HTTPConnection(*address, timeout=20)) as connection:
        connection.request(method, path, b"x" * SIZE, headers)
        assert json.load(connection.getresponse())["status"] == status
    curl = ["curl", "-sS", "--noproxy", "*", "-X", method, "-H", f"Content-Type: {content_type}", "--data-binary", "@-"]
    for expect in ("Expect:", "Expect: 100-continue") if shutil.which("curl") else ():
        done = subprocess.run([*curl, "-H", expect, url], input=b"x" * SIZE, capture_output=True)
        assert json.loads(done.stdout)["status"] == status, done.stderr


def test_client_that_never_sends_the_rest_is_answered_and_let_go(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(early_answers, "MAX_SECONDS", 0.2)
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(head(b"Content-Length: 1000\r\n", b"text/plain"))
        status, _, fields = answer_on(connection)
        assert (status, fields["connection"]) == (415, "close")
        assert connection.recv(1) == b""


def test_client_that_never_stops_sending_is_answered_and_let_go(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(early_answers, "MAX_BYTES", 100_000)
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(head(CHUNKED, b"text/plain"))
        assert answer_on(connection)[0] == 415
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            connection.sendall((b"1000\r\n" + b"x" * 0x1000 + b"\r\n") * 10_000)


def test_stop_ends_the_wait_for_the_rest_without_an_error() -> None:
    sent: list[Message] = []
    headers = [(b"content-length", b"1000")]

    async def receive() -> Message:
        return await asyncio.Future()

    async def send(message: Message) -> None:
        sent.append(message)

    async def stop() -> None:
        refusing = EarlyAnswers(Response(status_code=415))
        request = asyncio.ensure_future(refusing({"type": "http", "headers": headers}, receive, send))
        while len(sent) < 2:
            await asyncio.sleep(0)
        request.cancel()  # as Uvicorn does
        await request

    asyncio.run(stop())
    assert [message.get("more_body", False) for message in sent[1:]] == [True, False]


def test_rest_that_is_no_http_is_no_error_of_the_service(
    address: tuple[str, int], client: httpx2.Client, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(head(CHUNKED, b"text/plain"))
        assert answer_on(connection)[0] == 415
        connection.sendall(b"nonsense\r\n")
        rest = b"".join(iter(lambda: connection.recv(65536), b""))
    assert rest == b""
    assert client.get("/health").status_code == 200
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_connection_goes_on_when_the_body_was_read(client: httpx2.Client) -> None:
    refusal = client.post("/api/items", content=b"nonsense", headers={"content-type": "application/json"})
    assert_problem(refusal, 400)
    assert "connection" not in refusal.headers
    assert "connection" not in client.get("/nowhere").headers


def test_address_in_full_is_understood(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=10) as connection:
        for target, status in ((b"http://x/api/items?limit=1", 200), (b"http://[", 400)):
            connection.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            assert answer_on(connection)[0] == status


def test_large_answers_are_compressed_for_who_asks(client: httpx2.Client) -> None:
    client.post("/api/items", json={"name": "x", "description": "y" * 2000})
    for path in ("/api/items", "/docs/swagger-ui-bundle.js", "/openapi.json", "/metrics"):
        plain = client.get(path, headers={"accept-encoding": "identity"})
        small = client.get(path, headers={"accept-encoding": "gzip"})
        assert ("content-encoding" in plain.headers, small.headers["content-encoding"]) == (False, "gzip"), path
        assert plain.headers["vary"] == small.headers["vary"] == "Accept-Encoding"
        if path != "/metrics":  # another text each time
            assert small.content == plain.content
    assert "content-encoding" not in client.get("/health", headers={"accept-encoding": "gzip"}).headers


def test_request_whose_client_has_gone_is_no_error() -> None:
    async def answers_nobody(*_: Any) -> None:
        pass

    app: Any = answers_nobody
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    metrics = Metrics()
    with kept_lines("handler.request") as lines:
        asyncio.run(RequestLog(app, metrics)(scope, app, app))
    assert [(line["level"], line["message"]) for line in lines] == [("INFO", "GET / 499")]
    assert 'status="499"' in metrics.exposition(dict)[0].decode()
