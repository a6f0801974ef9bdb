"""A write stop of a commit log: triggers that refuse every change of a row.

They are a commit like any other, so the stop is as exact as the log: whoever has not seen it, another instance, a shell
on its file, an operator's command, conflicts, catches up and meets it; and reads go on. One that is to be short says
until when it lasts, so it ends by itself if whoever has made it is killed. No clock is trusted with more than that: a
writer whose clock is ahead makes a commit, which the move finds.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import apsw
import peewee

from infra.sqlite_errors import WRITES_ARE_STOPPED

_PREFIX = "write_stop_"
_CHANGES = ("INSERT", "UPDATE", "DELETE")
_FIND = """
SELECT CAST(name AS BLOB), CAST(sql AS BLOB) FROM sqlite_schema WHERE type = 'trigger' AND substr(name, 1, ?) = ?
"""
_FORM = re.compile(rf"'{WRITES_ARE_STOPPED}(.*) \(move ([0-9a-f]+)\)'(?:\) WHERE unixepoch\(\) < ([0-9]+))?", re.DOTALL)


class Reason(StrEnum):
    """What a stop is for, in words that whoever meets it reads."""

    MOVING = "the database is being moved to"
    MOVED = "the database was moved to"
    COMING = "the database is being moved here from"


@dataclass(frozen=True, slots=True)
class Stop:
    """What writes are stopped for, and until when."""

    reason: Reason
    place: str  # the other side
    move: str  # its id
    until: int | None = None  # seconds since 1970; None: until somebody lifts it

    def __str__(self) -> str:
        return f"{self.reason} {self.place} (move {self.move})"

    @classmethod
    def said_in(cls, code: str) -> "Stop | None":
        """The one that a trigger's code tells whoever meets it."""
        if not (found := _FORM.search(code)):
            return None
        words, move, until = found[1].replace("''", "'"), found[2], found[3]
        for reason in Reason:
            if words.startswith(f"{reason} "):
                return cls(reason, words.removeprefix(f"{reason} "), move, int(until) if until else None)
        return None


def put(db: peewee.Database, stop: Stop, tables: Iterable[str]) -> None:
    """Stop all changes of these tables, instead of whatever stop there is."""
    lift(db)
    message = f"{WRITES_ARE_STOPPED}{stop}".replace("'", "''")
    condition = "" if stop.until is None else f" WHERE unixepoch() < {stop.until}"
    for table in tables:
        for change in _CHANGES:
            db.execute_sql(
                f'CREATE TRIGGER "{_PREFIX}{table}_{change.lower()}" BEFORE {change} ON "{table}" '
                f"BEGIN SELECT RAISE(ABORT, '{message}'){condition}; END"
            )


def lift(db: peewee.Database) -> None:
    """Let everybody write again."""
    for name, _ in _triggers(db.connection()):
        quoted = name.replace('"', '""')
        db.execute_sql(f'DROP TRIGGER "{quoted}"')


def found_in(connection: apsw.Connection) -> Stop | None:
    """Return the stop that a database has, also one that has ended by itself."""
    return next((stop for _, sql in _triggers(connection) if (stop := Stop.said_in(sql))), None)


def _triggers(connection: apsw.Connection) -> list[tuple[str, str]]:
    encoding = str(connection.pragma("encoding"))  # a shell may have made one that is no text
    found = connection.execute(_FIND, (len(_PREFIX), _PREFIX)).fetchall()
    return [
        (name.decode(encoding, "replace"), sql.decode(encoding, "replace"))
        for name, sql in found
        if isinstance(name, bytes) and isinstance(sql, bytes)
    ]
