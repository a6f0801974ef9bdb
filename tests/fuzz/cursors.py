"""The cursor of a page."""

import base64
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import get_args

from hypothesis import strategies as st
from playhouse.apsw_ext import APSWDatabase
from pydantic import ValidationError

from core import items
from core.cursor import Cursor
from core.errors import InvalidInput
from core.migrations import migrate
from core.schemas import ItemQuery, NewItem, SortOrder
from tests.fuzz import odd
from tests.fuzz.target import Look


def _token(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


_orders = st.sampled_from(get_args(SortOrder))
_times = st.sampled_from(["2026-01-31T12:00:00Z", None, "z", ""])
_sound = st.tuples(_orders | odd.values, _times | odd.values, st.integers(-(2**64), 2**64) | odd.values).map(_token)
tokens = _sound | odd.spoilt(_sound) | odd.values.map(_token) | odd.texts
cases = st.tuples(tokens, _orders)


@contextmanager
def opened() -> Iterator[Look]:
    """A database whose pages are asked for."""
    with closing(APSWDatabase(":memory:")) as db:
        migrate(db)
        for n in range(3):
            items.create_item(db, NewItem(name=f"item {n}"))

        def look(case: tuple[str, SortOrder]) -> None:
            token, order = case
            # Pydantic\'s: it is longer than a query may have it
            with suppress(InvalidInput, ValidationError):
                assert Cursor.decode(token, order).order == order
                items.list_items(db, ItemQuery(cursor=token, order=order))

        yield look
