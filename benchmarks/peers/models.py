"""The table, as SQLAlchemy's tutorial declares it, and the durability of the service's own."""

import os
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Select, event, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.peers.schemas import NewItem

PATH = os.environ.get("DATABASE_PATH", "peer.db")
# With Python's five seconds the last of 64 writers would not always get the lock
CONNECT = {"timeout": 60}


class Base(DeclarativeBase):
    pass


class Item(Base):
    """Money is whole cents: SQLite has no decimals."""

    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    description: Mapped[str | None]
    price_cents: Mapped[int] = mapped_column(default=0)
    quantity: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime] = mapped_column(index=True)
    updated_at: Mapped[datetime]
    version: Mapped[int] = mapped_column(default=1)

    __table_args__ = {"sqlite_autoincrement": True}  # noqa: RUF012 - so SQLAlchemy's manual

    @property
    def price(self) -> Decimal:
        return Decimal(self.price_cents).scaleb(-2)

    @price.setter
    def price(self, price: Decimal) -> None:
        self.price_cents = int(price * 100)


def item_of(new: NewItem) -> Item:
    moment = datetime.now(UTC)
    return Item(**new.model_dump(), created_at=moment, updated_at=moment)


def change(item: Item, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(item, name, value)
    item.updated_at = datetime.now(UTC)
    item.version += 1


def page(limit: int, cursor: int, q: str) -> "Select[tuple[Item]]":
    """One item more than the page has, if there is one."""
    query = select(Item).order_by(Item.created_at, Item.id).offset(cursor).limit(limit + 1)
    return query.where(Item.name.icontains(q, autoescape=True)) if q else query


def make_durable(engine: Any) -> None:
    """Each connection keeps what is committed over a power cut, as the service's does."""

    @event.listens_for(engine, "connect")
    def set_pragmas(connection: Any, record: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.close()
