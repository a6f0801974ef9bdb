"""What a WAL that nobody writes says of the database beside it."""

import shutil
from contextlib import closing, nullcontext
from pathlib import Path

import apsw

from infra.commitlog.anchor import existing_database
from infra.commitlog.file_state import last_change_of, shm_of, wal_of
from infra.commitlog.raw_file import RawFile, page_size_of, pages_of
from infra.commitlog.wal import committed_pages, end_at, images_after, images_of_first_page, page_size_in
from infra.sqlite_errors import translated_errors


def valid_frames(wal: Path, database: Path, scratch: Path) -> int:
    """Count the frames that SQLite takes for committed, in a WAL of `database`: it looks at every checksum, a power cut
    may have torn one. What it has found invalid it writes over, and leaves the rest of it behind.

    `scratch`: a name that is free, for a database to which SQLite may do what it likes.
    """
    try:
        with RawFile(database) as file:
            scratch.write_bytes(file.read(page_size_of(database)))  # without a database it looks at no WAL
        shutil.copyfile(wal, wal_of(scratch))
        with translated_errors(scratch), closing(existing_database(scratch)) as connection:
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            connection.pragma("user_version")  # which is in the one page that is there
            frames: int = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)[0]
            return frames
    finally:
        for path in (scratch, wal_of(scratch), shm_of(scratch)):
            path.unlink(missing_ok=True)


def is_backfilled(wal: Path, pages: dict[int, int], database: Path) -> bool:
    """Tell whether the database has all of these pages as the WAL has them: number -> offset of the image there."""
    page_size = page_size_in(wal)
    with RawFile(database) as mine, wal.open("rb") as frames:
        for number, offset in pages.items():
            mine.seek((number - 1) * page_size)
            frames.seek(offset)
            if mine.read(page_size) != frames.read(page_size):
                return False
    return True


def is_with_its_wal(database: Path, frames: int, image: Path) -> bool:
    """Tell whether the database has what the image has, together with so many frames of its WAL, which others may be
    writing.
    """
    wal, page_size = wal_of(database), page_size_of(image)
    pages, size = (committed_pages(wal, frames), end_at(wal, frames)[1]) if frames else ({}, None)
    with RawFile(database) as mine, wal.open("rb") if frames else nullcontext() as written:
        if image.stat().st_size != (mine.size() if size is None else size * page_size):
            return False
        for number, page in pages_of(image, page_size):
            if written and number in pages:
                written.seek(pages[number])
                found = written.read(page_size)
            else:
                mine.seek((number - 1) * page_size)
                found = mine.read(page_size)
            if found != page:
                return False
    return True


def may_have_been_backfilled(database: Path, frames: int) -> bool:
    """Tell whether the database may have anything from its WAL after so many frames, as a checkpoint leaves it that was
    killed: any page is as an image of it there. Which page a checkpoint moves first depends on who was reading.
    """
    wal = wal_of(database)
    return any(is_backfilled(wal, {number: offset}, database) for number, offset in images_after(wal, frames))


def was_written_after_its_wal(database: Path) -> bool:
    """Tell whether the database was written to after the WAL beside it, by their dates, and not by a checkpoint. New
    names or owners do not count.
    """
    wal = wal_of(database)
    is_later = database.stat().st_mtime_ns > wal.stat().st_mtime_ns
    return is_later and not may_have_been_backfilled(database, 0)


def was_changed_after_its_wal(database: Path) -> bool:
    """Tell whether the database was written to after the WAL beside it, and not by a checkpoint, which would have begun
    with the WAL's first page.
    """
    wal = wal_of(database)
    if last_change_of(database) <= last_change_of(wal):
        return False
    number, offsets = images_of_first_page(wal)
    page_size = page_size_of(database)
    with RawFile(database) as mine, wal.open("rb") as frames:
        mine.seek((number - 1) * page_size)
        page = mine.read(page_size)
        for offset in offsets:
            frames.seek(offset)
            if frames.read(page_size) == page:
                return False
    return bool(offsets)
