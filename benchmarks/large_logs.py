"""Logs whose newest snapshot is of a given size, for benchmarks/cold_start.py."""

import os
import random
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import apsw
from playhouse.apsw_ext import APSWDatabase

from core.items import patch_item
from core.migrations import migrate
from core.schemas import ItemPatch
from infra.clock import Clock
from infra.commitlog import Paging, Replica, open_log, publish_file
from infra.commitlog.upkeep import Compactor
from infra.storage.object_store import TRANSFER_SECONDS, ObjectStore
from tests.e2e.stores import S3

MB = 1024 * 1024
_ROW = 945  # bytes that an item takes, with its place in the index


def items_in(megabytes: int) -> int:
    """Return how many items a database of this size has, at ids from 1 on."""
    return megabytes * MB // _ROW


def make_log(s3: S3, megabytes: int, directory: Path) -> str:
    """Store a log whose newest snapshot, of a database of so many megabytes, is at its head. Returns its URL."""
    path = directory / "made.db"
    make_database(path, megabytes)
    url = s3.url(str(megabytes))
    with _environment(s3.environment()):
        log = open_log(url, Clock(), TRANSFER_SECONDS)
        _, position = publish_file(path, log, Clock())
        Compactor(log, ObjectStore(url, timeout=TRANSFER_SECONDS), Clock()).store_snapshot(path, position, directory)
    path.unlink()
    return url


def write_on(s3: S3, url: str, commits: int) -> None:
    """Let so many commits follow: each changes an item of another page."""
    clock = Clock()
    with _environment(s3.environment()), TemporaryDirectory() as directory:
        paging = Paging(above=0, cache=64 * MB)
        replica = Replica(Path(directory) / "app.db", open_log(url, clock), clock, lasting=False, paging=paging)
        replica.open()
        for number in range(commits):
            change = partial(patch_item, item_id=number * 50 + 1, patch=ItemPatch(quantity=number))
            replica.write(change, float("inf"), 0.0)
        replica.close()


def make_database(path: Path, megabytes: int) -> None:
    """Fill the service's tables with items of some 600 bytes, most of them words, in pages as a new log has them."""
    with closing(apsw.Connection(str(path))) as connection:
        connection.pragma("page_size", 1024)
        connection.execute("VACUUM")
    with APSWDatabase(str(path)) as database:
        migrate(database)
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("PRAGMA journal_mode = off").fetchall()
        with connection:
            connection.executemany(
                "INSERT INTO items (name, description, price_cents, quantity, created_at, updated_at) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                _rows(items_in(megabytes)),
            )


def _rows(many: int) -> Iterator[tuple[Any, ...]]:
    """The same ones each time."""
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(3000)]
    texts = [" ".join(rng.choices(words, k=100)) for _ in range(4000)]
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    for number in range(many):
        created = (begin + timedelta(seconds=number)).isoformat(timespec="microseconds").replace("+00:00", "Z")
        text = texts[rng.randrange(4000)][: rng.randint(350, 600)]
        yield f"item {number}", text, number % 10_000, number % 50, created, created


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set variables for this process while the context lasts."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
