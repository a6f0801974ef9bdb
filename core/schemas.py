"""What comes in and what goes out, as Pydantic models."""

import re
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

MAX_PRICE_CENTS = 999_999_999_999
MAX_INTEGER = 2**53 - 1  # the largest whole number every JSON reader keeps exact
MAX_BATCH = 500
ROWIDS = range(-(2**63), 2**63)  # a row's id; the API gives positive ones

_PRICE = re.compile(r"([0-9]{1,10})(?:\.([0-9]{1,2}))?")
_PRICE_HINT = "a price is 0 to 9999999999.99 with at most 2 decimal places"


def _to_cents(value: Any) -> int:
    """`"12.5"`, `12.5` and `12` become whole cents; a bool, NaN or a third decimal place is refused."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise PydanticCustomError("price", "should be a decimal string or a number")
    # repr() of a float is the shortest text that reads back as it, so 12.3 is "12.3" and 1e22 has no match
    match = _PRICE.fullmatch(value if isinstance(value, str) else _number_text(value))
    if match is None:
        raise PydanticCustomError("price", _PRICE_HINT)
    units, cents = match.groups(default="")
    return int(units) * 100 + int(cents.ljust(2, "0"))


def _number_text(value: int | float) -> str:
    if isinstance(value, int):
        return str(value) if 0 <= value <= MAX_PRICE_CENTS else "out of range"
    return repr(value).removesuffix(".0")


def _to_price(cents: int) -> str:
    return f"{Decimal(cents).scaleb(-2):.2f}"


def _no_nul(text: str) -> str:
    if "\x00" in text:
        raise PydanticCustomError("nul", "must not contain a NUL character")
    return text


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_no_nul)]
Description = Annotated[str, Field(max_length=2000), AfterValidator(_no_nul)]
Cents = Annotated[
    int,
    BeforeValidator(_to_cents),
    WithJsonSchema(
        {
            "title": "Price",
            "description": "A decimal string, or a number with at most 2 decimal places",
            "anyOf": [
                {"type": "string", "pattern": f"^{_PRICE.pattern}$"},
                {"type": "number", "minimum": 0, "maximum": MAX_PRICE_CENTS / 100, "multipleOf": 0.01},
            ],
        }
    ),
]
Quantity = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
Search = Annotated[
    str,
    Field(max_length=200, description="Part of the name, upper and lower case (ASCII) alike"),
    AfterValidator(_no_nul),
]
SortOrder = Literal["created_at", "-created_at"]


class _Input(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class NewItem(_Input):
    """An item as a caller creates or replaces it."""

    name: Name
    description: Description | None = None
    price_cents: Cents = Field(default=0, alias="price")
    quantity: Quantity = 0


class NewItems(_Input):
    """Items to create together."""

    items: list[NewItem] = Field(min_length=1, max_length=MAX_BATCH)


def _without_defaults(schema: dict[str, Any]) -> None:
    for field in schema["properties"].values():
        field.pop("default", None)


class ItemPatch(_Input):
    """The fields to change (RFC 7396 merge patch). A null description clears it; no other field may be null."""

    # a field that is left out stays as it is: the defaults below are never stored
    model_config = ConfigDict(json_schema_extra=_without_defaults)

    name: Name = ""
    description: Description | None = None
    price_cents: Cents = Field(default=0, alias="price")
    quantity: Quantity = 0


class PageQuery(BaseModel):
    """Which page. `cursor` is a `next_cursor` from the page before, asked with the same order."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=50, ge=1, le=100)
    cursor: str | None = Field(default=None, max_length=200)
    order: SortOrder = "created_at"


class ItemQuery(PageQuery):
    q: Search = ""
    count: bool = Field(default=False, description="Whether to say how many match, on all pages")


class ExportQuery(BaseModel):
    """`format` counts before the Accept header."""

    model_config = ConfigDict(extra="forbid")

    order: SortOrder = "created_at"
    q: Search = ""
    format: Literal["ndjson", "csv"] | None = None


class ItemView(BaseModel):
    """An item as the API answers it."""

    id: int
    name: str
    description: str | None
    price: str = Field(description="Decimal with 2 places", examples=["12.50"])
    quantity: int
    created_at: str = Field(json_schema_extra={"format": "date-time"})
    updated_at: str = Field(json_schema_extra={"format": "date-time"})
    version: int

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "ItemView":
        # Not checked: a row that the API would not have let in is an item as well
        return cls.model_construct(
            id=row["id"],
            name=row["name"],
            description=row["description"],
            price=_to_price(row["price_cents"]),
            quantity=row["quantity"],
            created_at=row["created_at"],
            updated_at=row["updated_at"],
            version=row["version"],
        )


class CreatedItems(BaseModel):
    """In the order in which they were sent."""

    items: list[ItemView]


class UncountedItemPage(BaseModel):
    items: list[ItemView]
    next_cursor: str | None


class ItemPage(UncountedItemPage):
    """It ends where `next_cursor` is null; with `q` it may have fewer items than `limit`, even none, before that.

    `total` is there if `count` is asked for: how many match, on all pages. With `q` it is null for a table too large.
    """

    total: int | None = None
