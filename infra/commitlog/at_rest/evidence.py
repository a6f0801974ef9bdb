"""What is found of a database file at a start: above all whose doing it is that it differs from the log, another
program's or a crash's.
"""

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import apsw

from core import errors
from infra.commitlog.anchor import existing_database
from infra.commitlog.at_rest.decide import Content, Facts, File, Fit, Log, OnTop, Unknown
from infra.commitlog.at_rest.file_commit import Difference
from infra.commitlog.at_rest.row_changes import NotRowByRow, changes_between
from infra.commitlog.at_rest.wal_beside import (
    is_backfilled,
    valid_frames,
    was_changed_after_its_wal,
    was_written_after_its_wal,
)
from infra.commitlog.chain import START, Position
from infra.commitlog.file_state import FileState, has_wal, last_wal_of, wal_of
from infra.commitlog.log import CommitLog
from infra.commitlog.position_file import Note
from infra.commitlog.raw_file import RawFile, differing_pages, page_size_of
from infra.commitlog.schema import Schema, is_new
from infra.commitlog.wal import committed_pages, reaches
from infra.sqlite_errors import translated_errors

_SMALLEST_PAGE = 512  # bytes


@dataclass(frozen=True, slots=True)
class Changeable:
    """The pages that other programs can have changed on top of everything that was committed."""

    pages: frozenset[int] = frozenset()  # which came through the WAL
    are_all: bool = False  # of the file: which of them were changed, nothing tells

    def explain(self, differing: Iterable[int], size: int) -> bool:
        """Tell whether each differing page is among `pages`, or past the end of the file, which has `size` pages.
        Without any `pages` nothing is explained.
        """
        return bool(self.pages) and all(number in self.pages or number > size for number in differing)


NO_PAGE = Changeable()
ANY_PAGE = Changeable(are_all=True)


def at_a_glance(path: Path, state: FileState | None, note: Note | None, log: CommitLog) -> Facts:
    """Find what needs no look at the log's newest state. The log is asked only of a file that is as it was left."""
    if state is None:
        return Facts(File.MISSING)
    if note and note.closed and note.closed == state and not has_wal(path) and log.head.stands(note.position):
        return Facts(File.AS_LEFT)
    return Facts(File.UNOPENED)


