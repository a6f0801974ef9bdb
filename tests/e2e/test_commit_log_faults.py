"""A server between a client and a store that has a bad day."""

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import httpx2
import pytest

from tests.conftest import assert_problem
from tests.e2e.conftest import Server
from tests.e2e.evidence import Claims, restored_and_checked, run_together
from tests.e2e.processes import StartProcess
from tests.e2e.proxy import (
    RESET,
    Forward,
    Proxy,
    Reply,
    Request,
    Rule,
    answered,
    applied_but_answered,
    applied_but_replied,
    delayed,
    every_commit,
    first_try_of_every,
    lost_reply,
    pass_on,
    proxy_before,
    reset_reply,
    without_header,
)
from tests.e2e.stores import S3
from tests.infra.storage.certificates import Authority

pytestmark = pytest.mark.e2e

StartServer = Callable[..., Server]
WITHOUT_TIMER = {"MAINTENANCE_INTERVAL_SECONDS": "0"}


@pytest.fixture
def proxy(bucket: S3) -> Iterator[Proxy]:
    with proxy_before(bucket.endpoint) as proxy:
        yield proxy


@pytest.fixture
def start(start_server: StartServer, bucket: S3, proxy: Proxy, tmp_path: Path) -> StartServer:
    """A server with a database file of its own, before the store and the proxy."""
    numbers = itertools.count(1)

    def start(**environment: str) -> Server:
        database = tmp_path / f"server-{next(numbers)}" / "app.db"
        defaults = bucket.environment(proxy.endpoint) | WITHOUT_TIMER | {"DATABASE_PATH": str(database)}
        return start_server(**(defaults | environment))

    return start


@pytest.fixture
def start_in_vain(start_process: StartProcess, bucket: S3, proxy: Proxy, tmp_path: Path) -> Callable[..., str]:
    """A server that cannot start; what it says."""

    def start(without: tuple[str, ...] = (), **environment: str) -> str:
        defaults = bucket.environment(proxy.endpoint) | WITHOUT_TIMER
        settings = defaults | {"DATABASE_PATH": str(tmp_path / "in vain" / "app.db")} | environment
        for name in without:
            del settings[name]
        process = start_process(sys.executable, "-m", "handler", **settings)
        process.popen.wait(60)
        assert process.end() == 2, process.lines
        assert process.log[-1]["level"] == "CRITICAL"
        message: str = process.log[-1]["message"]
        return message

    return start


def write(server: Server, claims: Claims, name: str) -> httpx2.Response:
    answer = server.client.post("/api/items", json={"name": name})
    claims.record(name, answer.status_code, answer.json())
    return answer


def write_many(server: Server, claims: Claims, prefix: str, number: int) -> None:
    for n in range(number):
        write(server, claims, f"{prefix}-{n}")


