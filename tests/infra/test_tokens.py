"""The TXID beside an answer is never older than the state in it: whoever hands it on is shown no less.

And one that nobody has given costs next to nothing.
"""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import closing, suppress
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

import apsw
import peewee
import pytest

from core import items
from core.errors import CommitOutcomeUnknown, ItemNotFound, StoreUnavailable, TxidNotReached
from core.schemas import ItemPatch, NewItem
from infra.clock import Clock
from infra.commitlog import open_file, open_log
from infra.commitlog.open_file import OpenFile
from infra.database import Session
from infra.settings import Settings
from infra.sqlite.database import SqliteDatabase, open_sqlite
from infra.storage.object_store import ObjectStore
from tests.conftest import open_at
from tests.e2e.processes import until
from tests.infra.commitlog.conftest import ManualClock


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
def database(tmp_path: Path, slow: SlowToReturn) -> Iterator[SqliteDatabase]:
    with closing(open_at(tmp_path / "data" / "app.db")) as database:
        asyncio.run(database.write(partial(items.create_item, new=NewItem(name="n"))))
        yield database


def quantity(db: peewee.Database) -> int:
    return items.get_item(db, 1).quantity


def set_quantity(value: int, db: peewee.Database) -> None:
    items.patch_item(db, 1, ItemPatch(quantity=value))


def test_commit_that_can_be_seen_is_named_before_its_writer_hears_of_it(
    database: SqliteDatabase, slow: SlowToReturn
) -> None:
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
def test_commit_that_appears_during_a_read_is_named(database: SqliteDatabase, slow: SlowToReturn, fails: bool) -> None:
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
    monkeypatch.setattr(open_file, "CHECKPOINT_FRAMES", 5)
    patient: dict[str, Any] = {"REPLICA_URL": url, "COMMIT_TIMEOUT_SECONDS": "60"}
    a, b = (open_at(tmp_path / name / "app.db", busy_timeout=30, **patient) for name in "ab")
    named: dict[int, int] = {0: 0}  # the TXID that made it so
    shown: list[tuple[int, int]] = []

    async def write(database: SqliteDatabase, values: range) -> None:
        for value in values:
            session = Session()
            await database.write(partial(set_quantity, value), session)
            named[value] = session.shown

    async def read(database: SqliteDatabase, writing: "asyncio.Future[Any]") -> None:
        while not writing.done():
            session = Session()
            found = await database.read(quantity, session)
            shown.append((found, session.shown))
            await asyncio.sleep(0.0005)

    async def look_and_fail(database: SqliteDatabase, writing: "asyncio.Future[Any]") -> None:
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

    async def tidy(database: SqliteDatabase) -> None:
        for statement in ("ANALYZE", "REINDEX") * 2:
            await database.write_alone(methodcaller("execute_sql", statement))
            await asyncio.sleep(0.05)

    async def scenario() -> None:
        await a.write(partial(items.create_item, new=NewItem(name="n")))
        await b.verify()
        writing = asyncio.gather(write(a, range(1, 40)), write(b, range(1001, 1020)), tidy(a))
        await asyncio.gather(writing, *(act(db, writing) for act in (read, read, look_and_fail) for db in (a, b)))

    with closing(a), closing(b):
        asyncio.run(scenario())
    assert len(shown) > 100
    assert [(value, token) for value, token in shown if token < named[value]] == []
    head = max(item.max_txid for item in open_log(url, Clock()).objects.everything())
    assert max(token for _, token in shown) <= head


# A TXID that a caller made up


