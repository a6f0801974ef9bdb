"""SQL of operators as commits of the log, from any machine that may write it, whoever serves that log meanwhile.

A private copy of the newest state runs the statements, as an instance of the function on Lambda would: this needs
neither the live file nor its lock, and a commit of somebody else in between only runs them again.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
import peewee

from core.errors import (
    CommitNotStored,
    CommitOutcomeUnknown,
    LogDamaged,
    NotServed,
    StatementRefused,
    TransactionTooSlow,
    WriteRefused,
)
from core.migrations import check_served
from core.statements import BEFORE_A_WORD, OTHER_FILES, TRANSACTION, first_word, shortened, statements
from infra.clock import Clock
from infra.commitlog import CommitLog, Replica

_B = BEFORE_A_WORD
_PRAGMA = re.compile(rf"{_B}\w+{_B}(?:main{_B}\.{_B})?(\w+){_B}(.*)", re.DOTALL)
_VACUUM = re.compile(rf"{_B}\w+{_B}(?:main{_B})?$", re.DOTALL)
# Those whose argument says what to look at, and no setting
_PRAGMAS_WITH_VALUE = {
    "foreign_key_check",
    "foreign_key_list",
    "index_info",
    "index_list",
    "index_xinfo",
    "integrity_check",
    "optimize",
    "quick_check",
    "table_info",
    "table_list",
    "table_xinfo",
}
_REFUSED = {
    **dict.fromkeys(TRANSACTION, "a script is one transaction by itself, all of it or nothing"),
    **dict.fromkeys(OTHER_FILES, "what is written to another file would not be stored"),
}


@dataclass(frozen=True, slots=True)
class Part:
    """What becomes one commit."""

    statements: tuple[str, ...]
    alone: bool  # outside of any transaction


@dataclass(slots=True)
class Rows:
    """What one statement has answered."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


@dataclass(slots=True)
class Outcome:
    """What has become of a part; TXIDs."""

    before: int = 0  # the commit that it was done on top of
    txid: int = 0  # the one it has become, 0 if there was nothing to commit
    changed: int = 0  # rows
    writes: bool = False  # whether any statement could have changed something
    answers: list[Rows] = field(default_factory=list)


def parts_of(script: str) -> list[Part]:
    """The commits that a script becomes. Raises StatementRefused for what can be none."""
    _check_is_text(script)
    found = list(statements(script))
    for statement in found:
        _check_may_run(statement)
    parts: list[Part] = []
    for statement in found:
        alone = first_word(statement) == "VACUUM"
        if parts and not (alone or parts[-1].alone):
            parts[-1] = Part((*parts[-1].statements, statement), False)
        else:
            parts.append(Part((statement,), alone))
    return parts


def _check_is_text(script: str) -> None:
    """What a shell hands over, or a file has, need be none."""
    try:
        script.encode()
    except UnicodeError:
        raise StatementRefused("the script is not UTF-8") from None
    if "\0" in script:
        raise StatementRefused("the script has a NUL character, at which SQLite would stop reading")


def run_parts(log: CommitLog, clock: Clock, parts: list[Part], file: Path, seconds: float) -> Iterator[Outcome]:
    """Run one after the other; each is in the log when its outcome comes.

    `file`: where the private copy is to be, in a directory of its own. `seconds`: how long each is tried. Raises
    StatementRefused, with nothing of its part stored, for what SQLite refuses and what this release could not serve.
    """
    if not log.objects.everything():
        raise LogDamaged(f"{log.url} is empty: there is no database yet; a service's first start makes one")
    replica = Replica(file, log, clock, lasting=False)
    replica.open()
    try:
        for part in parts:
            yield _Run(replica, clock, part).until(clock.now() + seconds)
    finally:
        replica.close()