class Evidence:
    """Finds facts in the file, its WAL, its note and the log, and changes nothing of them.

    Raises what CommitLog raises, and DatabaseError when the file cannot be read.
    """

    def __init__(
        self, path: Path, log: CommitLog, schema: Schema, note: Note | None, head: Position, image: Path
    ) -> None:
        """`image`: the log's newest state, a file; the log is at `head` there."""
        self.head = head
        self.image = image
        self.refusal: errors.NotServed | None = None  # why the file cannot begin the log
        self._path = path
        self._log = log
        self._schema = schema
        self._note = note

    def before_opening(self, found_before: Changeable, *, is_empty: bool) -> Facts:
        """Find what SQLite would blur: it mixes a file with the WAL beside it, whatever they are, and removes the WAL
        of an empty one. `found_before`: what an earlier look has found `changeable`, and has backfilled.
        """
        if is_empty and self.head != START:
            return Facts(File.EMPTY, self._log_is, unknown=self._unknown_in_wal())
        if self._note and self._note.applying:
            return Facts(File.HALF_WRITTEN, self._log_is, unknown=self._unknown_without_sqlite())
        if self.head == START:
            self.refusal = self._refusal_to_begin()
            return Facts(File.UNOPENED, Log.EMPTY, fit=Fit.REFUSED if self.refusal else Fit.UNASKED)
        is_mixed = not found_before.pages and self._is_mixed()
        return Facts(File.MIXED if is_mixed else File.UNOPENED, self._log_is)

    def changeable(self, found_before: Changeable) -> Changeable:
        """Find which pages other programs can have changed on top of everything that was committed.

        A power cut, or whoever removes the WAL, takes the last commits from the file; not from the log. And a file
        that was put beside the WAL of another one is a mixture as soon as SQLite has opened it.
        """
        if self._note is None or self._note.closed:
            return ANY_PAGE
        wal = wal_of(self._path) if has_wal(self._path) else last_wal_of(self._path)
        pages = committed_pages(wal) if wal.exists() else {}
        if not pages:
            return found_before if found_before.pages else NO_PAGE if self._note.needs_wal else ANY_PAGE
        if self._note.needs_wal and not (found_before.pages or self._has_newest_commit(wal, self._note)):
            return NO_PAGE
        # If SQLite has removed the WAL, then after it has backfilled all of it
        if has_wal(self._path) or is_backfilled(wal, pages, self._path):
            return Changeable(found_before.pages | set(pages))
        return NO_PAGE

    def inside(self, connection: apsw.Connection, changeable: Changeable, difference: Difference | None) -> Facts:
        """Find what there is to say of a sound file without a WAL, on which this connection reads. `difference`: from
        the log's newest state; None if the log is empty.
        """
        if difference is None:
            return Facts(File.WHOLE, Log.EMPTY)
        if not difference.pages:
            return Facts(File.WHOLE, self._log_is, differs=False)
        on_top = self._on_top(changeable, difference)
        unknown, why = (Unknown.UNASKED, "") if on_top is OnTop.YES else self._unknown(difference.page_size)
        facts = Facts(File.WHOLE, self._log_is, on_top=on_top, unknown=unknown, why=why)
        if facts.content is Content.AN_EDIT:
            fit, why = self.fit(connection)
            return replace(facts, fit=fit, why=why)
        if facts.content is Content.UNKNOWN and facts.log is Log.CHANGED:
            rows, why = self._rows(changeable, difference.page_size)
            return replace(facts, rows=rows, why=why)
        return facts

    def damaged(self, damage: str) -> Facts:
        """Find what there is to say of a file that SQLite cannot read, or finds unsound."""
        if self.head == START:
            return Facts(File.DAMAGED, Log.EMPTY)
        return Facts(File.DAMAGED, self._log_is, unknown=self._unknown_without_sqlite(), why=damage)

    def fit(self, connection: apsw.Connection) -> tuple[Fit, str]:
        """Find whether the database can be a commit, and why not."""
        if is_new(connection):
            return Fit.NEW, "there is nothing in it"
        try:
            return (Fit.SERVED if self._schema.check(connection) else Fit.OLDER), ""
        except (errors.NotServed, apsw.SQLError) as error:
            return Fit.REFUSED, str(error)

    @property
    def _log_is(self) -> Log:
        if self.head == START:
            return Log.EMPTY
        return Log.UNCHANGED if self._note and _is_same(self._note.position, self.head) else Log.CHANGED

    def _refusal_to_begin(self) -> errors.NotServed | None:
        """Before anything is done to the file."""
        with translated_errors(self._path), closing(existing_database(self._path)) as connection:
            try:
                if not is_new(connection):
                    self._schema.check(connection)
            except errors.NotServed as error:
                refusal = type(error)(
                    f"{self._path} cannot begin the log at {self._log.url}. {error}. It was left as it is; move it "
                    "away, or name another file with DATABASE_PATH"
                )
                refusal.__cause__ = error
                return refusal
        return None

    def _on_top(self, changeable: Changeable, difference: Difference) -> OnTop:
        if self._note is None or self._log_is is Log.CHANGED:
            return OnTop.NO
        if not changeable.are_all:
            size = self._path.stat().st_size // difference.page_size
            return OnTop.YES if changeable.explain(difference.pages, size) else OnTop.NO
        # After a WAL was discarded the file may also be what a checkpoint has left that was killed half way
        return OnTop.PERHAPS if self._note.needs_wal else OnTop.YES

    def _rows(self, changeable: Changeable, page_size: int) -> tuple[bytes | None, str]:
        """The changeset of what was changed on top of a commit that is no longer the newest, and why there is none.

        Only what came through the WAL: a file that has changed without is perhaps an older copy, and not meant as a
        change of these rows.
        """
        base_file = self._scratch("base")
        try:
            if not (self._note and changeable.pages):
                raise NotRowByRow("and which rows were changed is not to be told")
            base = self._log.restore(base_file, self._note.position.txid)
            changed = differing_pages(self._path, base_file, page_size)
            is_on_top = changeable.explain(changed, self._path.stat().st_size // page_size)
            if not (is_on_top and _is_same(base, self._note.position)):
                raise NotRowByRow("and not only on top of what the log had")
            return changes_between(base_file, self._path), ""
        except (NotRowByRow, errors.TxidNotKept) as error:
            return None, f"it and the log at {self._log.url} have both changed: {error}"

    def _unknown_in_wal(self) -> Unknown:
        """For an empty file."""
        if not has_wal(self._path):
            return Unknown.NOTHING
        wal = wal_of(self._path)
        end = self._note.wal if self._note else None
        is_shipped = end and reaches(wal, end) and self._valid_frames(wal, self.image) == end.frames
        return Unknown.NOTHING if is_shipped else Unknown.SOMETHING

    def _unknown_without_sqlite(self) -> Unknown:
        """For a file that is not whole, of which a WAL beside it cannot be looked at."""
        return Unknown.SOMETHING if has_wal(self._path) else self._unknown(page_size_of(self.image))[0]

    def _is_mixed(self) -> bool:
        """Whether the file is not one to which the WAL beside it belongs."""
        if not has_wal(self._path):
            return False
        if not self._note or self._note.closed:
            return was_changed_after_its_wal(self._path)
        # After a crash the log has had all that a crash leaves
        page_size = page_size_of(self._path)
        if page_size < _SMALLEST_PAGE:  # it is no database at all
            page_size = page_size_of(self.image)
        return was_written_after_its_wal(self._path) or self._unknown(page_size)[0] is Unknown.SOMETHING

    def _unknown(self, page_size: int) -> tuple[Unknown, str]:
        """Whether there are pages in the file, which has no WAL or is looked at without, that are as the log had them
        at no commit since the last checkpoint; and why that cannot be told.

        A crash leaves pages of different commits, when the WAL was lost or only in part backfilled.
        """
        if self._note is None:
            return Unknown.SOMETHING, ""
        image = self._scratch("comparing")
        size = -(-self._path.stat().st_size // page_size)  # a last page may be there in part
        try:
            position = self._log.restore(image, self._note.checkpointed)
            unknown = {number for number in differing_pages(self._path, image, page_size) if number <= size}
            with RawFile(self._path) as mine, RawFile(image) as before:
                before.seek((size - 1) * page_size)
                mine.seek((size - 1) * page_size)
                if (last := mine.read(page_size)) and before.read(page_size).startswith(last):
                    unknown.discard(size)
                for change in self._log.commits(position, self.head.txid):
                    with closing(change):
                        for number, page in change.pages():
                            mine.seek((number - 1) * page_size)
                            if number in unknown and page.startswith(mine.read(page_size) or b"no page"):
                                unknown.discard(number)
                if has_wal(self._path):  # of which a checkpoint may have moved some, also what is not in the log yet
                    unknown -= self._backfilled(unknown, page_size)
        except (errors.TxidNotKept, errors.ObjectMissing) as error:
            return Unknown.UNTOLD, f"after a crash, and the log does not tell what was in it ({error})"
        finally:
            image.unlink(missing_ok=True)
        return (Unknown.SOMETHING if unknown else Unknown.NOTHING), ""

    def _backfilled(self, numbers: Iterable[int], page_size: int) -> set[int]:
        """Which of these pages are as the WAL has them."""
        pages = committed_pages(wal_of(self._path))
        return {
            number
            for number in numbers
            if number in pages and is_backfilled(wal_of(self._path), {number: pages[number]}, self._path)
        }

    def _has_newest_commit(self, wal: Path, note: Note) -> bool:
        end = note.wal
        return bool(end and reaches(wal, end) and self._valid_frames(wal, self._path) >= end.frames)

    def _valid_frames(self, wal: Path, database: Path) -> int:
        return valid_frames(wal, database, self._scratch("comparing"))

    def _scratch(self, name: str) -> Path:
        return self._path.with_name(f"{self._path.name}.{name}")


def _is_same(one: Position, two: Position) -> bool:
    known = one.checksum and two.checksum
    return one.txid == two.txid and (not known or one.checksum == two.checksum)
