"""The format of SQLite's write-ahead log, and what one says that nobody writes.

Source: https://www.sqlite.org/fileformat2.html#the_write_ahead_log
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

FILE_HEADER = 32  # bytes, as all sizes here
FRAME_HEADER = 24  # before each page
PAGE_SIZE = slice(8, 12)
SALTS = slice(16, 24)
_FRAME_SALTS = slice(8, 16)
DATABASE_SIZE = slice(4, 8)  # of a frame's header: pages, in the last frame of a transaction


@dataclass(frozen=True, slots=True)
class WalEnd:
    """Where in the WAL a commit ends. A frame's header has a checksum of all that is before it."""

    frames: int  # from the WAL's start, that commit's last one included
    header: bytes  # of that last frame


def salts_in(wal: Path) -> bytes:
    """Read the salts of a WAL; none of an empty one."""
    with wal.open("rb") as file:
        return file.read(FILE_HEADER)[SALTS]


def page_size_in(wal: Path) -> int:
    """Read the page size of a WAL's database, in bytes; 0 for an empty one."""
    with wal.open("rb") as file:
        return int.from_bytes(file.read(FILE_HEADER)[PAGE_SIZE], "big")


def reaches(wal: Path, end: WalEnd) -> bool:
    """Ask whether a WAL that nobody writes has all up to there."""
    with wal.open("rb") as file:
        frame_size = FRAME_HEADER + int.from_bytes(file.read(FILE_HEADER)[PAGE_SIZE], "big")
        file.seek(FILE_HEADER + (end.frames - 1) * frame_size)
        return file.read(FRAME_HEADER) == end.header


def end_at(wal: Path, frames: int) -> tuple[WalEnd, int]:
    """Read where the commit ends that has so many frames up to there, and the size of the database then, in pages."""
    with wal.open("rb") as file:
        frame_size = FRAME_HEADER + int.from_bytes(file.read(FILE_HEADER)[PAGE_SIZE], "big")
        file.seek(FILE_HEADER + (frames - 1) * frame_size)
        header = file.read(FRAME_HEADER)
        return WalEnd(frames, header), int.from_bytes(header[DATABASE_SIZE], "big")


def committed_pages(wal: Path, frames: int | None = None) -> dict[int, int]:
    """Find where a WAL has the last image of each page: number -> offset. Up to its last commit if nobody writes it, or
    among its first `frames`.
    """
    pages: dict[int, int] = {}
    uncommitted: dict[int, int] = {}
    for number, offset, size in islice(_frames(wal), frames):
        uncommitted[number] = offset
        if size:
            pages = {number: offset for number, offset in (pages | uncommitted).items() if number <= size}
            uncommitted.clear()
    return pages


def images_of_first_page(wal: Path) -> tuple[int, list[int]]:
    """Find the page with which a WAL begins, which any checkpoint moves first, and the offsets of all its images."""
    frames = list(_frames(wal))
    first = frames[0][0] if frames else 0
    return first, [offset for number, offset, _ in frames if number == first]


def images_after(wal: Path, frames: int) -> Iterator[tuple[int, int]]:
    """Find all images of pages after the first `frames`: number, offset."""
    for number, offset, _ in islice(_frames(wal), frames, None):
        yield number, offset


def _frames(wal: Path) -> Iterator[tuple[int, int, int]]:
    """Page number, offset of its image, and the database's size in pages for the last one of a commit, or 0."""
    with wal.open("rb") as file:
        start = file.read(FILE_HEADER)
        page_size = int.from_bytes(start[PAGE_SIZE], "big")
        while (header := file.read(FRAME_HEADER))[_FRAME_SALTS] == start[SALTS] != b"":
            yield int.from_bytes(header[:4], "big"), file.tell(), int.from_bytes(header[DATABASE_SIZE], "big")
            file.seek(page_size, os.SEEK_CUR)
