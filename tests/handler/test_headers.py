"""What every answer says to browsers, caches and proxies, over real sockets."""

import socket
from collections.abc import Iterator

import httpx2
import pytest

from handler.service import Service, open_server_service
from tests.conftest import MakeSettings, assert_problem, serving
from tests.log_watch import kept_lines

ORIGIN = "https://app.example.com"
SECURITY = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
API_POLICY = "default-src 'none'; frame-ancestors 'none'"
PREFLIGHT = {"origin": ORIGIN, "access-control-request-method": "PUT"}


def has_security(answer: httpx2.Response, policy: str = API_POLICY) -> bool:
    return SECURITY.items() <= dict(answer.headers).items() and answer.headers["content-security-policy"] == policy


# Security headers and caches

ANSWERS = [
    ("GET", "/health", 200),
    ("GET", "/ready", 200),
    ("GET", "/metrics", 200),
    ("GET", "/openapi.json", 200),
    ("GET", "/nowhere", 404),
    ("PUT", "/api/items", 405),
    ("POST", "/api/items", 415),
    ("GET", "/api/items?limit=0", 422),
    ("OPTIONS", "/api/items", 405),
    ("GET", "//", 404),
]


@pytest.mark.parametrize(("method", "path", "status"), ANSWERS)
def test_every_answer_has_the_security_headers_and_is_not_kept(
    shared_client: httpx2.Client, method: str, path: str, status: int
) -> None:
    answer = shared_client.request(method, path)
    assert answer.status_code == status
    assert has_security(answer)
    assert answer.headers.get_list("cache-control") == ["no-store"]


def test_list_and_item_are_not_kept_by_anybody_else(client: httpx2.Client) -> None:
    created = client.post("/api/items", json={"name": "Lamp"})
    for answer in (created, client.get("/api/items"), client.get(created.headers["location"])):
        assert has_security(answer)
        kept = "private, no-cache" if "etag" in answer.headers else "no-store"
        assert answer.headers.get_list("cache-control") == [kept]


def test_page_has_a_policy_of_its_own(shared_client: httpx2.Client) -> None:
    page = shared_client.get("/docs")
    assert has_security(page, page.headers["content-security-policy"])
    assert page.headers["content-security-policy"].startswith("default-src 'self'; ")
    assert len(page.headers.get_list("content-security-policy")) == 1
    script = shared_client.get("/docs/swagger-ui-bundle.js")
    assert SECURITY.items() <= dict(script.headers).items()
    assert script.headers["cache-control"] == "public, max-age=86400"


def test_fault_has_the_headers_of_every_answer(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    service = open_server_service(make_settings(CORS_ORIGINS=ORIGIN))
    monkeypatch.setattr(type(service.metrics), "exposition", None)
    with serving(service) as client:
        answer = client.get("/metrics", headers={"origin": ORIGIN})
        assert assert_problem(answer, 500)["code"] == "internal_error"
        assert has_security(answer)
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["access-control-allow-origin"] == ORIGIN


@pytest.mark.parametrize("other_parser", [False, True])
def test_what_is_no_http_is_a_problem_too_counted_and_told_once(
    client: httpx2.Client, service: Service, other_parser: bool
) -> None:
    with (
        kept_lines() as lines,
        socket.create_connection((client.base_url.host, client.base_url.port), timeout=10) as connection,
    ):
        if other_parser:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK")
        connection.sendall(b"nonsense\r\n\r\n")
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    headers = dict(field.split(": ", 1) for field in fields)
    assert status == "HTTP/1.1 400 Bad Request"
    answer = httpx2.Response(400, headers=headers, content=body)
    assert assert_problem(answer, 400)["code"] == "malformed_request"
    assert has_security(answer)
    assert (answer.headers["connection"], answer.headers["content-length"]) == ("close", str(len(body)))
    (line,) = [line for line in lines if "Invalid HTTP" in line["message"]]
    assert (line["level"], line["code"], line["request_id"]) == (
        *("INFO", "malformed_request"),
        answer.headers["x-request-id"],
    )
    shown = 'http_requests_total{method="other",route="none",status="400"} 1.0'
    assert shown in client.get("/metrics").text.splitlines()
    assert service.metrics.totals().requests == 1


def test_server_does_not_say_what_it_is(shared_client: httpx2.Client) -> None:
    answer = shared_client.get("/health")
    assert "date" in answer.headers
    assert "server" not in answer.headers


# Other origins


@pytest.fixture
def named(make_settings: MakeSettings) -> Iterator[httpx2.Client]:
    settings = make_settings(CORS_ORIGINS=f"{ORIGIN},http://localhost:3000", RATE_LIMIT=0.001, RATE_BURST=3)
    with serving(open_server_service(settings)) as client:
        yield client


def grants(answer: httpx2.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("access-control-allow")}


def test_no_other_origin_is_let_in_unless_named(shared_client: httpx2.Client) -> None:
    answer = shared_client.get("/api/items", headers={"origin": ORIGIN})
    assert grants(answer) == {}
    assert "origin" not in answer.headers.get("vary", "").lower()
    assert_problem(shared_client.options("/api/items/1", headers=PREFLIGHT), 405)


def test_named_origin_is_let_in_to_every_answer(named: httpx2.Client) -> None:
    for path, status in (("/api/items", 200), ("/nowhere", 404), ("/api/items?limit=0", 422), ("/api/items", 429)):
        answer = named.get(path, headers={"origin": ORIGIN})
        assert answer.status_code == status
        assert grants(answer) == {"access-control-allow-origin": ORIGIN}
        assert "Origin" in answer.headers["vary"].split(", ")
        shown = set(answer.headers["access-control-expose-headers"].split(", "))
        assert {"ETag", "Location", "X-Commit-Txid", "X-Request-ID", "Retry-After", "RateLimit"} <= shown
        assert "Idempotent-Replayed" in shown


@pytest.mark.parametrize(
    "origin", [None, "null", "https://app.example.com.evil.org", "http://app.example.com", "*", ""]
)
def test_no_other_origin_is_let_in(named: httpx2.Client, origin: str | None) -> None:
    headers = {} if origin is None else {"origin": origin}
    answer = named.get("/api/items", headers=headers)
    assert (answer.status_code, grants(answer)) == (200, {})
    assert "Origin" in answer.headers["vary"].split(", ")  # or a cache would give this answer to one that is let in
    if origin is not None:
        refused = named.options("/api/items/1", headers={**PREFLIGHT, "origin": origin})
        assert assert_problem(refused, 403)["code"] == "preflight_refused"
        assert "access-control-allow-origin" not in refused.headers


ASKED = "authorization,content-type,idempotency-key,if-match,if-none-match,x-api-key,x-commit-txid,x-request-id"


def test_preflight_says_what_may_be_sent_and_counts_for_nothing(named: httpx2.Client) -> None:
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] * 2:
        headers = {**PREFLIGHT, "access-control-request-method": method, "access-control-request-headers": ASKED}
        answer = named.options("/api/items/1", headers=headers)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert method in answer.headers["access-control-allow-methods"].split(", ")
        assert set(ASKED.split(",")) <= set(answer.headers["access-control-allow-headers"].lower().split(", "))
        assert "access-control-allow-credentials" not in answer.headers
        assert "x-request-id" in answer.headers
        assert has_security(answer)


