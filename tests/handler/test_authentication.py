"""Who may come in, over real sockets."""

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from core import api_keys
from core.api_keys import Scope
from core.dialects import execute
from core.errors import StoreUnavailable
from core.stored import now
from handler.callers.access import scope_needed
from handler.service import Service, open_server_service, open_service
from infra.backups.backups import open_backups
from infra.maintenance.job import open_maintenance
from infra.storage.object_store import ObjectStore
from infra.telemetry.metrics import Metrics
from tests.conftest import MakeSettings, assert_problem, serving
from tests.e2e.processes import own_address, until
from tests.log_watch import kept_lines

ITEM = {"name": "x"}


@pytest.fixture
def make_settings(make_settings: MakeSettings) -> MakeSettings:
    return partial(make_settings, AUTH_MODE="keys", READ_FRESHNESS_SECONDS=0)


def new_key(service: Service, *scopes: str, expires_at: str | None = None) -> str:
    wanted = frozenset(map(Scope, scopes))
    make = partial(api_keys.create, name="x", scopes=wanted, expires_at=expires_at)
    return str(asyncio.run(service.database.write(make)))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def request_lines() -> Iterator[list[dict[str, Any]]]:
    with kept_lines("handler.request") as lines:
        yield lines


def test_nobody_comes_in_without_a_key_and_learns_of_no_path(client: httpx2.Client) -> None:
    for method, path in (("GET", "/api/items"), ("POST", "/api/items"), ("GET", "/nothing"), ("GET", "/metrics")):
        response = client.request(method, path)
        assert assert_problem(response, 401)["code"] == "unauthenticated"
        assert response.headers["www-authenticate"] == 'Bearer realm="cloud-native-poc"'
        assert "x-commit-txid" not in response.headers


def test_who_is_not_let_in_is_not_told_how_far_the_log_is(client: httpx2.Client, service: Service) -> None:
    key = new_key(service, "read")
    asyncio.run(service.database.write(partial(api_keys.revoke, key_id=key.split("_")[1])))
    for txid in ("0" * 16, f"{2**40:016x}"):
        answer = client.get("/api/items", headers=bearer(key) | {"X-Commit-Txid": txid})
        assert_problem(answer, 401)
        assert "x-commit-txid" not in answer.headers


def test_health_ready_and_docs_are_open(client: httpx2.Client) -> None:
    for path in ("/health", "/ready", "/docs", "/docs/start.js", "/openapi.json"):
        assert client.get(path).status_code == 200, path


def test_docs_can_be_closed(make_settings: MakeSettings) -> None:
    service = open_server_service(make_settings(DOCS_OPEN="false"))
    key = new_key(service, "read")
    with serving(service) as client:
        for path in ("/docs", "/docs/start.js", "/openapi.json"):
            assert_problem(client.get(path), 401)
            assert client.get(path, headers=bearer(key)).status_code == 200


def test_a_key_comes_in_either_header(client: httpx2.Client, service: Service) -> None:
    key = new_key(service, "read")
    for headers in (
        bearer(key),
        {"X-API-Key": key},
        {"Authorization": f"bearer  {key}"},
        bearer(key) | {"X-API-Key": key},
    ):
        assert client.get("/api/items", headers=headers).status_code == 200
    signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=x", "X-API-Key": key}  # a function URL asks for both
    assert client.get("/api/items", headers=signed).status_code == 200


def test_two_keys_are_refused_even_if_both_are_good(client: httpx2.Client, service: Service) -> None:
    one, two = new_key(service, "read"), new_key(service, "read")
    for headers in (
        [("Authorization", f"Bearer {one}"), ("X-API-Key", two)],
        [("Authorization", f"Bearer {one}"), ("Authorization", f"Bearer {two}")],
        [("X-API-Key", one), ("X-API-Key", two)],
    ):
        response = client.get("/api/items", headers=headers)
        assert assert_problem(response, 400)["code"] == "malformed_header"
        assert 'error="invalid_request"' in response.headers["www-authenticate"]


@pytest.mark.parametrize(
    ("scopes", "allowed"),
    [
        ({"read"}, {"GET /api/items", "HEAD /api/items"}),
        ({"write"}, {"POST /api/items"}),
        ({"ops"}, {"GET /metrics"}),
        (set(), set()),
        ({"read", "write", "ops"}, {"GET /api/items", "HEAD /api/items", "POST /api/items", "GET /metrics"}),
    ],
)
def test_scopes(client: httpx2.Client, service: Service, scopes: set[str], allowed: set[str]) -> None:
    key = new_key(service, *scopes)
    for wanted in ("GET /api/items", "HEAD /api/items", "POST /api/items", "GET /metrics"):
        method, path = wanted.split()
        response = client.request(method, path, headers=bearer(key), json=ITEM if method == "POST" else None)
        if wanted in allowed:
            assert response.status_code in (200, 201), wanted
        else:
            assert response.status_code == 403, wanted
            needed = scope_needed(method, path, True)
            assert response.headers["www-authenticate"] == (
                f'Bearer realm="cloud-native-poc", error="insufficient_scope", scope="{needed}"'
            )


