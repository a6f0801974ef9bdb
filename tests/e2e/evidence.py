"""What many writers claim to have stored, and whether the log agrees."""

import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx2
import pytest

from infra.clock import Clock
from infra.commitlog import open_log
from tests.e2e.stores import S3
from tests.infra.commitlog.conftest import litestream_restore


class Claims:
    """Each write has a name of its own, and one of three outcomes."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, int] = {}  # name -> id
        self.unknown: set[str] = set()
        self.refused: set[str] = set()  # the answer says that nothing was stored
        self._news = threading.Condition()

    def record(self, name: str, status: int, body: Mapping[str, object]) -> None:
        with self._news:
            if status == 201:
                self.acknowledged[name] = int(str(body["id"]))
            elif body.get("stored") == "no":
                self.refused.add(name)
            else:
                self.unknown.add(name)
            self._news.notify_all()

    def wait_for(self, number: int, seconds: float = 120) -> None:
        with self._news:
            assert self._news.wait_for(lambda: len(self) >= number, seconds), f"{len(self)} of {number} writes"

    def __len__(self) -> int:
        return len(self.acknowledged) + len(self.unknown) + len(self.refused)

    def check(self, database: Path) -> None:
        self.check_items(items_in(database))

    def check_items(self, found: list[tuple[int, str]]) -> None:
        counts = Counter(name for _, name in found)
        assert [name for name, count in counts.items() if count > 1] == []
        ids = {name: number for number, name in found}
        assert {name: ids.get(name) for name in self.acknowledged} == self.acknowledged
        assert self.refused & ids.keys() == set()
        assert ids.keys() <= self.acknowledged.keys() | self.unknown


def items_in(database: Path) -> list[tuple[int, str]]:
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return connection.execute("SELECT id, name FROM items ORDER BY id").fetchall()


def restored_and_checked(bucket: S3, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The database that the log holds, after the log was held against everything it promises."""
    commits = [key.rpartition("/")[2] for key in bucket.keys("log/0000/")]
    assert commits == [f"{txid:016x}-{txid:016x}.ltx" for txid in range(1, len(commits) + 1)]
    overwritten = {key: count for key, count in bucket.versions("log/0000/").items() if count != 1}
    assert overwritten == {}
    for name, value in bucket.environment().items():
        monkeypatch.setenv(name, value)
    log = open_log(bucket.url("log"), Clock())
    path = directory / "restored.db"
    assert log.restore(path).txid == len(commits)  # each commit names the one before it, and that is checked
    by_litestream = litestream_restore(bucket.url("log"), directory / "litestream.db")
    assert by_litestream.read_bytes() == path.read_bytes()
    return path


def run_together(functions: list[Callable[[], None]]) -> None:
    """On a thread each; the first error is raised when all have ended."""
    with ThreadPoolExecutor(len(functions)) as pool:
        for future in [pool.submit(function) for function in functions]:
            future.result()


def write_items(url: httpx2.URL, prefix: str, claims: Claims, most: int = sys.maxsize) -> None:
    """One after the other, until nobody answers any more."""
    with httpx2.Client(base_url=url, timeout=30, trust_env=False) as client:
        for number in range(most):
            name = f"{prefix}-{number}"
            try:
                answer = client.post("/api/items", json={"name": name})
            except httpx2.HTTPError:
                return claims.record(name, 0, {})
            claims.record(name, answer.status_code, answer.json())
