"""Where a keyset page ended, as an opaque token.

It carries the place itself, so that it outlives the row there; only a `created_at` that the API does not write is
looked up again by the row's id: it may be of any length, or no text.
"""

import base64
import json
from dataclasses import dataclass
from typing import Protocol, get_args

from core.errors import FieldError, InvalidInput
from core.schemas import ROWIDS, SortOrder

_LONGEST = 40  # characters of a time, so that a token stays short


class View(Protocol):
    """What can be listed by pages."""

    id: int
    created_at: str


@dataclass(frozen=True, slots=True)
class Cursor:
    order: str
    created_at: str | None  # None: that of the row
    row_id: int

    @classmethod
    def at(cls, view: View, order: str, as_expected: bool) -> "Cursor":
        """`as_expected`: whether the row is stored as it is shown."""
        is_carried = as_expected and _is_carried(view.created_at)
        return cls(order, view.created_at if is_carried else None, view.id)

    def encode(self) -> str:
        data = json.dumps([self.order, self.created_at, self.row_id], separators=(",", ":"))
        return base64.urlsafe_b64encode(data.encode()).decode().rstrip("=")

    @classmethod
    def decode(cls, token: str, order: str) -> "Cursor":
        """Raises InvalidInput for anything that `encode` did not make, or made for another order."""
        try:
            padded = token.encode("ascii") + b"=" * (-len(token) % 4)
            found, created_at, row_id = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        except (ValueError, TypeError, RecursionError):
            raise _invalid("is not a next_cursor of this API") from None
        is_time = created_at is None or (isinstance(created_at, str) and _is_carried(created_at))
        is_id = type(row_id) is int and row_id in ROWIDS
        if found not in get_args(SortOrder) or not is_time or not is_id:
            raise _invalid("is not a next_cursor of this API")
        if found != order:
            raise _invalid(f"was made for order={found}, not order={order}")
        return cls(order, created_at, row_id)


def _is_carried(created_at: str) -> bool:
    return len(created_at) <= _LONGEST and created_at.isascii() and created_at.isprintable()


def _invalid(message: str) -> InvalidInput:
    return InvalidInput([FieldError("cursor", message)])
