"""The cursor of a page."""

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import get_args

from hypothesis import strategies as st
from playhouse.apsw_ext import APSWDatabase
from pydantic import ValidationError

from core import items
from core.cursor import Cursor
from core.errors import NotFound
from core.migrations import migrate
from core.schemas import ROWIDS, ItemQuery, NewItem, SortOrder
from tests.fuzz import odd
from tests.fuzz.target import Look

_orders = st.sampled_from(get_args(SortOrder))
_times = st.sampled_from(
    ["2026-01-31T12:00:00.000000Z", "2026-01-31T12:00:00Z", "9999-99-99T99:99:99.999999Z", "z", ""]
)
_sound = st.builds("{}~{}".format, _times | odd.texts, st.integers(-(2**64), 2**64) | odd.numbers)
tokens = _sound | odd.spoilt(_sound) | odd.texts
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
            with suppress(NotFound, ValidationError):
                query = ItemQuery(cursor=token, order=order)
                assert Cursor.decode(token).row_id in ROWIDS
                items.list_items(db, query)

        yield look
