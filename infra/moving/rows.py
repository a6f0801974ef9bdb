"""Rows as the lines that PostgreSQL's COPY takes and gives, the same bytes on both sides, and sums of them.

What a table has is asked of the migrations, so a new noun's table moves like the others.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar

import apsw

from core.errors import MoveRefused
from core.idempotency import oldest_kept
from core.migrations import scripts
from core.schemas import MAX_INTEGER

_ESCAPED = re.compile(rb"[\\\b\t\n\v\f\r]")
_ESCAPES = {b"\\": b"\\\\", b"\b": b"\\b", b"\t": b"\\t", b"\n": b"\\n", b"\v": b"\\v", b"\f": b"\\f", b"\r": b"\\r"}
_NULL = rb"\N"
_OF_ANOTHER_TYPE = 0.5  # no column of ours holds one
_WRAP = 2**128


Row = tuple[Any, ...]
T = TypeVar("T")

_BATCH = 2000  # rows, and
_BATCH_BYTES = 1024 * 1024  # of lines, in one transaction


_NAMES = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY rowid"


class OddValue(Exception):
    """What the column may not hold."""


class OddRow(MoveRefused):
    """A row with such a value."""


@dataclass(frozen=True, slots=True)
class Column:
    """Of a table, as the migrations declare it."""

    name: str
    type: str  # INTEGER, TEXT or BLOB
    nullable: bool

    @property
    def quoted(self) -> str:
        return f'"{self.name}"'


@dataclass(frozen=True)
class Table:
    """That a migration makes."""

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    condition: str = ""  # of the rows that count, in SQLite; empty: all

    @property
    def quoted(self) -> str:
        return f'"{self.name}"'

    def rows(self, schema: str = "main") -> str:
        """Those that count, for a FROM of SQLite."""
        name = f"{schema}.{self.quoted}"
        return f"(SELECT * FROM {name} WHERE {self.condition})" if self.condition else name  # noqa: S608

    @property
    def names(self) -> str:
        """Its columns, for a statement of either side."""
        return ", ".join(column.quoted for column in self.columns)

    @property
    def key_names(self) -> str:
        return ", ".join(f'"{name}"' for name in self.key)

    @property
    def id(self) -> str | None:
        """The column that the engine gives numbers to, if there is one."""
        numbers = [column.name for column in self.columns if column.type == "INTEGER"]
        return self.key[0] if len(self.key) == 1 and self.key[0] in numbers else None

    @cached_property
    def key_places(self) -> list[int]:
        names = [column.name for column in self.columns]
        return [names.index(name) for name in self.key]

    def key_of(self, row: Sequence[Any]) -> tuple[Any, ...]:
        """Pick the parts of the key."""
        return tuple(row[place] for place in self.key_places)

    def named(self, row: Sequence[Any]) -> str:
        """A row, for people."""
        return f"{self.name} {', '.join(map(_shown, self.key_of(row)))}"


def tables(keep_hours: int | None = None) -> list[Table]:
    """All that the migrations make. `keep_hours`: for an Idempotency-Key that is older nobody asks any more, and its
    row does not count.

    Raises MoveRefused for a column whose values are not the same on both sides.
    """
    conditions = {} if keep_hours is None else {"idempotency_keys": f"hour >= {oldest_kept(keep_hours)}"}
    with closing(apsw.Connection(":memory:")) as connection:
        for script in scripts():
            connection.execute(script)
        names = connection.execute(_NAMES).fetchall()
        return [_table(connection, str(name), conditions.get(str(name), "")) for (name,) in names]


def _table(connection: apsw.Connection, name: str, condition: str) -> Table:
    columns, key = [], {}
    found = connection.execute('SELECT name, upper(type), "notnull", pk FROM pragma_table_info(?)', (name,)).fetchall()
    for column, kind, not_null, place in found:
        if kind not in _LINES:
            raise MoveRefused(
                f"column {column} of table {name} is {kind or 'of no type'}: only {', '.join(_LINES)} move"
            )
        columns.append(Column(str(column), str(kind), not (not_null or place)))
        if place:
            key[place] = str(column)
    if not key:
        raise MoveRefused(f"table {name} has no primary key, so its rows cannot be told apart")
    return Table(name, tuple(columns), tuple(key[place] for place in sorted(key)), condition)


# Lines


class Lines:
    """Makes them out of rows of `selected`."""

    def __init__(self, table: Table, encoding: str) -> None:
        """`encoding`: of the texts in the database, by SQLite's name."""
        self.table = table
        self._encoding = encoding
        self._columns: list[tuple[Column, Callable[[Any, str], bytes]]] = [
            (column, _LINES[column.type]) for column in table.columns
        ]

    def line(self, row: Sequence[Any]) -> bytes:
        """Raises OddRow for one that PostgreSQL could not hold, or that the API would not."""
        values = []
        for value, (column, encoded) in zip(row, self._columns, strict=True):
            if value is None:
                if not column.nullable:
                    raise OddRow(f"{self.table.named(row)}: {column.name} has no value")
                values.append(_NULL)
                continue
            try:
                values.append(encoded(value, self._encoding))
            except OddValue as odd:
                raise OddRow(f"{self.table.named(row)}: {column.name} {odd}") from None
        return b"\t".join(values) + b"\n"

    def key(self, row: Sequence[Any]) -> tuple[Any, ...]:
        """As PostgreSQL is asked for it."""
        return tuple(
            row[place].decode(self._encoding) if self.table.columns[place].type == "TEXT" else row[place]
            for place in self.table.key_places
        )


