"""Objects of a bucket that are read in parts, side by side."""

import socket

import pytest

from core.errors import ObjectMissing, StoreUnavailable
from infra.storage.object_store import READ_PART, Asked, ObjectStore, nobody_asks
from tests.infra.storage.rough_server import read_request, reply, rough_server

LARGE = bytes(range(256)) * (5 * READ_PART // 512) + b"the end"


def in_parts(url: str, *, asked: Asked = nobody_asks) -> ObjectStore:
    return ObjectStore(url, timeout=10, retries=0, asked=asked, parts_at_once=3)


@pytest.mark.parametrize("size", [0, 1, READ_PART - 1, READ_PART, READ_PART + 1, len(LARGE)])
def test_object_that_comes_in_parts_comes_in_order_and_whole(s3: str, size: int) -> None:
    requests: list[tuple[str, bool]] = []
    store = in_parts(s3, asked=lambda verb, answered, seconds: requests.append((verb, answered)))
    store.put("object", LARGE[:size])
    requests.clear()
    assert b"".join(store.read("object")) == LARGE[:size]
    assert requests == max(-(-size // READ_PART), 1) * [("get", True)]


def test_object_that_is_replaced_between_its_parts_is_no_mixture(s3: str) -> None:
    store = in_parts(s3)
    store.put("object", LARGE)
    chunks = store.read("object")
    next(chunks)
    store.put("object", LARGE.swapcase())
    rest: list[bytes] = []
    with pytest.raises(StoreUnavailable, match="object was replaced while it was read"):
        rest.extend(chunks)
    assert not set(rest) - {LARGE[READ_PART : 2 * READ_PART], LARGE[2 * READ_PART :]}


def test_object_that_is_deleted_between_its_parts_is_missing(s3: str) -> None:
    store = in_parts(s3)
    store.put("object", bytes(3 * READ_PART + 1))
    chunks = store.read("object")
    next(chunks)
    store.delete("object")
    with pytest.raises(ObjectMissing):
        list(chunks)


def part(begin: int, end: int, *, cut: int = 0, lacking: int = 0) -> bytes:
    """What a server answers to whom asks for a part of LARGE. `lacking`: bytes that it does not have, and says so."""
    headers = (
        f"Content-Range: bytes {begin}-{end - 1}/{len(LARGE)}",
        'ETag: "1"',
        "Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT",
    )
    return reply(206, LARGE[begin : end - lacking], *headers, cut=cut)


@pytest.mark.parametrize("failures", [1, 2])
@pytest.mark.parametrize("failure", ["unavailable", "cut", "other", "short"])
def test_part_that_does_not_come_is_asked_for_once_more(
    monkeypatch: pytest.MonkeyPatch, failure: str, failures: int
) -> None:
    asked: list[int] = []

    def behaviour(connection: socket.socket) -> None:
        while head := read_request(connection):
            begin = int(head.lower().partition(b"range: bytes=")[2].partition(b"-")[0])
            asked.append(begin)
            answer = part(begin, min(begin + READ_PART, len(LARGE)))
            if begin == READ_PART and asked.count(begin) <= failures:
                answer = {
                    "unavailable": reply(503),
                    "cut": part(begin, begin + READ_PART, cut=READ_PART // 4),
                    "short": part(begin, begin + READ_PART, lacking=1),
                    "other": part(begin, begin + READ_PART // 4),
                }[failure]
            connection.sendall(answer)
            if len(answer) < READ_PART and failure == "cut" and begin == READ_PART:
                return

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with rough_server(behaviour) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        store = in_parts("s3://bucket/prefix")
        if failures == 1:
            assert b"".join(store.read("object")) == LARGE
        else:
            with pytest.raises(StoreUnavailable):
                b"".join(store.read("object"))
    assert asked.count(READ_PART) == 2
