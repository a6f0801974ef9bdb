"""What one write of one row takes in the log: whole pages, so their size and what is left over in them count."""

import asyncio
import random
import uuid
from collections.abc import Callable
from contextlib import closing
from functools import partial
from statistics import median
from typing import Any

import peewee
import pytest
from pydantic_core import to_json

from core.idempotency import Answer, Attempt, once
from core.items import create_item, delete_item, patch_item
from core.schemas import ItemPatch, NewItem
from tests.conftest import open_at

UseCase = Callable[[peewee.Database], Any]
ROWS, COMMITS = 400, 15
WORDS = [
    "blue",
    "red",
    "steel",
    "oak",
    "garden",
    "kitchen",
    "chair",
    "table",
    "lamp",
    "small",
    "large",
    "desk",
    "cable",
]


def an_item(rng: random.Random) -> NewItem:
    """Half of them with a description."""
    description = " ".join(rng.choices(WORDS, k=12)) if rng.random() < 0.5 else None
    return NewItem(name=" ".join(rng.choices(WORDS, k=3)), description=description, quantity=rng.randrange(200))


def inserted(rng: random.Random) -> UseCase:
    return partial(create_item, new=an_item(rng))


def inserted_once(rng: random.Random) -> UseCase:
    attempt = Attempt("", str(uuid.UUID(int=rng.getrandbits(128), version=4)), rng.randbytes(32))

    def write(db: peewee.Database) -> Answer:
        item = create_item(db, an_item(rng))
        headers = {"content-type": "application/json", "etag": '"1"', "location": f"/api/items/{item.id}"}
        return Answer(201, headers, to_json(item))

    return lambda db: once(db, attempt, write, 24)


def patched(rng: random.Random) -> UseCase:
    return partial(patch_item, item_id=rng.randrange(1, ROWS), patch=ItemPatch(quantity=rng.randrange(200)))


def deleted(rng: random.Random) -> UseCase:
    return lambda db: delete_item(db, rng.choice([row for (row,) in db.execute_sql("SELECT id FROM items")]))


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """The median of some commits of each kind, in bytes, after many rows that came with a key."""
    directory = tmp_path_factory.mktemp("log")
    rng = random.Random(1)

    def fill(db: peewee.Database) -> None:
        for _ in range(ROWS):
            inserted_once(rng)(db)

    with closing(open_at(directory / "app.db")) as database:

        def size(write: UseCase) -> int:
            asyncio.run(database.write(write))
            [commit] = directory.rglob(f"{database.txid:016x}-*.ltx")
            return commit.stat().st_size

        size(fill)
        kinds = (inserted, inserted_once, patched, deleted)
        return {make.__name__: median(size(make(rng)) for _ in range(COMMITS)) for make in kinds}


@pytest.mark.parametrize(
    ("kind", "most"), [("inserted", 1200), ("inserted_once", 2300), ("patched", 800), ("deleted", 1050)]
)
def test_one_row_takes_few_bytes_of_the_log(sizes: dict[str, float], kind: str, most: int) -> None:
    assert sizes[kind] <= most
