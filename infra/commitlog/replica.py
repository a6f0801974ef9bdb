"""The SQLite file of one instance: a copy of the log that takes part in writing it."""

import logging
import os
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime
from functools import partial
from itertools import count, islice, zip_longest
from pathlib import Path
from typing import BinaryIO, TypeVar

import apsw
import peewee
from playhouse.apsw_ext import APSWDatabase

from core import errors
from infra.clock import Clock
from infra.commitlog.log import START, Change, CommitLog, Position, check_follows, write_pages
from infra.commitlog.ltx import lock_page
from infra.commitlog.note import Note, NoteFile, state_of
from infra.commitlog.vfs import ShippingVFS, WalReset
from infra.sqlite_errors import translated_errors

logger = logging.getLogger(__name__)

T = TypeVar("T")
UseCase = Callable[[peewee.Database], T]

MAX_TRANSACTION_BYTES = 256 * 1024 * 1024
START_SECONDS = 60.0  # how long a start tries to store what it must store
_CLOCK_TOLERANCE_MS = 15 * 60 * 1000
_BATCH = 256
_CHECKPOINT_FRAMES = 1000  # SQLite's own default
_COMPARE_BYTES = 1024 * 1024
_PRAGMAS = {"journal_mode": "wal", "synchronous": "full", "foreign_keys": 1}
_vfs_numbers = count(1)


