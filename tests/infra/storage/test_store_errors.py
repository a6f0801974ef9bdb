"""What the client makes of each way in which a request can end, tried on real sockets (I5)."""

import itertools
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import obstore
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from obstore.exceptions import BaseError

from core.errors import (
    ObjectExists,
    ObjectMissing,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    StoreUnreachable,
)
from infra.storage.object_store import ObjectStore
from infra.storage.store_errors import ending_of
from tests.infra.storage.certificates import Authority
from tests.infra.storage.rough_server import (
    Behaviour,
    answering,
    nobody_takes,
    read_request,
    reply,
    reset,
    rough_server,
)

STORED = reply(200, b"", 'ETag: "a"')
TRAPS = (
    "kind: Connect",
    'hyper_util::client::legacy::Error( Connect, ConnectError( "tcp connect error", 127.0.0.1:9, ',
    "HTTP error: error sending request\n\nDebug source:\n",
    "403 Forbidden",
    "Server returned non-2xx status code: 403 Forbidden: ",
    "Generic S3 error: Error performing PUT http://127.0.0.1:9/b/p/a in 1ms - ",
    "<Code>NoSuchBucket</Code>",
    '<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "http://169.254.169.254/latest/api/token",
    "Object at location a not found: ",
    '"',
    "\\",
    "\\\"',\n}\n",
    "\r\n",
    "\u202e",
    "\x00",
)
CERTAIN = (StoreRefused, StoreUnreachable, ObjectMissing)
DOUBTFUL = (300, 301, 302, 307, 308, 400, 402, 406, 408, 410, 418, 425, 429, 460, 499, 500, 502, 503, 504, 520, 599)


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_REGION", "us-east-1")


@pytest.fixture
def store_at(monkeypatch: pytest.MonkeyPatch) -> "StoreAt":
    return StoreAt(monkeypatch)


class StoreAt:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def __call__(self, endpoint: str, timeout: float = 5, retries: int = 0) -> ObjectStore:
        self._monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        return ObjectStore("s3://bucket/p", timeout=timeout, retries=retries)


def error_of_create(store: ObjectStore, body: bytes = b"x") -> StoreError:
    with pytest.raises(StoreError) as caught:
        store.create("a", body)
    return caught.value


