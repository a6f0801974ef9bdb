"""The database file at rest: bringing whatever is there to the log's head, and losing nothing of it."""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from pathlib import Path

import apsw
import peewee

from core import errors
from infra.clock import Clock
from infra.commitlog.anchor import Guard, begin_reading, existing_database
from infra.commitlog.at_rest.evidence import Diverged, Evidence
from infra.commitlog.at_rest.kept import CHANGES, DIVERGED, KeptFiles, whole_or_nothing
from infra.commitlog.at_rest.row_changes import NotRowByRow, changes_between, keep_changes
from infra.commitlog.chain import START, Change, Position, check_follows, write_pages
from infra.commitlog.file_state import FileChanged, Known, has_wal, last_wal_of, state_of, wal_of
from infra.commitlog.log import CommitLog
from infra.commitlog.position_file import Note, NoteFile, WalEnd
from infra.commitlog.raw_file import RawFile, differing_pages, page_size_of, pages_of
from infra.commitlog.schema import AnySchema, Schema, is_new, opened_image
from infra.commitlog.soundness import soundness_of
from infra.commitlog.wal import salts_in
from infra.disk.durable import fsync_directory
from infra.disk.ownership import give_to_owner_of
from infra.sqlite_errors import translated_errors

logger = logging.getLogger(__name__)

START_SECONDS = 60.0  # how long a start tries to store what it must store
_CONSOLIDATIONS = 5
_PUBLISH_SECONDS = 5.0  # to wait for another program
_VERSIONS = slice(18, 20)  # https://www.sqlite.org/fileformat2.html#file_format_version_numbers
_WAL_MODE = b"\2\2"
_CHUNK = 1024 * 1024  # bytes


