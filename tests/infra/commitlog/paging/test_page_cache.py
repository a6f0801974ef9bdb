import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.commitlog.paging.page_cache import PageCache

BLOCK = 512


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[PageCache]:
    cache = PageCache(tmp_path / "app.db.pages", BLOCK, 10 * BLOCK)
    yield cache
    cache.close()


def put(cache: PageCache, *blocks: int) -> None:
    for block in blocks:
        cache.put(block, bytes([block]) * BLOCK)


def kept(cache: PageCache) -> list[int]:
    found = [block for block in range(100) if block in cache]
    assert [cache.read(block, 5, 7) for block in found] == [bytes([block]) * 2 for block in found]
    return found


def test_least_recently_used_block_gives_way(cache: PageCache) -> None:
    put(cache, *range(10))
    assert cache.read(0, 0, BLOCK) == bytes(BLOCK)
    put(cache, 10, 11)
    assert kept(cache) == [0, *range(3, 12)]
    assert cache.read(1, 0, BLOCK) is None


def test_little_room_is_room_for_some_blocks(tmp_path: Path) -> None:
    cache = PageCache(tmp_path / "app.db.pages", BLOCK, 0)
    put(cache, *range(20))
    assert kept(cache) == list(range(12, 20))
    cache.close()


def test_full_disk_makes_it_smaller(cache: PageCache, monkeypatch: pytest.MonkeyPatch) -> None:
    put(cache, 0, 1, 2)
    real = os.pwrite

    def full(file: int, data: bytes, offset: int) -> int:
        if offset >= 3 * BLOCK:
            raise OSError(errno.ENOSPC, "full")
        return real(file, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    put(cache, 3)
    assert (kept(cache), cache.slots) == ([1, 2, 3], 3)


def test_it_leaves_as_much_room_as_it_takes(cache: PageCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the next write would find none for its WAL."""
    real, path = os.fstatvfs, tmp_path / "app.db.pages"

    def small(file: int) -> os.statvfs_result:
        fields = list(real(file))
        fields[1], fields[4] = BLOCK, 9 - path.stat().st_size // BLOCK  # a disk of nine blocks
        return os.statvfs_result(fields)

    monkeypatch.setattr(os, "fstatvfs", small)
    put(cache, *range(8))
    assert (kept(cache), cache.slots) == ([4, 5, 6, 7], 4)


def test_other_faults_of_the_disk_are_raised(cache: PageCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(file: int, data: bytes, offset: int) -> int:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "pwrite", broken)
    with pytest.raises(OSError, match="broken"):
        put(cache, 0)
    assert kept(cache) == []


def test_file_of_before_is_not_taken_up(cache: PageCache, tmp_path: Path) -> None:
    put(cache, 0, 1)
    other = PageCache(tmp_path / "app.db.pages", BLOCK, 10 * BLOCK)
    put(other, 7)
    assert (kept(cache), kept(other)) == ([0, 1], [7])
    other.close()


def test_nothing_is_here_after_the_end(tmp_path: Path) -> None:
    cache = PageCache(tmp_path / "app.db.pages", BLOCK, 10 * BLOCK)
    put(cache, 0, 1)
    cache.close()
    put(cache, 2)
    assert (kept(cache), cache.read(0, 0, BLOCK), cache.slots) == ([], None, 0)
    assert list(tmp_path.iterdir()) == []