@pytest.mark.parametrize("field", ["access-control-request-method", "access-control-request-headers"])
def test_preflight_for_anything_else_is_refused(named: httpx2.Client, field: str) -> None:
    problem = assert_problem(named.options("/api/items", headers={**PREFLIGHT, field: "TRACE"}), 403)
    assert problem["detail"] == f"Disallowed CORS {field.rpartition('-')[2]}."


# Proxies


def test_https_is_demanded_from_those_that_came_by_it(make_settings: MakeSettings) -> None:
    settings = make_settings(HSTS_SECONDS=31536000, FORWARDED_ALLOW_IPS="127.0.0.1")
    with serving(open_server_service(settings)) as client:
        for path in ("/health", "/nowhere"):
            by_https = client.get(path, headers={"x-forwarded-proto": "https"})
            assert by_https.headers["strict-transport-security"] == "max-age=31536000"
            for headers in ({}, {"x-forwarded-proto": "http"}, {"x-forwarded-proto": "gopher"}):
                assert "strict-transport-security" not in client.get(path, headers=headers).headers


def test_https_that_anybody_else_claims_is_none(make_settings: MakeSettings) -> None:
    with serving(open_server_service(make_settings(HSTS_SECONDS=1))) as client:
        answer = client.get("/health", headers={"x-forwarded-proto": "https", "forwarded": "proto=https"})
        assert "strict-transport-security" not in answer.headers


def test_https_is_not_demanded_unless_told(make_settings: MakeSettings) -> None:
    with serving(open_server_service(make_settings(FORWARDED_ALLOW_IPS="127.0.0.1"))) as client:
        answer = client.get("/health", headers={"x-forwarded-proto": "https"})
        assert "strict-transport-security" not in answer.headers


@pytest.mark.parametrize("name", ["host", "x-forwarded-host", "x-forwarded-prefix", "forwarded", "x-original-url"])
def test_no_header_leads_the_client_to_another_place(make_settings: MakeSettings, name: str) -> None:
    settings = make_settings(FORWARDED_ALLOW_IPS="127.0.0.1", AUTH_MODE="none")
    with serving(open_server_service(settings)) as client:
        headers = {name: "host=evil.example" if name == "forwarded" else "evil.example"}
        created = client.post("/api/items", json={"name": "Lamp"}, headers=headers)
        assert created.headers["location"] == "/api/items/1"
        assert assert_problem(client.get("/nowhere", headers=headers), 404)["instance"] == "/nowhere"
        assert "evil" not in client.get("/docs", headers=headers).text
