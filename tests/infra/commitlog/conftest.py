import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import apsw
import peewee
import pytest

from infra.clock import Clock
from infra.commitlog.head import LIKELY_SECONDS
from infra.commitlog.log import CommitLog, Store, open_log
from infra.commitlog.paging.newest_snapshot import Paging
from infra.commitlog.replica import Replica
from infra.commitlog.schema import Schema
from infra.storage.object_store import ObjectInfo, ObjectStore

Step = Callable[[str, str], None]
BIG = "INSERT INTO t VALUES (hex(zeroblob(30000)))"


class ManualClock(Clock):
    """Stands still until somebody sleeps."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self.skew_ms = 0

    def now(self) -> float:
        return self.seconds

    def timestamp(self) -> int:
        return super().timestamp() + int(self.seconds * 1000) + self.skew_ms

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


class WatchedStore:
    """A real store, with something to do before and after each request; what that raises, the caller gets."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self.before: Step = lambda verb, name: None
        self.after: Step = lambda verb, name: None
        self.requests: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return self.store.url

    def create(self, name: str, body: bytes | bytearray, written_at: datetime | None = None) -> None:
        self._around("create", name, lambda: self.store.create(name, body, written_at))

    def race(self, name: str, body: bytes, racers: int) -> int:
        return int(self._around("race", name, lambda: self.store.race(name, body, racers)))

    def read(self, name: str) -> Iterator[bytes]:
        found: list[bytes] = self._around("read", name, lambda: list(self.store.read(name)))
        return iter(found)

    def read_range(self, name: str, begin: int, end: int) -> bytes:
        return bytes(self._around("read_range", name, lambda: self.store.read_range(name, begin, end)))

    def read_end(self, name: str, size: int) -> tuple[bytes, datetime]:
        found: tuple[bytes, datetime] = self._around("read_end", name, lambda: self.store.read_end(name, size))
        return found

    def objects(self, directory: str = "", after: str = "") -> list[ObjectInfo]:
        return list(self._around("objects", directory, lambda: self.store.objects(directory, after)))

    def directories(self, directory: str = "") -> list[str]:
        return list(self._around("directories", directory, lambda: self.store.directories(directory)))

    def _around(self, verb: str, name: str, act: Callable[[], Any]) -> Any:
        self.requests.append((verb, name))
        self.before(verb, name)
        found = act()
        self.after(verb, name)
        return found


