import random
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import apsw
import pytest
from playhouse.apsw_ext import APSWDatabase

from core.errors import LogDamaged, ObjectMissing, ServiceError, StoreUnavailable
from infra.commitlog.paging.paged_file import PagedFile
from infra.sqlite_errors import translated_errors
from tests.infra.commitlog.paging.snapshots import SimpleIndex, Store, make_database

MIB = 1024 * 1024


class Paged:
    """A paged file over the snapshot of a database that is there as well."""

    def __init__(
        self,
        folder: Path,
        page_size: int = 4096,
        rows: int = 2000,
        cache_bytes: int = 8 * MIB,
        block_bytes: int = 65536,
    ) -> None:
        self.plain = folder / "plain.db"
        make_database(self.plain, page_size, rows)
        self.index = SimpleIndex(self.plain, page_size, block_bytes)
        self.store = Store(self.index)
        self.path = folder / "app.db"
        self.file = PagedFile(self.path, cache_bytes)
        self.file.begin(self.index, self.store.fetch)

    def connect(self) -> apsw.Connection:
        return apsw.Connection(str(self.path), vfs=self.file.vfs)


@pytest.fixture
def paged(tmp_path: Path) -> Iterator[Paged]:
    made = Paged(tmp_path)
    yield made
    made.file.close()


def contents(connection: apsw.Connection) -> list[tuple[object, ...]]:
    return list(connection.execute("SELECT * FROM t ORDER BY id"))


def test_reads_what_the_snapshot_has(paged: Paged) -> None:
    with closing(paged.connect()) as mine, closing(apsw.Connection(str(paged.plain))) as plain:
        assert contents(mine) == contents(plain)
        assert mine.pragma("integrity_check") == "ok"


# What goes wrong


ERRORS = [StoreUnavailable("away"), ObjectMissing("pruned"), LogDamaged("has a hole")]
STATEMENTS = [
    "SELECT count(*) FROM t",
    "SELECT v FROM t WHERE id = 1234",
    "BEGIN IMMEDIATE",
    "UPDATE t SET v = 'new' WHERE id % 7 = 0",
    "DELETE FROM t WHERE name > 'A'",
    "PRAGMA integrity_check",
    "PRAGMA user_version",
]


def raising(error: Exception) -> Callable[[int, int], None]:
    def step(begin: int, end: int) -> None:
        raise error

    return step


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("statement", STATEMENTS)
@pytest.mark.parametrize("over", ["apsw", "peewee", "vfs over it"])
def test_callers_of_sqlite_get_what_the_store_has_raised(
    error: ServiceError, statement: str, over: str, tmp_path: Path
) -> None:
    paged = Paged(tmp_path, cache_bytes=1)
    outer = apsw.VFS("outer", base=paged.file.vfs)
    name = "outer" if over == "vfs over it" else paged.file.vfs
    database = APSWDatabase(str(paged.path), vfs=name)
    database.connect()
    run = database.execute_sql if over == "peewee" else database.connection().execute
    run("SELECT sum(length(v)) FROM t").fetchall()  # the first pages have given way
    run("PRAGMA shrink_memory").fetchall()
    paged.store.before = raising(error)
    with pytest.raises(type(error)) as caught, translated_errors(paged.path):
        run(statement).fetchall()
    assert caught.value is error
    paged.store.before = lambda begin, end: None
    assert run("SELECT count(*) FROM t").fetchall() == [(2000,)]
    assert run("PRAGMA integrity_check").fetchall() == [("ok",)]
    database.close()
    outer.unregister()
    paged.file.close()


