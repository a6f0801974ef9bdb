import errno
import os
import random
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import apsw
import pytest
from playhouse.apsw_ext import APSWDatabase

from core.errors import DatabaseUnavailable, LogDamaged, ObjectMissing, ServiceError, StoreUnavailable
from infra.commitlog.paging.paged_file import PagedFile
from infra.sqlite_errors import root_cause, translated_errors
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


def raw(paged: Paged) -> apsw.VFSFile:
    return apsw.VFSFile(paged.file.vfs, str(paged.path), [apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_READWRITE, 0])


@contextmanager
def closing_file(file: apsw.VFSFile) -> Iterator[apsw.VFSFile]:
    try:
        yield file
    finally:
        file.xClose()


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


def test_commit_and_checkpoint_ask_the_store_for_nothing(paged: Paged) -> None:
    with closing(paged.connect()) as mine:
        mine.execute("BEGIN IMMEDIATE")
        mine.execute("UPDATE t SET v = 'new' WHERE id % 50 = 0")
        paged.store.before = raising(StoreUnavailable("away"))
        mine.execute("COMMIT")
        mine.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        paged.store.before = lambda begin, end: None
        assert mine.execute("SELECT count(*) FROM t WHERE v = 'new'").fetchall() == [(40,)]


def test_first_error_is_told_where_the_transaction_is_gone(tmp_path: Path) -> None:
    paged = Paged(tmp_path, cache_bytes=1)
    database = APSWDatabase(str(paged.path), vfs=paged.file.vfs)
    error = StoreUnavailable("away")
    with pytest.raises(Exception) as caught, database.connection_context(), database.atomic("IMMEDIATE"):  # noqa: PT011, PT012
        database.execute_sql("SELECT count(*) FROM t").fetchall()
        with database.atomic():
            database.execute_sql("INSERT INTO t (v) VALUES (1)")
            paged.store.before = raising(error)
            database.execute_sql("SELECT sum(length(v)) FROM t").fetchall()
    assert root_cause(caught.value, paged.path) is error
    paged.store.before = lambda begin, end: None
    assert database.execute_sql("SELECT count(*) FROM t").fetchall() == [(2000,)]
    database.close()
    paged.file.close()


def test_first_error_is_ours_and_not_what_was_below_it(tmp_path: Path) -> None:
    def gone(begin: int, end: int) -> None:
        try:
            raise FileNotFoundError(errno.ENOENT, "no such object")
        except FileNotFoundError as error:
            raise StoreUnavailable("away") from error

    paged = Paged(tmp_path, cache_bytes=1)
    database = APSWDatabase(str(paged.path), vfs=paged.file.vfs)
    with pytest.raises(Exception) as caught, database.connection_context(), database.atomic("IMMEDIATE"):  # noqa: PT011, PT012
        database.execute_sql("SELECT count(*) FROM t").fetchall()
        with database.atomic():
            paged.store.before = gone
            database.execute_sql("SELECT sum(length(v)) FROM t").fetchall()
    assert "savepoint" in str(caught.value)
    assert str(root_cause(caught.value, paged.path)) == "away"
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
            if chance.random() < 0.3:
                statements += ["SAVEPOINT s", any_statement(chance), "ROLLBACK TO s", any_statement(chance)]
            statements = ["BEGIN IMMEDIATE", *statements, chance.choice(["COMMIT", "COMMIT", "ROLLBACK"])]
            failing = 0.2
            try:
                for statement in statements:
                    mine.execute(statement).fetchall()
            except StoreUnavailable:
                failures += 1
                assert not mine.in_transaction, "what is half done could still be committed"
                continue
            for statement in statements:
                plain.execute(statement).fetchall()
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
    with closing_file(raw(paged)) as file:
        size = file.xFileSize()
        assert size == paged.plain.stat().st_size
        assert file.xRead(size, 0)[100:] == paged.plain.read_bytes()[100:]
    for each in both:
        each.close()
    paged.file.close()


# Where a page comes from


