"""What one client may use of a server while others are served, over real sockets."""

import asyncio
import http.client
import json
import re
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any

import httpx2
import pytest
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handler import protocol
from handler.__main__ import server_config
from handler.buckets import Buckets
from handler.fields import edit_answer
from handler.middleware import early_answers
from handler.middleware.body_limit import BodyLimit
from handler.middleware.guess_limit import GuessLimit
from handler.middleware.rate_limit import RateLimit, address_key
from handler.service import open_server_service
from tests.conftest import MakeSettings, assert_problem, serving

REQUEST = b"GET /api/items HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /api/items HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
H2C = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n"
BUNDLE = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def impatient(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx2.Client]:
    monkeypatch.setattr(early_answers, "MAX_SECONDS", 0.2)
    with serving(open_server_service(make_settings(REQUEST_TIMEOUT_SECONDS=0.5))) as client:
        yield client


@contextmanager
def connected(client: httpx2.Client, receive_buffer: int = 0) -> Iterator[socket.socket]:
    with socket.socket() as connection:
        connection.settimeout(20)
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.connect((client.base_url.host, client.base_url.port))
        yield connection


def answer_on(connection: socket.socket) -> tuple[int, Any, dict[str, str]]:
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return answer.status, json.loads(answer.read()), {name.lower(): value for name, value in answer.getheaders()}


def trickle(connection: socket.socket, byte: bytes) -> None:
    """One byte after the other, until there is an answer."""
    for _ in range(400):
        if select.select([connection], [], [], 0.05)[0]:
            return
        connection.sendall(byte)
    raise AssertionError("not cut off")


# Slow clients


@pytest.mark.parametrize(
    ("first", "head"),
    [(first, head) for first in (b"", REQUEST, H2C) for head in (b"GET /", b"GET / HTTP/1.1\r\nX-Slow: ")]
    + [(first, b"\r\n") for first in (b"", REQUEST)],  # the other parser takes no empty line before a request
)
def test_slow_head_is_cut_off(impatient: httpx2.Client, first: bytes, head: bytes) -> None:
    with connected(impatient) as connection:
        if first:
            connection.sendall(first)
            assert answer_on(connection)[0] == 200
        connection.sendall(head)
        trickle(connection, b"\r\n" if head == b"\r\n" else b"x")
        status, problem, fields = answer_on(connection)
        assert (status, problem["code"], fields["connection"]) == (408, "request_timeout", "close")
        assert problem["request_id"] == fields["x-request-id"]
        assert fields["cache-control"] == "no-store"
        assert connection.recv(1) == b""
    assert impatient.get("/api/items").status_code == 200


def test_idle_connection_is_kept_as_long_as_told(make_settings: MakeSettings) -> None:
    assert server_config("", make_settings(KEEP_ALIVE_SECONDS=77)).timeout_keep_alive == 77


def test_connection_that_never_asks_is_closed_without_a_word(impatient: httpx2.Client) -> None:
    with connected(impatient) as connection:
        assert connection.recv(1) == b""


