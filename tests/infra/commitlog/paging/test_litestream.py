"""Sidecars are beside Litestream's own objects, and it takes no notice of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.clock import Clock
from infra.commitlog.log import open_log
from infra.commitlog.objects import ObjectNames
from infra.commitlog.upkeep.compactor import Compactor
from infra.storage.object_store import ObjectStore
from tests.infra.commitlog.conftest import StartInstance, litestream_restore

ROWS = 2000
READ = """
import sys, apsw
with apsw.Connection(":memory:") as loader:
    loader.enable_load_extension(True)
    loader.load_extension(sys.argv[1])
connection = apsw.Connection("app.db", vfs="litestream", flags=apsw.SQLITE_OPEN_READONLY)
print(connection.execute("SELECT count(*), max(v) FROM t").fetchall(), connection.execute("PRAGMA integrity_check").get)
"""


@pytest.fixture
def log_url(start: StartInstance, url: str, tmp_path: Path) -> str:
    """Of a log that cannot be read without its snapshot, which has a sidecar, and goes on after it."""
    instance = start("writer", url)
    instance.sql("CREATE TABLE t (v)")
    instance.sql(
        f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS}) "
        "INSERT INTO t SELECT hex(randomblob(200)) FROM n"
    )
    clock, names, store = Clock(), ObjectNames(url), ObjectStore(url)
    steps, image = Compactor(open_log(url, clock), store, clock), tmp_path / "image.db"
    snapshot = steps.store_snapshot(image, steps.log.restore(image), tmp_path)
    assert len(steps.log.objects.sidecar(snapshot)) > 1000
    instance.sql("INSERT INTO t VALUES ('later')")
    for txid in range(1, snapshot.max_txid):
        store.delete(names.name(0, txid, txid))
    return url


def test_litestream_restores_and_lists_a_log_with_sidecars(log_url: str, tmp_path: Path) -> None:
    ours = tmp_path / "ours.db"
    position = open_log(log_url, Clock()).restore(ours)
    assert litestream_restore(log_url, tmp_path / "theirs.db").read_bytes() == ours.read_bytes()
    before = litestream_restore(log_url, tmp_path / "before.db", "-txid", f"{position.txid - 1:016x}")
    assert before.read_bytes() == (tmp_path / "image.db").read_bytes()
    if log_url.startswith("file:"):
        binary = Path(sys.executable).with_name("litestream")
        listed = subprocess.run([binary, "ltx", "-level", "all", log_url], capture_output=True, text=True, check=True)
        assert [line.split()[:3] for line in listed.stdout.splitlines()[1:]] == [
            ["0", f"{position.txid - 1:016x}", f"{position.txid - 1:016x}"],
            ["0", f"{position.txid:016x}", f"{position.txid:016x}"],
            ["9", f"{1:016x}", f"{position.txid - 1:016x}"],
        ]


@pytest.mark.e2e
def test_litestreams_own_pages_on_demand_take_no_notice_of_sidecars(log_url: str, tmp_path: Path) -> None:
    """Its SQLite extension, as of the release that is measured beside the service."""
    root = Path(__file__).parents[4]
    [extension] = (root / ".venv-bench").glob("lib/python*/site-packages/litestream_vfs/litestream-vfs.so")
    environment, endpoint = dict(os.environ), os.environ.get("AWS_ENDPOINT_URL_S3")
    if endpoint and log_url.startswith("s3:"):
        log_url += f"?endpoint={endpoint}&region=us-east-1&forcePathStyle=true"
        del environment["AWS_ENDPOINT_URL_S3"]
        environment.pop("AWS_CA_BUNDLE", None)
    done = subprocess.run(
        [sys.executable, "-c", READ, extension],
        cwd=tmp_path,
        env=environment | {"LITESTREAM_REPLICA_URL": log_url},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == f"[({ROWS + 1}, 'later')] ok\n", done.stderr
