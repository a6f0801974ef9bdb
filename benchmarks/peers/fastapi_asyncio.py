"""The same with SQLAlchemy's asyncio sessions over aiosqlite."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Query, Response
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from benchmarks.peers.models import CONNECT, PATH, Base, Item, change, item_of, make_durable, page
from benchmarks.peers.schemas import CreatedItems, ItemPage, ItemPatch, ItemView, NewItem, NewItems

engine = create_async_engine(f"sqlite+aiosqlite:///{PATH}", connect_args=CONNECT)
make_durable(engine.sync_engine)
make_session = async_sessionmaker(engine, expire_on_commit=False)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


async def get_session() -> AsyncIterator[AsyncSession]:
    async with make_session() as session:
        yield session


Db = Annotated[AsyncSession, Depends(get_session)]


async def found(db: AsyncSession, item_id: int) -> Item:
    item: Item | None = await db.get(Item, item_id)
    if item is None:
        raise HTTPException(404, "Item not found")
    return item


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "ok"}


@app.get("/api/items", response_model=ItemPage)
async def list_items(db: Db, limit: Annotated[int, Query(ge=1, le=100)] = 50, cursor: int = 0, q: str = "") -> object:
    items = (await db.scalars(page(limit, cursor, q))).all()
    return {"items": items[:limit], "next_cursor": str(cursor + limit) if len(items) > limit else None}


@app.post("/api/items", response_model=ItemView, status_code=201)
async def create_item(db: Db, new: NewItem, response: Response) -> object:
    item = item_of(new)
    db.add(item)
    await db.commit()
    response.headers["Location"] = f"/api/items/{item.id}"
    return item


@app.post("/api/items/batch", response_model=CreatedItems, status_code=201)
async def create_items(db: Db, new: NewItems) -> object:
    items = [item_of(item) for item in new.items]
    db.add_all(items)
    await db.commit()
    return {"items": items}


@app.get("/api/items/{item_id}", response_model=ItemView)
async def get_item(db: Db, item_id: int) -> object:
    return await found(db, item_id)


@app.put("/api/items/{item_id}", response_model=ItemView)
async def replace_item(db: Db, item_id: int, new: NewItem) -> object:
    item = await found(db, item_id)
    change(item, new.model_dump())
    await db.commit()
    return item


@app.patch("/api/items/{item_id}", response_model=ItemView)
async def patch_item(db: Db, item_id: int, patch: ItemPatch) -> object:
    item = await found(db, item_id)
    change(item, patch.model_dump(exclude_unset=True))
    await db.commit()
    return item


@app.delete("/api/items/{item_id}", status_code=204)
async def delete_item(db: Db, item_id: int) -> None:
    await db.delete(await found(db, item_id))
    await db.commit()
