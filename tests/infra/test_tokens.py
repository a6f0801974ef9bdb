"""The TXID beside an answer is never older than the state in it: whoever hands it on is shown no less."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

import apsw
import peewee
import pytest

from core import items
from core.errors import ItemNotFound
from core.schemas import ItemPatch, NewItem
from infra.clock import Clock
from infra.commitlog import open_file
from infra.commitlog.log import open_log
from infra.commitlog.open_file import OpenFile
from infra.database import Database, Session
from tests.conftest import open_at


@pytest.fixture(params=["file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return str(request.getfixturevalue("s3")).replace("backups", "log")
    return (tmp_path / "log").as_uri()


class SlowToReturn:
    """Holds the thread that writes right after SQLite has made a commit visible, while `held` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.held, self.reached, self.released = (threading.Event() for _ in range(3))
        on_commit = OpenFile._on_commit

        def slow(file: OpenFile, connection: apsw.Connection, name: str, frames: int) -> int:
            if self.held.is_set():
                self.reached.set()
                assert self.released.wait(10)
            return on_commit(file, connection, name, frames)

        monkeypatch.setattr(OpenFile, "_on_commit", slow)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> SlowToReturn:
    return SlowToReturn(monkeypatch)


@pytest.fixture
def database(tmp_path: Path, slow: SlowToReturn) -> Iterator[Database]:
    with closing(open_at(tmp_path / "data" / "app.db")) as database:
        asyncio.run(database.write(partial(items.create_item, new=NewItem(name="n"))))
        yield database


def quantity(db: peewee.Database) -> int:
    return items.get_item(db, 1).quantity


def set_quantity(value: int, db: peewee.Database) -> None:
    items.patch_item(db, 1, ItemPatch(quantity=value))


def test_commit_that_can_be_seen_is_named_before_its_writer_hears_of_it(database: Database, slow: SlowToReturn) -> None:
    before = database.txid

    async def scenario() -> tuple[int, int]:
        slow.held.set()
        writing = asyncio.create_task(database.write(partial(set_quantity, 7)))
        await asyncio.to_thread(slow.reached.wait, 10)
        session = Session()
        found = await database.read_local(quantity, session)
        slow.released.set()
        await writing
        return found, session.shown

    assert asyncio.run(scenario()) == (7, before + 1)


@pytest.mark.parametrize("fails", [False, True])
def test_commit_that_appears_during_a_read_is_named(database: Database, slow: SlowToReturn, fails: bool) -> None:
    before = database.txid
    seen = []

    def read(db: peewee.Database) -> None:
        slow.held.set()
        assert slow.reached.wait(10)  # by now the commit is there
        seen.append(quantity(db))
        if fails:
            raise ItemNotFound(2)

    async def scenario() -> int:
        begun = threading.Event()

        def write(db: peewee.Database) -> None:
            begun.set()
            assert slow.held.wait(10)
            set_quantity(7, db)

        writing = asyncio.create_task(database.write(write))
        await asyncio.to_thread(begun.wait, 10)
        session = Session()
        with suppress(ItemNotFound):
            await database.read_local(read, session)
        slow.released.set()
        await writing
        return session.shown

    assert asyncio.run(scenario()) == before + 1
    assert seen == [7]


def test_no_answer_names_less_than_it_shows(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two instances write one item and get in each other's way, with checkpoints and commits of operators between."""
    monkeypatch.setattr(open_file, "_CHECKPOINT_FRAMES", 5)
    a, b = (open_at(tmp_path / name / "app.db", busy_timeout=30, REPLICA_URL=url) for name in "ab")
    named: dict[int, int] = {0: 0}  # the TXID that made it so
    shown: list[tuple[int, int]] = []

    async def write(database: Database, values: range) -> None:
        for value in values:
            session = Session()
            await database.write(partial(set_quantity, value), session)
            named[value] = session.shown

    async def read(database: Database, writing: "asyncio.Future[Any]") -> None:
        while not writing.done():
            session = Session()
            found = await database.read(quantity, session)
            shown.append((found, session.shown))
            await asyncio.sleep(0.0005)

    async def look_and_fail(database: Database, writing: "asyncio.Future[Any]") -> None:
        """A write that commits nothing answers from what it has read."""
        while not writing.done():
            session = Session()
            found: list[int] = []

            def fail(db: peewee.Database, found: list[int] = found) -> None:
                found.append(quantity(db))
                raise ItemNotFound(2)

            with suppress(ItemNotFound):
                await database.write(fail, session)
            shown.append((found[-1], session.shown))
            await asyncio.sleep(0.005)

    async def tidy(database: Database) -> None:
        for statement in ("ANALYZE", "REINDEX") * 2:
            await database.write_alone(methodcaller("execute_sql", statement))
            await asyncio.sleep(0.05)

    async def scenario() -> None:
        await a.write(partial(items.create_item, new=NewItem(name="n")))
        await b.verify()
        writing = asyncio.gather(write(a, range(1, 80)), write(b, range(1001, 1040)), tidy(a))
        await asyncio.gather(writing, *(act(db, writing) for act in (read, read, look_and_fail) for db in (a, b)))

    with closing(a), closing(b):
        asyncio.run(scenario())
    assert len(shown) > 200
    assert [(value, token) for value, token in shown if token < named[value]] == []
    head = max(item.max_txid for item in open_log(url, Clock()).everything())
    assert max(token for _, token in shown) <= head
