"""Snapshots that come in parts from a bucket, several under way at once."""

import random
from pathlib import Path

import pytest

from core.errors import LogDamaged, StoreUnavailable
from infra.clock import Clock
from infra.commitlog import ltx, open_log
from infra.storage.object_store import READ_PART, ObjectStore

_NAME = f"0009/{1:016x}-{9:016x}.ltx"
# 7 MiB, which go up in one request
_PAGES = [(number, random.Random(number).randbytes(65536)) for number in range(1, 111)]


@pytest.fixture
def log_url(s3: str) -> str:
    return s3.replace("backups", "log")


@pytest.fixture
def store(log_url: str) -> ObjectStore:
    return ObjectStore(log_url)


@pytest.fixture
def body(store: ObjectStore) -> bytearray:
    body, _ = ltx.encode(ltx.Header(65536, len(_PAGES), 1, 9, 0, 0, 42, 7), _PAGES)
    store.put(_NAME, bytes(body))
    return body


def restored(log_url: str, path: Path) -> list[int]:
    """What is told of it meanwhile, bytes."""
    told: list[int] = []
    open_log(log_url, Clock()).restore(path, 9, lambda phase, done, total: told.append(done))
    return told


def test_large_snapshot_is_restored(log_url: str, body: bytearray, tmp_path: Path) -> None:
    told = restored(log_url, tmp_path / "app.db")
    assert (tmp_path / "app.db").read_bytes() == b"".join(page for _, page in _PAGES)
    assert told == [*range(READ_PART, len(body), READ_PART), len(body)]


@pytest.mark.parametrize("place", [0, READ_PART - 1, READ_PART, 3 * READ_PART // 2, 2 * READ_PART, -300, -1])
def test_damage_in_any_part_is_found_and_named(
    log_url: str, store: ObjectStore, body: bytearray, tmp_path: Path, place: int
) -> None:
    body[place] ^= 1
    store.put(_NAME, bytes(body))
    with pytest.raises(LogDamaged, match=f"^{log_url}/{_NAME} "):
        restored(log_url, tmp_path / "app.db")


@pytest.mark.parametrize("size", [READ_PART, 3 * READ_PART // 2, -8, -1])
def test_snapshot_that_ends_early_is_found_and_named(
    log_url: str, store: ObjectStore, body: bytearray, tmp_path: Path, size: int
) -> None:
    store.put(_NAME, bytes(body[:size]))
    with pytest.raises(LogDamaged, match=f"^{log_url}/{_NAME} "):
        restored(log_url, tmp_path / "app.db")


def test_parts_that_come_in_another_order_are_no_snapshot(
    log_url: str, store: ObjectStore, body: bytearray, tmp_path: Path
) -> None:
    first, second, third, *rest = (bytes(body[at : at + READ_PART]) for at in range(0, len(body), READ_PART))
    store.put(_NAME, b"".join([first, third, second, *rest]))
    with pytest.raises(LogDamaged, match=f"^{log_url}/{_NAME} "):
        restored(log_url, tmp_path / "app.db")


def test_part_that_cannot_be_had_ends_the_restore(
    log_url: str, body: bytearray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = ObjectStore._part

    def broken(self: ObjectStore, name: str, begin: int, *rest: object) -> object:
        if begin == 2 * READ_PART:
            raise StoreUnavailable("it does not answer")
        return part(self, name, begin, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(ObjectStore, "_part", broken)
    with pytest.raises(StoreUnavailable, match="it does not answer"):
        restored(log_url, tmp_path / "app.db")