def test_no_way_around_a_scope(client: httpx2.Client, service: Service) -> None:
    key = new_key(service, "read")
    created = new_key(service, "write")
    item = client.post("/api/items", headers=bearer(created), json=ITEM).headers["location"]
    host, port = client.base_url.host, client.base_url.port
    for line in (
        "GET /metrics%0A",
        "GET //metrics",
        "GET /metrics/",
        f"DELETE {item}",
        f"delete {item}",
        f"DeLeTe {item}",
    ):
        with socket.create_connection((host, port), timeout=10) as connection:
            head = f"{line} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {key}\r\nConnection: close\r\n\r\n"
            connection.sendall(head.encode())
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.split()[1] in (b"403", b"404", b"400"), (line, answer)
    assert client.get(item, headers=bearer(key)).status_code == 200


@pytest.mark.parametrize("path", ["/metrics", "/metrics\n", "/metrics/x", "/dashboard/x/y", "/ops/status", "/ops"])
def test_what_operators_see_needs_their_scope(path: str) -> None:
    assert {scope_needed(method, path, True) for method in ("GET", "POST", "HEAD")} == {Scope.OPS}


def test_second_noun_is_in_the_table() -> None:
    assert scope_needed("GET", "/api/orders", True) == Scope.READ
    assert {scope_needed(method, "/api/orders/1", True) for method in ("PUT", "PATCH", "DELETE", "x")} == {Scope.WRITE}


