"""Where a keyset page ended, as a token: `2026-01-31T12:00:00.000000Z~17`.

It carries the place itself, so that it outlives the row there; only a `created_at` that the API does not write is
looked up again by the row's id: it may be of any length, or no text. Every token of this form is a place.
"""

from dataclasses import dataclass
from typing import Protocol

from core.schemas import ROWIDS, is_cursor


class View(Protocol):
    """What can be listed by pages."""

    id: int
    created_at: str


@dataclass(frozen=True, slots=True)
class Cursor:
    created_at: str | None  # None: that of the row
    row_id: int

    @classmethod
    def at(cls, view: View, as_expected: bool) -> "Cursor":
        """`as_expected`: whether the row is stored as it is shown."""
        carried = cls(view.created_at, view.id)
        return carried if as_expected and is_cursor(carried.encode()) else cls(None, view.id)

    def encode(self) -> str:
        return f"{self.created_at or ''}~{self.row_id}"

    @classmethod
    def decode(cls, token: str) -> "Cursor":
        """Read one that `PageQuery` has let in."""
        created_at, _, row_id = token.partition("~")
        return cls(created_at or None, min(max(int(row_id), ROWIDS[0]), ROWIDS[-1]))
