import random
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import apsw
import pytest

from infra.commitlog.ltx import lock_page
from infra.commitlog.paging.paged_file import PagedFile
from infra.commitlog.raw_file import pages_of
from tests.infra.commitlog.paging.snapshots import SimpleIndex, insert_rows, make_database

MIB = 1024 * 1024
PAGE = 4096
GIB_5 = 5 * 1024 * MIB // PAGE  # pages
CACHE = 4 * MIB


class EndlessIndex(SimpleIndex):
    """A small database with pages behind it that say their number, and that nothing points to."""

    def __init__(self, database: Path) -> None:
        super().__init__(database, PAGE)
        self.known = dict(pages_of(database, PAGE))
        first = self.known[1]
        self.known[1] = first[:28] + GIB_5.to_bytes(4, "big") + first[32:]  # the header says how many pages there are
        self.header = replace(self.header, size=GIB_5)

    @property
    def blocks(self) -> int:
        return self.block_of(GIB_5) + 1

    def span(self, first: int, last: int) -> tuple[int, int]:
        return first, last + 1

    def pages(self, block: int, body: bytes) -> list[tuple[int, bytes]]:
        assert body == b"b"
        first = block * 16 + 1
        numbers = [place + (place >= lock_page(PAGE)) for place in range(first, first + 16)]
        return [(number, self.page(number)) for number in numbers if number <= GIB_5]

    def page(self, number: int) -> bytes:
        return self.known.get(number) or number.to_bytes(8, "big") * (PAGE // 8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    make_database(tmp_path / "small.db", PAGE, 100)
    return tmp_path / "app.db"


@pytest.fixture
def index(path: Path) -> EndlessIndex:
    return EndlessIndex(path.with_name("small.db"))


@pytest.fixture
def paged(path: Path, index: EndlessIndex) -> Iterator[PagedFile]:
    paged = PagedFile(path, CACHE)
    paged.begin(index, lambda begin, end: b"b" * (end - begin))
    yield paged
    paged.close()


def on_disk(path: Path) -> int:
    """How many bytes it takes up."""
    return path.stat().st_blocks * 512


def test_takes_no_more_room_than_the_cache_and_what_was_written(
    path: Path, index: EndlessIndex, paged: PagedFile
) -> None:
    chance = random.Random(1)
    tracemalloc.start()
    file = apsw.VFSFile(paged.vfs, str(path), [apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_READWRITE, 0])
    assert file.xFileSize() == GIB_5 * PAGE
    for number in [chance.randint(1, GIB_5) for _ in range(1000)] + list(range(500_000, 510_000)) + [GIB_5]:
        if number != lock_page(PAGE):
            assert file.xRead(PAGE, (number - 1) * PAGE) == index.page(number)
    file.xClose()
    with closing(apsw.Connection(str(path), vfs=paged.vfs)) as connection:
        insert_rows(connection, 2000)
        connection.pragma("wal_checkpoint(TRUNCATE)")
        assert connection.execute("SELECT count(*), count(DISTINCT name) FROM t").fetchall() == [(2100, 2100)]
        assert connection.pragma("page_count") > GIB_5
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert on_disk(path) < 3 * MIB
    assert CACHE / 2 < on_disk(path.with_name("app.db.pages")) <= CACHE
    assert peak < 8 * MIB


def test_lock_page_is_zeros_and_shifts_no_other(path: Path, index: EndlessIndex, paged: PagedFile) -> None:
    lock = lock_page(PAGE)
    file = apsw.VFSFile(paged.vfs, str(path), [apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_READWRITE, 0])
    for number in (lock - 1, lock, lock + 1, lock + 16, lock + 17):
        expected = bytes(PAGE) if number == lock else index.page(number)
        assert file.xRead(PAGE, (number - 1) * PAGE) == expected
    around = file.xRead(3 * PAGE, (lock - 2) * PAGE)
    assert around == index.page(lock - 1) + bytes(PAGE) + index.page(lock + 1)
    file.xClose()
