"""One cold start, in a process of its own: `python -m benchmarks.starts KIND DIRECTORY ITEMS COUNTS`, JSON on stdout.

What it imports does not count: that takes as long whatever the size of the database.
"""

import asyncio
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw

from benchmarks.distance import Counts, Passed
from benchmarks.servers import ROOT

_NEWEST = 50
_MADE = "made at a cold start"
_LIST = f"SELECT * FROM items ORDER BY created_at DESC, id DESC LIMIT {_NEWEST}"


class Steps:
    """Measures one after the other."""

    def __init__(self, counts: Path) -> None:
        self._counts = Counts(counts)
        self._since = time.perf_counter()
        self._passed = self._counts.read()
        self.found: dict[str, tuple[float, int, int]] = {}

    def ended(self, name: str) -> None:
        """Take down what came since the one before."""
        now, passed = time.perf_counter(), self._counts.read()
        more: Passed = passed - self._passed
        self.found[name] = now - self._since, more.requests, more.bytes
        self.again()

    def again(self) -> None:
        """Leave out what has come since."""
        self._since, self._passed = time.perf_counter(), self._counts.read()


def ours(above: str, directory: Path, items: int, counts: Path) -> dict[str, Any]:
    from core.items import create_item, get_item, list_items
    from core.schemas import ItemQuery, NewItem
    from infra.settings import Settings
    from infra.sqlite.database import open_sqlite

    os.environ |= {"PAGED_ABOVE_MB": above, "DATABASE_PATH": str(directory / "app.db")}
    settings, newest = Settings.from_environment(), ItemQuery(limit=_NEWEST, order="-created_at", count=False)
    steps = Steps(counts)
    database = open_sqlite(settings, lasting=False)
    steps.ended("open")

    async def requests() -> None:
        found = await database.read(lambda db: get_item(db, items // 2))
        assert found.id == items // 2
        steps.ended("read")
        assert len((await database.read(lambda db: list_items(db, newest))).items) == _NEWEST
        steps.ended("list")
        # An instance proves once what its store is like; that is no matter of size
        database.log._keeps_create_if_absent = True
        steps.again()
        await database.write(lambda db: create_item(db, NewItem(name=_MADE)))
        steps.ended("write")
        again = (await database.read(lambda db: list_items(db, newest))).items
        assert (len(again), again[0].name) == (_NEWEST, _MADE)
        steps.ended("again")

    asyncio.run(requests())
    return said(steps)


def by_vfs(directory: Path, items: int, counts: Path) -> dict[str, Any]:
    """Litestream's extension for SQLite, which reads only."""
    [extension] = (ROOT / ".venv-bench").glob("lib/python*/site-packages/litestream_vfs/litestream-vfs.so")
    steps = Steps(counts)
    with apsw.Connection(":memory:") as loader:
        loader.enable_load_extension(True)
        loader.load_extension(str(extension))
    connection = apsw.Connection("app.db", vfs="litestream", flags=apsw.SQLITE_OPEN_READONLY)
    connection.pragma("user_version")
    steps.ended("open")
    read_all(connection, items, steps)
    return said(steps)


def by_restore(directory: Path, items: int, counts: Path) -> dict[str, Any]:
    steps = Steps(counts)
    path = directory / "restored.db"
    binary = Path(sys.executable).with_name("litestream")
    subprocess.run([binary, "restore", "-o", path, os.environ["LITESTREAM_REPLICA_URL"]], check=True, stdout=sys.stderr)
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    connection.pragma("user_version")
    steps.ended("open")
    read_all(connection, items, steps)
    return said(steps)


def read_all(connection: apsw.Connection, items: int, steps: Steps) -> None:
    assert connection.execute("SELECT * FROM items WHERE id = ?", (items // 2,)).get is not None
    steps.ended("read")
    for name in ("list", "again"):
        assert len(connection.execute(_LIST).fetchall()) == _NEWEST
        steps.ended(name)


def said(steps: Steps) -> dict[str, Any]:
    # Not getrusage's figure for this process: the one that has begun it counts there
    most = max(memory_of(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
    return {"steps": steps.found, "memory": most}


def memory_of(pid: int | str = "self") -> float:
    """Return the most that a process has had, in MB."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) / 1024


KINDS: dict[str, Callable[[Path, int, Path], dict[str, Any]]] = {
    "paged": lambda *given: ours("always", *given),
    "whole": lambda *given: ours("never", *given),
    "vfs": by_vfs,
    "restore": by_restore,
}


if __name__ == "__main__":
    kind, directory, items, counts = sys.argv[1:]
    print(json.dumps(KINDS[kind](Path(directory), int(items), Path(counts))), flush=True)
    os._exit(0)  # Litestream's threads do not end by themselves