@pytest.fixture(params=["file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return str(request.getfixturevalue("s3")).replace("backups", "log")
    return (tmp_path / "replica").as_uri()


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    return (tmp_path / "replica").as_uri()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def log_over(store: Store, clock: Clock, likely_seconds: float | None = None) -> CommitLog:
    return CommitLog(store, store, clock, random.Random(), likely_seconds=likely_seconds)


class Instance:
    """One replica with the means to look at it and to trouble it."""

    def __init__(
        self,
        path: Path,
        url: str,
        clock: ManualClock,
        lasting: bool,
        schema: Schema | None = None,
        paging: Paging | None = None,
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.clock = clock
        self.store = WatchedStore(ObjectStore(url, retries=0))
        self.log = log_over(self.store, clock, LIKELY_SECONDS)  # as in a bucket, also over a directory
        self.replica = Replica(path, self.log, clock, lasting=lasting, busy_timeout=0.2, schema=schema, paging=paging)
        self.killed = False

    def kill(self) -> None:
        """Leave the files as kill -9 does."""
        self.killed = True
        self.replica.file.close()

    def write(self, use_case: Callable[[peewee.Database], Any], seconds: float = 10) -> Any:
        return self.replica.write(use_case, self.clock.now() + seconds, self.clock.now())

    def sql(self, *statements: str) -> Any:
        def run(db: peewee.Database) -> Any:
            return [db.execute_sql(statement).fetchall() for statement in statements][-1]

        return self.write(run)

    def rows(self, statement: str = "SELECT v FROM t ORDER BY 1") -> list[Any]:
        """What readers see, without asking the store."""
        found = self.replica.reader.execute_sql(statement).fetchall()
        return [row[0] if len(row) == 1 else row for row in found]

    def fresh_rows(self) -> list[Any]:
        self.clock.seconds += 0.001
        self.replica.refresh(self.clock.now())
        return self.rows()


StartInstance = Callable[..., Instance]
Shell = Callable[..., list[Any]]


@pytest.fixture
def start(tmp_path: Path, clock: ManualClock) -> Iterator[StartInstance]:
    started: list[Instance] = []

    def start(
        name: str,
        url: str,
        lasting: bool = False,
        open: bool = True,
        schema: Schema | None = None,
        paging: Paging | None = None,
    ) -> Instance:
        instance = Instance(tmp_path / name / "app.db", url, clock, lasting, schema, paging)
        started.append(instance)
        if open:
            instance.replica.open()
        return instance

    yield start
    for instance in started:
        if not instance.killed:
            instance.replica.close()


def litestream_restore(url: str, path: Path, *options: str) -> Path:
    """What the stock reader makes of the log; it fails the test when it finds anything wrong."""
    binary = Path(sys.executable).with_name("litestream")
    environment = {name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"}
    endpoint = environment.pop("AWS_ENDPOINT_URL_S3", None)
    if endpoint and url.startswith("s3:"):
        url += f"?endpoint={endpoint}&region=us-east-1&forcePathStyle=true"
    done = subprocess.run(
        [str(binary), "restore", "-integrity-check", "full", *options, "-o", str(path), url],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return path


def stored_in(url: str, path: Path) -> list[Any]:
    """The rows of t in the log's newest state, which is restored to this path."""
    path.unlink(missing_ok=True)
    open_log(url, Clock()).restore(path)
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [v for (v,) in connection.execute("SELECT v FROM t ORDER BY 1")]


# A server, and the SQLite shell at its file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "server" / "app.db"


@pytest.fixture
def server(start: StartInstance, file_url: str) -> Instance:
    instance = start("server", file_url, lasting=True)
    instance.sql("CREATE TABLE t (v)")
    instance.sql("INSERT INTO t VALUES (0)")
    return instance


@pytest.fixture
def shell(server: Instance, path: Path) -> Iterator[Shell]:
    """Stays open, so that nothing is moved into the file by its end."""
    with closing(apsw.Connection(str(path))) as connection:

        def run(*statements: str) -> list[Any]:
            return [connection.execute(statement).fetchall() for statement in statements][-1]

        yield run


@pytest.fixture
def keyed(server: Instance) -> Instance:
    server.sql("CREATE TABLE k (id INTEGER PRIMARY KEY, v)")
    server.sql("INSERT INTO k VALUES (1, 'a'), (2, 'b')")
    return server


def watch(server: Instance) -> None:
    server.replica.watch(server.clock.now())


def check_file_is_the_log(server: Instance, url: str, tmp_path: Path) -> None:
    server.replica.close()
    assert not server.path.with_name("app.db-wal").exists()
    restored = tmp_path / "restored.db"
    open_log(url, Clock()).restore(restored)
    assert restored.read_bytes() == server.path.read_bytes()
    assert litestream_restore(url, tmp_path / "litestream.db").read_bytes() == server.path.read_bytes()


def at_once(act: Callable[..., Any], extra: Callable[[], None], *, before: bool) -> Callable[..., Any]:
    """The function, with something else that happens around its first call."""
    calls = iter([extra])

    def both(*arguments: Any) -> Any:
        first = next(calls, lambda: None)
        if before:
            first()
        found = act(*arguments)
        if not before:
            first()
        return found

    return both


def shell_once(path: Path, *statements: str) -> Callable[[], None]:
    def run() -> None:
        with closing(apsw.Connection(str(path))) as connection:
            for statement in statements:
                connection.execute(statement).fetchall()

    return run


def stored_in_file(path: Path) -> list[Any]:
    with closing(apsw.Connection(str(path))) as connection:
        return [value for (value,) in connection.execute("SELECT v FROM t ORDER BY 1")]


def old_copy(server: Instance, tmp_path: Path) -> Path:
    """Made by the shell's .backup, before two more rows."""
    copy = tmp_path / "copy.db"
    with (
        closing(apsw.Connection(str(server.path))) as source,
        closing(apsw.Connection(str(copy))) as target,
        target.backup("main", source, "main") as backup,
    ):
        backup.step()
    server.sql(BIG)
    server.replica.file.checkpoint()
    server.sql("INSERT INTO t VALUES (2)")  # begins the WAL anew
    return copy


def overwrite(path: Path, source: Path) -> None:
    """Like cp: the file stays the same, its content does not."""
    with source.open("rb") as read, path.open("wb") as write:
        shutil.copyfileobj(read, write)


def kept(path: Path) -> list[str]:
    return sorted(found.name.rpartition("-")[0][:11] for found in path.parent.glob("app.db.[dc][ih]*"))


def keyed_rows(instance: Instance) -> list[Any]:
    instance.fresh_rows()
    return instance.rows("SELECT id, v FROM k")