def test_any_part_is_what_the_snapshot_has_there(paged: Paged) -> None:
    expected = paged.plain.read_bytes()
    chance = random.Random(1)
    with closing_file(raw(paged)) as file:
        assert file.xFileSize() == len(expected)
        assert file.xRead(100, 0) == expected[:100]
        assert file.xRead(16, 24) == expected[24:40]
        for _ in range(300):
            begin = chance.randrange(len(expected))
            size = min(chance.choice([1, 100, 4096, 65536, 200_000]), len(expected) - begin)
            if chance.random() < 0.2:
                written = chance.randbytes(min(size, 10_000))
                file.xWrite(written, begin)
                expected = expected[:begin] + written + expected[begin + len(written) :]
            assert file.xRead(size, begin) == expected[begin : begin + size]


def test_page_that_was_changed_is_not_fetched(paged: Paged) -> None:
    with closing_file(raw(paged)) as file:
        file.xWrite(b"n" * 4096, 5 * 4096)
        assert file.xRead(4096, 5 * 4096) == b"n" * 4096
        assert paged.store.ranges == []


def test_part_of_a_page_is_written_into_all_of_it(paged: Paged) -> None:
    expected = bytearray(paged.plain.read_bytes()[:4096])
    expected[18:20] = b"\1\1"
    with closing_file(raw(paged)) as file:
        file.xWrite(b"\1\1", 18)
        assert file.xRead(4096, 0) == expected
    assert paged.path.read_bytes()[:4096] == expected


def test_page_that_cannot_be_written_is_what_the_snapshot_has(paged: Paged) -> None:
    expected = paged.plain.read_bytes()[4096:8192]
    with closing_file(raw(paged)) as file:
        limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, -1))  # half of the page is written
        try:
            with pytest.raises((apsw.IOError, apsw.FullError)):
                file.xWrite(b"n" * 4096, 4096)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
            signal.signal(signal.SIGXFSZ, before)
        assert paged.path.read_bytes()[4096:6000] == b"n" * 1904
        assert file.xRead(4096, 4096) == expected


@pytest.mark.parametrize("size", [8 * 4096, 8 * 4096 + 100])
def test_what_was_cut_off_never_comes_back(size: int, paged: Paged) -> None:
    expected = paged.plain.read_bytes()
    with closing_file(raw(paged)) as file:
        file.xRead(4096, 8 * 4096)  # so that the cache has it
        file.xTruncate(size)
        assert file.xFileSize() == size
        assert file.xRead(size, 0) == expected[:size]
        assert file.xRead(4096, 9 * 4096) == b""
        file.xTruncate(20 * 4096)
        assert file.xRead(20 * 4096, 0) == expected[:size].ljust(20 * 4096, b"\0")
        file.xWrite(b"n" * 4096, 30 * 4096)
        assert file.xRead(4096, 29 * 4096) == bytes(4096)


def test_upper_page_costs_no_request(paged: Paged) -> None:
    paged.index.uppers[1] = paged.plain.read_bytes()[:4096]
    with closing(paged.connect()) as mine:
        assert mine.pragma("user_version") == 0
        assert paged.store.ranges == []
        mine.execute("SELECT * FROM t").fetchone()
        assert len(paged.store.ranges) == 1


def test_upper_page_is_uncompressed_once_while_there_is_room(tmp_path: Path) -> None:
    paged = Paged(tmp_path, page_size=65536, rows=20_000, cache_bytes=1)
    content = paged.plain.read_bytes()
    paged.index.uppers = {number: content[(number - 1) * 65536 : number * 65536] for number in range(1, 101)}
    with closing_file(raw(paged)) as file:
        for number in [*range(1, 65), *range(1, 65), *range(65, 101), 1, 100]:
            assert file.xRead(100, (number - 1) * 65536) == paged.index.uppers[number][:100]
    assert paged.store.ranges == []
    assert paged.index.asked_upper == [*range(1, 101), 1]
    paged.file.close()


