"""FastAPI with SQLAlchemy's sessions, as the tutorials write it: plain functions in the pool of threads."""

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Query, Response
from sqlalchemy import create_engine
from sqlalchemy.orm import Session, sessionmaker

from benchmarks.peers.models import CONNECT, PATH, Base, Item, change, item_of, make_durable, page
from benchmarks.peers.schemas import CreatedItems, ItemPage, ItemPatch, ItemView, NewItem, NewItems

# With SQLAlchemy's 15 connections, more than 40 clients keep every thread of FastAPI's pool waiting for one, for ever
engine = create_engine(f"sqlite:///{PATH}", pool_size=128, connect_args={**CONNECT, "check_same_thread": False})
make_durable(engine)
Base.metadata.create_all(engine)
make_session = sessionmaker(engine)
app = FastAPI()


def get_session() -> Iterator[Session]:
    with make_session() as session:
        yield session


Db = Annotated[Session, Depends(get_session)]


def found(db: Session, item_id: int) -> Item:
    item = db.get(Item, item_id)
    if item is None:
        raise HTTPException(404, "Item not found")
    return item


@app.get("/health")
def health() -> dict[str, str]:
    return {"status": "ok"}


@app.get("/api/items", response_model=ItemPage)
def list_items(db: Db, limit: Annotated[int, Query(ge=1, le=100)] = 50, cursor: int = 0, q: str = "") -> object:
    items = db.scalars(page(limit, cursor, q)).all()
    return {"items": items[:limit], "next_cursor": str(cursor + limit) if len(items) > limit else None}


@app.post("/api/items", response_model=ItemView, status_code=201)
def create_item(db: Db, new: NewItem, response: Response) -> object:
    item = item_of(new)
    db.add(item)
    db.commit()
    db.refresh(item)
    response.headers["Location"] = f"/api/items/{item.id}"
    return item


@app.post("/api/items/batch", response_model=CreatedItems, status_code=201)
def create_items(db: Db, new: NewItems) -> object:
    items = [item_of(item) for item in new.items]
    db.add_all(items)
    db.flush()
    created = CreatedItems(items=[ItemView.model_validate(item) for item in items])
    db.commit()
    return created


@app.get("/api/items/{item_id}", response_model=ItemView)
def get_item(db: Db, item_id: int) -> object:
    return found(db, item_id)


@app.put("/api/items/{item_id}", response_model=ItemView)
def replace_item(db: Db, item_id: int, new: NewItem) -> object:
    item = found(db, item_id)
    change(item, new.model_dump())
    db.commit()
    db.refresh(item)
    return item


@app.patch("/api/items/{item_id}", response_model=ItemView)
def patch_item(db: Db, item_id: int, patch: ItemPatch) -> object:
    item = found(db, item_id)
    change(item, patch.model_dump(exclude_unset=True))
    db.commit()
    db.refresh(item)
    return item


@app.delete("/api/items/{item_id}", status_code=204)
def delete_item(db: Db, item_id: int) -> None:
    db.delete(found(db, item_id))
    db.commit()
