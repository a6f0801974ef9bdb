"""The database file at rest: bringing whatever is there to the log's head, and losing nothing of it."""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from itertools import count, zip_longest
from pathlib import Path
from typing import BinaryIO

import apsw

from core import errors
from infra.clock import Clock
from infra.commitlog.chain import START, Change, Position, check_follows, write_pages
from infra.commitlog.log import CommitLog
from infra.commitlog.ltx import lock_page
from infra.commitlog.note import Note, NoteFile, state_of
from infra.sqlite_errors import translated_errors

logger = logging.getLogger(__name__)

START_SECONDS = 60.0  # how long a start tries to store what it must store


class LocalFile:
    """Everything here needs the file for itself: no connection of this process may be open.

    Raises what CommitLog raises, and DatabaseError when the file cannot be used.
    """

    def __init__(self, path: Path, log: CommitLog, clock: Clock, *, lasting: bool, busy_timeout: float) -> None:
        """`lasting`: the file outlives this process. `busy_timeout`: seconds to wait for another program."""
        self.path = path
        self.checkpointed = 0  # TXID up to which the file has everything without its WAL
        self._log = log
        self._clock = clock
        self._lasting = lasting
        self._busy_timeout = busy_timeout
        self._note = NoteFile(path) if lasting else None
        self._known = START  # the newest commit that this file has been at
        self._settled = False

    def settle(self) -> Position:
        """Make the file what the log's head says, and return that position."""
        note = self._note.read() if self._note else None
        if note and note.position.txid > self._known.txid:
            self._known = note.position
        for suffix in ("restoring", "comparing"):
            self._beside(suffix).unlink(missing_ok=True)
        if note and note.applying:
            logger.warning("%s was left in the middle of a change; building it anew from the log", self.path)
            self._discard()
        elif self._settled and not self._lasting:
            self._discard()
        position = self._settled_position(note) if self.path.exists() else self._rebuilt()
        self._settled = True
        return position

    def publish(self) -> Position:
        """Make the file's content the log's next commit, whatever the log has: somebody has decided so."""
        page_size = self._consolidated()
        head_file = self._beside("comparing")
        while True:
            head_file.unlink(missing_ok=True)
            head = self._log.restore(head_file)
            try:
                if head == START:
                    position = self._first_commit(page_size)
                elif changed := _differing_pages(self.path, head_file, page_size):
                    position = self._committed(head, changed, page_size, _page_size_of(head_file))
                else:
                    position = head
                self.close(position)
                return position
            except errors.CommitConflict:
                continue
            finally:
                head_file.unlink(missing_ok=True)

    def apply(self, changes: Iterable[Change], position: Position) -> Position:
        """Put changes into the file, which is at `position`; returns its new position."""
        with self.path.open("r+b") as file:
            for change in changes:
                with closing(change):
                    self.write_note(position, applying=True)
                    check_follows(change.header, position)
                    write_pages(file, change.header, change.pages())
                    position = change.position
            self._flush(file)
        return position

    def write_note(self, position: Position, applying: bool = False) -> None:
        self._known = position
        if self._note:
            self._note.write(Note(position, self.checkpointed, applying))
            if applying:
                self._note.sync()

    def close(self, position: Position | None) -> None:
        """`position`: what the file is at, all of it; None when that is not known."""
        if self._note:
            if position and not self.in_use():
                self._note.write(Note(position, position.txid, closed=state_of(self.path)))
            self._note.close()

    def in_use(self) -> bool:
        """Whether another program has the database open, once this process has closed it: then its WAL stays."""
        return self._wal.exists()

    def check_unused(self) -> None:
        if self.in_use():
            raise errors.DatabaseLocked(f"{self.path} is open in another program; close it, the file must be replaced.")

    def _settled_position(self, note: Note | None) -> Position:
        if note and note.closed and note.closed == state_of(self.path) and not self.in_use():
            return self.apply(self._log.changes(note.position), note.position)
        head_file = self._beside("restoring")
        head = self._head_in(head_file)
        maybe_stale_wal = self.in_use() and not self._settled
        try:
            page_size = self._consolidated()
            if head == START:
                return self._adopted(page_size)
            changed = _differing_pages(self.path, head_file, page_size)
            if not changed:
                return head
            edited = bool(note and (note.closed or self._has_unknown_pages(note.checkpointed, head, page_size)))
            if note and not edited:
                return self._replaced_by(head_file, head)
            if maybe_stale_wal:  # an old WAL beside another file makes a mixture that looks like an edit
                raise _Diverged("it was changed, and the WAL beside it may not have been its own")
            if note and note.position.txid == head.txid:
                logger.warning("%s was changed by another program; the changes are the next commit", self.path)
                return self._committed(head, changed, page_size, _page_size_of(head_file))
            raise _Diverged(f"it and the log at {self._log.url} have both changed")
        except _Diverged as error:
            self.check_unused()
            self._keep_beside(str(error))
            return self._replaced_by(head_file, head)
        except errors.DatabaseDamaged as error:
            if head == START:
                raise
            self._keep_beside(str(error))
            return self._replaced_by(head_file, head)
        finally:
            head_file.unlink(missing_ok=True)

    def _rebuilt(self) -> Position:
        self._discard()  # a WAL without its database says nothing
        restoring = self._beside("restoring")
        restoring.unlink(missing_ok=True)
        position = self._head_in(restoring)
        if position != START:
            return self._replaced_by(restoring, position)
        restoring.unlink()
        _create_empty(restoring)
        self._replaced_by(restoring, START)
        try:
            return self._first_commit(_page_size_of(self.path))
        except errors.CommitConflict:
            return self._rebuilt()  # another instance has begun the log meanwhile

    def _replaced_by(self, image: Path, position: Position) -> Position:
        self.check_unused()
        with image.open("r+b") as file:
            self._flush(file)
        os.replace(image, self.path)
        return position

    def _consolidated(self) -> int:
        """Everything that was committed to the file in the file itself; returns its page size in bytes.

        Raises DatabaseDamaged: what is broken must not become history.
        """
        with translated_errors(self.path), closing(apsw.Connection(str(self.path))) as connection:
            connection.set_busy_timeout(int(self._busy_timeout * 1000))
            connection.execute("PRAGMA journal_mode=wal").fetchall()
            [(blocked, _, _)] = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            if blocked:
                raise errors.DatabaseLocked(f"{self.path} is being read by another program; close it.")
            [(found,)] = connection.execute("PRAGMA integrity_check(1)").fetchall()
            if found != "ok":
                raise errors.DatabaseDamaged(f"{self.path} is damaged: {found}")
            return int(connection.pragma("page_size"))

    def _head_in(self, path: Path) -> Position:
        """The log's newest state in a new file. Raises LogDamaged when the log has lost what this file has seen."""
        head = self._log.restore(path)
        if head.txid < self._known.txid:
            path.unlink()
            raise errors.LogDamaged(
                f"{self._log.url} ends at TXID {head.txid:016x}, but {self.path} has been at {self._known.txid:016x}: "
                "the log was emptied or REPLICA_URL is wrong. To begin a log with this file, "
                f"remove {self._beside('position')}"
            )
        return head

    def _adopted(self, page_size: int) -> Position:
        """The file as the first commit of a log that is empty."""
        try:
            return self._first_commit(page_size)
        except errors.CommitConflict as error:
            self._keep_beside(str(error))
            return self._rebuilt()

    def _first_commit(self, page_size: int) -> Position:
        size = self.path.stat().st_size // page_size
        return self._append(START, page_size, size, _pages(self.path, page_size))

    def _committed(self, head: Position, changed: list[int], page_size: int, log_page_size: int) -> Position:
        """What another program, or a restore, has made of the file, as the next commit."""
        if page_size != log_page_size:
            raise errors.DatabaseUnavailable(
                f"{self.path} has pages of {page_size} bytes, the log has {log_page_size}, and that cannot change: "
                f"`sqlite3 {self.path} 'PRAGMA journal_mode=delete; PRAGMA page_size={log_page_size}; VACUUM'`"
            )
        size = self.path.stat().st_size // page_size
        wanted = set(changed)
        pages = ((number, page) for number, page in _pages(self.path, page_size) if number in wanted)
        return self._append(head, page_size, size, pages)

    def _append(self, position: Position, page_size: int, size: int, pages: Iterable[tuple[int, bytes]]) -> Position:
        return self._log.append(position, page_size, size, pages, self._clock.now() + START_SECONDS)

    def _has_unknown_pages(self, since: int, head: Position, page_size: int) -> bool:
        """Whether a page of the file is as the log had it at no commit from `since` on.

        A crash leaves pages of different commits, when the WAL was lost or only in part copied into the file.
        Raises _Diverged when the log no longer has all of these commits to compare with.
        """
        image = self._beside("comparing")
        size = self.path.stat().st_size // page_size
        try:
            position = self._log.restore(image, since)
            unknown = {number for number in _differing_pages(self.path, image, page_size) if number <= size}
            with self.path.open("rb") as mine:
                for change in self._log.commits(position, head.txid):
                    with closing(change):
                        for number, page in change.pages():
                            mine.seek((number - 1) * page_size)
                            if number in unknown and mine.read(page_size) == page:
                                unknown.discard(number)
        except (errors.LogDamaged, errors.ObjectMissing) as error:
            raise _Diverged(f"after a crash, and the log does not tell what was in it ({error})") from error
        finally:
            image.unlink(missing_ok=True)
        return bool(unknown)

    def _keep_beside(self, reason: str) -> None:
        kept = self._beside(f"diverged-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}")
        for suffix in ("", "-wal", "-shm"):
            if (part := self.path.with_name(self.path.name + suffix)).exists():
                os.replace(part, kept.with_name(kept.name + suffix))
        logger.error("%s is kept as %s, and the log's state is served: %s", self.path, kept.name, reason)

    def _discard(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def _flush(self, file: BinaryIO) -> None:
        file.flush()
        if self._lasting:
            os.fsync(file.fileno())

    @property
    def _wal(self) -> Path:
        return self.path.with_name(self.path.name + "-wal")

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{suffix}")


class _Diverged(Exception):
    """The file holds something that the log does not, and it cannot be the next commit."""


def _create_empty(path: Path) -> None:
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("PRAGMA journal_mode=wal").fetchall()


def _page_size_of(path: Path) -> int:
    """Bytes; https://www.sqlite.org/fileformat2.html#page_size"""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(18)[16:], "big")
    return 65536 if size == 1 else size


def _pages(path: Path, page_size: int) -> Iterator[tuple[int, bytes]]:
    """Every page but the lock page."""
    with path.open("rb") as file:
        for number in count(1):
            page = file.read(page_size)
            if not page:
                return
            if number != lock_page(page_size):
                yield number, page


def _differing_pages(mine: Path, other: Path, page_size: int) -> list[int]:
    """The numbers of the pages that are not the same in both, or are in one only."""
    pairs = zip_longest(_pages(mine, page_size), _pages(other, page_size))
    return [(one or two or (0, b""))[0] for one, two in pairs if one != two]