class Replica:
    """Two connections to a file that is a prefix of the log: one that writes, one that reads.

    Everything but `reader` and `visible` belongs to one thread. Raises what CommitLog raises,
    and DatabaseError when the file itself cannot be used.
    """

    def __init__(
        self,
        path: Path,
        log: CommitLog,
        clock: Clock,
        *,
        lasting: bool,
        busy_timeout: float = 5.0,
        rng: random.Random | None = None,
        swap: Callable[[Callable[[], None]], None] = lambda change: change(),
    ) -> None:
        """`lasting`: the file outlives this process. `swap` runs what replaces the file under the connections, at a
        moment when nobody is reading.
        """
        self.path = path
        self.log = log
        self.visible = START  # the newest commit that readers see
        self._position = START  # of the log, as far as this instance has it
        self._clock = clock
        self._busy_timeout = busy_timeout
        self._lasting = lasting
        self._random = rng or random.SystemRandom()
        self._swap = swap
        self._note = NoteFile(path) if lasting else None
        self._deadline = 0.0
        self._inode = 0
        self._checkpointed = 0  # TXID up to which the file has everything without its WAL
        self._unshipped = False
        self._whole = False  # whether file and connections are what `_position` says
        self._vfs = ShippingVFS(f"commitlog-{next(_vfs_numbers)}", self._ship, MAX_TRANSACTION_BYTES, lasting)
        self.writer = APSWDatabase(
            str(path), pragmas=_PRAGMAS, timeout=busy_timeout, thread_safe=False, vfs=self._vfs.name
        )
        # Its waits happen on the event loop, between tries, so SQLite itself must not wait
        self.reader = APSWDatabase(str(path), pragmas={**_PRAGMAS, "query_only": 1}, timeout=0, thread_safe=False)

    def open(self) -> None:
        """Bring the file to the log's head and connect to it."""
        self._settle()
        if self.visible.timestamp > self._clock.timestamp() + _CLOCK_TOLERANCE_MS:
            logger.error(
                "%s: the newest commit is of %s, which is ahead of this machine's clock; one of the clocks is wrong, "
                "and a restore to a moment between may miss by as much",
                self.log.url,
                datetime.fromtimestamp(self.visible.timestamp / 1000, UTC).isoformat(),
            )

    def close(self) -> None:
        """Move the WAL into the file and note that it is whole. Safe to call twice."""
        whole = self._whole
        self._disconnect()
        self._vfs.close()
        if self._note:
            if whole and not _wal_of(self.path).exists():
                self._note.write(Note(self._position, self._position.txid, closed=state_of(self.path)))
            self._note.close()

    def write(self, use_case: UseCase[T], deadline: float, not_before: float, txid: int = 0) -> T:
        """Run in a transaction; when this returns, its commit is in the log.

        A conflict runs the use case again on the new state, until `deadline`. One that commits nothing is a read:
        it answers from a state as `refresh` would have it (both times by the clock).
        """
        for conflicts in count():
            before = self._position
            failure: Exception | None = None
            try:
                result = self._transaction(use_case, deadline)
            except errors.CommitConflict as error:
                if self._clock.now() >= deadline:
                    raise errors.CommitNotStored("Other instances were faster every time.") from error
                self.catch_up()
                # Whoever has waited longest comes first
                self._clock.sleep(self._random.uniform(0, 0.1) / (1 + conflicts) ** 2)
                continue
            except WalReset:
                logger.warning("%s was changed by another program; comparing it with the log", self.path)
                self._swap(self._settle)
                continue
            except (errors.DatabaseError, errors.StoreError, errors.CommitError):
                raise
            except Exception as error:
                failure = error
            if self._position == before and self.refresh(not_before, txid):
                continue
            if failure:
                raise failure
            return result
        raise AssertionError("unreachable")

    def refresh(self, not_before: float, txid: int = 0) -> bool:
        """See to it that the log's head was known after `not_before`; returns whether there was anything new.

        Raises TxidNotReached when the log does not reach as far as `txid`.
        """
        if self.is_fresh(not_before, txid):
            return False
        moved = self.catch_up()
        if self.visible.txid < txid:
            raise errors.TxidNotReached(
                f"The log ends at TXID {self.visible.txid:016x}; {txid:016x} was never acknowledged by it."
            )
        return moved

    def is_fresh(self, not_before: float, txid: int = 0) -> bool:
        return self._whole and self.log.verified_at >= not_before and self.visible.txid >= txid

    def is_current(self) -> bool:
        """Ask the store whether what readers see is the newest; any thread may, while another one writes."""
        return self._whole and self.log.is_head(self.visible)

    def check(self) -> None:
        """Raises DatabaseUnavailable when the file is not the one that was opened.

        After `rm` or `mv` SQLite would go on writing to a file that nobody can find any more.
        """
        found = state_of(self.path)
        if self._whole and (found is None or found.inode != self._inode):
            raise errors.DatabaseUnavailable(
                f"{self.path} was removed or replaced while the service runs; restart the service "
                "(to restore a backup, stop it first: `make restore` checks that)."
            )

    def catch_up(self) -> bool:
        """Apply everything that is new in the log; returns whether there was anything."""
        if not self._whole:
            self._swap(self._settle)
            return True
        changes = self.log.changes(self._position)
        moved = False
        while batch := list(islice(changes, _BATCH)):
            with ExitStack() as stack:
                for change in batch:
                    stack.callback(change.close)
                self._swap(partial(self._apply, batch))
            moved = True
        return moved

    # Transactions

    def _transaction(self, use_case: UseCase[T], deadline: float) -> T:
        if not self._whole:
            self._swap(self._settle)
        self.check()
        self._deadline = deadline
        self._vfs.forget()
        self._unshipped = False
        with translated_errors(self.path), self.writer.atomic("IMMEDIATE"):
            result = use_case(self.writer)
        if self._unshipped:
            self._whole = False
            raise errors.DatabaseUnavailable(
                "A transaction was committed without being stored (was PRAGMA synchronous changed?)."
            )
        self.visible = self._position
        return result

    def _ship(self, page_size: int, size: int, pages: Iterable[tuple[int, bytes]]) -> None:
        self._position = self.log.append(self._position, page_size, size, pages, self._deadline)
        self._write_note(self._position)

    def _on_commit(self, connection: apsw.Connection, name: str, frames: int) -> int:
        """SQLite calls this after each commit; the other half of the proof that nothing goes by unshipped."""
        self._unshipped |= frames != self._vfs.shipped_frames
        if frames >= _CHECKPOINT_FRAMES:
            with suppress(apsw.BusyError):
                in_wal, in_file = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
                if in_wal == in_file:
                    self._checkpointed = self._position.txid
        return apsw.SQLITE_OK

    def _apply(self, changes: list[Change]) -> None:
        self._disconnect()
        if _wal_of(self.path).exists():
            self._connect(self._position)  # reads go on
            self._check_unused()
        self._connect(self._written(changes, self._position))

    def _written(self, changes: Iterable[Change], position: Position) -> Position:
        """Changes put into the closed file, which is at `position`; returns its new position."""
        with self.path.open("r+b") as file:
            for change in changes:
                with closing(change):
                    self._write_note(position, applying=True)
                    check_follows(change.header, position)
                    write_pages(file, change.header, change.pages())
                    position = change.position
            self._flush(file)
        return position

    # The file

    def _settle(self) -> None:
        """Make the file what the log's head says, whatever it is now; nothing that was in it is lost."""
        self._disconnect()
        note = self._note.read() if self._note else None
        for suffix in ("restoring", "comparing"):
            self._beside(suffix).unlink(missing_ok=True)
        if note and note.applying:
            logger.warning("%s was left in the middle of a change; building it anew from the log", self.path)
            self._discard()
        self._connect(self._settled_position(note) if self.path.exists() else self._rebuilt())

    def _settled_position(self, note: Note | None) -> Position:
        if note and note.closed and note.closed == state_of(self.path) and not _wal_of(self.path).exists():
            return self._written(self.log.changes(note.position), note.position)
        head_file = self._beside("restoring")
        head = self.log.restore(head_file)
        try:
            page_size = self._consolidated()
            if head == START:
                return self._adopted(note, page_size)
            if not (changed := _differing_pages(self.path, head_file, page_size)):
                return head
            if note and not note.closed and self._is_of_the_log(note.checkpointed, page_size):
                return self._replaced_by(head_file, head)
            if note and note.position.txid == head.txid:
                return self._committed(head, changed, page_size, _page_size_of(head_file))
            self._keep_beside(f"it and the log at {self.log.url} have both changed")
            return self._replaced_by(head_file, head)
        except errors.DatabaseDamaged as error:
            if head == START:
                raise
            self._keep_beside(str(error))
            return self._replaced_by(head_file, head)
        finally:
            head_file.unlink(missing_ok=True)

    def _rebuilt(self) -> Position:
        restoring = self._beside("restoring")
        position = self.log.restore(restoring)
        if position == START:
            restoring.unlink()
            _create_empty(restoring)
        self._replaced_by(restoring, position)
        return position if position != START else self._adopted(None, _page_size_of(self.path))

    def _replaced_by(self, image: Path, position: Position) -> Position:
        self._check_unused()
        with image.open("r+b") as file:
            self._flush(file)
        os.replace(image, self.path)
        return position

    def _consolidated(self) -> int:
        """Everything that was committed to the file in the file itself; returns its page size in bytes.

        Raises DatabaseDamaged: what is broken must not become history.
        """
        with translated_errors(self.path):
            connection = apsw.Connection(str(self.path))
            try:
                connection.set_busy_timeout(int(self._busy_timeout * 1000))
                for statement in ("PRAGMA journal_mode=wal", "PRAGMA wal_checkpoint(TRUNCATE)"):
                    connection.execute(statement).fetchall()
                [(found,)] = connection.execute("PRAGMA integrity_check(1)").fetchall()
                if found != "ok":
                    raise errors.DatabaseDamaged(f"{self.path} is damaged: {found}")
                return int(connection.pragma("page_size"))
            finally:
                connection.close()

    def _check_unused(self) -> None:
        if _wal_of(self.path).exists():
            raise errors.DatabaseLocked(f"{self.path} is open in another program; close it, the file must be replaced.")

    def _adopted(self, note: Note | None, page_size: int) -> Position:
        """The file as the log's first commit."""
        if note and note.position != START:
            raise errors.LogDamaged(
                f"{self.log.url} is empty, but {self.path} is a copy of it at TXID {note.position.txid:016x}: the log "
                f"was emptied or REPLICA_URL is wrong. To begin a log with this file, remove {self._beside('position')}"
            )
        size = self.path.stat().st_size // page_size
        try:
            return self._append(START, page_size, size, _pages(self.path, page_size))
        except errors.CommitConflict:
            self._discard()
            return self._rebuilt()  # another instance has begun the log meanwhile

    def _committed(self, head: Position, changed: list[int], page_size: int, log_page_size: int) -> Position:
        """What somebody did to the file while the service was down, as the next commit."""
        if page_size != log_page_size:
            raise errors.DatabaseUnavailable(
                f"{self.path} has pages of {page_size} bytes, the log has {log_page_size}, and that cannot change: "
                f"`sqlite3 {self.path} 'PRAGMA journal_mode=delete; PRAGMA page_size={log_page_size}; VACUUM'`"
            )
        size = self.path.stat().st_size // page_size
        logger.warning("%s was changed while the service was down: %d pages go into the log", self.path, len(changed))
        wanted = set(changed) or {1}
        pages = ((number, page) for number, page in _pages(self.path, page_size) if number in wanted)
        return self._append(head, page_size, size, pages)

    def _append(self, position: Position, page_size: int, size: int, pages: Iterable[tuple[int, bytes]]) -> Position:
        return self.log.append(position, page_size, size, pages, self._clock.now() + START_SECONDS)

    def _is_of_the_log(self, since: int, page_size: int) -> bool:
        """Whether each page of the file is as the log had it at some commit from `since` on.

        A crash leaves pages of different commits, when the WAL was lost or only in part copied into the file.
        """
        image = self._beside("comparing")
        try:
            position = self.log.restore(image, since)
            unknown = set(_differing_pages(self.path, image, page_size))
        except errors.LogDamaged:
            return False  # the log no longer goes back to that commit alone
        finally:
            image.unlink(missing_ok=True)
        size = self.path.stat().st_size // page_size
        unknown = {number for number in unknown if number <= size}
        with self.path.open("rb") as mine:
            for change in self.log.changes(position):
                with closing(change):
                    for number, page in change.pages():
                        mine.seek((number - 1) * page_size)
                        if number in unknown and mine.read(page_size) == page:
                            unknown.discard(number)
        return not unknown

    def _keep_beside(self, reason: str) -> None:
        kept = self._beside(f"diverged-{datetime.now(UTC):%Y%m%d-%H%M%S}")
        self._check_unused()
        os.replace(self.path, kept)
        logger.error("%s is kept as %s, and the log's state is served: %s", self.path, kept.name, reason)

    def _discard(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def _connect(self, position: Position) -> None:
        with translated_errors(self.path):
            self.writer.connect()
            self.reader.connect()
            self.writer.connection().set_wal_hook(self._on_commit)
            if self.writer.connection().pragma("synchronous") != 2:
                raise errors.DatabaseUnavailable(
                    "SQLite must run with synchronous=FULL; a commit is stored by its sync."
                )
        found = state_of(self.path)
        self._inode = found.inode if found else 0
        self._position = self.visible = position
        self._checkpointed = position.txid
        self._write_note(position)
        self._whole = True

    def _disconnect(self) -> None:
        self._whole = False
        self.reader.close()
        self.writer.close()

    def _write_note(self, position: Position, applying: bool = False) -> None:
        if self._note:
            self._note.write(Note(position, self._checkpointed, applying))
            if applying:
                self._note.sync()

    def _flush(self, file: BinaryIO) -> None:
        file.flush()
        if self._lasting:
            os.fsync(file.fileno())

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{suffix}")


def _wal_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _create_empty(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA journal_mode=wal").fetchall()
    connection.close()


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