def names_at(server: Server) -> set[str]:
    return {
        item["name"]
        for item in server.client.get("/api/items", params={"limit": 100}).raise_for_status().json()["items"]
    }


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(lost_reply, id="lost reply"),
        pytest.param(reset_reply, id="reset"),
        pytest.param(applied_but_replied(Reply(502, {}, b"kind: Connect")), id="502 that talks of a connection"),
        pytest.param(delayed(0.3), id="delay"),
        pytest.param(applied_but_answered(500, "InternalError"), id="500"),
        pytest.param(applied_but_answered(503, "SlowDown"), id="503"),
        pytest.param(applied_but_answered(409, "ConditionalRequestConflict"), id="409"),
        pytest.param(applied_but_answered(412, "PreconditionFailed"), id="412"),
        pytest.param(answered(500, "InternalError"), id="500 and not applied"),
        pytest.param(answered(409, "ConditionalRequestConflict"), id="409 and not applied"),
    ],
)
def test_unclear_answer_of_the_store_neither_fails_nor_repeats_a_write(
    fault: Rule, bucket: S3, proxy: Proxy, start: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = [start(), start()]
    proxy.rule = first_try_of_every(3, fault)
    claims = Claims()
    run_together(
        [
            partial(write_many, server, claims, f"{number}-{thread}", 8)
            for number, server in enumerate(servers)
            for thread in range(3)
        ]
    )
    assert len(claims.acknowledged) == 48
    claims.check(restored_and_checked(bucket, tmp_path, monkeypatch))


def test_outcome_that_nobody_learns_is_called_unknown(
    bucket: S3, proxy: Proxy, start: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = Claims()
    server = start(COMMIT_TIMEOUT_SECONDS="1")
    write(server, claims, "before")
    proxy.rule = lost_reply
    answer = write(server, claims, "nobody knows")
    assert assert_problem(answer, 503)["stored"] == "unknown"
    assert answer.headers["retry-after"]
    proxy.rule = pass_on
    assert write(server, claims, "after").status_code == 201
    claims.check(restored_and_checked(bucket, tmp_path, monkeypatch))
    assert names_at(server) == {"before", "nobody knows", "after"}  # this one was stored


class StoredAndGone:
    """The store does it, and is not heard of any more until it is back: connections are reset, new ones refused."""

    def __init__(self, proxy: Proxy, reply: Reply) -> None:
        self._proxy = proxy
        self._reply = reply
        self._gone = False

    def __call__(self, request: Request, forward: Forward) -> Reply:
        if self._gone:
            return RESET
        reply = forward(request)
        if not request.is_commit:
            return reply
        self._gone = True
        self._proxy.refuse_connections()
        return self._reply


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(RESET, id="reset"),
        pytest.param(Reply(502, {}, b"kind: Connect"), id="502 that talks of a connection"),
        pytest.param(Reply(503, {}, b"403 Forbidden <Code>NoSuchBucket</Code>"), id="503 that talks of a refusal"),
        pytest.param(Reply(303, {"Location": "http://127.0.0.1:9/"}, b""), id="redirect to nowhere"),
    ],
)
def test_write_that_was_stored_before_the_store_went_away_is_never_called_not_stored(
    reply: Reply, bucket: S3, proxy: Proxy, start: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = Claims()
    server = start(COMMIT_TIMEOUT_SECONDS="1")
    write(server, claims, "before")
    proxy.rule = StoredAndGone(proxy, reply)
    answer = write(server, claims, "nobody knows")
    assert assert_problem(answer, 503)["stored"] == "unknown"
    proxy.rule = pass_on
    proxy.listen_again()
    assert write(server, claims, "after").status_code == 201
    claims.check(restored_and_checked(bucket, tmp_path, monkeypatch))
    assert names_at(server) == {"before", "nobody knows", "after"}


@pytest.mark.parametrize(
    ("status", "code", "advice"),
    [
        (400, "ExpiredToken", "renew AWS_ACCESS_KEY_ID"),
        (400, "AuthorizationHeaderMalformed", "check AWS_REGION"),
        (403, "RequestTimeTooSkewed", "clock is wrong"),
    ],
)
def test_refusal_of_the_store_is_an_answer_at_once(
    status: int, code: str, advice: str, proxy: Proxy, start: StartServer
) -> None:
    server = start(COMMIT_TIMEOUT_SECONDS="60")  # longer than the client of this test waits
    before = len(proxy.requests)
    proxy.rule = every_commit(answered(status, code))
    answer = server.client.post("/api/items", json={"name": "x"})
    assert assert_problem(answer, 503)["stored"] == "no"
    assert server.process.wait_for(advice)
    assert len([request for request, _ in proxy.requests[before:] if request.is_commit]) == 1


def test_store_that_never_answers_costs_no_more_than_the_time_limit(proxy: Proxy, start: StartServer) -> None:
    server = start(COMMIT_TIMEOUT_SECONDS="1")
    proxy.rule = delayed(30)
    answer = server.client.post("/api/items", json={"name": "x"})
    assert assert_problem(answer, 503)["stored"] == "unknown"
    assert answer.elapsed.total_seconds() < 20


def test_store_that_is_away_refuses_writes_and_stops_no_reads(
    bucket: S3, proxy: Proxy, start: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = Claims()
    server = start(READ_FRESHNESS_SECONDS="3600", COMMIT_TIMEOUT_SECONDS="1")
    fresh = start(READ_FRESHNESS_SECONDS="0")
    write(server, claims, "before")
    with proxy.away():
        assert assert_problem(write(server, claims, "meanwhile"), 503)["stored"] == "no"
        assert names_at(server) == {"before"}
        assert server.client.get("/ready").json()["status"] == "degraded"
        assert_problem(fresh.client.get("/api/items"), 503)
    assert write(server, claims, "after").status_code == 201
    assert server.client.get("/ready").json()["status"] == "ready"
    assert names_at(server) == names_at(fresh) == {"before", "after"}
    claims.check(restored_and_checked(bucket, tmp_path, monkeypatch))


def test_store_that_would_overwrite_is_refused_before_the_first_write(
    bucket: S3, proxy: Proxy, start: StartServer, start_in_vain: Callable[..., str]
) -> None:
    proxy.rule = without_header("if-none-match")
    message = start_in_vain()
    assert f"{bucket.url('log')}: this store overwrites an object" in message
    assert "If-None-Match" in message
    assert bucket.keys("log/0000/") == []
    proxy.rule = pass_on
    write(start(), Claims(), "x")
    before = bucket.content("log/")
    proxy.rule = without_header("if-none-match")
    late = start()  # there is nothing to write at the start
    assert assert_problem(late.client.post("/api/items", json={"name": "y"}), 503)["stored"] == "no"
    assert late.process.wait_for("this store overwrites an object")
    assert bucket.content("log/") == before


def test_missing_bucket_is_named(start_in_vain: Callable[..., str]) -> None:
    message = start_in_vain(REPLICA_URL="s3://nowhere/log")
    assert "s3://nowhere/log: there is no such bucket" in message


def test_no_credentials_are_named(bucket: S3, start_in_vain: Callable[..., str]) -> None:
    message = start_in_vain(without=("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    assert f"{bucket.url('log')}: no AWS credentials" in message


def test_denied_read_is_neither_empty_nor_current(
    bucket: S3, proxy: Proxy, start: StartServer, start_in_vain: Callable[..., str], tmp_path: Path
) -> None:
    server = start(READ_FRESHNESS_SECONDS="0")
    write(server, Claims(), "x")
    before = bucket.content("log/")
    proxy.rule = only("GET", answered(403, "AccessDenied"))
    assert_problem(server.client.get("/api/items"), 503)
    assert server.process.wait_for(f"{bucket.url('log')}: access denied")
    assert f"{bucket.url('log')}: access denied" in start_in_vain(BACKUP_URL=tmp_path.as_uri())
    proxy.rule = pass_on
    assert names_at(server) == {"x"}
    assert bucket.content("log/") == before


def only(method: str, fault: Rule) -> Rule:
    def rule(request: Request, forward: Forward) -> Reply | None:
        return (fault if request.method == method else pass_on)(request, forward)

    return rule


def cut_short(body: bytes) -> bytes:
    return body[:-40]


def altered(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]


@pytest.mark.parametrize("damage", [cut_short, altered, None])
def test_damaged_log_is_named_and_neither_served_nor_changed(
    damage: Callable[[bytes], bytes] | None, bucket: S3, start: StartServer, start_in_vain: Callable[..., str]
) -> None:
    server = start(READ_FRESHNESS_SECONDS="0")
    behind = start(READ_FRESHNESS_SECONDS="0")
    write_many(server, Claims(), "item", 5)
    assert len(names_at(behind)) == 5
    write_many(server, Claims(), "later", 5)
    key = bucket.keys("log/0000/")[-3]
    whole = bucket.read(key)
    if damage:
        bucket.write(key, damage(whole))
    else:
        bucket.delete(key)
    before = bucket.content("log/")
    name = f"s3://{bucket.bucket}/{key}"
    assert name in start_in_vain()
    if damage:
        assert_problem(behind.client.get("/api/items"), 503)
        assert behind.process.wait_for(name)
    assert bucket.content("log/") == before
    bucket.write(key, whole)
    assert len(names_at(behind)) == len(names_at(start())) == 10


def test_emptied_log_is_not_begun_anew(
    bucket: S3, start: StartServer, start_in_vain: Callable[..., str], tmp_path: Path
) -> None:
    database = str(tmp_path / "lasting" / "app.db")
    server = start(DATABASE_PATH=database)
    write(server, Claims(), "x")
    server.process.end()
    for key in bucket.keys("log/"):
        bucket.delete(key)
    message = start_in_vain(DATABASE_PATH=database)
    assert bucket.url("log") in message
    assert "the log was emptied or" in message
    assert bucket.keys("log/0000/") == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """2 MB, really."""
    path = tmp_path / "small"
    path.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)], capture_output=True)
    if made.returncode:
        pytest.skip("mounting a small disk needs root")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_full_disk_refuses_writes_and_loses_none(
    bucket: S3,
    start: StartServer,
    start_in_vain: Callable[..., str],
    small_disk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    claims = Claims()
    server = start(DATABASE_PATH=str(small_disk / "data" / "app.db"))
    for number in itertools.count():
        body = {"name": f"item {number}", "description": "x" * 2000}
        answer = server.client.post("/api/items", json=body)
        if answer.status_code != 201:
            break
        claims.record(body["name"], 201, answer.json())
    assert "No space is left" in assert_problem(answer, 507)["detail"]
    assert len(claims.acknowledged) > 50
    found = server.client.get("/api/items", params={"limit": 1}).raise_for_status()
    assert found.json()["items"][0]["name"] == "item 0"
    claims.check(restored_and_checked(bucket, tmp_path, monkeypatch))
    message = start_in_vain(DATABASE_PATH=str(small_disk / "other" / "app.db"))
    assert str(small_disk / "other") in message
    assert "space" in message.lower()


@pytest.mark.parametrize("days", ["+1d", "-1d"])
def test_clock_that_is_a_day_wrong_is_reported_and_loses_nothing(
    days: str, bucket: S3, start: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = Claims()
    wrong = start(**faked_time(days))
    write_many(wrong, claims, "wrong", 3)
    right = start()
    write_many(right, claims, "right", 3)
    write_many(wrong, claims, "wrong again", 3)
    assert wrong.process.wait_for("s ahead of that of s3:" if days == "+1d" else "s behind that of s3:")
    assert len(claims.acknowledged) == 9
    claims.check(restored_and_checked(bucket, tmp_path, monkeypatch))


def faked_time(offset: str) -> dict[str, str]:
    spec = find_spec("libfaketime")
    assert spec
    assert spec.origin
    library = Path(spec.origin).parent / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"
    return {"LD_PRELOAD": str(library), "FAKETIME": offset, "DONT_FAKE_MONOTONIC": "1"}


def test_store_with_an_authority_of_its_own_is_used(
    start_process: StartProcess, start_server: StartServer, bucket: S3, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    with proxy_before(bucket.endpoint, tls=authority.server()) as proxy:
        environment = bucket.environment(proxy.endpoint) | WITHOUT_TIMER
        refused = start_process(sys.executable, "-m", "handler", **environment)
        refused.wait_for("cannot start: .* its certificate is of an authority that is not known here: .* AWS_CA_BUNDLE")
        assert refused.popen.wait(30) == 2
        client = start_server(**environment, AWS_CA_BUNDLE=str(authority.file), COMMIT_TIMEOUT_SECONDS="1").client
        assert client.post("/api/items", json={"name": "before"}).status_code == 201
        with proxy.away():
            proxy.tls = authority.server(begins=-4)
        for stored in (
            "unknown",
            "no",
        ):  # the first one comes before the server knows; nothing tells who has refused it
            problem = assert_problem(client.post("/api/items", json={"name": "meanwhile"}), 503)
            assert problem["stored"] == stored
        ready = client.get("/ready").json()
        assert ready["status"] == "degraded"
        assert "its certificate has expired" in ready["store"]
        with proxy.away():
            proxy.tls = authority.server()
        assert client.post("/api/items", json={"name": "after"}).status_code == 201
        assert [item["name"] for item in client.get("/api/items").json()["items"]] == ["before", "after"]
