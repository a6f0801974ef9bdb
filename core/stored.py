"""Items as they are stored, whoever has stored them: whatever SQLite lets into the table can be read.

A shell may write past what the API checks, and past the table's constraints: text that is no UTF-8, another type in any
column. So SQLite is asked for bytes and whole numbers, which always come.
"""

import logging
from collections.abc import Iterable
from typing import Any

from peewee import SQL

from core.schemas import ItemView

logger = logging.getLogger(__name__)

_TEXTS = ("name", "description", "created_at", "updated_at")
_NUMBERS = ("price_cents", "quantity", "version")
_AS_EXPECTED = " AND ".join(
    [f"typeof({name}) = 'text'" for name in _TEXTS if name != "description"]
    + ["typeof(description) IN ('text', 'null')"]
    + [f"typeof({name}) = 'integer'" for name in _NUMBERS]
)
# One node, which Peewee need not put together for each query
COLUMNS = SQL(
    ", ".join(
        ["id"]
        + [f"CAST({name} AS BLOB) AS {name}_bytes" for name in _TEXTS]  # Peewee makes text of what has a field's name
        + [f"CAST({name} AS INTEGER) AS {name}" for name in _NUMBERS]
        + [f"{_AS_EXPECTED} AS as_expected", "CAST('a' AS BLOB) AS a"]
    )
)
_ENCODINGS = {b"a": "utf-8", b"a\0": "utf-16-le", b"\0a": "utf-16-be"}  # of the database, by what an "a" is in it


def views_of(rows: Iterable[dict[str, Any]]) -> list[ItemView]:
    """Of rows of COLUMNS. What is no text of the database's encoding is shown with replacement characters."""
    views, odd = [], []
    for row in rows:
        encoding, is_odd = _ENCODINGS[row["a"]], not row["as_expected"]
        for name in _TEXTS:
            value = row[f"{name}_bytes"]
            try:
                row[name] = None if value is None else value.decode(encoding)
            except UnicodeDecodeError:
                row[name], is_odd = value.decode(encoding, "replace"), True
        views.append(ItemView.from_row(row))
        if is_odd:
            odd.append(row["id"])
    if odd:
        logger.warning(
            "items %s hold what the API does not write (text that is not text, another type): they are shown as well "
            'as that goes; `python -m infra sql "UPDATE items SET ..."` mends them',
            ", ".join(map(str, odd)),
        )
    return views
