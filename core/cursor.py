"""Where a keyset page ended, as an opaque token."""

import base64
import json
from dataclasses import dataclass
from typing import get_args

from core.errors import FieldError, InvalidInput
from core.schemas import MAX_INTEGER, Order


@dataclass(frozen=True, slots=True)
class Cursor:
    order: str
    created_at: str
    item_id: int

    def encode(self) -> str:
        data = json.dumps([self.order, self.created_at, self.item_id], separators=(",", ":"))
        return base64.urlsafe_b64encode(data.encode()).decode().rstrip("=")

    @classmethod
    def decode(cls, token: str, order: str) -> "Cursor":
        """Raises InvalidInput for anything that `encode` did not make, or made for another order."""
        try:
            padded = token.encode("ascii") + b"=" * (-len(token) % 4)
            found, created_at, item_id = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        except (ValueError, TypeError, RecursionError):
            raise _invalid("is not a next_cursor of this API") from None
        is_time = isinstance(created_at, str) and created_at.isascii()
        is_id = type(item_id) is int and 0 <= item_id <= MAX_INTEGER
        if found not in get_args(Order) or not is_time or not is_id:
            raise _invalid("is not a next_cursor of this API")
        if found != order:
            raise _invalid(f"was made for order={found}, not order={order}")
        return cls(order, created_at, item_id)


def _invalid(message: str) -> InvalidInput:
    return InvalidInput([FieldError("cursor", message)])
