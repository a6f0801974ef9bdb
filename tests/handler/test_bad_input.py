"""Whatever comes in is answered with a 4xx problem, and the service goes on."""

import asyncio
import base64
import json
import logging
import socket
from collections.abc import Iterator

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.types import Message

from handler.asgi import create_app
from handler.service import Service, open_server_service
from tests.conftest import MakeSettings, assert_problem, serving
from tests.e2e.processes import until
from tests.log_watch import kept_lines

JSON = {"content-type": "application/json"}


@pytest.fixture
def client(shared_client: httpx2.Client) -> Iterator[httpx2.Client]:
    yield shared_client
    assert_it_goes_on(shared_client)


def assert_it_goes_on(client: httpx2.Client) -> None:
    assert client.get("/health").json() == {"status": "healthy"}
    assert client.post("/api/items", json={"name": "still here"}).status_code == 201


def connected(client: httpx2.Client) -> socket.socket:
    assert client.base_url.port is not None
    return socket.create_connection((client.base_url.host, client.base_url.port), timeout=10)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b"\xff\xfe",
        b'{"name": "\\ud800"}',
        b'{"name": "\xed\xa0\x80"}',
        b"[" * 100000,
        b'{"name": "x", "quantity": ' + b"9" * 10000 + b"}",
        b'{"name": "x",}',
        b"\xef\xbb\xbf{}",
    ],
)
def test_broken_json_is_400(client: httpx2.Client, body: bytes) -> None:
    assert "not JSON" in assert_problem(client.post("/api/items", content=body, headers=JSON), 400)["detail"]


@pytest.mark.parametrize(
    "body",
    [
        b"null",
        b"[]",
        b'"text"',
        b"1",
        b"{}",
        b'{"name": "a\\u0000b"}',
        b'{"name": ["x"]}',
        b'{"name": "x", "price": NaN}',
        b'{"name": "x", "price": 1e400}',
        b'{"name": "x", "quantity": Infinity}',
        b'{"name": "x", "quantity": 99999999999999999999}',
        b'{"name": "x", "quantity": 9007199254740992}',
        b'{"name": "' + b"x" * 500000 + b'"}',
    ],
)
def test_json_that_is_no_item_is_422(client: httpx2.Client, body: bytes) -> None:
    assert assert_problem(client.post("/api/items", content=body, headers=JSON), 422)["errors"]


@pytest.mark.parametrize(
    "item_id",
    [
        "abc",
        "-1",
        "0",
        "1.5",
        "99999999999999999999",
        "9223372036854775808",
        "%00",
        "%ff",
        "1%20",
        "1%0a",
        "%D9%A1",
        "x" * 5000,
        "..%2f..%2fetc%2fpasswd",
        "'--",
    ],
)
@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT", "PATCH"])
def test_id_that_is_none_is_404(client: httpx2.Client, method: str, item_id: str) -> None:
    content = b'{"name": "x"}' if method in ("PUT", "PATCH") else None
    assert_problem(client.request(method, f"/api/items/{item_id}", content=content, headers=JSON), 404)


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonx",
        "application/json; charset=latin-1",
        "multipart/form-data; boundary=x",
        "ÿ",
    ],
)
def test_other_content_is_415(client: httpx2.Client, content_type: str | None) -> None:
    headers = [(b"content-type", content_type.encode("latin-1"))] if content_type else []
    assert_problem(client.post("/api/items", content=b'{"name": "x"}', headers=headers), 415)


def test_compressed_body_is_415(client: httpx2.Client) -> None:
    headers = {**JSON, "content-encoding": "gzip"}
    assert_problem(client.post("/api/items", content=b"\x1f\x8b", headers=headers), 415)


@pytest.mark.parametrize("size", [1024 * 1024 + 1, 5_000_000])
def test_body_over_the_limit_is_413(client: httpx2.Client, size: int) -> None:
    body = b'{"name": "' + b"x" * size + b'"}'
    assert "1048576 bytes" in assert_problem(client.post("/api/items", content=body, headers=JSON), 413)["detail"]
    chunked = iter([body[start : start + 65536] for start in range(0, len(body), 65536)])
    assert_problem(client.post("/api/items", content=chunked, headers=JSON), 413)


def test_body_of_the_limit_is_read(client: httpx2.Client) -> None:
    body = b'{"name": "x"}'
    assert client.post("/api/items", content=body + b" " * (1024 * 1024 - len(body)), headers=JSON).status_code == 201


def test_a_thousand_headers_are_431(client: httpx2.Client) -> None:
    headers = [(f"x-{n}", "y") for n in range(1000)]
    assert_problem(client.get("/api/items", headers=headers), 431)
    assert_problem(client.get("/api/items", headers={"x-long": "y" * 40_000}), 431)


@pytest.mark.parametrize("host", [b"[", b"[::1", b"a:b:c", b"\xff", b"x/../y", b""])
def test_host_that_is_none_is_nothing_to_a_request(make_settings: MakeSettings, host: bytes) -> None:
    with serving(open_server_service(make_settings(AUTH_MODE="none"))) as client:
        assert_problem(client.get("/nowhere", headers=[(b"host", host)]), 404)
        assert_problem(client.request("TRACE", "/api/items", headers=[(b"host", host)]), 405)


