"""The simulated faults speak as the client does, compared on real sockets."""

import re
import socket
from collections.abc import Callable

import obstore
import pytest
from obstore.exceptions import BaseError
from obstore.store import S3Store

from core.errors import ObjectExists, ObjectMissing, StoreError, StoreRefused, StoreUnavailable, StoreUnreachable
from infra.storage.object_store import ObjectStore
from tests.infra.storage.rough_server import Behaviour, answering, nobody_takes, read_request, reply, rough_server
from tests.infra.storage.rough_server import reset as reset_connection
from tests.simulation import client_errors
from tests.simulation.client_errors import Fault, Request, replied, said, translated

Ask = Callable[[S3Store], object]


def create(store: S3Store) -> object:
    return obstore.put(store, "a", b"x", mode="create")


def get(store: S3Store) -> object:
    return obstore.get(store, "a").bytes()


def list_all(store: S3Store) -> object:
    return obstore.list_with_delimiter(store, "a")


def delete(store: S3Store) -> object:
    obstore.delete(store, "a")
    return None


URIS: dict[Ask, tuple[str, str]] = {
    create: ("PUT", "bucket/p/a"),
    get: ("GET", "bucket/p/a"),
    list_all: ("GET", "bucket?delimiter=%2F&list-type=2&prefix=p%2Fa%2F"),
    delete: ("POST", "bucket?delete"),
}


def after_the_request(end: Behaviour) -> Behaviour:
    def behaviour(connection: socket.socket) -> None:
        if read_request(connection):
            end(connection)

    return behaviour


def error_of(ask: Ask, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Exception:
    for name, value in {
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises((BaseError, OSError)) as caught:
        ask(ObjectStore("s3://bucket/p", timeout=1, retries=0)._store)
    return caught.value


def check_same(error: Exception, fault: Fault, ask: Ask, endpoint: str) -> None:
    method, path = URIS[ask]
    expected = fault(Request(method, f"{endpoint}/{path}", "p/a", lists=ask is list_all))
    assert type(error) is type(expected)
    assert _without_times(str(error)) == _without_times(str(expected))


def _without_times(text: str) -> str:
    return re.sub(r"(elapsed: | in )[\d.]+[mµ]?s", r"\g<1>1ms", text)


@pytest.mark.parametrize("ask", [create, get, list_all, delete])
def test_refused_connection(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
    check_same(error_of(ask, endpoint, monkeypatch), client_errors.refused, ask, endpoint)


def test_connection_that_nobody_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    with nobody_takes() as endpoint:
        # Now and then, on a busy machine, the client gives up before it has seen where it was
        errors = (error_of(create, endpoint, monkeypatch) for _ in range(5))
        error = next(error for error in errors if '"tcp connect error"' in str(error))
    check_same(error, client_errors.not_accepted, create, endpoint)


def test_redirect_to_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        elsewhere = f"127.0.0.1:{listener.getsockname()[1]}"
    monkeypatch.setattr(client_errors, "_ELSEWHERE", elsewhere)
    with rough_server(answering(reply(303, b"", f"Location: http://{elsewhere}/"))) as endpoint:
        error = error_of(create, endpoint, monkeypatch)
    check_same(error, client_errors.redirected_to_nowhere, create, endpoint)


@pytest.mark.parametrize("ask", [create, get, list_all, delete])
@pytest.mark.parametrize(
    ("end", "fault"),
    [
        (reset_connection, client_errors.reset),
        (lambda connection: connection.close(), client_errors.closed),
        (lambda connection: connection.recv(1), client_errors.timed_out),
        (lambda connection: connection.sendall(reply(500, b"x" * 99, cut=50)), client_errors.half_a_reply),
    ],
)
def test_connection_that_ends(ask: Ask, end: Behaviour, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    with rough_server(after_the_request(end)) as endpoint:
        check_same(error_of(ask, endpoint, monkeypatch), fault, ask, endpoint)


@pytest.mark.parametrize("ask", [create, list_all, delete])
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, said("ExpiredToken")),
        (403, said("AccessDenied")),
        (500, "kind: Connect"),
        *((503, body) for body in client_errors._BODIES),
    ],
)
def test_reply(ask: Ask, status: int, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with rough_server(answering(reply(status, body.encode()))) as endpoint:
        check_same(error_of(ask, endpoint, monkeypatch), replied(status, body), ask, endpoint)


@pytest.mark.parametrize("status", [404, 409, 412])
def test_reply_that_names_the_object(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with rough_server(answering(reply(status, said("Code").encode()))) as endpoint:
        check_same(error_of(create, endpoint, monkeypatch), replied(status, said("Code")), create, endpoint)


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        (client_errors._UNSENT, StoreUnreachable),
        ((*client_errors._NO_REPLY, client_errors.redirected_to_nowhere, client_errors.cut_body), StoreUnavailable),
        ((*client_errors._FAULTS, *client_errors._HOSTILE), StoreUnavailable),
        (client_errors._REFUSALS, StoreRefused),
        ((client_errors.CONFLICT, client_errors.EXISTS), ObjectExists),
        ((client_errors.MISSING,), ObjectMissing),
    ],
)
def test_each_is_what_the_simulation_takes_it_for(faults: tuple[Fault, ...], expected: type[StoreError]) -> None:
    request = client_errors.request_for("create", "a")
    assert {type(translated(fault(request))) for fault in faults} == {expected}