class LocalFile:
    """Everything here needs the file for itself: no connection of this process may be open.

    Raises what CommitLog raises, and DatabaseError when the file cannot be used.
    """

    def __init__(
        self,
        path: Path,
        log: CommitLog,
        clock: Clock,
        *,
        lasting: bool,
        busy_timeout: float,
        schema: Schema | None = None,
    ) -> None:
        """`lasting`: the file outlives this process. `busy_timeout`: seconds to wait for another program. `schema`: of
        what may become a commit.
        """
        self.path = path
        self.known = Known(None)  # as it was left
        self.checkpointed = 0  # TXID up to which the file has everything without its WAL
        self._log = log
        self._clock = clock
        self._lasting = lasting
        self._busy_timeout = busy_timeout
        self._schema = schema or AnySchema()
        self._note = NoteFile(path) if lasting else None
        self._kept = KeptFiles(path)
        self.waiting = self._kept.all(CHANGES) if lasting else []  # row changes that are to be done again
        self._evidence = Evidence(path, log)
        self._guard = Guard(path)
        self._known = START  # the newest commit that this file has been at
        self._settled = False
        self._edited: set[int] = set()  # pages that others have changed, by looks that came to no end

    def settle(self) -> Position:
        """Make the file what the log says at some commit, the head unless it was left well, and return that."""
        if has_wal(self.path):
            self.hold()
        try:
            position = self._settle()
        except errors.ServiceError:
            self.hold()  # until the next look
            raise
        self._guard.release()
        return position

    def hold(self) -> None:
        """See to it that others take nothing away of what they commit, until `settle` has looked at it."""
        if self._lasting:
            self._guard.hold()

    def _settle(self) -> Position:
        note = self._note.read() if self._note else None
        if note and note.position.txid > self._known.txid:
            self._known = note.position
        self._remove_scratch()  # left by a crash
        if self._settled and not self._lasting:
            self._discard()
        try:
            position = self._settled_position(note) if self.path.exists() else self._rebuilt()
        finally:
            self._remove_scratch()
        self._settled = True
        self._edited = set()
        self._kept.prune(self.waiting)
        return position

    def publish(self) -> tuple[Position, Position]:
        """Make the file's content the log's next commit, whatever the log has: somebody has decided so.

        Returns where the log ended before, and where it ends now: the same if there was no difference.
        """
        head_file = self._beside("comparing")
        with self._consolidated() as connection:
            page_size = int(connection.pragma("page_size"))
            while True:
                head_file.unlink(missing_ok=True)
                head = self._log.restore(head_file)
                try:
                    if head == START:
                        position = self._first_commit(connection)
                    elif changed := differing_pages(self.path, head_file, page_size):
                        position = self._committed(head, changed, page_size, page_size_of(head_file))
                    else:
                        position = head
                    break
                except errors.CommitConflict:
                    continue
                finally:
                    head_file.unlink(missing_ok=True)
        self.close(position, self.known)
        return head, position

    def apply(self, changes: Iterable[Change], position: Position, known: Known) -> Position:
        """Put changes into the file, which is at `position`, with the WAL beside it; returns its new position.

        Raises FileChanged when there is more in the WAL than was shipped, DatabaseLocked while another program has
        the database open.
        """
        with self._exclusively() as connection:
            self._move_wal(connection, known)
            with translated_errors(self.path), RawFile(self.path) as file:
                for change in changes:
                    self._note_applying(position)
                    check_follows(change.header, position)
                    write_pages(file, change.header, change.pages())
                    position = change.position
                if self._lasting:
                    file.sync()
            self.known = self._left_in_wal_mode()
        return position

    def write_note(self, position: Position, wal: WalEnd | None = None) -> None:
        """`wal`: what the file needs of its WAL to have all of `position`."""
        self._known = position
        if self._note:
            self._note.write(Note(position, self.checkpointed, wal))

    def _note_applying(self, position: Position) -> None:
        if self._note:
            self._note.write(Note(position, self.checkpointed, applying=True))
            self._note.sync()

    def keep_hold_of_wal(self) -> None:
        """By a second name, which SQLite does not know: it says after a crash what others have done with the WAL."""
        if self._note:
            last_wal_of(self.path).unlink(missing_ok=True)
            with suppress(OSError):  # a file system without hard links
                os.link(self._wal, last_wal_of(self.path))

    def close(self, position: Position | None, known: Known) -> None:
        """`position`: what the file is at with its WAL, all of which was shipped; None when that is not known."""
        self._guard.release()
        if self._note:
            if position:
                try:
                    with self._exclusively() as connection:
                        self._move_wal(connection, known)
                        if known.vouched:
                            self._note.write(Note(position, position.txid, closed=state_of(self.path)))
                            last_wal_of(self.path).unlink(missing_ok=True)
                except (errors.DatabaseError, OSError) as error:
                    logger.warning("%s is left as it is, for the next start to look at: %s", self.path, error)
            self._note.close()

    def discard_wal(self, position: Position, known: Known) -> None:
        """For a file that was overwritten, when all of the WAL is in the log: what counts now is the file alone, as
        if it had been put in the place of one that was left well.
        """
        with self._exclusively() as connection:
            self._check_wal(connection, known)
            self._remove("-wal", "-shm")
            fsync_directory(self.path.parent)
            if self._note:
                self._note.write(Note(position, self.checkpointed, closed=known.state))

    @contextmanager
    def _exclusively(self) -> Iterator[apsw.Connection]:
        """No other program has the database open, or can open it, meanwhile. Raises DatabaseLocked."""
        self._guard.release()
        with translated_errors(self.path), closing(existing_database(self.path)) as connection:
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            try:
                connection.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
                for statement in ("BEGIN EXCLUSIVE", "ROLLBACK"):
                    connection.execute(statement)
            except apsw.BusyError as error:
                raise errors.DatabaseLocked(
                    f"{self.path} is open in another program; close it, the file must be brought in order."
                ) from error
            yield connection

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """The same for a file that SQLite perhaps cannot open: then nobody has it open."""
        with ExitStack() as stack:
            with suppress(errors.DatabaseDamaged):
                stack.enter_context(self._exclusively())
            yield

    def _move_wal(self, connection: apsw.Connection, known: Known) -> None:
        """Into the file, if it has what was shipped and nothing else."""
        self._check_wal(connection, known)
        if state_of(self.path) != known.state:
            raise FileChanged(f"{self.path} was overwritten by another program.")
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        self._remove("-wal", "-shm")

    def _check_wal(self, connection: apsw.Connection, known: Known) -> None:
        frames, _ = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
        frames = max(frames, 0)
        if frames != known.shipped.frames or (frames and salts_in(self._wal) != known.shipped.salts):
            raise FileChanged(f"{self.path} was changed by another program.")

    def _settled_position(self, note: Note | None) -> Position:
        self.known = Known(state_of(self.path))
        if (
            note
            and note.closed
            and note.closed == self.known.state
            and not has_wal(self.path)
            and self._log.head.stands(note.position)
        ):
            return note.position
        head_file = self._beside("restoring")
        head = self._head_in(head_file)
        try:
            return self._compared(note, head_file, head)
        except errors.CommitConflict as error:
            raise FileChanged(str(error)) from error  # not the file, but what it is compared with
        except Diverged as error:
            return self._kept_beside(str(error), head_file, head)
        except errors.DatabaseDamaged as error:
            if head == START:
                raise
            if note and self._evidence.is_of_the_log(note, head, page_size_of(head_file)):
                return self._replaced_by(head_file, head)
            return self._kept_beside(str(error), head_file, head)

    def _compared(self, note: Note | None, head_file: Path, head: Position) -> Position:
        """Row by row what "Start, and files that others touch" in docs/commit-log.md says. Raises Diverged."""
        if self.known.state and not self.known.state.size and head != START:
            return self._filled(note, head_file, head)
        if note and note.applying:
            logger.warning("%s was left in the middle of a change; building it anew from the log", self.path)
            if not self._evidence.is_of_the_log(note, head, page_size_of(head_file)):
                raise Diverged("it was changed by another program before it was whole again")
            return self._replaced_by(head_file, head)
        if not self._edited:
            self._evidence.check_not_overwritten(note, head)
        unmoved = note is not None and _is_same(note.position, head)
        changeable = self._evidence.changed_on_top_of_all(note, self._edited) if note else None
        row_changes: Path | None = None
        if head == START:
            self._check_may_begin()
        with self._consolidated() as connection:
            self._edited = changeable or set()
            if head == START:
                return self._first_commit(connection)
            page_size = int(connection.pragma("page_size"))
            changed = differing_pages(self.path, head_file, page_size)
            if not changed:
                return head
            is_an_edit = unmoved and self._evidence.is_an_edit(note, head, changed, changeable, page_size)
            if is_an_edit and self._is_served(connection):
                return self._committed_edit(head, changed, page_size, head_file)
            if not is_an_edit and (note is None or self._evidence.unknown_pages(note.checkpointed, head, page_size)):
                if unmoved:
                    raise Diverged("it was changed after a crash, perhaps without what the log has of before that")
                row_changes = self._kept_row_changes(note, changeable, page_size)
        if is_an_edit:
            return self._committed_migrated(head, head_file)
        if unmoved:
            logger.warning(
                "%s was in an older state than it was left in: its -wal was removed, an older copy of both was put "
                "in their place, or the power failed; the log's newest state is served",
                self.path,
            )
        try:
            return self._replaced_by(head_file, head)
        except FileChanged:
            if row_changes:  # what was changed is still in the file, and is looked for again
                self.remove_changes(row_changes)
            raise

    def remove_changes(self, path: Path) -> None:
        """For good: after a power cut they must not be done once more."""
        self.waiting.remove(path)
        path.unlink()
        fsync_directory(path.parent)

    def _kept_row_changes(self, note: Note | None, changeable: set[int] | None, page_size: int) -> Path | None:
        """What was changed on top of a commit that is no longer the newest, in a file of its own; None if no row was.

        Only what came through the WAL: a file that has changed without is perhaps an older copy, and not meant as a
        change of these rows. Raises Diverged.
        """
        base_file = self._beside("base")
        try:
            if not (note and changeable):
                raise NotRowByRow("and which rows were changed is not to be told")
            base = self._log.restore(base_file, note.position.txid)
            changed = differing_pages(self.path, base_file, page_size)
            is_on_top = self._evidence.is_an_edit(note, base, changed, changeable, page_size)
            if not (is_on_top and _is_same(base, note.position)):
                raise NotRowByRow("and not only on top of what the log had")
            changeset = changes_between(base_file, self.path)
        except (NotRowByRow, errors.TxidNotKept) as error:
            raise Diverged(f"it and the log at {self._log.url} have both changed: {error}") from error
        if not changeset:
            return None
        path = self._kept.new(CHANGES)
        keep_changes(changeset, path)
        self.waiting.append(path)
        return path

    def _filled(self, note: Note | None, head_file: Path, head: Position) -> Position:
        """A file of 0 bytes, of which SQLite would take the WAL away."""
        if has_wal(self.path) and not (note and self._evidence.is_all_shipped(note, head_file)):
            raise Diverged("it is empty, and its -wal has what the log does not")
        self._remove("-wal", "-shm")
        logger.warning("%s was empty, which is no edit; the log's newest state is served", self.path)
        return self._replaced_by(head_file, head)

    def _is_served(self, connection: apsw.Connection) -> bool:
        """Whether it can be a commit as it is, or must be migrated first. Raises Diverged when it cannot be one."""
        if is_new(connection):
            raise Diverged("there is nothing in it")
        try:
            return self._schema.check(connection)
        except (errors.NotServed, apsw.SQLError) as error:
            raise Diverged(str(error)) from error

    def _check_may_begin(self) -> None:
        """Raises NotServed for another program's database, before anything is done to it."""
        with translated_errors(self.path), closing(existing_database(self.path)) as connection:
            try:
                if not is_new(connection):
                    self._schema.check(connection)
            except errors.NotServed as error:
                raise type(error)(
                    f"{self.path} cannot begin the log at {self._log.url}. {error}. It was left as it is; move it "
                    "away, or name another file with DATABASE_PATH"
                ) from error

    def _committed_edit(self, head: Position, changed: list[int], page_size: int, head_file: Path) -> Position:
        logger.warning("%s was changed by another program; the changes are the next commit", self.path)
        return self._committed(head, changed, page_size, page_size_of(head_file))

    def _committed_migrated(self, head: Position, head_file: Path) -> Position:
        """An edit of an older schema, migrated before anybody sees it."""
        try:
            self._schema.migrate(self.path)
        except errors.DatabaseLocked:
            raise
        except (errors.DatabaseError, errors.StatementRefused, apsw.Error, peewee.PeeweeException) as error:
            raise Diverged(f"its schema cannot be migrated: {error}") from error
        with self._consolidated() as connection:
            if not self._is_served(connection):
                raise Diverged("its schema was changed while it was migrated")
            page_size = int(connection.pragma("page_size"))
            changed = differing_pages(self.path, head_file, page_size)
            return self._committed_edit(head, changed, page_size, head_file) if changed else head

    def _rebuilt(self) -> Position:
        self._discard()  # a WAL without its database says nothing
        restoring = self._beside("restoring")
        restoring.unlink(missing_ok=True)
        position = self._head_in(restoring)
        if position != START:
            return self._put_in_place(restoring, position)
        restoring.unlink()
        _create_empty(restoring)
        self._put_in_place(restoring, START)
        try:
            with self._consolidated() as connection:
                return self._first_commit(connection)
        except errors.CommitConflict:
            return self._rebuilt()  # another instance has begun the log meanwhile

    def _replaced_by(self, image: Path, position: Position) -> Position:
        with self._alone():
            if has_wal(self.path) or state_of(self.path) != self.known.state:
                raise FileChanged(f"{self.path} was changed by another program while it was compared with the log.")
            return self._overwritten_with(image, position)

    def _overwritten_with(self, image: Path, position: Position) -> Position:
        """In place: a shell that waits at its prompt has this file open without any lock, and would write to the WAL
        of another one that has its name.
        """
        self._note_applying(position)
        page_size = page_size_of(image)
        with translated_errors(self.path), RawFile(self.path) as mine, RawFile(image) as other:
            offset = 0
            while page := other.read(page_size):
                mine.seek(offset)
                if mine.read(page_size) != page:
                    mine.seek(offset)
                    mine.write(page)
                offset += len(page)
            mine.truncate(offset)
            if self._lasting:
                mine.sync()
        self._remove("-wal", "-shm")
        self.known = self._left_in_wal_mode()
        return position

    def _put_in_place(self, image: Path, position: Position) -> Position:
        """Where there is no file."""
        if self._lasting:
            with image.open("rb") as file:
                give_to_owner_of(self.path.parent, file.fileno())
                os.fsync(file.fileno())
        os.replace(image, self.path)
        self.known = self._left_in_wal_mode()
        if self._lasting:
            fsync_directory(self.path.parent)
        return position

    def _left_in_wal_mode(self) -> Known:
        """Whatever mode the log's image has: nobody could enter it once the anchor holds the file."""
        if not self._is_in_wal_mode():
            with RawFile(self.path) as file:
                file.seek(_VERSIONS.start)
                file.write(_WAL_MODE)
                if self._lasting:
                    file.sync()
        return Known(state_of(self.path))

    def _is_in_wal_mode(self) -> bool:
        with RawFile(self.path) as file:
            return file.read(_VERSIONS.stop)[_VERSIONS] == _WAL_MODE

    @contextmanager
    def _consolidated(self) -> Iterator[apsw.Connection]:
        """Everything that was committed to the file is in the file itself, and nothing is added meanwhile. Gives a
        connection that reads it. What other programs commit stays in the WAL.

        Raises DatabaseDamaged: what is broken must not become history.
        """
        self._guard.release()
        with translated_errors(self.path), closing(existing_database(self.path)) as connection:
            connection.set_busy_timeout(int(self._busy_timeout * 1000))
            if not self._is_in_wal_mode():  # which SQLite does not see when a WAL lies beside it
                connection.execute("PRAGMA journal_mode=delete").fetchall()
            connection.execute("PRAGMA journal_mode=wal").fetchall()
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            for _ in range(_CONSOLIDATIONS):
                [(blocked, _, _)] = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                begin_reading(connection)
                if not has_wal(self.path):
                    break
                connection.execute("ROLLBACK")
                if blocked:
                    raise errors.DatabaseLocked(f"{self.path} is being read by another program; close it.")
            else:
                raise errors.DatabaseLocked(f"{self.path} is being written by another program; stop it.")
            self.known = Known(state_of(self.path))
            found = soundness_of(connection, 1)
            if found.damage:
                raise errors.DatabaseDamaged(f"{self.path} is damaged: {found.damage[0]}")
            for unchecked in found.unchecked:
                logger.warning("%s: %s", self.path, unchecked)
            yield connection

    def _head_in(self, path: Path) -> Position:
        """The log's newest state in a new file. Raises LogDamaged when the log has lost what this file has seen."""
        head = self._log.restore(path)
        is_another = head.log_id and self._known.log_id and head.log_id != self._known.log_id
        if head.txid < self._known.txid or is_another:
            path.unlink()
            found = f"is the log {head.log_id:016x}" if is_another else f"ends at TXID {head.txid:016x}"
            known = f"of {self._known.log_id:016x}" if is_another else f"at {self._known.txid:016x}"
            raise errors.LogDamaged(
                f"{self._log.url} {found}, but {self.path} has been {known}: "
                f"the log was {'replaced' if is_another else 'emptied'} or REPLICA_URL is wrong. "
                + (
                    f"To begin a log with this file, remove {self._beside('position')}"
                    if head == START
                    else f"To serve that log, move {self.path} and {self._beside('position').name} away"
                )
            )
        if head != START:
            with opened_image(path) as connection:
                self.check_served(connection)
        return head

    def check_served(self, connection: apsw.Connection) -> None:
        """Raises NotServed when the log's newest state, which is open there, is not for this release to serve."""
        try:
            if not is_new(connection):
                self._schema.check(connection)
        except errors.NotServed as error:
            raise type(error)(
                f"The newest state at {self._log.url} cannot be served. {error}. Nothing was written to it; if the log "
                "is another program's, set REPLICA_URL to a prefix of its own; if somebody has spoilt this one, "
                "`python -m infra sql` may drop what is in the way, and `python -m infra restore --txid N` brings an "
                "earlier state back"
            ) from error

    def _first_commit(self, connection: apsw.Connection) -> Position:
        page_size = int(connection.pragma("page_size"))
        size = self.path.stat().st_size // page_size
        return self._append(START, page_size, size, pages_of(self.path, page_size))

    def _committed(self, head: Position, changed: list[int], page_size: int, log_page_size: int) -> Position:
        """What another program, or a restore, has made of the file, as the next commit."""
        if page_size != log_page_size:
            raise errors.DatabaseUnavailable(
                f"{self.path} has pages of {page_size} bytes, the log has {log_page_size}, and that cannot change: "
                f"`sqlite3 {self.path} 'PRAGMA journal_mode=delete; PRAGMA page_size={log_page_size}; VACUUM'`"
            )
        size = self.path.stat().st_size // page_size
        wanted = set(changed)
        pages = ((number, page) for number, page in pages_of(self.path, page_size) if number in wanted)
        return self._append(head, page_size, size, pages)

    def _append(self, position: Position, page_size: int, size: int, pages: Iterable[tuple[int, bytes]]) -> Position:
        return self._log.append(position, page_size, size, pages, self._clock.now() + START_SECONDS)

    def _kept_beside(self, reason: str, image: Path, head: Position) -> Position:
        """The log's state in place of the file, of which a copy is kept, with its WAL."""
        kept = self._kept.new(DIVERGED)
        empty = not (self.known.state and self.known.state.size)  # SQLite would remove the WAL of that
        with nullcontext() if empty else self._alone():
            suffixes = ("", "-wal") if has_wal(self.path) else ("",)
            with whole_or_nothing(*(kept.with_name(kept.name + suffix) for suffix in suffixes)):
                for suffix in suffixes:
                    _copy(self._with(suffix), kept.with_name(kept.name + suffix))
                fsync_directory(kept.parent)
            logger.error(
                "%s is kept as %s, and the log's state is served: %s. To have that file's content served instead, "
                "stop the service, copy it, with its -wal if there is one, over %s, and start",
                self.path,
                kept.name,
                reason,
                self.path,
            )
            if head != START:
                return self._overwritten_with(image, head)
        return self._rebuilt()

    def _discard(self) -> None:
        self._remove("", "-wal", "-shm", "-journal")

    def _remove_scratch(self) -> None:
        self._remove(*_scratch_names())

    def _remove(self, *suffixes: str) -> None:
        for suffix in suffixes:
            self._with(suffix).unlink(missing_ok=True)

    @property
    def _wal(self) -> Path:
        return wal_of(self.path)

    def _with(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{suffix}")


def _is_same(one: Position, two: Position) -> bool:
    known = one.checksum and two.checksum
    return one.txid == two.txid and (not known or one.checksum == two.checksum)


def _scratch_names() -> Iterator[str]:
    for name in ("restoring", "comparing", "base"):
        yield from (f".{name}{suffix}" for suffix in ("", "-wal", "-shm", "-journal"))


def _copy(source: Path, target: Path) -> None:
    with RawFile(source) as read, target.open("xb") as write:
        while chunk := read.read(_CHUNK):
            write.write(chunk)
        give_to_owner_of(target.parent, write.fileno())
        write.flush()
        os.fsync(write.fileno())


def _create_empty(path: Path) -> None:
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("PRAGMA journal_mode=wal").fetchall()


def publish(path: Path, log: CommitLog, clock: Clock) -> tuple[Position, Position]:
    """Make a database file, which nobody else uses, the log's next commit; see `LocalFile.publish`."""
    return LocalFile(path, log, clock, lasting=False, busy_timeout=_PUBLISH_SECONDS).publish()