@pytest.mark.parametrize("query", ["q=%ff", "q=%c3%28", "%ff=1", "q=%ed%a0%80"])
def test_broken_utf8_in_a_query_is_400(client: httpx2.Client, query: str) -> None:
    assert "not percent-encoded UTF-8" in assert_problem(client.get(f"/api/items?{query}"), 400)["detail"]


def test_too_many_fields_in_a_query_are_400(client: httpx2.Client) -> None:
    query = "&".join(f"a{n}=" for n in range(51))
    assert "more than 50 fields" in assert_problem(client.get(f"/api/items?{query}"), 400)["detail"]


@pytest.mark.parametrize(
    "path", ["/%ff", "/api/items/%ff%fe", "//", "/api//items", "/api/items/", "/docs/..%2f..%2fasgi.py"]
)
def test_odd_paths_are_404(client: httpx2.Client, path: str) -> None:
    assert_problem(client.get(path), 404)


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /api/items?q=\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Bad: a\x00b\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /api/items HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /api/items HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
def test_what_is_hardly_http_is_refused_without_a_5xx(client: httpx2.Client, raw: bytes) -> None:
    with connected(client) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer[:200]


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "é", "a\tb", "<script>"])
def test_request_id_that_is_not_plain_is_replaced(client: httpx2.Client, given: str) -> None:
    response = client.get("/health", headers=[(b"x-request-id", given.encode())])
    assert response.headers["x-request-id"] != given
    assert client.get("/health", headers={"x-request-id": "Abc-1_2.3"}).headers["x-request-id"] == "Abc-1_2.3"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
item_like = st.dictionaries(
    st.sampled_from(["name", "description", "price", "quantity", "version", "x"]), json_values, max_size=6
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=item_like | json_values)
def test_no_json_gives_a_5xx(client: httpx2.Client, body: object) -> None:
    for method, path in (("POST", "/api/items"), ("PATCH", "/api/items/1"), ("PUT", "/api/items/1")):
        response = client.request(method, path, content=json.dumps(body).encode(), headers=JSON)
        if response.status_code in (200, 201):
            assert set(response.json()) >= {"id", "name", "price"}
        else:
            assert response.status_code < 500
            assert_problem(response, response.status_code)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=st.dictionaries(st.sampled_from(["limit", "cursor", "q", "order", "x"]), st.text(), max_size=4))
def test_no_query_gives_a_5xx(client: httpx2.Client, query: dict[str, str]) -> None:
    encoded = {name: value.encode("utf-8", "surrogatepass") for name, value in query.items()}
    response = client.get("/api/items", params=httpx2.QueryParams({k: v.decode("latin-1") for k, v in encoded.items()}))
    if response.status_code != 200:
        assert response.status_code < 500
        assert_problem(response, response.status_code)


@pytest.mark.parametrize(
    "values",
    [
        ["created_at", "\ud800", 1],
        ["\ud800", "x", 1],
        ["created_at", "2026-01-01T00:00:00.000000Z\u00e9", 1],
        ["name", "x", 1],
        [["created_at"], "x", 1],
        [{"secret": "echo"}, "x", 1],
    ],
)
def test_cursor_that_is_none_is_422_and_not_repeated(client: httpx2.Client, values: list[object]) -> None:
    cursor = base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")
    (error,) = assert_problem(client.get("/api/items", params={"cursor": cursor}), 422)["errors"]
    assert error == {"field": "cursor", "message": "is not a next_cursor of this API"}


def test_announced_length_over_the_limit_is_413_at_once(client: httpx2.Client) -> None:
    head = b"POST /api/items HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1048577\r\n\r\n"
    with connected(client) as connection:
        connection.sendall(head)
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")


def test_upload_that_breaks_off_is_no_error_of_the_service(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    head = b"POST /api/items HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    with serving(service) as client:
        with kept_lines("handler.request") as lines:
            with connected(client) as connection:
                connection.sendall(head + b'{"name": ')
            until(lambda: bool(lines))
        assert lines[0]["status_code"] == 400
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert_it_goes_on(client)


@pytest.mark.parametrize("path", ["/\ud800", "/api/items/\udfff", "/api/items\ud800"])
def test_half_a_surrogate_pair_in_a_path_is_404(service: Service, path: str) -> None:
    # a server cannot send one, an event of Lambda can
    sent: list[Message] = []
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": b"",
        "headers": [],
        "server": ("127.0.0.1", 80),
    }

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(create_app(service)(scope, receive, send))
    service.database.close()
    assert sent[0]["status"] == 404
    assert json.loads(sent[1]["body"])["instance"] == path.encode("utf-8", "replace").decode()


def test_errors_are_bounded(client: httpx2.Client) -> None:
    body = {f"x{n}": 0 for n in range(1000)}
    assert len(assert_problem(client.post("/api/items", json=body), 422)["errors"]) == 100
