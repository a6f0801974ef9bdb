"""Rows as they are stored, whoever has stored them: whatever SQLite lets into a table can be read.

A shell may write past what the API checks, and past the table's constraints: text that is no UTF-8, another type in any
column. So a row counts as it is if its values have the types of the model's fields; else SQLite is asked once more, for
bytes and whole numbers, which always come. PostgreSQL lets nobody past its types.
"""

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Generic, Literal, TypeVar

from peewee import SQL, Database, ForeignKeyField, IntegerField, Model, PeeweeException, TextField

from core.dialects import Either, is_postgresql, state_of
from core.errors import WriteRefused
from core.prepared import Prepared, Row, value
from core.schemas import ROWIDS

logger = logging.getLogger(__name__)

V = TypeVar("V")
Columns = Literal["plain", "any"]  # as they are, if that is as expected; as bytes and whole numbers, whatever they are

_NO_ID_IS_LEFT = "2200H"  # PostgreSQL's sequence_generator_limit_exceeded
# SQLite translates UTF-16, and what is none is mended on the way; that is to be seen
_ID_WHERE_TEXT_IS_UTF_8 = "CASE CAST('a' AS BLOB) WHEN x'61' THEN id END"
_ENCODINGS = {b"a": "utf-8", b"a\0": "utf-16-le", b"\0a": "utf-16-be"}  # of the database, by what an "a" is in it


class Stored(Generic[V]):
    """The rows of a model with an `id`, texts and whole numbers, as views."""

    def __init__(self, model: type[Model], view: Callable[..., V]) -> None:
        """`view` makes one out of the values of a row, in the order of the model's fields."""
        self.model: Any = model
        self._view = view
        self._table = model._meta.table_name
        fields = model._meta.sorted_fields
        odd = [field.name for field in fields[1:] if not isinstance(field, TextField | IntegerField | ForeignKeyField)]
        if odd or fields[0].column_name != "id":
            raise TypeError(f"{model.__name__}: an id, and texts, whole numbers and foreign keys are stored, not {odd}")
        self._texts = [place for place, field in enumerate(fields) if isinstance(field, TextField)]
        self._types = [_types_of(field) for field in fields]
        as_expected = " AND ".join(map(_is_as_expected, fields[1:]))
        # One node each, which Peewee need not put together for each query
        names = [field.column_name for field in fields]
        as_it_is = SQL(", ".join(names))
        plain = SQL(", ".join([_ID_WHERE_TEXT_IS_UTF_8, *names[1:]]))
        any_ = SQL(", ".join(["id", *map(_as_it_comes, fields[1:]), as_expected, "CAST('a' AS BLOB)"]))
        self._plain = Either(sqlite=plain, postgresql=as_it_is)
        self.columns = Either(sqlite=any_, postgresql=as_it_is)
        self._insert = Prepared(self._insert_of)
        self._find = Prepared(self._find_of)

    def rows(self, select: Callable[[Columns], list[Row]]) -> list[Row]:
        """What a query finds: `select` runs it, with the columns of that name."""
        try:
            found = select("plain")
        except UnicodeDecodeError:
            return select("any")
        for row in found:
            if not all(map(isinstance, row, self._types)):
                return select("any")
        return found

    def columns_of(self, columns: Columns) -> Either:
        return self._plain if columns == "plain" else self.columns

    def is_as_expected(self, row: Row) -> bool:
        """Whether one of `rows` is stored as it is shown."""
        return self._is_plain(row) or bool(row[-2])

    def _is_plain(self, row: Row) -> bool:
        return len(row) == len(self._types)

    def views_of(self, rows: Sequence[Row]) -> list[V]:
        """Of rows of `columns`, or `rows`. What is no text of the database's encoding is shown with replacement
        characters.
        """
        if rows and self._is_plain(rows[0]):
            return [self._view(*row) for row in rows]
        views, odd = [], []
        for *values, as_expected, a in rows:
            encoding, is_odd = _ENCODINGS[a], not as_expected
            for place in self._texts:
                if (text := values[place]) is not None:
                    try:
                        values[place] = text.decode(encoding)
                    except UnicodeDecodeError:
                        values[place], is_odd = text.decode(encoding, "replace"), True
            views.append(self._view(*values))
            if is_odd:
                odd.append(values[0])
        if odd:
            logger.warning(
                "%s %s hold what the API does not write (text that is not text, another type): they are shown as well "
                'as that goes; `python -m infra sql "UPDATE %s SET ..."` mends them',
                self._table,
                ", ".join(map(str, odd)),
                self._table,
            )
        return views

    def insert(self, db: Database, **values: Any) -> V:
        """Raises WriteRefused when the table takes none."""
        try:
            rows = self._insert.rows(db, values, *values)
        except PeeweeException as error:
            if self._ids_are_used_up(db, error):
                raise WriteRefused(f"No id is left: the highest possible one, {ROWIDS[-1]}, has been used.") from error
            raise
        if not rows:
            raise WriteRefused(f"A trigger of the table does not let the {self.model.__name__.lower()} in.")
        return self.views_of(rows)[0]

    def find(self, db: Database, row_id: int) -> V | None:
        found = self.rows_with_id(db, row_id)
        return self.views_of(found)[0] if found else None

    def has(self, db: Database, row_id: int) -> bool:
        return bool(self.rows_with_id(db, row_id))

    def rows_with_id(self, db: Database, row_id: int) -> list[Row]:
        """One, or none."""
        return self.rows(partial(self._find.rows, db, {"id": row_id}))

    def _find_of(self, columns: Columns) -> Any:
        return self.model.select(self.columns_of(columns)).where(self.model.id == value("id"))

    def _insert_of(self, *names: str) -> Any:
        return self.model.insert(**{name: value(name) for name in names}).returning(self.columns)

    def _ids_are_used_up(self, db: Database, error: PeeweeException) -> bool:
        if is_postgresql(db):  # which answers nothing more in this transaction
            return state_of(error) == _NO_ID_IS_LEFT
        found = db.execute_sql("SELECT max(seq) FROM sqlite_sequence WHERE name = ?", (self._table,)).fetchone()
        return bool(found[0] == ROWIDS[-1])


def now() -> str:
    """The time as it is stored."""
    return as_stored(datetime.now(UTC))


def as_stored(moment: datetime) -> str:
    """`moment`: in UTC."""
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _as_it_comes(field: Any) -> str:
    return f"CAST({field.column_name} AS {'BLOB' if isinstance(field, TextField) else 'INTEGER'})"


def _types_of(field: Any) -> type | tuple[type, ...]:
    kind = str if isinstance(field, TextField) else int
    return (kind, type(None)) if field.null else kind


def _is_as_expected(field: Any) -> str:
    kind = "text" if isinstance(field, TextField) else "integer"
    return f"typeof({field.column_name}) IN ('{kind}'{', ' + repr('null') if field.null else ''})"