def test_random_pages_cost_one_block_each(paged: Paged) -> None:
    with closing_file(raw(paged)) as file:
        for block in (15, 2, 9, 4):
            file.xRead(4096, block * 65536)
            file.xRead(4096, block * 65536 + 4096)
    assert paged.store.ranges == [paged.index.span(block, block) for block in (15, 2, 9, 4)]


@pytest.mark.parametrize("backwards", [False, True])
def test_one_after_the_other_doubles_what_is_fetched(backwards: bool, paged: Paged) -> None:
    pages = range(16 * 16)
    with closing_file(raw(paged)) as file:
        for page in reversed(pages) if backwards else pages:
            file.xRead(4096, page * 4096)
    spans = [(0, 0), (1, 2), (3, 6), (7, 14), (15, min(30, paged.index.blocks - 1))]
    if backwards:
        spans = [(15, 15), (13, 14), (9, 12), (1, 8), (0, 0)]
    assert paged.store.ranges == [paged.index.span(*span) for span in spans]


def test_read_ahead_leaves_out_what_is_here(paged: Paged) -> None:
    paged.file.warm([4 * 16 + 1])
    with closing_file(raw(paged)) as file:
        for page in range(10 * 16):
            file.xRead(4096, page * 4096)
    spans = [(4, 4), (0, 0), (1, 2), (3, 3), (5, 12)]
    assert paged.store.ranges == [paged.index.span(*span) for span in spans]


def test_read_ahead_takes_at_most_a_quarter_of_the_cache(tmp_path: Path) -> None:
    paged = Paged(tmp_path, cache_bytes=8 * 65536)
    with closing(paged.connect()) as mine:
        mine.execute("SELECT sum(length(v)) FROM t").fetchall()
    assert max(end - begin for begin, end in paged.store.ranges) <= 2 * 65536
    paged.file.close()


def test_much_is_fetched_in_parallel(tmp_path: Path) -> None:
    paged = Paged(tmp_path, rows=8000, cache_bytes=64 * MIB)
    together = threading.Barrier(3)

    def wait_for_the_others(begin: int, end: int) -> None:
        together.wait(10)

    begin, end = paged.index.span(0, 50)
    assert 2 * MIB < end - begin <= 3 * MIB
    paged.store.before = wait_for_the_others
    paged.file.warm(range(1, 51 * 16 + 1))
    assert sorted(paged.store.ranges) == [(b, min(b + MIB, end)) for b in range(begin, end, MIB)]
    paged.store.before = raising(AssertionError())
    with closing_file(raw(paged)) as file:
        assert file.xRead(51 * 65536, 0) == paged.plain.read_bytes()[: 51 * 65536]
    paged.file.close()


def test_pages_that_the_snapshot_has_not_are_not_warmed(paged: Paged) -> None:
    """A newest leaf may have been added since, and what a damaged page points to may be no page."""
    paged.file.warm([0, paged.index.header.size + 1, 10**9])
    assert paged.store.ranges == []
    paged.file.warm([paged.index.header.size])
    assert len(paged.store.ranges) == 1


def test_warm_pages_cost_no_request_any_more(paged: Paged) -> None:
    paged.file.warm([1, 2, 16 * 16, 16 * 16 + 1])
    paged.file.warm([3 * 16 + 1])
    asked = len(paged.store.ranges)
    paged.file.warm([3 * 16 + 1])
    paged.file.warm([2])
    with closing_file(raw(paged)) as file:
        for page in (0, 15, 16 * 15, 16 * 16, 3 * 16):
            file.xRead(4096, page * 4096)
    assert (asked, len(paged.store.ranges)) == (3, 3)


