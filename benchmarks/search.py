"""What it costs to find part of a name, in Markdown: with a trigram index in the database, and without.

`make bench-search`. The log is a directory, of which the objects are weighed.
"""

import asyncio
import os
import random
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import peewee

from core.items import create_item, list_items
from core.schemas import ItemQuery, NewItem
from infra.settings import Settings
from infra.sqlite.database import SqliteDatabase, open_sqlite

SIZES = [10_000, 100_000]  # items
COMMITS = 100
READS = 20
NAME_WORDS, WORDS = 5, 20_000
_INDEX = """\
CREATE VIRTUAL TABLE items_name USING fts5 (name, content = 'items', content_rowid = 'id', tokenize = 'trigram');
INSERT INTO items_name (rowid, name) SELECT id, name FROM items;
CREATE TRIGGER items_name_insert AFTER INSERT ON items BEGIN
    INSERT INTO items_name (rowid, name) VALUES (NEW.id, NEW.name);
END;
"""


def main() -> None:
    print("| items | index | bytes a commit of one item | largest of them | a page of a rare text |")
    print("|---|---|---|---|---|")
    for size in SIZES:
        for indexed in (False, True):
            with tempfile.TemporaryDirectory() as directory:
                asyncio.run(measure(Path(directory), size, indexed))


async def measure(directory: Path, size: int, indexed: bool) -> None:
    """Print a row of the table."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnoprstuvwz", k=draw.randint(3, 9))) for _ in range(WORDS)]
    database = open_at(directory / "app.db")
    try:
        await database.write(partial(fill, size=size, named=lambda: " ".join(draw.choices(words, k=NAME_WORDS))))
        if indexed:
            await database.write(lambda db: db.connection().execute(_INDEX).fetchall())
        before = set(commits_in(directory))
        for _ in range(COMMITS):
            new = NewItem(name=" ".join(draw.choices(words, k=NAME_WORDS)))
            await database.write(partial(create_item, new=new))
        sizes = [path.stat().st_size for path in set(commits_in(directory)) - before]
        spent = await milliseconds(database, find_by_index if indexed else find_by_looking)
        label = "FTS5 trigram" if indexed else "none"
        print(f"| {size:,} | {label} | {sum(sizes) // len(sizes):,} | {max(sizes):,} | {spent:.1f} ms |")
    finally:
        database.close()


def open_at(path: Path) -> SqliteDatabase:
    return open_sqlite(Settings.from_environment({**os.environ, "DATABASE_PATH": str(path)}))


def commits_in(directory: Path) -> list[Path]:
    return list((directory / "replica" / "ltx" / "0").iterdir())


def fill(db: peewee.Database, size: int, named: Callable[[], str]) -> None:
    rows = ((named(), f"2026-01-01T00:00:{n:09.6f}Z") for n in range(size))
    insert = "INSERT INTO items (name, created_at, updated_at) VALUES (?1, ?2, ?2)"
    db.connection().executemany(insert, rows)


def find_by_looking(db: peewee.Database) -> None:
    list_items(db, ItemQuery(q="zzxq"))


def find_by_index(db: peewee.Database) -> None:
    db.execute_sql("SELECT rowid FROM items_name WHERE name LIKE '%zzxq%' LIMIT 51").fetchall()


async def milliseconds(database: SqliteDatabase, read: Callable[[peewee.Database], None]) -> float:
    """Of the processor, on average."""
    await database.read(read)
    started = time.process_time()
    for _ in range(READS):
        await database.read_local(read)
    return (time.process_time() - started) / READS * 1000


if __name__ == "__main__":
    main()
