"""The database file at rest: bringing whatever is there to the log's head, and losing nothing of it."""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from pathlib import Path

import apsw
import peewee

from core import errors
from infra.clock import Clock
from infra.commitlog.anchor import Guard, existing_database
from infra.commitlog.at_rest.alone import (
    alone_with,
    check_sound,
    check_wal,
    checkpoint,
    consolidated,
    exclusively,
    give_pages_of,
    remove_wal,
)
from infra.commitlog.at_rest.decide import Do, File, Fit, Verdict, decide
from infra.commitlog.at_rest.evidence import NO_PAGE, Evidence, at_a_glance
from infra.commitlog.at_rest.file_commit import Difference, FileCommits
from infra.commitlog.at_rest.in_place import (
    create_empty,
    is_in_wal_mode,
    leave_in_wal_mode,
    put_where_none_is,
    write_over,
)
from infra.commitlog.at_rest.kept import CHANGES, KeptFiles
from infra.commitlog.at_rest.newest_state import check_goes_on, check_log_served, restore_newest_state
from infra.commitlog.at_rest.wal_beside import is_with_its_wal, may_have_been_backfilled
from infra.commitlog.chain import START, Change, Position
from infra.commitlog.file_state import FileChanged, Known, Shipped, has_wal, last_wal_of, state_of, wal_of
from infra.commitlog.log import CommitLog
from infra.commitlog.paging.newest_snapshot import Paging
from infra.commitlog.paging.paged_database import PagedDatabase
from infra.commitlog.position_file import Note, PositionFile
from infra.commitlog.raw_file import RawFile, page_size_of, write_change
from infra.commitlog.schema import AnySchema, Schema, opened_image
from infra.commitlog.wal import end_at, salts_in
from infra.disk.durable import fsync_directory
from infra.sqlite_errors import translated_errors

logger = logging.getLogger(__name__)

_SCRATCH = tuple(  # what a start or a restore writes beside the file, and a crash leaves there
    f".{name}{suffix}" for name in ("restoring", "comparing", "base") for suffix in ("", "-wal", "-shm", "-journal")
)