class Counted:
    """How often the store is asked for the next commit, by a clock that only those who wait move on."""

    def __init__(self, path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = ManualClock()
        self.database = SqliteDatabase(path, open_log(url, self.clock), self.clock, freshness=3600)
        self.asked = 0
        read, sleep = ObjectStore.read, asyncio.sleep

        def counted(store: ObjectStore, name: str) -> Iterator[bytes]:
            self.asked += 1
            return read(store, name)

        async def at_once(seconds: float) -> None:
            self.clock.seconds += seconds
            await sleep(0)

        monkeypatch.setattr(ObjectStore, "read", counted)
        monkeypatch.setattr(asyncio, "sleep", at_once)

    async def read(self, txid: int) -> int:
        """The TXID that it is shown."""
        session = Session(txid)
        await self.database.read(lambda db: None, session)
        return session.shown

    async def write(self, txid: int) -> None:
        await self.database.write(lambda db: None, Session(txid))

    async def refused(self, *waiting: Coroutine[Any, Any, object]) -> bool:
        """Whether each of them was told that the log is not there, together."""
        found = await asyncio.gather(*waiting, return_exceptions=True)
        return [type(error) for error in found] == [TxidNotReached] * len(waiting)


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    counted = Counted(tmp_path / "a" / "app.db", (tmp_path / "log").as_uri(), monkeypatch)
    with closing(counted.database):
        yield counted


@pytest.mark.parametrize("act", [Counted.read, Counted.write])
def test_token_that_no_log_can_have_reached_asks_nobody(counted: Counted, act: Any) -> None:
    async def scenario() -> None:
        for _ in range(100):
            assert await counted.refused(act(counted, counted.database.txid + 1_000_001))

    asyncio.run(scenario())
    assert counted.asked == 0


def test_token_far_ahead_of_an_instance_that_has_not_looked_for_long_is_asked_for_once(counted: Counted) -> None:
    async def scenario() -> None:
        counted.clock.seconds += 61
        for _ in range(100):
            assert await counted.refused(counted.read(2**63 - 1))

    asyncio.run(scenario())
    assert counted.asked == 1


@pytest.mark.parametrize("act", [Counted.read, Counted.write])
def test_made_up_tokens_one_after_the_other_ask_twenty_times_a_second(counted: Counted, act: Any) -> None:
    async def scenario() -> None:
        for number in range(300):
            assert await counted.refused(act(counted, counted.database.txid + 1 + number))

    asyncio.run(scenario())
    assert counted.clock.seconds >= 10
    assert counted.asked <= 21 + 20 * counted.clock.seconds


def test_made_up_tokens_at_once_ask_once(counted: Counted) -> None:
    async def scenario() -> bool:
        return await counted.refused(*(counted.read(counted.database.txid + 1 + number) for number in range(300)))

    assert asyncio.run(scenario())
    assert counted.asked <= 2


def test_token_of_another_instances_commit_is_served_among_made_up_ones(counted: Counted, tmp_path: Path) -> None:
    other = open_at(tmp_path / "b" / "app.db", REPLICA_URL=(tmp_path / "log").as_uri())

    async def scenario() -> None:
        for _ in range(50):
            await counted.refused(*(counted.read(counted.database.txid + 1000 + number) for number in range(20)))
            session = Session()
            await other.write(partial(items.create_item, new=NewItem(name="n")), session)
            made_up = [counted.read(session.shown + 1000 + number) for number in range(20)]
            legitimate, refused = await asyncio.gather(counted.read(session.shown), counted.refused(*made_up))
            assert legitimate == session.shown
            assert refused

    with closing(other):
        asyncio.run(scenario())
    assert counted.asked <= 4 * 50 + 20 * counted.clock.seconds


def test_tokens_of_real_commits_wait_for_nothing_but_their_question(counted: Counted, tmp_path: Path) -> None:
    other = open_at(tmp_path / "b" / "app.db", REPLICA_URL=(tmp_path / "log").as_uri())

    async def scenario() -> None:
        for _ in range(50):
            session = Session()
            await other.write(partial(items.create_item, new=NewItem(name="n")), session)
            assert await counted.read(session.shown) == session.shown

    with closing(other):
        asyncio.run(scenario())
    assert counted.clock.seconds == 0


def test_function_takes_the_number_of_an_unknown_outcome_with_its_next_request(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"DATABASE_PATH": str(tmp_path / "app.db"), "REPLICA_URL": url, "COMMIT_TIMEOUT_SECONDS": "0.1"}
    database = open_sqlite(Settings.from_environment(settings), lasting=False)

    def fail(*arguments: object) -> None:
        raise StoreUnavailable("no reply")

    with closing(database):
        with monkeypatch.context() as patch:
            patch.setattr(ObjectStore, "create", fail)
            with pytest.raises(CommitOutcomeUnknown) as error:
                asyncio.run(database.write(partial(items.create_item, new=NewItem(name="late"))))
            asyncio.run(database.verify())  # reads go on, though nothing can be stored
        until(lambda: not database._queue.is_busy)  # a request that comes while it is may be told to come again
        session = Session(error.value.txid)
        asyncio.run(database.read(lambda db: None, session))
        assert session.shown == error.value.txid
