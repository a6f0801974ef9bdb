"""kill -9 of a server with default settings, in the middle of many writes, over and over."""

import itertools
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx2
import pytest

from tests.e2e.conftest import Server
from tests.e2e.evidence import Claims, items_in, run_together
from tests.infra.commitlog.conftest import litestream_restore

pytestmark = pytest.mark.e2e

LIVES = 20
WRITERS = 4


def write_until_killed(url: httpx2.URL, prefix: str, claims: Claims) -> None:
    with httpx2.Client(base_url=url, timeout=30, trust_env=False) as client:
        for number in itertools.count():
            name = f"{prefix}-{number}"
            try:
                answer = client.post("/api/items", json={"name": name})
            except httpx2.HTTPError:
                return claims.record(name, 0, {})
            claims.record(name, answer.status_code, answer.json())


def kill_after(server: Server, claims: Claims, writes: int) -> None:
    claims.wait_for(len(claims) + writes)
    server.process.end(signal.SIGKILL)


def test_nothing_acknowledged_is_lost_by_kill_9_under_load(start_server: Callable[..., Server], tmp_path: Path) -> None:
    claims = Claims()
    data = tmp_path / "data"
    for life in range(LIVES):
        server = start_server(BACKUP_INTERVAL_SECONDS="0")
        url = server.client.base_url
        writers = [partial(write_until_killed, url, f"{life}-{number}", claims) for number in range(WRITERS)]
        run_together([*writers, partial(kill_after, server, claims, 30 + life)])
        if life % 5 == 4:  # the log is enough
            for path in data.glob("app.db*"):
                path.unlink()
    server = start_server(BACKUP_INTERVAL_SECONDS="0")
    server.process.end()
    assert len(claims.acknowledged) > LIVES * 30
    claims.check(data / "app.db")
    shutil.copy(data / "app.db", tmp_path / "before.db")
    for path in data.glob("app.db*"):
        path.unlink()
    start_server(BACKUP_INTERVAL_SECONDS="0").process.end()
    assert items_in(data / "app.db") == items_in(tmp_path / "before.db")
    assert items_in(litestream_restore((data / "replica").as_uri(), tmp_path / "litestream.db")) == items_in(
        data / "app.db"
    )