def selected(table: Table, alias: str = "") -> str:
    """The columns of a table of SQLite, so that every row comes, whatever somebody has written into it."""
    prefix = f"{alias}." if alias else ""
    return ", ".join(_as_it_comes(column, f"{prefix}{column.quoted}") for column in table.columns)


def _as_it_comes(column: Column, name: str) -> str:
    value = f"CAST({name} AS BLOB)" if column.type == "TEXT" else name
    kind = column.type.lower()
    return f"CASE typeof({name}) WHEN '{kind}' THEN {value} WHEN 'null' THEN NULL ELSE {_OF_ANOTHER_TYPE} END"


def _integer(value: Any, encoding: str) -> bytes:
    if not isinstance(value, int):
        raise OddValue("is no whole number")
    if not -MAX_INTEGER <= value <= MAX_INTEGER:
        raise OddValue(f"is {value}: a whole number of the API is at most {MAX_INTEGER}")
    return b"%d" % value


def _text(value: Any, encoding: str) -> bytes:
    if not isinstance(value, bytes):
        raise OddValue("is no text")
    try:
        text = value.decode(encoding)
    except UnicodeDecodeError:
        raise OddValue(f"is no {encoding}") from None
    if "\0" in text:
        raise OddValue("has a NUL character")
    return _ESCAPED.sub(_escape, value if encoding == "UTF-8" else text.encode())


def _blob(value: Any, encoding: str) -> bytes:
    if not isinstance(value, bytes):
        raise OddValue("is no blob")
    return rb"\\x" + value.hex().encode()


def _escape(found: re.Match[bytes]) -> bytes:
    return _ESCAPES[found[0]]


_LINES: dict[str, Callable[[Any, str], bytes]] = {"INTEGER": _integer, "TEXT": _text, "BLOB": _blob}


def values_of(table: Table, line: bytes) -> list[Any]:
    """What a line of PostgreSQL says, as SQLite stores it."""
    return [
        _READ[column.type](field) if field != _NULL else None
        for column, field in zip(table.columns, line.removesuffix(b"\n").split(b"\t"), strict=True)
    ]


_UNESCAPED = {b"\\" + escaped[1:]: letter for letter, escaped in _ESCAPES.items()}
_UNESCAPE = re.compile(rb"\\(.)", re.DOTALL)


def _plain(field: bytes) -> bytes:
    return _UNESCAPE.sub(lambda found: _UNESCAPED[found[0]], field) if b"\\" in field else field


_READ: dict[str, Callable[[bytes], Any]] = {
    "INTEGER": int,
    "TEXT": lambda field: _plain(field).decode(),
    "BLOB": lambda field: bytes.fromhex(_plain(field).removeprefix(rb"\x").decode()),
}


def _shown(value: Any) -> str:
    if isinstance(value, bytes):
        text = value.decode(errors="replace")
        return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
    return "?" if value is None or isinstance(value, float) else str(value)


def batches(items: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """As many of them as one transaction takes. `size`: of one, in bytes."""
    items = iter(items)
    while batch := list(_next_of(items, size)):
        yield batch


def _next_of(items: Iterator[T], size: Callable[[T], int]) -> Iterator[T]:
    total = 0
    for item in islice(items, _BATCH):
        yield item
        total += size(item)
        if total > _BATCH_BYTES:
            return


# Sums


@dataclass(slots=True)
class Sum:
    """Of lines, in any order: so what has changed changes it by the lines that were there and those that are."""

    rows: int = 0
    total: int = 0

    def add(self, line: bytes) -> None:
        """Count it in."""
        self.rows += 1
        self.total = (self.total + _number(line)) % _WRAP

    def take(self, line: bytes) -> None:
        """Count it out."""
        self.rows -= 1
        self.total = (self.total - _number(line)) % _WRAP

    def __str__(self) -> str:
        return f"{self.rows:,} rows, checksum {self.total:032x}"


def _number(line: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(line, digest_size=16).digest())


@dataclass(frozen=True, slots=True)
class Moved:
    """What has become of a move."""

    place: str  # where everything is now
    stopped_seconds: float  # how long nobody could write
    sums: dict[str, Sum]  # by table
    before: int = 0  # the log's last commit before the write stop, a TXID