@pytest.mark.parametrize("fields", [b"Content-Length: 1000\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_slow_body_is_cut_off(impatient: httpx2.Client, fields: bytes) -> None:
    with connected(impatient) as connection:
        connection.sendall(POST + fields + b"\r\n")
        trickle(connection, b" " if b"Length" in fields else b"1\r\n \r\n")
        status, problem, answered = answer_on(connection)
        assert (status, problem["code"], answered["connection"]) == (408, "request_timeout", "close")
        assert connection.recv(1) == b""
    assert impatient.get("/api/items").json()["items"] == []


@pytest.mark.parametrize("first", [REQUEST, H2C], ids=["usual", "other parser"])
def test_connection_may_last_longer_than_the_head_of_a_request(impatient: httpx2.Client, first: bytes) -> None:
    with connected(impatient) as connection:
        connection.sendall(first)
        assert answer_on(connection)[0] == 200
        for _ in range(3):  # together longer than the limit, each in time
            connection.sendall(REQUEST[:10])
            assert not select.select([connection], [], [], 0.2)[0]
            connection.sendall(REQUEST[10:])
            assert answer_on(connection)[0] == 200


def test_client_that_takes_no_answer_is_cut_off(impatient: httpx2.Client, caplog: pytest.LogCaptureFixture) -> None:
    with connected(impatient, receive_buffer=4096) as connection:
        connection.sendall(BUNDLE * 10)  # more than the sockets' buffers take
        wait_for_reset(connection)
    assert impatient.get("/api/items").status_code == 200
    assert "a client did not take its answer within 0.5 s" in caplog.messages


def wait_for_reset(connection: socket.socket) -> None:
    watched = select.poll()
    watched.register(connection, 0)
    assert watched.poll(20_000), "not cut off"


def test_connection_goes_on_when_a_long_answer_was_taken(make_settings: MakeSettings) -> None:
    with small_buffers() as listening:
        service = open_server_service(make_settings(REQUEST_TIMEOUT_SECONDS=0.5))
        with serving(service, [listening]) as client, connected(client) as connection:
            connection.sendall(BUNDLE)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert len(answer.read()) > 1_000_000
            assert not select.select([connection], [], [], 1)[0]
            connection.sendall(REQUEST)
            assert answer_on(connection)[0] == 200


@contextmanager
def small_buffers() -> Iterator[socket.socket]:
    """A listening socket whose connections leave to the server what the client does not take."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        yield listening


def test_last_answer_is_taken_to_its_end_in_time(make_settings: MakeSettings) -> None:
    with small_buffers() as listening:
        service = open_server_service(make_settings(REQUEST_TIMEOUT_SECONDS=0.5))
        with serving(service, [listening]) as client:
            for _ in range(50):
                client.post("/api/items", json={"name": "x", "description": "y" * 2000}).raise_for_status()
            with connected(client, receive_buffer=4096) as connection:
                connection.sendall(REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
                with closing(http.client.HTTPResponse(connection)) as answer:
                    answer.begin()
                    assert answer.length is not None
                    answer.read(answer.length - 18_000)
                    wait_for_reset(connection)


@pytest.mark.parametrize("last", [b"", b"Connection: close\r\n"], ids=["kept alive", "last"])
def test_rest_of_an_answer_holds_no_connection_for_ever(make_settings: MakeSettings, last: bytes) -> None:
    """An answer that the buffers of sockets and server hold is complete for the service."""
    with small_buffers() as listening:
        service = open_server_service(make_settings(REQUEST_TIMEOUT_SECONDS=0.5, KEEP_ALIVE_SECONDS=1))
        with serving(service, [listening]) as client:
            for _ in range(20):
                client.post("/api/items", json={"name": "x", "description": "y" * 2000}).raise_for_status()
            with connected(client, receive_buffer=4096) as connection:
                connection.sendall(REQUEST.replace(b"\r\n\r\n", b"\r\n" + last + b"\r\n"))
                wait_for_reset(connection)


def test_end_of_a_connection_may_be_waited_for_longer_than_a_body() -> None:
    """As a streamed answer does, whose body was there long ago."""
    messages: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        messages.extend([await receive(), await receive()])

    async def receive() -> Message:
        if not messages and not received:
            received.append(True)
            return {"type": "http.request", "body": b"{}"}
        await asyncio.sleep(0.05)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        raise AssertionError("nobody answers")

    received: list[bool] = []

    async def ask() -> None:
        await BodyLimit(app, limit=10, seconds=0.001)({"type": "http", "headers": []}, receive, send)

    asyncio.run(ask())
    assert [message["type"] for message in messages] == ["http.request", "http.disconnect"]


# Connections


def test_one_connection_too_many_is_told_so_and_probes_are_answered(make_settings: MakeSettings) -> None:
    with serving(open_server_service(make_settings(MAX_CONNECTIONS=3))) as client, ExitStack() as stack:
        held = [stack.enter_context(connected(client)) for _ in range(3)]
        for asked in (REQUEST, REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n")):
            with connected(client) as connection:
                for path in (b"/health", b"/ready"):
                    connection.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
                    assert answer_on(connection)[0] == 200
                connection.sendall(asked)
                status, problem, fields = answer_on(connection)
                assert (status, problem["code"], fields["connection"]) == (503, "too_many_connections", "close")
                assert fields["retry-after"] == "1"
                assert connection.recv(1) == b""
        held[0].sendall(REQUEST)  # whoever was there before goes on
        assert answer_on(held[0])[0] == 200
        held[1].close()
        assert answered_at_last(client) == 200


def answered_at_last(client: httpx2.Client) -> int:
    """The server sees the end of a connection a little later than its client."""
    for _ in range(1000):
        if (answer := client.get("/api/items")).status_code != 503:
            break
    return answer.status_code


def test_connections_beyond_all_measure_are_not_even_read(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "SPARE_CONNECTIONS", 1)
    with serving(open_server_service(make_settings(MAX_CONNECTIONS=1))) as client, ExitStack() as stack:
        first, spare = [stack.enter_context(connected(client)) for _ in range(2)]
        with suppress(ConnectionResetError), connected(client) as excess:  # perhaps before it is even made
            wait_for_reset(excess)
        for connection, status in ((first, 200), (spare, 503)):
            connection.sendall(REQUEST)
            assert answer_on(connection)[0] == status


# Rates


def test_requests_of_one_address_are_counted(make_settings: MakeSettings) -> None:
    with serving(open_server_service(make_settings(RATE_LIMIT=0.01, RATE_BURST=3))) as client:
        for left in (2, 1, 0):
            answer = client.get("/api/items")
            assert answer.status_code == 200
            assert answer.headers["ratelimit-policy"] == '"address";q=3;w=300'
            assert re.fullmatch(rf'"address";r={left};t=\d+', answer.headers["ratelimit"])
        for path in ("/api/items", "/nowhere", "/metrics"):
            refused = client.get(path)
            assert assert_problem(refused, 429)["code"] == "rate_limited"
            assert refused.headers["ratelimit-policy"] == '"address";q=3;w=300'
            assert refused.headers["ratelimit"] == f'"address";r=0;t={refused.headers["retry-after"]}'
            assert 0 < int(refused.headers["retry-after"]) <= 100
        for path in ("/health", "/ready"):
            answer = client.get(path)
            assert answer.status_code == 200
            assert "ratelimit" not in answer.headers


def test_no_limit_unless_told(client: httpx2.Client) -> None:
    answers = [client.get("/health") for _ in range(3)] + [client.get("/api/items") for _ in range(150)]
    assert {answer.status_code for answer in answers} == {200}
    assert not [answer for answer in answers if "ratelimit" in answer.headers]


FROM_PROXIES = [
    # the second one is counted with the first
    ("203.0.113.1", "203.0.113.1", True),
    ("203.0.113.1", "203.0.113.2", False),
    ("203.0.113.1", "203.0.113.2, 203.0.113.1", True),  # what the caller wrote is before what the proxy wrote
    ("203.0.113.1", "203.0.113.1, 127.0.0.1", True),
    ("203.0.113.1", "::ffff:203.0.113.1", True),
    ("2001:db8::1", "2001:db8::ffff:2", True),
    ("2001:db8::1", "2001:db8:0:1::1", False),
    ("::ffff:203.0.113.1", "::ffff:203.0.113.2", False),
    ("nonsense", "x" * 1000, True),
]


@pytest.mark.parametrize(("first", "second", "same"), FROM_PROXIES)
def test_address_behind_a_named_proxy_is_the_one_that_it_names(
    make_settings: MakeSettings, first: str, second: str, same: bool
) -> None:
    settings = make_settings(RATE_LIMIT=0.001, RATE_BURST=1, FORWARDED_ALLOW_IPS="127.0.0.0/8", AUTH_MODE="none")
    with serving(open_server_service(settings)) as client:
        assert client.get("/api/items", headers={"x-forwarded-for": first}).status_code == 200
        answer = client.get("/api/items", headers={"x-forwarded-for": second})
        assert answer.status_code == (429 if same else 200)


@pytest.mark.parametrize("proxies", [{}, {"FORWARDED_ALLOW_IPS": "192.0.2.1"}], ids=["nobody", "somebody else"])
def test_address_that_anybody_else_names_counts_for_nothing(
    make_settings: MakeSettings, proxies: dict[str, str]
) -> None:
    with serving(open_server_service(make_settings(RATE_LIMIT=0.001, RATE_BURST=1, **proxies))) as client:
        assert client.get("/api/items", headers={"x-forwarded-for": "203.0.113.1"}).status_code == 200
        for name in ("x-forwarded-for", "forwarded", "x-real-ip", "x-client-ip", "cf-connecting-ip"):
            assert client.get("/api/items", headers={name: "203.0.113.2"}).status_code == 429


class Guarded:
    """Stands for what asks for keys: who sends `let-me-in` is the caller of that name."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.looked_at = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.looked_at += 1
        name = dict(scope["headers"]).get(b"let-me-in", b"").decode()
        if not name:
            return await Response(status_code=401)(scope, receive, send)
        scope["state"]["caller"] = type("Caller", (), {"id": name})
        await self.app(scope, receive, send)


def asking(app: ASGIApp, address: str, name: str = "") -> int:
    status = 0
    headers = [(b"let-me-in", name.encode())]
    scope: dict[str, Any] = {"type": "http", "path": "/", "method": "GET", "headers": headers}
    scope |= {"client": (address, 1), "state": {"request_id": "x"}}

    async def send(message: Any) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            edit_answer(scope, message)

    async def ask() -> None:
        await app(scope, asyncio.Future, send)

    asyncio.run(ask())
    return status


def test_caller_with_a_name_is_counted_wherever_it_is() -> None:
    buckets = Buckets(0.001, 2)
    app = GuessLimit(Guarded(RateLimit(Response(), buckets)), buckets)
    assert [asking(app, address, "a") for address in ("192.0.2.1", "192.0.2.2", "192.0.2.3")] == [200, 200, 429]
    assert asking(app, "192.0.2.1", "b") == 200


def test_keys_are_not_tried_one_after_the_other() -> None:
    buckets = Buckets(0.001, 2)
    guarded = Guarded(RateLimit(Response(), buckets))
    app = GuessLimit(guarded, buckets)
    assert [asking(app, "192.0.2.1") for _ in range(4)] == [401, 401, 429, 429]
    assert asking(app, "192.0.2.1", "a") == 429  # nor is one seen to be right
    assert guarded.looked_at == 2
    assert asking(app, "192.0.2.2", "a") == 200


def test_caller_without_an_address_is_counted_too() -> None:
    assert address_key({"client": None}) == address_key({"client": ("", 0)}) == ("address", "")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({"X-Commit-Txid": "zz"}, 400, marks=pytest.mark.sqlite_only("X-Commit-Txid")),
        ({f"x-{n}": "" for n in range(101)}, 431),
    ],
)
def test_what_is_refused_early_counts_too(make_settings: MakeSettings, headers: dict[str, str], status: int) -> None:
    with serving(open_server_service(make_settings(RATE_LIMIT=0.001, RATE_BURST=3))) as client:
        answers = [client.get("/api/items", headers=headers).status_code for _ in range(5)]
    assert answers == [status] * 3 + [429] * 2
