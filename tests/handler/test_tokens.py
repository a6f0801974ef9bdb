"""AUTH_MODE=jwt on a server, with a real key server behind real TLS."""

import base64
import hmac
import json
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, RSAKey

from core.errors import SettingsError
from handler.callers import gate, provider, tokens
from handler.service import Service, open_server_service
from tests.conftest import MakeSettings, assert_problem
from tests.infra.storage.certificates import Authority
from tests.log_watch import kept_lines

ISSUER, AUDIENCE = "https://login.example", "items"
KEY = RSAKey.generate_key(2048, {"kid": "one", "use": "sig"}, private=True)
OTHER = ECKey.generate_key("P-256", {"kid": "two"}, private=True)
Clock = Callable[[float], None]


class KeyServer:
    """An identity provider's; counts how often it is asked."""

    def __init__(self, directory: Path) -> None:
        self.answer: tuple[int, bytes, dict[str, str]] = (200, b"", {})
        self.asked = 0
        self.shows(KEY)
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.asked += 1
                status, body, headers = owner.answer
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.authority = Authority(directory)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.socket = self.authority.server().wrap_socket(self.server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.server.server_port}/jwks.json"

    def shows(self, *keys: Any, also: tuple[Any, ...] = ()) -> None:
        body = {"keys": [*(key.as_dict(private=False) for key in keys), *also]}
        self.answer = (200, json.dumps(body).encode(), {})


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KeyServer]:
    server = KeyServer(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(server.authority.file))
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    thread = Thread(target=server.server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.server.shutdown()
    thread.join()
    server.server.server_close()


@pytest.fixture
def service(make_settings: MakeSettings, keys: KeyServer) -> Service:
    settings = make_settings(
        AUTH_MODE="jwt", JWT_ISSUER=ISSUER, JWT_AUDIENCE=AUDIENCE, JWT_JWKS_URL=keys.url, JWT_SCOPE_PREFIX="items/"
    )
    return open_server_service(settings)


def token(key: Any = KEY, algorithm: str = "RS256", header: dict[str, Any] | None = None, **claims: Any) -> str:
    made = {"iss": ISSUER, "aud": AUDIENCE, "sub": "somebody", "exp": int(time.time()) + 600, "scope": "items/read"}
    made = {name: value for name, value in {**made, **claims}.items() if value is not None}
    return jwt.encode({"alg": algorithm, "kid": key.kid, **(header or {})}, made, key, [algorithm])


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def raw(header: Any, claims: Any, signature: bytes = b"x") -> str:
    parts = (json.dumps(header).encode(), json.dumps(claims).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def status(client: httpx2.Client, text: str) -> int:
    return client.get("/api/items", headers=bearer(text)).status_code


def test_token_lets_its_subject_in_with_its_scopes(client: httpx2.Client) -> None:
    with kept_lines() as lines:
        assert status(client, token()) == 200
        written = client.post("/api/items", headers=bearer(token()), json={"name": "x"})
        assert assert_problem(written, 403)["code"] == "forbidden"
        assert 'error="insufficient_scope", scope="write"' in written.headers["www-authenticate"]
        both = token(scope=None, scp=["items/read", "items/write"])
        assert client.post("/api/items", headers=bearer(both), json={"name": "x"}).status_code == 201
        assert client.get("/metrics", headers=bearer(token(scope="items/ops other"))).status_code == 200
        assert client.get("/metrics", headers=bearer(token(scope="ops items/opsx other/ops"))).status_code == 403
    assert "somebody" in {line.get("caller") for line in lines}
    assert not [line for line in lines if token().split(".")[2] in f"{line}"]


def test_no_token_is_a_401_and_an_api_key_is_none(client: httpx2.Client) -> None:
    assert_problem(client.get("/api/items"), 401)
    assert_problem(client.get("/api/items", headers={"X-API-Key": token()}), 401)


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://login.example/"},
        {"iss": None},
        {"aud": "others"},
        {"aud": None},
        {"aud": ["others"]},
        {"exp": None},
        {"exp": 1},
        {"exp": "tomorrow"},
        {"nbf": 32503680000},
        {"iat": 32503680000},
        {"sub": None},
        {"sub": ""},
        {"sub": "x" * 256},
        {"sub": 7},
    ],
)
def test_token_of_others_or_of_another_time_is_refused(client: httpx2.Client, claims: dict[str, Any]) -> None:
    answer = client.get("/api/items", headers=bearer(token(**claims)))
    assert assert_problem(answer, 401)
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]


def test_only_public_keys_are_good_for_a_signature(client: httpx2.Client, keys: KeyServer) -> None:
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "x", "exp": int(time.time()) + 600, "scope": "items/read"}
    unsigned = raw({"alg": "HS256", "kid": "one"}, claims, b"").rstrip(".")
    signature = hmac.digest(KEY.as_pem(private=False), unsigned.encode(), "sha256")
    shared = OctKey.generate_key(256, {"kid": "shared"})
    keys.shows(KEY, also=(shared.as_dict(private=True),))
    forger = RSAKey.generate_key(2048, {"kid": "one"}, private=True)
    for forged in (
        raw({"alg": "none", "kid": "one"}, claims, b""),
        raw({"alg": "None", "kid": "one"}, claims, b""),
        raw({"alg": "HS256", "kid": "one"}, claims, signature),  # as if the public key were a shared secret
        jwt.encode({"alg": "HS256", "kid": "shared"}, claims, shared, ["HS256"]),
        token(forger),
        token(forger, header={"jwk": forger.as_dict(private=False)}),
        token(forger, header={"jku": "https://evil.example/keys"}),
        token(OTHER, "ES256", {"kid": "one"}),
        token()[:-8] + "AAAAAAAA",
    ):
        assert status(client, forged) == 401, forged
    assert status(client, token()) == 200