@pytest.mark.parametrize("seed", range(20))
def test_store_that_fails_now_and_then_leaves_no_transaction_half_done(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    paged = Paged(tmp_path, page_size=512, rows=400, cache_bytes=1, block_bytes=2048)

    def fail_sometimes(begin: int, end: int) -> None:
        if chance.random() < failing:
            raise StoreUnavailable("away")

    failing = 0.0
    paged.store.before = fail_sometimes
    failures = 0
    with closing(paged.connect()) as mine, closing(apsw.Connection(str(paged.plain))) as plain:
        for connection in (mine, plain):
            connection.execute("PRAGMA journal_mode=wal; PRAGMA cache_size=5; PRAGMA cache_spill=2").fetchall()
        for _ in range(60):
            statements = [any_statement(chance) for _ in range(chance.randint(1, 4))]
            failing = 0.2
            try:
                mine.execute("BEGIN IMMEDIATE")
                for statement in statements:
                    mine.execute(statement).fetchall()
                mine.execute("COMMIT")
            except StoreUnavailable:
                failures += 1
                assert not mine.in_transaction, "what is half done could still be committed"
                continue
            plain.execute("BEGIN IMMEDIATE")
            for statement in statements:
                plain.execute(statement)
            plain.execute("COMMIT")
            with suppress(StoreUnavailable):
                mine.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        failing = 0
        assert contents(mine) == contents(plain)
        assert mine.pragma("integrity_check") == "ok"
    paged.file.close()
    assert failures


def any_statement(chance: random.Random) -> str:
    low = chance.randint(0, 600)
    return chance.choice(
        [
            f"INSERT OR REPLACE INTO t SELECT id + {low}, name || 'x', v FROM t WHERE id BETWEEN {low} AND {low + 9}",
            f"UPDATE t SET name = hex(id * {low}), v = zeroblob({low}) WHERE id % 40 = {low % 40}",
            f"UPDATE t SET v = v || v WHERE id = {low} AND length(v) < 5000",
            f"DELETE FROM t WHERE id BETWEEN {low} AND {low + 20}",
            f"DELETE FROM t WHERE id = {low}",
            f"SELECT sum(length(v)) FROM t WHERE id > {low}",
        ]
    )


@pytest.mark.parametrize("page_size", [512, 1024, 4096, 65536])
@pytest.mark.parametrize("seed", range(3))
def test_does_what_a_plain_file_does(page_size: int, seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    paged = Paged(tmp_path, page_size=page_size, rows=600, cache_bytes=1, block_bytes=4096)
    both = [paged.connect(), apsw.Connection(str(paged.plain))]
    for _ in range(80):
        if (choice := chance.random()) < 0.05:
            statements = ["VACUUM"]
        elif choice < 0.15:
            statements = [f"PRAGMA wal_checkpoint({chance.choice(['PASSIVE', 'TRUNCATE'])})"]
        elif choice < 0.2:
            statements = [f"DELETE FROM t WHERE id > {chance.randint(0, 300)}", "VACUUM", "PRAGMA wal_checkpoint"]
        elif choice < 0.4:
            statements = ["SAVEPOINT s", any_statement(chance), any_statement(chance), "ROLLBACK TO s", "RELEASE s"]
        else:
            statements = [any_statement(chance)]
        for connection in both:
            for statement in statements:
                connection.execute(statement).fetchall()
            connection.execute("PRAGMA shrink_memory").fetchall()
        if chance.random() < 0.1:
            both[0].close()
            both[0] = paged.connect()
        assert contents(both[0]) == contents(both[1])
    assert [each.pragma("integrity_check") for each in both] == ["ok", "ok"]
    for each in both:
        each.pragma("wal_checkpoint(TRUNCATE)")
    with_raw = [
        apsw.VFSFile(vfs, str(path), [apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_READWRITE, 0])
        for vfs, path in ((paged.file.vfs, paged.path), ("", paged.plain))
    ]
    size = with_raw[1].xFileSize()
    assert with_raw[0].xFileSize() == size
    assert with_raw[0].xRead(size, 0)[100:] == with_raw[1].xRead(size, 0)[100:]
    for file in with_raw:
        file.xClose()
    for each in both:
        each.close()
    paged.file.close()
