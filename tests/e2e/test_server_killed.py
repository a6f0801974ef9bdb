"""kill -9 of a server with default settings, in the middle of many writes, over and over; LIVES=300 for longer."""

import itertools
import os
import random
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.conftest import Server
from tests.e2e.evidence import Claims, items_in, run_together, write_items
from tests.e2e.processes import SHELL
from tests.e2e.test_other_programs import INSERT
from tests.infra.commitlog.conftest import litestream_restore

pytestmark = pytest.mark.e2e

LIVES = int(os.environ.get("LIVES", "20"))
WRITERS = 4


def insert_until_killed(server: Server, database: Path, prefix: str, names: set[str]) -> None:
    """By the shell: what that has committed is in the file, whatever happens to the server."""
    for number in itertools.count():
        name = f"{prefix}-{number}"
        script = f".timeout 5000\n{INSERT.format(name=name)}"
        done = subprocess.run([SHELL, "-bail", str(database)], input=script, capture_output=True, text=True)
        if done.returncode == 0:
            names.add(name)
        if server.process.popen.poll() is not None:
            return


def kill_after(server: Server, claims: Claims, writes: int) -> None:
    claims.wait_for(len(claims) + writes)
    server.process.end(signal.SIGKILL)


def test_nothing_acknowledged_is_lost_by_kill_9_under_load(start_server: Callable[..., Server], tmp_path: Path) -> None:
    claims = Claims()
    by_shell: set[str] = set()
    data = tmp_path / "data"
    for life in range(LIVES):
        server = start_server(MAINTENANCE_INTERVAL_SECONDS="0")
        url = server.client.base_url
        writers = [partial(write_items, url, f"{life}-{number}", claims) for number in range(WRITERS)]
        shell = partial(insert_until_killed, server, data / "app.db", f"shell-{life}", by_shell)
        run_together(
            [
                *writers,
                *[shell] * (life % 5 == 2),
                partial(kill_after, server, claims, random.Random(life).randrange(1, 90)),
            ]
        )
        if life % 5 == 4:  # the log is enough
            for path in {*data.glob("app.db*")} - {*data.glob("*.diverged-*"), *data.glob("*.changes-*")}:
                path.unlink()
    server = start_server(MAINTENANCE_INTERVAL_SECONDS="0")
    server.process.end()
    assert len(claims.acknowledged) > LIVES * 20
    found = {name for _, name in items_in(data / "app.db")}
    # After a kill between a commit's arrival in the log and its end here, the log and the shell have both moved on
    kept = {name for path in data.glob("app.db.diverged-*") for _, name in items_in(path)}
    for path in data.glob("app.db.changes-*"):  # rows that did not fit what the log had by then
        kept |= {name.decode() for name in re.findall(rb"shell-\d+-\d+", path.read_bytes())}
    assert by_shell
    assert by_shell <= found | kept
    claims.unknown |= by_shell  # as far as the callers go
    claims.check(data / "app.db")
    shutil.copy(data / "app.db", tmp_path / "before.db")
    for path in data.glob("app.db*"):
        path.unlink()
    start_server(MAINTENANCE_INTERVAL_SECONDS="0").process.end()
    assert items_in(data / "app.db") == items_in(tmp_path / "before.db")
    assert items_in(litestream_restore((data / "replica").as_uri(), tmp_path / "litestream.db")) == items_in(
        data / "app.db"
    )