@pytest.mark.parametrize("key", ["", "x", "cnp_aaaaaaaa_" + "0" * 36, "x" * 20_000, "cnp_é", "x y"])
def test_what_is_no_key_is_not_looked_up(
    client: httpx2.Client, service: Service, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(service.database, "read", lambda *_: asked.append("read"))
    for name, value in ((b"Authorization", f"Bearer {key}"), (b"X-API-Key", key)):
        response = client.get("/api/items", headers=[(name, value.strip().encode())])
        assert assert_problem(response, 401)
        assert 'error="invalid_token"' in response.headers["www-authenticate"]
    assert asked == []


def test_expired_revoked_and_unknown_look_the_same_and_the_log_tells_them_apart(
    client: httpx2.Client, service: Service, request_lines: list[dict[str, Any]]
) -> None:
    expired = new_key(service, "read", expires_at="2026-01-01T00:00:00.000000Z")
    revoked = new_key(service, "read")
    asyncio.run(service.database.write(partial(api_keys.revoke, key_id=revoked.split("_")[1])))
    unknown = new_key(service, "read")
    keys = (expired, revoked, unknown)
    ids = [key.split("_")[1] for key in keys]
    asyncio.run(service.database.write(lambda db: execute(db, "DELETE FROM api_keys WHERE id = ?", (ids[2],))))
    answers = [client.get("/api/items", headers=bearer(key) | {"X-Request-ID": "r"}) for key in keys]
    assert len({(answer.text, answer.headers["www-authenticate"]) for answer in answers}) == 1
    assert_problem(answers[0], 401)
    until(lambda: len(request_lines) == 3)
    assert [line["refused"] for line in request_lines] == ["expired", "revoked", "unknown"]
    assert [line["key_id"] for line in request_lines] == ids


def test_secret_is_in_no_log_answer_or_metric(
    client: httpx2.Client,
    service: Service,
    caplog: pytest.LogCaptureFixture,
    request_lines: list[dict[str, Any]],
) -> None:
    caplog.set_level(logging.DEBUG)
    keys = [new_key(service, "read", "write", "ops"), new_key(service), "cnp_aaaaaaaa_" + "s" * 36]
    seen = ""
    for key in keys:
        for method, path in (("GET", "/api/items"), ("POST", "/api/items"), ("GET", "/metrics"), ("GET", "/x")):
            answer = client.request(method, path, headers=bearer(key), json=ITEM)
            seen += f"{answer.headers} {answer.text}"
    until(lambda: len(request_lines) == 12)
    seen += "".join(f"{record.__dict__}" for record in caplog.records) + str(request_lines)
    assert [key for key in keys if key.split("_")[2] in seen] == []
    assert keys[0].split("_")[1] in seen


def test_refusals_are_counted_by_reason(client: httpx2.Client, service: Service) -> None:
    ops = bearer(new_key(service, "ops"))
    client.get("/api/items")
    client.get("/api/items", headers=bearer("x"))
    client.get("/api/items", headers=ops)
    found = client.get("/metrics", headers=ops).text
    for reason in ("missing", "malformed", "scope"):
        assert f'callers_refused_total{{reason="{reason}"}} 1.0' in found


# Fresh as any read


class Reads:
    """Counts the requests that ask the store for what is new."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        for verb in ("read", "read_range", "read_end", "objects"):
            monkeypatch.setattr(ObjectStore, verb, self._counted(getattr(ObjectStore, verb)))

    def _counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            return method(*arguments, **options)

        return counted


@pytest.mark.sqlite_only("it counts commits, or the store is away")
def test_a_requests_reads_share_one_question_to_the_store(
    client: httpx2.Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = new_key(service, "read")
    client.get("/api/items", headers=bearer(key))
    until(lambda: last_used(service) != [None])
    asyncio.run(service.database.verify())
    store = Reads(monkeypatch)
    asyncio.run(service.database.verify())
    one, store.count = store.count, 0
    assert one
    for _ in range(3):
        assert client.get("/api/items", headers=bearer(key)).status_code == 200
    assert store.count == 3 * one


def test_revoked_key_is_gone_from_the_other_instance(make_settings: MakeSettings, tmp_path: Path) -> None:
    with ExitStack() as stack:
        services = [
            open_server_service(
                make_settings(DATABASE_PATH=tmp_path / name / "app.db", REPLICA_URL=(tmp_path / "log").as_uri())
            )
            for name in ("a", "b")
        ]
        key = new_key(services[0], "read")
        a, b = (stack.enter_context(serving(service)) for service in services)
        assert [client.get("/api/items", headers=bearer(key)).status_code for client in (a, b)] == [200, 200]
        asyncio.run(services[0].database.write(partial(api_keys.revoke, key_id=key.split("_")[1])))
        assert [client.get("/api/items", headers=bearer(key)).status_code for client in (b, a)] == [401, 401]


@pytest.mark.sqlite_only("it counts commits, or the store is away")
def test_only_operators_come_in_while_the_store_is_away(
    client: httpx2.Client, service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key, seen_before, revoked = new_key(service, "read", "write"), new_key(service, "ops"), new_key(service, "ops")
    asyncio.run(service.database.write(partial(api_keys.revoke, key_id=revoked.split("_")[1])))

    def away(*_: Any, **__: Any) -> Any:
        raise StoreUnavailable("away")

    for verb in ("read", "read_range", "read_end", "objects", "create"):
        monkeypatch.setattr(ObjectStore, verb, away)
    read = client.get("/api/items", headers=bearer(key))
    assert assert_problem(read, 503)["code"] == "store_unavailable"
    assert read.headers["retry-after"] == "1"
    assert assert_problem(client.post("/api/items", headers=bearer(key), json=ITEM), 503)["stored"] == "no"
    asked = {name: bearer(key) for name, key in (("ops", seen_before), ("revoked", revoked), ("another", key))}
    for path in ("/metrics", "/ops/status", "/ops/history"):
        answers = {name: client.get(path, headers=headers).status_code for name, headers in asked.items()}
        assert answers == {"ops": 200, "revoked": 401, "another": 403}


@pytest.mark.sqlite_only("it is paged, and the store is away")
def test_keys_of_a_snapshot_that_nobody_has_looked_past_do_not_count(
    client: httpx2.Client,
    service: Service,
    make_settings: MakeSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = new_key(service, "ops")
    open_maintenance(service.settings, open_backups(service.settings)).run()
    asyncio.run(service.database.write(partial(api_keys.revoke, key_id=key.split("_")[1])))
    paged = {"REPLICA_URL": service.settings.replica_url, "PAGED_ABOVE_MB": "always"}
    settings = make_settings(DATABASE_PATH=tmp_path / "function" / "app.db", **paged)
    function = open_service(settings, Metrics(), None, lasting=False)
    assert not function.database.has_been_current

    def away(*_: Any, **__: Any) -> Any:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        for verb in ("read", "read_range", "read_end", "objects"):
            patch.setattr(ObjectStore, verb, away)
        with serving(function) as other:
            assert other.get("/ops/status", headers=bearer(key)).status_code == 503
            patch.undo()
            assert other.get("/ops/status", headers=bearer(key)).status_code == 401


# The day of the last use


def last_used(service: Service) -> list[str | None]:
    return [key.last_used_on for key in asyncio.run(service.database.read(api_keys.list_keys))]


@pytest.mark.sqlite_only("it counts commits, or the store is away")
def test_reads_of_a_day_make_one_commit(client: httpx2.Client, service: Service) -> None:
    key = new_key(service, "read")
    before = service.database.txid
    assert client.get("/api/items", headers=bearer(key)).status_code == 200
    until(lambda: service.database.txid > before)
    for _ in range(5):
        assert client.get("/api/items", headers=bearer(key)).status_code == 200
    assert last_used(service) == [now()[:10]]
    assert service.database.txid == before + 1


@pytest.mark.sqlite_only("it counts commits, or the store is away")
def test_first_write_of_a_day_notes_it_in_its_own_commit(client: httpx2.Client, service: Service) -> None:
    key = new_key(service, "write")
    before = service.database.txid
    assert client.post("/api/items", headers=bearer(key), json=ITEM).status_code == 201
    assert service.database.txid == before + 1
    assert last_used(service) == [now()[:10]]
    assert client.post("/api/items", headers=bearer(key), json=ITEM).status_code == 201
    assert service.database.txid == before + 2


@pytest.mark.sqlite_only("a trigger in SQLite's words")
def test_no_request_fails_because_its_use_cannot_be_noted(
    client: httpx2.Client, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    key = new_key(service, "read", "write")
    asyncio.run(
        service.database.write(
            lambda db: db.execute_sql(
                "CREATE TRIGGER no BEFORE UPDATE ON api_keys BEGIN SELECT RAISE(ABORT, 'not today'); END"
            )
        )
    )
    assert client.get("/api/items", headers=bearer(key)).status_code == 200
    until(lambda: "is not noted" in caplog.text)
    assert client.post("/api/items", headers=bearer(key), json=ITEM).status_code == 201
    assert len(client.get("/api/items", headers=bearer(key)).json()["items"]) == 1
    assert last_used(service) == [None]


# Without a mode, and with none


@contextmanager
def serving_at(service: Service, host: str) -> Iterator[httpx2.Client]:
    with serving(service, host=host) as client:
        yield client


@pytest.fixture
def no_mode(tmp_path: Path) -> Callable[..., Service]:
    from tests.conftest import settings_in

    return lambda **environment: open_server_service(settings_in(tmp_path, **environment))


def test_without_a_mode_only_a_loopback_address_lets_in(no_mode: Callable[..., Service]) -> None:
    with serving(no_mode(), host="0.0.0.0") as client:
        assert client.post("/api/items", json=ITEM).status_code == 201
        outside = f"http://{own_address()}:{client.base_url.port}"
        answer = client.get(f"{outside}/api/items")
        assert assert_problem(answer, 403)["code"] == "forbidden"
        assert "Start the service with AUTH_MODE=keys" in answer.json()["detail"]
        assert "www-authenticate" not in answer.headers
        assert client.get(f"{outside}/health").status_code == 200


def test_without_a_mode_whom_a_proxy_names_is_not_this_machine(no_mode: Callable[..., Service]) -> None:
    with serving(no_mode(FORWARDED_ALLOW_IPS="127.0.0.1")) as client:
        assert client.get("/api/items", headers={"X-Forwarded-For": "127.0.0.1"}).status_code == 200
        assert_problem(client.get("/api/items", headers={"X-Forwarded-For": "203.0.113.1"}), 403)


def test_mode_none_lets_everybody_in(no_mode: Callable[..., Service]) -> None:
    with serving(no_mode(AUTH_MODE="none"), host="0.0.0.0") as client:
        outside = f"http://{own_address()}:{client.base_url.port}"
        assert client.post(f"{outside}/api/items", json=ITEM).status_code == 201
        assert client.get(f"{outside}/metrics", headers={"Host": "items.example.com"}).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("me.localhost", 200),
        ("evil.example", 403),
        ("evil.example:8000", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403),
    ],
)
def test_web_page_whose_name_was_led_here_is_refused(no_mode: Callable[..., Service], host: str, status: int) -> None:
    with serving(no_mode()) as client:
        assert client.get("/api/items", headers={"Host": host}).status_code == status


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_web_page_of_another_origin_cannot_write(no_mode: Callable[..., Service], content_type: str) -> None:
    """A browser sends these without asking, and asks before it sends JSON."""
    origin = {"Origin": "https://evil.example"}
    with serving(no_mode()) as client:
        sent = client.post("/api/items", content=b'{"name": "x"}', headers={**origin, "Content-Type": content_type})
        assert_problem(sent, 415)
        asked = client.options(
            "/api/items",
            headers={
                **origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "content-type",
            },
        )
        assert asked.status_code >= 400
        assert "access-control-allow-origin" not in asked.headers
        assert client.get("/api/items").json()["items"] == []