ODD = [
    "",
    ".",
    "..",
    "...",
    "a.b.c",
    raw([], {}),
    raw("x", "x"),
    raw({"alg": "RS256", "kid": ["one"]}, {}),
    raw({"alg": "RS256", "kid": "one", "crit": ["x"]}, {}),
    raw({"alg": ["RS256"], "kid": "one"}, {}),
    raw({"kid": "one"}, {}),
    token(header={"kid": ""}),
    "eyJ" * 6000,
    ".".join(base64.urlsafe_b64encode(part).decode() for part in (b"[" * 9000, b"{}", b"x")),
]


@pytest.mark.parametrize("odd", ODD)
def test_whatever_is_no_token_is_a_401(client: httpx2.Client, odd: str) -> None:
    assert_problem(client.get("/api/items", headers={"Authorization": f"Bearer {odd}".strip()}), 401)


def test_what_a_machine_makes_up_is_a_401(client: httpx2.Client) -> None:
    part = st.one_of(
        st.text(alphabet="abcXYZ019-_=", max_size=40),
        st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5).map(encoded),
        st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "zip"]), st.text() | st.none()).map(
            encoded
        ),
    )

    @hypothesis_settings(max_examples=100, suppress_health_check=list(HealthCheck))
    @given(st.lists(part, min_size=1, max_size=4))
    def refused(parts: list[str]) -> None:
        assert client.get("/api/items", headers=bearer("." + ".".join(parts))).status_code == 401

    refused()


def encoded(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


@pytest.fixture
def advance(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time passes for the cache of keys alone."""
    passed = 0.0

    def advance(seconds: float) -> None:
        nonlocal passed
        passed += seconds

    monkeypatch.setattr(provider, "clock", lambda: time.monotonic() + passed)
    return advance


def test_new_key_is_fetched_when_a_token_names_it(client: httpx2.Client, keys: KeyServer, advance: Clock) -> None:
    assert status(client, token()) == 200
    keys.shows(OTHER)
    advance(11)
    assert status(client, token(OTHER, "ES256")) == 200
    assert status(client, token()) == 401
    assert keys.asked == 2


def test_ids_that_somebody_makes_up_ask_the_provider_now_and_then(
    client: httpx2.Client, keys: KeyServer, advance: Clock
) -> None:
    for number in range(20):
        assert status(client, token(header={"kid": f"made up {number}"})) == 401
    assert keys.asked == 1
    advance(11)
    assert status(client, token(header={"kid": "made up"})) == 401
    assert keys.asked == 2


@pytest.mark.parametrize(
    "answer",
    [
        (500, b"", {}),
        (302, b"", {"Location": "http://127.0.0.1:9/"}),
        (200, b"{", {}),
        (200, b"[]", {}),
        (200, b'{"keys": 7}', {}),
        (200, b"[" * 100_000, {}),
        (200, b" " * 600_000 + b'{"keys": []}', {}),
    ],
)
def test_provider_that_does_not_answer_is_a_503_and_no_401(
    client: httpx2.Client, keys: KeyServer, answer: tuple[int, bytes, dict[str, str]], advance: Clock
) -> None:
    keys.answer = answer
    for _ in range(3):
        refused = client.get("/api/items", headers=bearer(token()))
        assert assert_problem(refused, 503)["code"] == "identity_provider_unavailable"
        assert refused.headers["retry-after"] == "1"
    assert keys.asked == 1
    written = client.post("/api/items", headers=bearer(token()), json={"name": "x"})
    assert assert_problem(written, 503)["stored"] == "no"
    keys.shows(KEY)
    advance(11)
    assert status(client, token()) == 200


def test_keys_are_good_for_an_hour_without_their_provider(
    client: httpx2.Client, keys: KeyServer, advance: Clock
) -> None:
    assert status(client, token(exp=32503680000)) == 200
    keys.answer = (500, b"", {})
    advance(3000)
    assert status(client, token(exp=32503680000)) == 200
    advance(700)
    assert status(client, token(exp=32503680000)) == 503


def test_certificate_of_another_authority_is_a_503(
    client: httpx2.Client, one_authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(one_authority))
    assert status(client, token()) == 503


def test_one_key_that_is_odd_does_not_take_the_others_away(client: httpx2.Client, keys: KeyServer) -> None:
    rsa = {"kty": "RSA", "kid": "x"}
    keys.shows(KEY, also=({}, 7, rsa, {**rsa, "n": "!", "e": "AQAB"}, {"kty": "EC", "crv": 1, "kid": "y"}))
    assert status(client, token()) == 200


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"JWT_JWKS_URL": "http://login.example/keys"}, "begins with https://"),
        ({"JWT_JWKS_URL": "https:///keys"}, "begins with https://"),
        ({"JWT_ISSUER": ISSUER}, "AUTH_MODE=jwt needs JWT_AUDIENCE, JWT_JWKS_URL"),
    ],
)
def test_settings_of_a_server(make_settings: MakeSettings, environment: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        gate.check_server_mode(make_settings(AUTH_MODE="jwt", **environment))


@pytest.mark.parametrize(
    ("claims", "found"),
    [
        ({"scope": "items/read items/write"}, {"read", "write"}),
        ({"scope": "[items/read items/write]"}, {"read", "write"}),
        ({"scp": "items/ops"}, {"ops"}),
        ({"scope": 7, "scp": [None, {"items/read": 1}]}, set()),
        ({}, set()),
    ],
)
def test_scopes_of_a_token(claims: dict[str, Any], found: set[str]) -> None:
    assert {str(scope) for scope in tokens.scopes_in(claims, "items/")} == found
