import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import peewee
import psycopg
import pytest

from core import items
from core.schemas import ItemQuery, NewItem
from infra.clock import Clock
from infra.commitlog import open_log
from infra.database import Database
from infra.operators.keys import in_log
from infra.sqlite.database import SqliteDatabase
from tests.conftest import open_at
from tests.infra.postgresql.conftest import opened

__all__ = ["opened"]  # a fixture

Hook = Callable[[], object]


def names(database: Database) -> list[str]:
    return [
        item.name for item in asyncio.run(database.read(partial(items.list_items, query=ItemQuery(limit=100)))).items
    ]


def write(database: Database, name: str) -> int:
    """Returns its id."""
    return asyncio.run(database.write(partial(items.create_item, new=NewItem(name=name)))).id


class Side:
    """What a log's address or a database's has, seen past the service."""

    def __init__(self, url: str) -> None:
        self.url = url

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, autocommit=True) as db:
            cursor = db.execute(query)
            return cursor.fetchall() if cursor.description else []

    def tables(self) -> list[str]:
        return [name for (name,) in self.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")]


@pytest.fixture
def target(database_url: str) -> Side:
    return Side(database_url)


@pytest.fixture
def log_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = (tmp_path / "log").as_uri()
    monkeypatch.setenv("REPLICA_URL", url)
    return url


@pytest.fixture
def server(tmp_path: Path, log_url: str) -> Iterator[SqliteDatabase]:
    """One that serves the log, with two items."""
    with closing(open_at(tmp_path / "data" / "app.db", REPLICA_URL=log_url, READ_FRESHNESS_SECONDS="0")) as database:
        for name in ("a\tb\\c\nd", "ü€😀"):
            write(database, name)
        yield database


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Hook], None]:
    """Do something when the move says that it has come to a step."""
    hooks: dict[str, Hook] = {}

    def say(text: str) -> None:
        for step in [step for step in hooks if step in text]:
            hooks.pop(step)()

    monkeypatch.setattr("infra.__main__._say", say)
    return hooks.__setitem__


@pytest.fixture
def commit(log_url: str, tmp_path: Path) -> Callable[[Callable[[peewee.Database], object]], None]:
    """Run a use case as a command does, on a copy of the log of its own."""
    copies = iter(range(1000))

    def run(use_case: Callable[[peewee.Database], object]) -> None:
        directory = tmp_path / f"copy-{next(copies)}"
        directory.mkdir()
        in_log(open_log(log_url, Clock()), directory / "app.db", use_case)

    return run


def head(url: str) -> int:
    return max(item.max_txid for item in open_log(url, Clock()).objects.everything())