@pytest.mark.parametrize("block", [5, -1])
def test_reader_that_waits_for_the_store_keeps_nobody_waiting(block: int, paged: Paged) -> None:
    paged.file.warm([1])
    begin = block % paged.index.blocks * 65536
    asked, answer = threading.Event(), threading.Event()

    def wait(begin: int, end: int) -> None:
        asked.set()
        assert answer.wait(10)

    paged.store.before = wait
    file, other = raw(paged), raw(paged)
    with closing_file(file), closing_file(other), ThreadPoolExecutor() as pool:
        waiting = [pool.submit(file.xRead, 4096, begin), pool.submit(other.xRead, 4096, begin + 4096)]
        assert asked.wait(10)
        with closing_file(raw(paged)) as writer:
            writer.xWrite(writer.xRead(4096, 0), 4096)
            writer.xWrite(b"12", 18)
        answer.set()
        expected = paged.plain.read_bytes()[begin:]
        assert [each.result(10) for each in waiting] == [expected[:4096], expected[4096:8192]]
    assert len(paged.store.ranges) == 2, "both have waited for the same request"


def test_threads_that_read_at_once_get_what_they_ask_for(tmp_path: Path) -> None:
    paged = Paged(tmp_path, page_size=512, cache_bytes=1, block_bytes=2048)
    expected = paged.plain.read_bytes()

    def read_anywhere(seed: int) -> None:
        chance = random.Random(seed)
        with closing_file(raw(paged)) as file:
            for _ in range(2000):
                begin = chance.randrange(len(expected) // 512) * 512
                assert file.xRead(512, begin) == expected[begin : begin + 512]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read_anywhere, range(4)))
    paged.file.close()


# Damage, and full disks


def test_block_that_arrives_damaged_is_fetched_once_more(paged: Paged) -> None:
    right = bytes(paged.index.object)

    def damage_first(begin: int, end: int) -> None:
        paged.index.object[:] = right
        if len(paged.store.ranges) == 1:
            paged.index.object[begin + 5000] ^= 1

    paged.store.before = damage_first
    with closing(paged.connect()) as mine:
        assert mine.execute("SELECT count(*) FROM sqlite_schema").fetchall() == [(2,)]
    assert len(paged.store.ranges) == 2


