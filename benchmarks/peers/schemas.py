"""What comes in and goes out, as FastAPI's tutorial declares it."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Price = Annotated[Decimal, Field(ge=0, max_digits=12, decimal_places=2)]


class NewItem(BaseModel):
    """An item as a caller creates or replaces it."""

    name: str = Field(min_length=1, max_length=200)
    description: str | None = Field(default=None, max_length=2000)
    price: Price = Decimal("0.00")
    quantity: int = Field(default=0, ge=0)


class NewItems(BaseModel):
    """Items to create together."""

    items: list[NewItem] = Field(min_length=1, max_length=500)


class ItemPatch(BaseModel):
    """The fields to change."""

    name: str | None = Field(default=None, min_length=1, max_length=200)
    description: str | None = Field(default=None, max_length=2000)
    price: Price | None = None
    quantity: int | None = Field(default=None, ge=0)


class ItemView(BaseModel):
    """An item as it is answered."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    name: str
    description: str | None
    price: Decimal
    quantity: int
    created_at: datetime
    updated_at: datetime
    version: int


class ItemPage(BaseModel):
    """A page of the list; the cursor is how many items come before the next one."""

    items: list[ItemView]
    next_cursor: str | None


class CreatedItems(BaseModel):
    """In the order in which they were sent."""

    items: list[ItemView]
