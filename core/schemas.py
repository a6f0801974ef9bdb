"""What comes in, as Pydantic models that check it, and what goes out, as dataclasses and models of them."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

MAX_PRICE_CENTS = 999_999_999_999
MAX_INTEGER = 2**53 - 1  # the largest whole number every JSON reader keeps exact
CURSOR = r"^([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z)?~-?[0-9]{1,19}$"
MAX_BATCH = 500
ROWIDS = range(-(2**63), 2**63)  # a row's id; the API gives positive ones

_TOKEN = re.compile(CURSOR, re.ASCII)
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
    digits = ("%04d" if cents < 0 else "%03d") % cents
    return f"{digits[:-2]}.{digits[-2:]}"


def _no_nul(text: str) -> str:
    if "\x00" in text:
        raise PydanticCustomError("nul", "must not contain a NUL character")
    return text


def _without_fraction(value: Any) -> Any:
    """1679.0 and 1e3 are whole numbers as well (JSON Schema, 6.3 of its core)."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_without_fraction)
_NO_NUL = {"pattern": r"^[^\u0000]*$"}

Name = Annotated[str, Field(min_length=1, max_length=200, json_schema_extra=_NO_NUL), AfterValidator(_no_nul)]
Description = Annotated[str, Field(max_length=2000, json_schema_extra=_NO_NUL), AfterValidator(_no_nul)]
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
Quantity = Annotated[int, Field(ge=0, le=MAX_INTEGER), WHOLE]
Search = Annotated[
    str,
    Field(
        max_length=200,
        description="Part of the name, upper and lower case (ASCII) alike",
        examples=["lamp"],
        json_schema_extra=_NO_NUL,
    ),
    AfterValidator(_no_nul),
]
Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
SortOrder = Literal["created_at", "-created_at"]


class Model(BaseModel):
    """Is built when it is first used: a cold start needs none of them, and the first request one or two."""

    model_config = ConfigDict(defer_build=True)


class _Input(Model):
    model_config = ConfigDict(strict=True, extra="forbid")


class NewItem(_Input):
    """An item as a caller creates or replaces it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"name": "Lamp"}, {"name": "Lamp", "description": "Brass", "price": "12.50", "quantity": 3}]
        }
    )

    name: Name
    description: Description | None = None
    price_cents: Cents = Field(default=0, alias="price")
    quantity: Quantity = 0


class NewItems(_Input):
    """Items to create together."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"items": [{"name": "Lamp"}, {"name": "Torch"}]}]})

    items: list[NewItem] = Field(min_length=1, max_length=MAX_BATCH)


def _patch(schema: dict[str, Any]) -> None:
    for field in schema["properties"].values():
        field.pop("default", None)
    schema["examples"] = [{"price": 12.5}, {"description": None, "quantity": 0}]


class ItemPatch(_Input):
    """The fields to change (RFC 7396 merge patch). A null description clears it; no other field may be null."""

    # a field that is left out stays as it is: the defaults below are never stored
    model_config = ConfigDict(json_schema_extra=_patch)

    name: Name = ""
    description: Description | None = None
    price_cents: Cents = Field(default=0, alias="price")
    quantity: Quantity = 0


def is_cursor(text: str) -> bool:
    """Whether it has the form of one."""
    return bool(_TOKEN.fullmatch(text))


def _cursor(token: str) -> str:
    if not is_cursor(token):
        raise PydanticCustomError("cursor", "is not a next_cursor of this API")
    return token


def _cursor_alone(schema: dict[str, Any]) -> None:
    """A query says null by saying nothing."""
    schema.clear()
    schema.update(type="string", pattern=CURSOR, description="`next_cursor` of the page before, or left out")


class PageQuery(Model):
    """Which page. `cursor` is a place in the list; `order` says which way to go on from there."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=50, ge=1, le=100, examples=[10])
    cursor: Annotated[str, AfterValidator(_cursor)] | None = Field(default=None, json_schema_extra=_cursor_alone)
    order: SortOrder = "created_at"


class ItemQuery(PageQuery):
    q: Search = ""
    count: bool = Field(default=False, description="Whether to say how many match, on all pages")


class ExportQuery(Model):
    """`format` counts before the Accept header."""

    model_config = ConfigDict(extra="forbid")

    order: SortOrder = "created_at"
    q: Search = ""
    format: Literal["ndjson", "csv"] | None = None


@dataclass(slots=True)
class ItemView:
    """An item as the API answers it."""

    # Not checked: a row that the API would not have let in is an item as well

    __pydantic_config__: ClassVar = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    **{"id": 1, "name": "Lamp", "description": "Brass", "price": "12.50", "quantity": 3},
                    **{"created_at": "2026-01-31T12:00:00.000000Z", "updated_at": "2026-01-31T12:00:00.000000Z"},
                    "version": 1,
                }
            ]
        }
    )

    id: int
    name: str
    description: str | None
    price: Annotated[str, Field(description="Decimal with 2 places", pattern=r"^-?[0-9]+\.[0-9]{2}$")]
    quantity: int
    created_at: Time
    updated_at: Time
    version: int

    @classmethod
    def from_row(
        cls,
        id: int,
        name: str,
        description: str | None,
        price_cents: int,
        quantity: int,
        created_at: str,
        updated_at: str,
        version: int,
    ) -> "ItemView":
        return cls(id, name, description, _to_price(price_cents), quantity, created_at, updated_at, version)


class CreatedItems(Model):
    """In the order in which they were sent."""

    items: list[ItemView]


class UncountedItemPage(Model):
    items: list[ItemView]
    next_cursor: str | None = Field(description="`cursor` of the next page; null: there is none")


class ItemPage(UncountedItemPage):
    """It ends where `next_cursor` is null; with `q` it may have fewer items than `limit`, even none, before that."""

    total: int | None = Field(
        default=None,
        description="How many match, on all pages, if `count` is true; null: with `q` the table is too large for that",
    )