class _Run:
    """One part, as often as conflicts ask for it; what counts is what the last time has found."""

    def __init__(self, replica: Replica, clock: Clock, part: Part) -> None:
        self._replica = replica
        self._clock = clock
        self._part = part
        self._outcome = Outcome()
        self._statement = ""

    def until(self, deadline: float) -> Outcome:
        with self._explained():
            if self._part.alone:
                self._replica.run_alone(self._all, deadline)
            else:
                self._replica.write(self._all, deadline, self._clock.now())
        if self._replica.stored.txid > self._outcome.before:
            self._outcome.txid = self._replica.stored.txid
        return self._outcome

    def _all(self, db: peewee.Database) -> None:
        self._outcome = Outcome(self._replica.stored.txid)
        connection: apsw.Connection = db.connection()
        changes = connection.total_changes()
        for statement in self._part.statements:
            self._run(connection, statement)
        self._outcome.changed = connection.total_changes() - changes
        _check_still_served(connection)

    def _run(self, connection: apsw.Connection, statement: str) -> None:
        def look(cursor: apsw.Cursor, *_: object) -> bool:
            self._outcome.writes |= not cursor.is_readonly
            return True

        self._statement = statement
        cursor = connection.cursor()
        cursor.exec_trace = look
        cursor.execute(statement)
        if (row := cursor.fetchone()) is not None:
            columns = tuple(column[0] for column in cursor.get_description())
            self._outcome.answers.append(Rows(columns, [row, *cursor]))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except apsw.AuthError as error:
            reason = "temporary tables and settings of the connection would not be stored"
            raise StatementRefused(f"{shortened(self._statement)}: {reason}") from error
        except UnicodeDecodeError as error:
            reason = "a text in the answer is not UTF-8; hex() of the column shows it"
            raise StatementRefused(f"{shortened(self._statement)}: {reason}") from error
        except (apsw.Error, peewee.PeeweeException, WriteRefused, NotServed) as error:
            raise StatementRefused(f"{shortened(self._statement)}: {error}") from error
        except TransactionTooSlow as error:
            raise TransactionTooSlow(f"{shortened(self._statement)}: {error} `--timeout` gives it longer") from error
        except CommitNotStored as error:
            raise CommitNotStored(f"Nothing was stored: {error}") from error
        except CommitOutcomeUnknown as error:
            raise CommitOutcomeUnknown(
                f"it is not known whether TXID {error.txid:016x} is this commit ({error}). Do not repeat it: once "
                "`python -m infra log` shows that TXID or a later one, which the next write of anybody sees to, a "
                "SELECT tells: it is there, or it never will be",
                error.txid,
            ) from error


def _check_still_served(connection: apsw.Connection) -> None:
    """Raises StatementRefused for what no instance of this release could serve."""
    try:
        check_served(connection)
    except NotServed as error:
        raise StatementRefused(f"No instance could serve what it makes of the database. {error}") from error


def _check_may_run(statement: str) -> None:
    word = first_word(statement)
    reason = _REFUSED.get(word, "")
    if word == "VACUUM" and not _VACUUM.match(statement):
        reason = "`python -m infra restore -o FILE` writes a copy to a file"
    elif word == "PRAGMA":
        reason = _why_no_pragma(statement)
    if reason:
        raise StatementRefused(f"{shortened(statement)} is refused: {reason}")


def _why_no_pragma(statement: str) -> str:
    found = _PRAGMA.match(statement)
    name, value = (found[1].lower(), found[2]) if found else ("", "?")
    if name == "wal_checkpoint":
        return "every server moves the WAL into its own file by itself"
    if name == "user_version" and value:
        return "only a migration sets it"
    if value and name not in _PRAGMAS_WITH_VALUE:
        return "a setting of this command's own connection would change nothing, or what nobody could serve"
    return ""


def as_text(rows: Rows) -> str:
    """As sqlite3 prints them by default."""
    return "\n".join("|".join(map(_text, row)) for row in rows.rows)


def as_members(rows: Rows) -> list[dict[str, Any]]:
    """For JSON, which has no bytes: they are hexadecimal there."""
    return [
        {
            name: value.hex() if isinstance(value, bytes) else value
            for name, value in zip(rows.columns, row, strict=True)
        }
        for row in rows.rows
    ]


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return "" if value is None else str(value)
