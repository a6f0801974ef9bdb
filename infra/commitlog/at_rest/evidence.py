"""Whose doing a database file is that differs from the log: another program's, or a crash's."""

import shutil
from contextlib import closing, suppress
from pathlib import Path

import apsw

from core import errors
from infra.commitlog.anchor import existing_database
from infra.commitlog.chain import START, Position
from infra.commitlog.file_state import has_wal, last_change_of, last_wal_of, wal_of
from infra.commitlog.log import CommitLog
from infra.commitlog.position_file import Note
from infra.commitlog.raw_file import RawFile, differing_pages, page_size_of
from infra.commitlog.wal import committed_pages, images_of_first_page, reaches
from infra.sqlite_errors import translated_errors

_MIXTURE = "it was overwritten while the WAL of another file lay beside it"


class Diverged(Exception):
    """The file holds something that the log does not, and it cannot be the next commit."""


class LogCannotTell(Diverged):
    """The log no longer has each commit on its own."""


class Evidence:
    """Found in the file, its WAL and the log; nothing of them is changed."""

    def __init__(self, path: Path, log: CommitLog) -> None:
        self._path = path
        self._log = log

    def is_of_the_log(self, note: Note, head: Position, page_size: int) -> bool:
        """Whether nothing in a file that is not whole is by another program."""
        with suppress(LogCannotTell):
            return not has_wal(self._path) and not self.unknown_pages(note.checkpointed, head, page_size)
        return False

    def is_an_edit(
        self, note: Note | None, head: Position, changed: list[int], changeable: set[int] | None, page_size: int
    ) -> bool:
        if changeable is not None:
            size = self._path.stat().st_size // page_size
            return bool(changeable) and all(number in changeable or number > size for number in changed)
        # After a WAL was discarded the file may also be what a checkpoint has left that was killed half way
        discarded = note is not None and note.checkpointed != note.position.txid
        return not discarded or bool(note and self.unknown_pages(note.checkpointed, head, page_size))

    def changed_on_top_of_all(self, note: Note, found_before: set[int]) -> set[int] | None:
        """The pages that another program can have changed on top of all that was committed; None is any.
        `found_before`: what an earlier look has returned, which has moved the WAL into the file.

        A power cut, or whoever removes the WAL, takes the last commits from the file; not from the log. And a file
        that was put beside the WAL of another one is a mixture as soon as SQLite has opened it.
        """
        if note.closed:
            return None
        in_file = note.checkpointed == note.position.txid
        wal = wal_of(self._path) if has_wal(self._path) else last_wal_of(self._path)
        pages = committed_pages(wal) if wal.exists() else {}
        if not pages:
            return found_before or (None if in_file else set())
        if not (in_file or found_before) and not (
            note.wal and reaches(wal, note.wal) and self._valid_frames(wal, self._path) >= note.wal.frames
        ):
            return set()
        # If SQLite has removed the WAL, then after it has moved all of it into the file
        return found_before | set(pages) if has_wal(self._path) or self._has_moved(wal, pages) else set()

    def is_all_shipped(self, note: Note, head_file: Path) -> bool:
        """Whether the WAL has nothing that the log has not."""
        wal = wal_of(self._path)
        return bool(note.wal and reaches(wal, note.wal) and self._valid_frames(wal, head_file) == note.wal.frames)

    def _valid_frames(self, wal: Path, database: Path) -> int:
        """How much of a WAL SQLite takes for committed: it looks at every checksum, a power cut may have torn one.

        What it has found invalid it writes over, and leaves the rest of it behind.
        """
        scratch = self._path.with_name(f"{self._path.name}.comparing")
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
            for suffix in ("", "-wal", "-shm"):
                scratch.with_name(scratch.name + suffix).unlink(missing_ok=True)

    def _has_moved(self, wal: Path, pages: dict[int, int]) -> bool:
        page_size = page_size_of(self._path)
        with RawFile(self._path) as mine, wal.open("rb") as frames:
            for number, offset in pages.items():
                mine.seek((number - 1) * page_size)
                frames.seek(offset)
                if mine.read(page_size) != frames.read(page_size):
                    return False
        return True

    def check_not_overwritten(self, note: Note | None, head: Position) -> None:
        """SQLite would mix what it finds in a file and the WAL beside it, whatever they are.

        Raises Diverged when the file is not one that belongs to this WAL.
        """
        if head == START or not has_wal(self._path):
            return
        if note and not note.closed:  # after a crash: the log has had all that a crash leaves
            with suppress(LogCannotTell):
                page_size = page_size_of(self._path)
                if page_size >= 512 and self.unknown_pages(note.checkpointed, head, page_size):
                    raise Diverged(_MIXTURE)
        elif self._was_changed_after_its_wal():
            raise Diverged(_MIXTURE)

    def _was_changed_after_its_wal(self) -> bool:
        """And not by a checkpoint, which would have begun with the WAL's first page."""
        wal = wal_of(self._path)
        if last_change_of(self._path) <= last_change_of(wal):
            return False
        number, offsets = images_of_first_page(wal)
        page_size = page_size_of(self._path)
        with RawFile(self._path) as mine, wal.open("rb") as frames:
            mine.seek((number - 1) * page_size)
            page = mine.read(page_size)
            for offset in offsets:
                frames.seek(offset)
                if frames.read(page_size) == page:
                    return False
        return bool(offsets)

    def unknown_pages(self, since: int, head: Position, page_size: int) -> set[int]:
        """Pages of the file that are as the log had them at no commit from `since` on.

        A crash leaves pages of different commits, when the WAL was lost or only in part copied into the file.
        Raises LogCannotTell when the log no longer has all of these commits to compare with.
        """
        image = self._path.with_name(f"{self._path.name}.comparing")
        size = self._path.stat().st_size // page_size
        try:
            position = self._log.restore(image, since)
            unknown = {number for number in differing_pages(self._path, image, page_size) if number <= size}
            with RawFile(self._path) as mine:
                for change in self._log.commits(position, head.txid):
                    with closing(change):
                        for number, page in change.pages():
                            mine.seek((number - 1) * page_size)
                            if number in unknown and mine.read(page_size) == page:
                                unknown.discard(number)
        except (errors.TxidNotKept, errors.ObjectMissing) as error:
            raise LogCannotTell(f"after a crash, and the log does not tell what was in it ({error})") from error
        finally:
            image.unlink(missing_ok=True)
        return unknown
