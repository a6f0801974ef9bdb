"""The reference: stock Litestream reads what we write, and we read what it writes."""

import filecmp
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import apsw
import pytest

from core.errors import LogInUse
from infra.clock import Clock
from infra.commitlog import ltx
from infra.commitlog.chain import Position
from infra.commitlog.log import open_log
from tests.infra.commitlog.conftest import StartInstance, litestream_restore


def create(path: Path, page_size: int) -> None:
    path.parent.mkdir(parents=True)
    connection = apsw.Connection(str(path))
    connection.execute(f"PRAGMA page_size = {page_size}")
    connection.execute("PRAGMA journal_mode = wal").fetchall()
    connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
    connection.close()


def restored(start: StartInstance, url: str, path: Path) -> bytes:
    open_log(url, Clock()).restore(path)
    return path.read_bytes()


@pytest.mark.parametrize("page_size", [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536])
def test_every_page_size_growing_and_shrinking(
    start: StartInstance, file_url: str, tmp_path: Path, page_size: int
) -> None:
    create(tmp_path / "a" / "app.db", page_size)
    instance = start("a", file_url, lasting=True)
    instance.sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500) "
        "INSERT INTO t (v) SELECT hex(randomblob(300)) FROM n"
    )
    instance.sql("PRAGMA cache_size = 5")
    instance.sql("UPDATE t SET v = hex(randomblob(200))")  # spills, and pages that are rewritten in place
    instance.sql("DELETE FROM t WHERE id % 3")
    instance.replica.run_alone(lambda db: db.execute_sql("VACUUM"), 10.0)
    instance.sql("INSERT INTO t (v) VALUES ('last')")
    rows = instance.rows("SELECT id, v FROM t")
    theirs = litestream_restore(file_url, tmp_path / "theirs.db")
    assert theirs.read_bytes() == restored(start, file_url, tmp_path / "ours.db")
    connection = apsw.Connection(str(theirs), flags=apsw.SQLITE_OPEN_READONLY)
    assert connection.execute("SELECT id, v FROM t").fetchall() == rows
    connection.close()


def test_any_commit_and_any_moment(start: StartInstance, url: str, tmp_path: Path) -> None:
    instance = start("a", url)
    instance.sql("CREATE TABLE t (v)")
    moments = []
    for n in range(4):
        time.sleep(0.05)
        instance.sql(f"INSERT INTO t VALUES ({n})")
        moments.append((instance.replica.visible, n))
    for position, n in moments:
        path = litestream_restore(url, tmp_path / f"at-{n}.db", "-txid", f"{position.txid:016x}")
        ours = tmp_path / f"ours-{n}.db"
        assert open_log(url, Clock()).restore(ours, position.txid).checksum == position.checksum
        assert path.read_bytes() == ours.read_bytes()
        assert count(path) == n + 1
    for position, n in moments[:-1]:  # it refuses moments after the last commit
        if url.startswith("file:"):
            path = tmp_path / f"then-{n}.db"
            assert count(litestream_restore(url, path, "-timestamp", moment_after(position, 20))) == n + 1


def test_any_moment_in_a_bucket(start: StartInstance, s3: str, tmp_path: Path) -> None:
    """Litestream bounds the moment by the bucket's own times, which are whole seconds."""
    instance = start("a", s3)
    instance.sql("CREATE TABLE t (v)")
    for n in range(3):
        time.sleep(1.1)
        instance.sql(f"INSERT INTO t VALUES ({n})")
        if n == 1:
            moment = moment_after(instance.replica.visible, 1)
    assert count(litestream_restore(s3, tmp_path / "then.db", "-timestamp", moment)) == 2


def moment_after(position: Position, milliseconds: int) -> str:
    moment = datetime.fromtimestamp((position.timestamp + milliseconds) / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def count(path: Path) -> int:
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    [(found,)] = connection.execute("SELECT count(*) FROM t").fetchall()
    connection.close()
    return int(str(found))


def test_what_litestream_wrote_is_restored_and_goes_on_under_another_prefix(
    start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    source = tmp_path / "source.db"
    config = tmp_path / "litestream.yml"
    config.write_text(
        f"dbs:\n  - path: {source}\n    monitor-interval: 50ms\n    replica:\n      url: {file_url}\n"
        "      sync-interval: 50ms\nlevels:\n  - interval: 1s\nsnapshot:\n  interval: 24h\n"
    )
    connection = apsw.Connection(str(source))
    connection.set_busy_timeout(10_000)
    connection.execute("PRAGMA journal_mode = wal").fetchall()
    connection.execute("CREATE TABLE t (v)")
    environment = {name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"}
    binary = str(Path(sys.executable).with_name("litestream"))
    with subprocess.Popen(
        [binary, "replicate", "-config", str(config)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        deadline = time.monotonic() + 60
        log = open_log(file_url, Clock())
        written = 0
        while not {0, 1} <= {item.level for item in log.objects.everything()} or written < 50:
            assert time.monotonic() < deadline
            connection.execute("INSERT INTO t VALUES (?)", (written,))
            written += 1
            time.sleep(0.02)
        process.terminate()
        process.communicate()
    connection.close()
    before = [item.max_txid for item in log.objects.everything()]
    with pytest.raises(LogInUse, match="Set REPLICA_URL to a prefix of its own"):
        start("a", file_url)
    assert [item.max_txid for item in log.objects.everything()] == before
    ours = tmp_path / "b" / "app.db"  # as the message says
    ours.parent.mkdir()
    litestream_restore(file_url, ours)
    instance = start("b", (tmp_path / "new").as_uri(), lasting=True)
    assert instance.rows() == list(range(written))
    instance.sql("INSERT INTO t VALUES ('ours')")
    assert start("c", (tmp_path / "new").as_uri()).rows() == [*range(written), "ours"]


@pytest.mark.e2e
def test_database_beyond_the_lock_page(start: StartInstance, file_url: str, tmp_path: Path) -> None:
    """SQLite keeps the page at 1 GiB for file locks: it is in no object, and not in the count of a snapshot's pages."""
    path = tmp_path / "a" / "app.db"
    create(path, 65536)
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA synchronous = off")
    connection.execute("INSERT INTO t (v) VALUES (zeroblob(536_000_000)), (zeroblob(536_000_000))")
    assert connection.pragma("page_count") < ltx.lock_page(65536)
    connection.close()
    instance = start("a", file_url, lasting=True)
    instance.sql("INSERT INTO t (v) VALUES (zeroblob(20_000_000))")  # across it
    instance.sql("INSERT INTO t (v) VALUES ('last')")
    assert instance.rows("PRAGMA page_count")[0] > ltx.lock_page(65536)
    ours = tmp_path / "ours.db"
    open_log(file_url, Clock()).restore(ours)
    theirs = litestream_restore(file_url, tmp_path / "theirs.db")
    assert filecmp.cmp(ours, theirs, shallow=False)
    connection = apsw.Connection(str(ours), flags=apsw.SQLITE_OPEN_READONLY)
    assert connection.execute("SELECT id, length(v) FROM t").fetchall()[-2:] == [(3, 20_000_000), (4, 4)]
    connection.close()