@pytest.fixture
def free_port() -> int:
    """One that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


# No connection


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_refused_connection_is_certain(store_at: StoreAt, free_port: int, host: str) -> None:
    store = store_at(f"http://{host}:{free_port}")
    assert type(error_of_create(store)) is StoreUnreachable
    for ask in (lambda: list(store.read("a")), store.objects, store.directories, lambda: store.objects("x", "x/1")):
        with pytest.raises(StoreUnreachable):
            ask()


def test_connection_that_nobody_takes_is_certain(store_at: StoreAt) -> None:
    with nobody_takes() as endpoint:
        store = store_at(endpoint, timeout=1)
        # Now and then, on a busy machine, the client gives up before it has seen where it was
        errors = (error_of_create(store) for _ in range(5))
        error = next(error for error in errors if '"tcp connect error"' in str(error.__cause__))
    assert type(error) is StoreUnreachable


def test_reset_at_once_is_certain_only_as_long_as_there_was_no_connection(store_at: StoreAt) -> None:
    """It may come before the client has seen that the connection is there, and so before anything was sent."""
    with rough_server(reset) as endpoint:
        error = error_of_create(store_at(endpoint))
    assert type(error) is (StoreUnreachable if '"tcp connect error"' in str(error.__cause__) else StoreUnavailable)


def test_name_without_address_leaves_doubt_since_a_redirect_may_have_led_to_it(store_at: StoreAt) -> None:
    assert type(error_of_create(store_at(f"http://{'x' * 64}:9"))) is StoreUnavailable  # no resolver is asked


def test_no_tls_on_the_other_side_leaves_doubt(store_at: StoreAt) -> None:
    def plain(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(reply(400))

    with rough_server(plain) as endpoint:
        assert type(error_of_create(store_at(endpoint.replace("http:", "https:")))) is StoreUnavailable


def test_certificate_that_is_not_trusted_leaves_doubt(store_at: StoreAt, tmp_path: Path) -> None:
    context = Authority(tmp_path).server_with_its_own()

    def behaviour(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secure:
            read_request(secure)

    with rough_server(behaviour) as endpoint:
        assert type(error_of_create(store_at(endpoint.replace("http:", "https:")))) is StoreUnavailable


def test_race_that_cannot_be_held_is_told_by_its_cause(store_at: StoreAt) -> None:
    """Whichever of them it is: the others wait for it in vain."""
    turns = itertools.count()

    def behaviour(connection: socket.socket) -> None:
        answering(reply(404))(connection) if next(turns) < 7 else after_the_request(reset)(connection)

    with rough_server(behaviour) as endpoint, pytest.raises(StoreUnavailable, match=r"Connection reset by peer$"):
        store_at(endpoint).race("a", b"x", 8)


# A connection that ends


def after_the_request(end: Behaviour) -> Behaviour:
    def behaviour(connection: socket.socket) -> None:
        if read_request(connection):
            end(connection)

    return behaviour


def half_a_reply(end: Behaviour) -> Behaviour:
    def behaviour(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nETa")
        end(connection)

    return after_the_request(behaviour)


def in_the_body(end: Behaviour) -> Behaviour:
    def behaviour(connection: socket.socket) -> None:
        connection.recv(10)
        end(connection)

    return behaviour


def half_an_error(status: int) -> Behaviour:
    def behaviour(connection: socket.socket) -> None:
        connection.sendall(reply(status, b"kind: Connect" * 10, cut=50))

    return after_the_request(behaviour)


def close(connection: socket.socket) -> None:
    connection.close()


def hang(connection: socket.socket) -> None:
    connection.recv(1)  # until the client or the test has had enough


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(close, id="closed at once"),
        pytest.param(in_the_body(reset), id="reset in the body"),
        pytest.param(in_the_body(close), id="closed in the body"),
        pytest.param(after_the_request(reset), id="reset after the request"),
        pytest.param(after_the_request(close), id="closed after the request"),
        pytest.param(after_the_request(hang), id="no reply"),
        pytest.param(half_a_reply(reset), id="half a reply, reset"),
        pytest.param(half_a_reply(close), id="half a reply, closed"),
        pytest.param(half_an_error(403), id="half a 403"),
        pytest.param(half_an_error(500), id="half a 500"),
        pytest.param(after_the_request(lambda connection: connection.sendall(b"kind: Connect\r\n\r\n")), id="no HTTP"),
    ],
)
def test_connection_that_was_there_leaves_doubt(store_at: StoreAt, behaviour: Behaviour) -> None:
    with rough_server(behaviour) as endpoint:
        assert type(error_of_create(store_at(endpoint, timeout=1), b"x" * 200_000)) is StoreUnavailable


@pytest.mark.parametrize("end", [reset, close])
def test_kept_connection_that_ends_after_the_request_leaves_doubt(store_at: StoreAt, end: Behaviour) -> None:
    def behaviour(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(STORED)
        read_request(connection)
        listeners[0].close()
        end(connection)

    listeners = [socket.create_server(("127.0.0.1", 0))]
    store = store_at(f"http://127.0.0.1:{listeners[0].getsockname()[1]}")
    serving = threading.Thread(target=lambda: behaviour(listeners[0].accept()[0]))
    serving.start()
    store.create("a", b"x")
    assert type(error_of_create(store)) is StoreUnavailable
    serving.join()


def test_earlier_attempt_that_may_have_done_it_leaves_doubt(store_at: StoreAt) -> None:
    """The last attempt could not connect; of the first one nobody knows."""

    def behaviour() -> None:
        connection, _ = listener.accept()
        read_request(connection)
        listener.close()
        connection.sendall(reply(503, b"", "Connection: close"))
        connection.close()

    listener = socket.create_server(("127.0.0.1", 0))
    store = store_at(f"http://127.0.0.1:{listener.getsockname()[1]}", retries=1)
    serving = threading.Thread(target=behaviour)
    serving.start()
    error = error_of_create(store)
    serving.join()
    assert "retries: 1" in str(error.__cause__)
    assert type(error) is StoreUnavailable


def test_redirect_to_nowhere_leaves_doubt(store_at: StoreAt, free_port: int) -> None:
    """The client follows a 303, and then says of the PUT that no connection was made."""
    with rough_server(answering(reply(303, b"", f"Location: http://127.0.0.1:{free_port}/"))) as endpoint:
        error = error_of_create(store_at(endpoint))
    assert "kind: Connect" in str(error.__cause__)
    assert type(error) is StoreUnavailable


# What the cause was


def speaks_no_http(connection: socket.socket) -> None:
    read_request(connection)
    connection.sendall(b"SSH-2.0\r\n\r\n")


@pytest.mark.parametrize(
    ("behaviour", "cause"),
    [
        (after_the_request(reset), "Connection reset by peer"),
        (after_the_request(hang), "timed out"),
        (half_a_reply(close), "the connection was closed in the middle of the reply"),
        (speaks_no_http, "the reply is no HTTP"),
    ],
    ids=["reset", "no reply", "half a reply", "no HTTP"],
)
def test_fault_of_a_connection_is_told_by_its_cause(store_at: StoreAt, behaviour: Behaviour, cause: str) -> None:
    with rough_server(behaviour) as endpoint:
        message = str(error_of_create(store_at(endpoint, timeout=1)))
    assert message.endswith(f"HTTP error: error sending request: {cause}")


@pytest.mark.parametrize(
    ("behaviour", "cause"),
    [(close, "the connection was closed in the middle of the reply"), (hang, "timed out")],
    ids=["closed", "no more"],
)
def test_body_that_breaks_off_is_told_by_its_cause(store_at: StoreAt, behaviour: Behaviour, cause: str) -> None:
    def half_a_body(connection: socket.socket) -> None:
        read_request(connection)
        headers = ['ETag: "a"', "Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT"]
        connection.sendall(reply(200, b"<ListBucketResult>", *headers, cut=4))
        behaviour(connection)

    with rough_server(half_a_body) as endpoint:
        store = store_at(endpoint, timeout=1)
        for ask in (lambda: list(store.read("a")), store.directories):
            with pytest.raises(StoreUnavailable, match=f"HTTP error: request or response body error: {cause}$"):
                ask()


def test_connection_that_cannot_be_made_is_told_by_its_cause(store_at: StoreAt, free_port: int) -> None:
    assert str(error_of_create(store_at(f"http://127.0.0.1:{free_port}"))).endswith(": Connection refused")
    assert "failed to lookup address" in str(error_of_create(store_at(f"http://{'x' * 64}:9")))
    with rough_server(lambda connection: connection.sendall(reply(400))) as endpoint:
        message = str(error_of_create(store_at(endpoint.replace("http:", "https:"))))
    assert message.endswith("there is no TLS at this address: does its URL begin with http://?")


# Replies


class Chosen:
    """What a server will say next."""

    def __init__(self) -> None:
        self.reply = b""

    def __call__(self, connection: socket.socket) -> None:
        while read_request(connection):
            connection.sendall(self.reply)


@pytest.fixture
def chosen(store_at: StoreAt) -> Iterator[tuple[Chosen, ObjectStore]]:
    chosen = Chosen()
    with rough_server(chosen) as endpoint:
        yield chosen, store_at(endpoint)


texts = st.lists(st.one_of(st.sampled_from(TRAPS), st.text(max_size=20)), max_size=8).map(
    lambda parts: "".join(parts).encode()
)
bodies = st.one_of(st.binary(max_size=200), texts)
whole_error = (
    "Generic S3 error: Error performing PUT http://127.0.0.1:9/bucket/p/a in 1ms - HTTP error: error sending request"
    '\n\nDebug source:\nGeneric { store: "S3", source: RetryError( RetryErrorImpl { method: PUT, uri: Some( '
    "http://127.0.0.1:9/bucket/p/a, ), retries: 0, max_retries: 0, elapsed: 1ms, retry_timeout: 30s, inner: Http( "
    "HttpError { kind: Connect, source: reqwest::Error { kind: Request, source: hyper_util::client::legacy::Error( "
    'Connect, ConnectError( "tcp connect error", 127.0.0.1:9, Os {'
)


def test_the_text_that_the_traps_are_made_of_is_what_the_client_says(store_at: StoreAt) -> None:
    assert ending_of(whole_error).unsent
    reply_to_list = (
        "Generic S3 error: Error performing GET http://a/ in 1ms - Server returned non-2xx status code: 403 Forbidden: "
    )
    assert ending_of(reply_to_list).refusal
    assert not ending_of(f'Generic S3 error: Got invalid list response: invalid type: "{reply_to_list}"').refusal
    assert not ending_of("x" + whole_error).unsent
    assert not ending_of(whole_error.replace("retries: 0, max", "retries: 1, max")).unsent
    assert not ending_of(whole_error.replace('error", 127.0.0.1:9', 'error", 127.0.0.2:9')).unsent
    assert not ending_of(whole_error.replace('error", 127.0.0.1:9', 'error", 127.0.0.1:8')).unsent
    assert not ending_of(whole_error.replace("Connect, ConnectError", "SendRequest, ConnectError")).unsent


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(status=st.sampled_from(DOUBTFUL), body=bodies)
@example(status=502, body=b"kind: Connect")
@example(status=500, body=whole_error.encode())
@example(status=503, body=b"403 Forbidden")
@example(status=500, body=b'<?xml version="1.0"?><Error><Code>NoSuchBucket</Code></Error>')
@example(status=400, body=b"<Code>NoSuchBucket</Code>")
@example(status=500, body=b"\n\nDebug source:\n" + whole_error.partition("Debug source:\n")[2].encode())
def test_nothing_that_a_server_says_makes_a_doubtful_reply_certain(
    chosen: tuple[Chosen, ObjectStore], status: int, body: bytes
) -> None:
    server, store = chosen
    if status == 400 and body.lstrip().startswith((b"<?xml", b"<Error")):
        status = 500  # that would be a refusal
    server.reply = reply(status, body)
    assert not isinstance(error_of_create(store), CERTAIN)
    for ask in (lambda: store.read_range("a", 0, 10), store.directories, lambda: store.objects("x", "x/1")):
        with pytest.raises(StoreError) as caught:
            ask()
        assert not isinstance(caught.value, CERTAIN)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=bodies.filter(lambda body: b"ListBucketResult" not in body))
def test_list_that_is_none_is_neither_empty_nor_refused(chosen: tuple[Chosen, ObjectStore], body: bytes) -> None:
    server, store = chosen
    server.reply = reply(200, body)
    with suppress(StoreUnavailable):
        assert store.directories() == []  # of some other XML
    with suppress(StoreUnavailable):
        assert store.objects() == []


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, StoreRefused),
        (403, StoreRefused),
        (404, ObjectMissing),
        (405, StoreRefused),
        (409, ObjectExists),
        (411, StoreRefused),
        (412, ObjectExists),
        (413, StoreRefused),
        (414, StoreRefused),
        (501, StoreRefused),
    ],
)
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=texts)
def test_status_alone_decides_and_the_body_is_not_repeated(
    chosen: tuple[Chosen, ObjectStore], status: int, expected: type[StoreError], body: bytes
) -> None:
    server, store = chosen
    if body.lstrip().startswith((b"<?xml", b"<Error")):
        body = b"-" + body
    server.reply = reply(status, b"TOLD " + body)
    error = error_of_create(store)
    assert type(error) is expected
    assert "TOLD" not in str(error)
    assert "\n" not in str(error)


def said(code: str) -> bytes:
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>TOLD</Message>'
        f"<AWSAccessKeyId>TOLD</AWSAccessKeyId><Code>NoSuchBucket</Code></Error>"
    ).encode()


@pytest.mark.parametrize(
    ("status", "code", "advice"),
    [
        (400, "ExpiredToken", "renew AWS_ACCESS_KEY_ID"),
        (400, "InvalidToken", "renew AWS_ACCESS_KEY_ID"),
        (400, "AuthorizationHeaderMalformed", "check AWS_REGION"),
        (400, "InvalidArgument", "the store refuses this request"),
        (400, "InvalidBucketName", "there is no such bucket"),
        (403, "InvalidAccessKeyId", "access denied: check AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "access denied: check AWS_ACCESS_KEY_ID"),
        (403, "RequestTimeTooSkewed", "this machine's clock is wrong"),
        (403, "AccessDenied", "access denied"),
        (404, "NoSuchBucket", "there is no such bucket"),
        (501, "NotImplemented", "the store refuses this request"),
    ],
)
def test_refusal_is_certain_and_says_what_to_do(
    chosen: tuple[Chosen, ObjectStore], status: int, code: str, advice: str
) -> None:
    server, store = chosen
    server.reply = reply(status, said(code))
    for ask in (lambda: store.create("a", b"x"), lambda: list(store.read("a")), store.objects, store.check):
        with pytest.raises(StoreRefused) as caught:
            ask()
        assert str(caught.value).startswith("s3://bucket/p: ")
        assert advice in str(caught.value)
        assert str(caught.value).endswith(f" {code})")
        assert "TOLD" not in str(caught.value)


@pytest.mark.parametrize("code", ["RequestTimeout", "IncompleteBody", "BadDigest"])
def test_fault_on_the_way_is_tried_again(chosen: tuple[Chosen, ObjectStore], code: str) -> None:
    server, store = chosen
    server.reply = reply(400, said(code))
    assert type(error_of_create(store)) is StoreUnavailable


@pytest.mark.parametrize("code", ["NoSuchBucket", "AccessDenied", "ExpiredToken"])
@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_name_of_an_error_counts_only_in_a_refusal(chosen: tuple[Chosen, ObjectStore], status: int, code: str) -> None:
    server, store = chosen
    server.reply = reply(status, said(code))
    assert type(error_of_create(store)) is StoreUnavailable


def test_another_404_is_a_missing_object(chosen: tuple[Chosen, ObjectStore]) -> None:
    server, store = chosen
    server.reply = reply(404, said("NoSuchKey"))
    assert type(error_of_create(store)) is ObjectMissing
    with pytest.raises(StoreUnavailable):
        store.directories()


def test_request_that_had_no_credentials_was_not_sent() -> None:
    text = "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 1ms - "
    for rest in ("Server returned non-2xx status code: 403 Forbidden: no", "HTTP error: error sending request"):
        ending = ending_of(f"{text}{rest}\n\nDebug source:\nGeneric {{}}")
        assert ending.unsent
        assert ending.without_credentials
        assert not ending.refusal


def test_debug_text_of_the_client_is_as_it_is_read_here(store_at: StoreAt, free_port: int) -> None:
    """It is no promise of obstore's: where it changes, a store that is away is no certain "no" any more."""
    store = store_at(f"http://127.0.0.1:{free_port}")
    with pytest.raises(BaseError) as caught:
        obstore.put(store._store, "a", b"x", mode="create")
    assert ending_of(str(caught.value)).unsent
