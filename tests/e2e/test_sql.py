"""`python -m infra sql` beside two servers that never stop writing: each statement arrives, once."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from infra.clock import Clock
from infra.commitlog import open_log
from tests.e2e.conftest import Server
from tests.e2e.evidence import Claims, run_together
from tests.e2e.processes import ROOT

pytestmark = pytest.mark.e2e

STATEMENTS = 12
PAUSE_SECONDS = 0.2


@pytest.mark.parametrize("store", ["directory", "ministack"])
def test_statements_arrive_while_two_servers_write(
    store: str,
    request: pytest.FixtureRequest,
    start_server: Callable[..., Server],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment = {"REPLICA_URL": (tmp_path / "log").as_uri(), "MAINTENANCE_INTERVAL_SECONDS": "0"}
    if store == "ministack":
        environment |= request.getfixturevalue("bucket").environment()
    servers = [start_server(DATABASE_PATH=str(tmp_path / name / "app.db"), **environment) for name in "ab"]
    target = servers[0].client.post("/api/items", json={"name": "target"}).headers["location"]
    claims = Claims()
    done = threading.Event()

    def write(server: Server, prefix: str) -> None:
        number = 0
        while not done.wait(PAUSE_SECONDS):
            number += 1
            name = f"{prefix}-{number}"
            answer = server.client.post("/api/items", json={"name": name})
            claims.record(name, answer.status_code, answer.json())

    def operate() -> None:
        try:
            for _ in range(STATEMENTS):
                statement = "UPDATE items SET quantity = quantity + 1 WHERE name = 'target'"
                printed = subprocess.run(
                    [sys.executable, "-m", "infra", "sql", statement],
                    cwd=ROOT,
                    env=os.environ | environment | {"DATABASE_PATH": str(tmp_path / "none" / "app.db")},
                    capture_output=True,
                    text=True,
                )
                assert printed.returncode == 0, printed.stderr
                assert "(1 rows changed)" in printed.stdout
        finally:
            done.set()

    run_together([operate, *(partial(write, server, name) for server, name in zip(servers, "ab", strict=True))])
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    restored = tmp_path / "restored.db"
    position = open_log(environment["REPLICA_URL"], Clock()).restore(restored)
    seen = {"X-Commit-Txid": f"{position.txid:016x}"}
    assert [server.client.get(target, headers=seen).json()["quantity"] for server in servers] == [STATEMENTS] * 2
    assert (claims.unknown, claims.refused) == (set(), set())
    assert len(claims.acknowledged) >= STATEMENTS
    claims.acknowledged["target"] = int(target.rpartition("/")[2])
    claims.check(restored)