def test_damaged_block_is_never_read_and_hides_no_other(paged: Paged) -> None:
    expected = paged.plain.read_bytes()
    for begin, end in [paged.index.span(block, block) for block in (2, 5)]:
        paged.index.object[(begin + end) // 2] ^= 1
    with closing_file(raw(paged)) as file:
        for block in range(8):
            if block in (2, 5):
                with pytest.raises(LogDamaged):
                    file.xRead(4096, block * 65536 + 8192)
            else:
                assert file.xRead(65536, block * 65536) == expected[block * 65536 : (block + 1) * 65536]


def test_object_that_is_cut_short_is_damaged(paged: Paged) -> None:
    _, end = paged.index.span(5, 5)
    del paged.index.object[end - 1 :]
    with closing_file(raw(paged)) as file, pytest.raises(LogDamaged):
        file.xRead(4096, 5 * 65536)


@pytest.mark.parametrize("slots", [0, 3])
def test_full_disk_costs_requests_and_no_answer(slots: int, paged: Paged, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite

    def full(file: int, data: bytes, offset: int) -> int:
        if offset == slots * 65536:
            return real(file, data[:1000], offset)
        if offset > slots * 65536:
            raise OSError(errno.ENOSPC, "full")
        return real(file, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with closing(paged.connect()) as mine, closing(apsw.Connection(str(paged.plain))) as plain:
        assert contents(mine) == contents(plain)
        assert mine.pragma("integrity_check") == "ok"
    cache = paged.path.with_name("app.db.pages")
    assert cache.stat().st_size == slots * 65536


def test_cache_that_cannot_be_read_is_an_error_of_the_file(paged: Paged) -> None:
    with closing(paged.connect()) as mine:
        contents(mine)
        os.truncate(paged.path.with_name("app.db.pages"), 0)
        mine.execute("PRAGMA shrink_memory").fetchall()
        with pytest.raises(DatabaseUnavailable, match="cut off"), translated_errors(paged.path):
            contents(mine)


# From one snapshot to the next


def test_nothing_of_before_is_left_when_another_snapshot_begins(paged: Paged, tmp_path: Path) -> None:
    with closing(paged.connect()) as mine:
        mine.execute("DELETE FROM t WHERE id > 100")
        mine.pragma("wal_checkpoint(TRUNCATE)")
    other = tmp_path / "other.db"
    make_database(other, 1024, 50)
    paged.index = SimpleIndex(other, 1024)
    paged.file.begin(paged.index, Store(paged.index).fetch)
    assert paged.path.stat().st_blocks == 0
    with closing(paged.connect()) as mine, closing(apsw.Connection(str(other))) as plain:
        assert contents(mine) == contents(plain)
        assert mine.pragma("integrity_check") == "ok"


def test_what_is_fetched_while_another_snapshot_begins_goes_nowhere(paged: Paged, tmp_path: Path) -> None:
    asked, answer = threading.Event(), threading.Event()

    def wait(begin: int, end: int) -> None:
        asked.set()
        assert answer.wait(10)

    paged.store.before = wait
    other = tmp_path / "other.db"
    make_database(other, 4096, 2000)
    store = Store(SimpleIndex(other, 4096))
    with ThreadPoolExecutor() as pool:
        warming = pool.submit(paged.file.warm, range(1, 100))
        assert asked.wait(10)
        paged.file.begin(store.index, store.fetch)
        paged.file.warm(range(1, 300))
        answer.set()
        warming.result(10)
    with closing(paged.connect()) as mine, closing(apsw.Connection(str(other))) as plain:
        assert contents(mine) == contents(plain)


def test_file_that_could_not_be_begun_is_not_opened_with_holes(paged: Paged) -> None:
    paged.file.begin(paged.index, paged.store.fetch)
    paged.path.with_name("app.db.pages").unlink()
    paged.path.with_name("app.db.pages").mkdir()
    with pytest.raises(DatabaseUnavailable):
        paged.file.begin(paged.index, paged.store.fetch)
    with pytest.raises(apsw.CantOpenError, match="snapshot"):
        paged.connect()
    paged.path.with_name("app.db.pages").rmdir()
    paged.file.begin(paged.index, paged.store.fetch)
    with closing(paged.connect()) as mine:
        assert mine.pragma("integrity_check") == "ok"


def test_file_that_was_never_begun_is_as_it_is(tmp_path: Path) -> None:
    make_database(tmp_path / "app.db", rows=3)
    file = PagedFile(tmp_path / "app.db", MIB)
    with closing(apsw.Connection(str(tmp_path / "app.db"), vfs=file.vfs)) as mine:
        assert len(contents(mine)) == 3
    file.warm([1])
    file.close()
    assert [path.name for path in tmp_path.iterdir()] == ["app.db"]


def test_end_leaves_no_cache_and_no_vfs(paged: Paged) -> None:
    name = paged.file.vfs
    with closing(paged.connect()) as mine:
        contents(mine)
    paged.file.close()
    paged.file.close()
    assert name not in apsw.vfs_names()
    assert not paged.path.with_name("app.db.pages").exists()


def test_other_files_are_as_they_are(paged: Paged) -> None:
    with closing(apsw.Connection(str(paged.plain), vfs=paged.file.vfs)) as mine:
        assert len(contents(mine)) == 2000
    assert paged.store.ranges == []


def test_file_is_the_same_by_a_shorter_name(paged: Paged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(paged.path.parent)
    paged.path = Path("app.db")
    with closing_file(raw(paged)) as file:
        assert file.xRead(16, 0) == b"SQLite format 3\0"
    with closing(apsw.Connection("app.db", vfs=paged.file.vfs)) as mine:
        assert len(contents(mine)) == 2000


def test_mapped_memory_shows_no_holes(paged: Paged) -> None:
    with closing(paged.connect()) as mine, closing(apsw.Connection(str(paged.plain))) as plain:
        mine.pragma("mmap_size", 1 << 30)
        assert contents(mine) == contents(plain)
