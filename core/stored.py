"""Rows as they are stored, whoever has stored them: whatever SQLite lets into a table can be read.

A shell may write past what the API checks, and past the table's constraints: text that is no UTF-8, another type in any
column. So SQLite is asked for bytes and whole numbers, which always come.
"""

import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from peewee import SQL, Database, ForeignKeyField, IntegerField, Model, PeeweeException, TextField

from core.errors import WriteRefused
from core.prepared import Prepared, Row, value
from core.schemas import ROWIDS

logger = logging.getLogger(__name__)

V = TypeVar("V")

_ENCODINGS = {b"a": "utf-8", b"a\0": "utf-16-le", b"\0a": "utf-16-be"}  # of the database, by what an "a" is in it


class Stored(Generic[V]):
    """The rows of a model with an `id`, texts and whole numbers, as views."""

    def __init__(self, model: type[Model], view: Callable[[dict[str, Any]], V]) -> None:
        """`view` makes one out of a row, which is values by the names of the model's fields."""
        self.model: Any = model
        self._view = view
        self._table = model._meta.table_name
        fields = [field for field in model._meta.sorted_fields if not field.primary_key]
        texts = [field for field in fields if isinstance(field, TextField)]
        numbers = [field for field in fields if isinstance(field, IntegerField | ForeignKeyField)]
        if others := {field.name for field in fields} - {field.name for field in texts + numbers}:
            raise TypeError(f"{model.__name__}: texts, whole numbers and foreign keys are stored, not {sorted(others)}")
        self._names = ["id", *(field.name for field in texts + numbers)]
        self._texts = [field.name for field in texts]
        # One node, which Peewee need not put together for each query
        self.columns = SQL(
            ", ".join(
                ["id"]
                + [f"CAST({field.column_name} AS BLOB)" for field in texts]
                + [f"CAST({field.column_name} AS INTEGER)" for field in numbers]
                + [" AND ".join(map(_is_as_expected, fields)), "CAST('a' AS BLOB)"]
            )
        )
        self._insert = Prepared(self._insert_of)
        self._find = Prepared(lambda: self.model.select(self.columns).where(self.model.id == value("id")))

    def views_of(self, rows: Iterable[Row]) -> list[V]:
        """Of rows of `columns`. What is no text of the database's encoding is shown with replacement characters."""
        views, odd = [], []
        for *values, as_expected, a in rows:
            row, encoding, is_odd = dict(zip(self._names, values, strict=True)), _ENCODINGS[a], not as_expected
            for name in self._texts:
                if (text := row[name]) is not None:
                    try:
                        row[name] = text.decode(encoding)
                    except UnicodeDecodeError:
                        row[name], is_odd = text.decode(encoding, "replace"), True
            views.append(self._view(row))
            if is_odd:
                odd.append(row["id"])
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
            if self._ids_are_used_up(db):
                raise WriteRefused(f"No id is left: the highest possible one, {ROWIDS[-1]}, has been used.") from error
            raise
        if not rows:
            raise WriteRefused(f"A trigger of the table does not let the {self.model.__name__.lower()} in.")
        return self.views_of(rows)[0]

    def find(self, db: Database, row_id: int) -> V | None:
        return next(iter(self.views_of(self.rows_with_id(db, row_id))), None)

    def has(self, db: Database, row_id: int) -> bool:
        return bool(self.rows_with_id(db, row_id))

    def rows_with_id(self, db: Database, row_id: int) -> list[Row]:
        """One, or none."""
        return self._find.rows(db, {"id": row_id})

    def _insert_of(self, *names: str) -> Any:
        return self.model.insert(**{name: value(name) for name in names}).returning(self.columns)

    def _ids_are_used_up(self, db: Database) -> bool:
        found = db.execute_sql("SELECT max(seq) FROM sqlite_sequence WHERE name = ?", (self._table,)).fetchone()
        return bool(found[0] == ROWIDS[-1])


def is_as_expected(row: Row) -> bool:
    """Whether a row of `Stored.columns` is stored as it is shown."""
    return bool(row[-2])


def now() -> str:
    """The time as it is stored."""
    return as_stored(datetime.now(UTC))


def as_stored(moment: datetime) -> str:
    """`moment`: in UTC."""
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _is_as_expected(field: Any) -> str:
    kind = "text" if isinstance(field, TextField) else "integer"
    return f"typeof({field.column_name}) IN ('{kind}'{', ' + repr('null') if field.null else ''})"
