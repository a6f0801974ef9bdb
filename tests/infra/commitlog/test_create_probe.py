import random
import re
import socket
from pathlib import Path

import pytest

from core.errors import ObjectExists, StoreError, StoreRefused, StoreUnavailable
from infra.commitlog.create_probe import prove_create_if_absent
from infra.storage.object_store import ObjectStore
from tests.infra.storage.look_then_write import look_then_write_store
from tests.infra.storage.rough_server import answering, reply, rough_server


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_REGION", "us-east-1")


def store_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    return ObjectStore("s3://bucket/log", retries=0)


def test_store_that_looks_and_then_writes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with look_then_write_store(0.05) as (endpoint, _):
        store = store_at(endpoint, monkeypatch)
        store.create("create-if-absent", b"")
        with pytest.raises(ObjectExists):
            store.create("create-if-absent", b"")  # one after the other it keeps the promise
        with pytest.raises(
            StoreRefused, match=r"log: \d of 3 creates of one object at the same moment were all confirm"
        ):
            prove_create_if_absent(store, random.Random(1))


def test_store_that_keeps_its_promise_passes_with_few_requests_over_connections_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with look_then_write_store(-1) as (endpoint, held):
        prove_create_if_absent(store_at(endpoint, monkeypatch), random.Random(1))
        assert held.requests == {"PUT": 2 + 2 * 3, "GET": 2 * 3}  # the first create makes the object
        assert len(held.connections) >= 1 + 3  # a client in a hurry may make one anew
        assert held.order == ["PUT"] * 2 + 2 * (["GET"] * 3 + ["PUT"] * 3)  # nobody starts before all are connected
        names = [path.removeprefix("/bucket/log/") for path in held.objects]
    assert len(names) == 3
    assert all(re.fullmatch(r"create-if-absent(-[0-9a-f]{16})?", name) for name in names)


def test_directory_keeps_create_if_absent(tmp_path: Path) -> None:
    for seed in range(20):
        prove_create_if_absent(ObjectStore(tmp_path.as_uri()), random.Random(seed))


def test_store_that_overwrites_is_refused() -> None:
    class Overwriting:
        url = "s3://bucket/log"

        def create(self, name: str, body: bytes | bytearray) -> None:
            pass

        def race(self, name: str, body: bytes, racers: int) -> int:
            raise AssertionError("what fails one after the other needs no race")

    with pytest.raises(StoreRefused, match="this store overwrites an object"):
        prove_create_if_absent(Overwriting(), random.Random(1))


class Racing:
    """A store whose races end so."""

    url = "s3://bucket/log"

    def __init__(self, *won: int) -> None:
        self._won = list(won)

    def create(self, name: str, body: bytes | bytearray) -> None:
        raise ObjectExists(name)

    def race(self, name: str, body: bytes, racers: int) -> int:
        return self._won.pop(0)


@pytest.mark.parametrize(
    ("won", "expected"),
    [((2,), StoreRefused), ((1, 3), StoreRefused), ((0,), StoreUnavailable), ((1, 0), StoreUnavailable)],
)
def test_every_race_must_have_one_winner(won: tuple[int, ...], expected: type[StoreError]) -> None:
    with pytest.raises(expected):
        prove_create_if_absent(Racing(*won), random.Random(1))


def test_race_without_a_clear_answer_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for status, expected in ((500, StoreUnavailable), (403, StoreRefused)):
        with rough_server(answering(reply(404), reply(status))) as endpoint, pytest.raises(expected):
            store_at(endpoint, monkeypatch).race("a", b"x", 3)


def test_race_does_not_wait_for_one_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    first = iter([True])

    def behaviour(connection: socket.socket) -> None:
        if not next(first, False):
            answering(reply(404))(connection)

    with rough_server(behaviour) as endpoint, pytest.raises(StoreUnavailable):
        store_at(endpoint, monkeypatch).race("a", b"x", 3)


def test_race_without_a_connection_does_not_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreUnavailable):
        store_at("http://127.0.0.1:9", monkeypatch).race("a", b"x", 3)