class LocalFile:
    """Brings one database file in order, and says what it is at.

    Whatever looks into the file or changes it needs it for itself: no connection of this process may be open.
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
        paging: Paging | None = None,
    ) -> None:
        """`lasting`: the file outlives this process. `busy_timeout`: seconds to wait for another program. `schema`: of
        what may become a commit. `paging`: when a file that does not last is opened page by page.
        """
        self.path = path
        self.busy_timeout = busy_timeout
        self.known = Known(None)  # as it was left
        self.blocked: errors.DatabaseLocked | None = None  # by a lock of another program, which does not let it be ours
        self.position_file = PositionFile(path, lasting=lasting)
        self._log = log
        self._lasting = lasting
        self._schema = schema or AnySchema()
        self._kept = KeptFiles(path)
        self._commits = FileCommits(path, log, clock)
        self.waiting = self._kept.all(CHANGES) if lasting else []  # row changes that are to be done again
        self._guard = Guard(path)
        self.pages = PagedDatabase(path, log, paging) if paging and not lasting else None
        self._is_ours = False  # whether this process has settled the file; before that, others may have left it there
        self._found_before = NO_PAGE  # changeable, by a look that was not carried out

    @property
    def vfs(self) -> str:
        """Through which SQLite has to open the file; empty for its own."""
        return self.pages.vfs if self.pages else ""

    def settle(self) -> Position:
        """Make the file what the log says at some commit, and return that: the head, unless it was left well, or is
        paged and new, which is at some commit of the log that nobody has looked past.
        """
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

    def apply(self, changes: Iterable[Change], position: Position, known: Known) -> Position:
        """Put changes into the file, which is at `position`, with the WAL beside it; returns its new position.

        Raises FileChanged when there is more in the WAL than was shipped, DatabaseLocked while another program has
        the database open.
        """
        with self._exclusively() as connection:
            checkpoint(connection, self.path, known)
            with translated_errors(self.path), RawFile(self.path, self.vfs) as file:
                for change in changes:
                    self._note_applying(position)
                    position = write_change(file, change, position)
                if self._lasting:
                    file.sync()
            self._know_as_left()
        return position

    def keep_hold_of_wal(self) -> None:
        """Give the WAL a second name, which SQLite does not know: after a crash it says what others have done."""
        if self._lasting:
            last_wal_of(self.path).unlink(missing_ok=True)
            with suppress(OSError):  # a file system without hard links
                os.link(wal_of(self.path), last_wal_of(self.path))

    def close(self, position: Position | None, known: Known) -> None:
        """Checkpoint the file, and note that it is whole. `position`: what it is at with its WAL, all of which was
        shipped; None when that is not known, and all stays as it is.
        """
        self._guard.release()
        if self._lasting:
            if position:
                try:
                    with self._exclusively() as connection:
                        checkpoint(connection, self.path, known)
                        if known.vouched:
                            self.position_file.write(Note(position, position.txid, closed=state_of(self.path)))
                            last_wal_of(self.path).unlink(missing_ok=True)
                except (errors.DatabaseError, OSError) as error:
                    logger.warning("%s is left as it is, for the next start to look at: %s", self.path, error)
            self.position_file.close()
        if self.pages:
            self.pages.close()

    def discard_wal(self, position: Position, known: Known) -> None:
        """Remove the WAL of a file that was overwritten, when all of it is in the log: what counts now is the file
        alone, as if it had been put in the place of one that was left well. Only if it may be what a checkpoint has
        left that was killed, the note says since when.
        """
        with self._exclusively() as connection:
            check_wal(connection, self.path, known)
            whole = position.txid
            if has_wal(self.path):
                backfilled = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)[1]
                if may_have_been_backfilled(self.path, backfilled):
                    whole = self.position_file.checkpointed
            remove_wal(self.path)
            fsync_directory(self.path.parent)
            self.position_file.write(Note(position, whole, closed=known.state))

    def check_log_served(self, connection: apsw.Connection) -> None:
        """Raises NotServed when the log's newest state, which is open there, is not for this release to serve."""
        with translated_errors(self.path):
            check_log_served(connection, self._log, self._schema)

    def remove_changes(self, path: Path) -> None:
        """Remove row changes for good: after a power cut they must not be done once more."""
        self.waiting.remove(path)
        path.unlink()
        fsync_directory(path.parent)

    # Settling

    def _settle(self) -> Position:
        note = self.position_file.read()
        if note and note.position.txid > self.position_file.newest.txid:
            self.position_file.newest = note.position
        self._remove(*_SCRATCH)  # left by a crash
        if self._is_ours and not self._lasting:
            self._remove_all()
        try:
            position = self._settled_position(note)
        finally:
            self._remove(*_SCRATCH)
        self._is_ours = True
        self._found_before = NO_PAGE
        self._kept.prune(self.waiting)
        return position

    def _settled_position(self, note: Note | None) -> Position:
        self.known, self.blocked = Known(state_of(self.path)), None
        do = decide(at_a_glance(self.path, self.known.state, note, self._log)).do
        if do is Do.BUILD:
            return self._built()
        if note and do is Do.CATCH_UP:
            return note.position
        image = self._beside("restoring")
        evidence = Evidence(self.path, self._log, self._schema, note, self._restore_newest(image), image)
        try:
            facts = evidence.before_opening(self._found_before, is_empty=self._is_empty)
            if facts.file is File.HALF_WRITTEN:
                logger.warning("%s was left in the middle of a change; building it anew from the log", self.path)
            verdict = decide(facts)
            return self._look_inside(evidence) if verdict.do is Do.LOOK_INSIDE else self._carry_out(verdict, evidence)
        except errors.CommitConflict as error:
            raise FileChanged(str(error)) from error  # not the file, but what it is compared with
        except errors.DatabaseDamaged as error:
            verdict = decide(evidence.damaged(str(error)))
            if verdict.do is Do.REFUSE:
                raise
            return self._carry_out(verdict, evidence)

    def _look_inside(self, evidence: Evidence) -> Position:
        self._found_before = evidence.changeable(self._found_before)
        try:
            return self._look_alone(evidence)
        except errors.DatabaseLocked as error:
            known = self._known_with_wal(evidence)
            if known is None:
                raise
            self.known, self.blocked = known, error
            return evidence.head

    def _known_with_wal(self, evidence: Evidence) -> Known | None:
        """Find whether the file has the log's newest state as it lies there, with others in it: then it is served."""
        note = self.position_file.read()
        self.hold()  # what is in the WAL now
        state = state_of(self.path)
        if evidence.head == START or not (note and is_in_wal_mode(self.path)):
            return None
        with translated_errors(self.path), closing(existing_database(self.path)) as connection:
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            connection.pragma("user_version")
            frames = max(connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)[0], 0)
            if (frames and not note.wal) or not is_with_its_wal(self.path, frames, evidence.image):
                return None
            if not frames:
                return Known(state)
            self.position_file.checkpointed = note.checkpointed
            self.position_file.note(evidence.head, end_at(wal_of(self.path), frames)[0])
            return Known(state, Shipped(salts_in(wal_of(self.path)), frames))

    def _look_alone(self, evidence: Evidence) -> Position:
        """Commits are made of the file while nobody else can change it; all else needs it closed again."""
        changeable = self._found_before
        kept: Path | None = None
        with self._consolidated() as connection:
            difference = None if evidence.head == START else self._commits.difference(connection, evidence.image)
            facts = evidence.inside(connection, changeable, difference)
            verdict = decide(facts)
            match verdict.do:
                case Do.SERVE:
                    return evidence.head
                case Do.FIRST_COMMIT:
                    return self._commits.append_first(connection)
                case Do.NEXT_COMMIT if difference and difference.has_the_logs:
                    return self._commit_edit(evidence, difference)
                case Do.DO_ROWS_AGAIN if facts.rows:
                    kept = self._kept.keep_rows(facts.rows)
                    self.waiting.append(kept)
        try:
            return self._carry_out(verdict, evidence)
        except FileChanged:
            if kept:  # what was changed is still in the file, and is looked for again
                self.remove_changes(kept)
            raise

    def _carry_out(self, verdict: Verdict, evidence: Evidence) -> Position:
        match verdict.do:
            case Do.WRITE_ANEW | Do.DO_ROWS_AGAIN:
                if verdict.reason:
                    logger.warning("%s %s", self.path, verdict.reason)
                return self._write_anew(evidence)
            case Do.FILL:
                remove_wal(self.path)
                logger.warning("%s was empty, which is no edit; the log's newest state is served", self.path)
                return self._write_anew(evidence)
            case Do.KEEP_BESIDE:
                return self._keep_beside(verdict.reason, evidence)
            case Do.MIGRATE_THEN_COMMIT | Do.NEXT_COMMIT:
                return self._convert_then_commit(evidence)
            case Do.REFUSE if evidence.refusal:
                raise evidence.refusal
        raise AssertionError(verdict)

    def _commit_edit(self, evidence: Evidence, difference: Difference) -> Position:
        logger.warning("%s was changed by another program; the changes are the next commit", self.path)
        return self._commits.append_next(evidence.head, difference)

    def _convert_then_commit(self, evidence: Evidence) -> Position:
        """To the log's pages and the newest schema. Nobody sees what was before; what cannot be converted is kept."""
        try:
            give_pages_of(page_size_of(evidence.image), self.path, self.busy_timeout)
            self._schema.migrate(self.path)
        except errors.DatabaseLocked:
            raise
        except (errors.DatabaseError, errors.StatementRefused, apsw.Error, peewee.PeeweeException) as error:
            return self._keep_beside(f"it cannot be converted: {error}", evidence)
        with self._consolidated() as connection:
            fit, why = evidence.fit(connection)
            if fit is Fit.SERVED:
                difference = self._commits.difference(connection, evidence.image)
                return self._commit_edit(evidence, difference) if difference.pages else evidence.head
        return self._keep_beside(why or "it was changed while it was converted", evidence)

    def _write_anew(self, evidence: Evidence) -> Position:
        with self._alone():
            if has_wal(self.path) or state_of(self.path) != self.known.state:
                raise FileChanged(f"{self.path} was changed by another program while it was compared with the log.")
            return self._write_over(evidence.image, evidence.head)

    def _keep_beside(self, reason: str, evidence: Evidence) -> Position:
        """Put the log's state in place of the file, of which a copy is kept, with its WAL."""
        with nullcontext() if self._is_empty else self._alone():  # SQLite would remove the WAL of an empty file
            kept = self._kept.keep_whole()
            logger.error(
                "%s is kept as %s, and the log's state is served: %s. Enter again what only that file has. To have all "
                "of it served, if it is sound and has the schema of this release: stop the service, and after its last "
                "line copy the file, with its -wal if there is one, over %s, and start",
                self.path,
                kept.name,
                reason,
                self.path,
            )
            return self._write_over(evidence.image, evidence.head)

    def _write_over(self, image: Path, position: Position) -> Position:
        self._note_applying(position)
        with translated_errors(self.path):
            write_over(self.path, image, lasting=self._lasting)
        remove_wal(self.path)
        self._know_as_left()
        return position

    def _built(self) -> Position:
        self._remove_all()  # a WAL without its database says nothing
        if self.pages and (position := self._opened_page_by_page(self.pages)):
            return position
        image = self._beside("restoring")
        image.unlink(missing_ok=True)
        position = self._restore_newest(image)
        if position != START:
            self._put_in_place(image)
            return position
        image.unlink()
        create_empty(image)
        self._put_in_place(image)
        try:
            with self._consolidated() as connection:
                return self._commits.append_first(connection)
        except errors.CommitConflict:
            return self._built()  # another instance has begun the log meanwhile

    def _opened_page_by_page(self, pages: PagedDatabase) -> Position | None:
        """None where it is to be read as a whole."""
        try:
            position = pages.open()
            if position is None:
                return None
            newest = self.position_file.newest
            if newest != START:  # others have been shown that, and it is for whoever comes back here to find the head
                position = pages.follow(position)
                with opened_image(self.path, self.vfs) as connection:
                    self.check_log_served(connection)
                self._log.head.check_written_here(position)
            check_goes_on(position, self._log, self.path, newest)
            self._know_as_left()
        except BaseException:
            self._remove_all()  # nobody else is to take it for somebody's database
            raise
        return position

    def _put_in_place(self, image: Path) -> None:
        put_where_none_is(self.path, image, lasting=self._lasting)
        self.known = Known(state_of(self.path))

    def _restore_newest(self, image: Path) -> Position:
        return restore_newest_state(self._log, image, self._schema, self.path, self.position_file.newest)

    # The file by itself

    def _exclusively(self) -> AbstractContextManager[apsw.Connection]:
        self._guard.release()
        return exclusively(self.path, self.vfs)

    def _alone(self) -> AbstractContextManager[None]:
        self._guard.release()
        return alone_with(self.path)

    @contextmanager
    def _consolidated(self) -> Iterator[apsw.Connection]:
        self._guard.release()
        with consolidated(self.path, self.busy_timeout) as connection:
            self.known = Known(state_of(self.path))
            check_sound(connection, self.path)
            yield connection

    def _note_applying(self, position: Position) -> None:
        self.position_file.write(Note(position, self.position_file.checkpointed, applying=True))
        self.position_file.sync()

    def _know_as_left(self) -> None:
        leave_in_wal_mode(self.path, lasting=self._lasting, vfs=self.vfs)
        self.known = Known(state_of(self.path))

    @property
    def _is_empty(self) -> bool:
        return not (self.known.state and self.known.state.size)

    def _remove_all(self) -> None:
        self._remove("", "-wal", "-shm", "-journal")

    def _remove(self, *suffixes: str) -> None:
        for suffix in suffixes:
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{suffix}")
