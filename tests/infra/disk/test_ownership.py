"""The service as one user, and somebody else at its files. Needs root, who can be both."""

import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from core.errors import DatabaseUnavailable, StoreRefused
from handler.service import open_service
from infra.__main__ import main
from infra.settings import Settings
from infra.telemetry.metrics import Metrics
from tests.conftest import open_at, serving, write

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")

SERVICE = 1000  # the user

# Each process is forked from one that has imported everything and has no threads: a fork of this one would have locks
# that its threads hold
_FRESH = multiprocessing.get_context("forkserver")
_FRESH.set_forkserver_preload([__name__])


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The service's directory, where it has made a commit. Not in one that only root may enter."""
    top = Path(tempfile.mkdtemp(dir="/tmp"))
    os.chown(top, SERVICE, SERVICE)
    monkeypatch.setenv("DATABASE_PATH", str(top / "app.db"))
    assert as_the_service(write_one, top) == ""
    yield top
    shutil.rmtree(top)


def as_the_service(act: Callable[[Path], str], data: Path) -> str:
    """What it returns, or the text of its error. In a new process."""
    with ProcessPoolExecutor(1, _FRESH) as process:
        return process.submit(become_the_service, act, data).result()


def become_the_service(act: Callable[[Path], str], data: Path) -> str:
    """Only now, since its user may have no access to Python's own files."""
    os.setgroups([])
    os.setgid(SERVICE)
    os.setuid(SERVICE)
    try:
        return act(data)
    except (DatabaseUnavailable, StoreRefused) as error:
        return str(error)


def write_one(data: Path) -> str:
    database = open_at(data / "app.db")
    write(database, "x")
    database.close()
    return ""


def ready_with_a_read_only_file(data: Path) -> str:
    settings = Settings.from_environment({"DATABASE_PATH": str(data / "app.db")})
    with serving(open_service(settings, Metrics(), None)) as client:
        before = client.get("/ready").json()["status"]
        (data / "app.db").chmod(0o444)
        return f"{before} {client.get('/ready').text}"


def owners(data: Path) -> dict[str, int]:
    return {str(path.relative_to(data)): path.stat().st_uid for path in data.rglob("*")}


@pytest.mark.parametrize("name", ["app.db", "app.db.position", "app.db.lock", "replica", "replica/ltx/0", "."])
def test_start_is_refused_with_the_command_that_mends_it(data: Path, name: str) -> None:
    path = data / name
    os.chown(path, 0, 0)
    reason = as_the_service(write_one, data)
    assert f"{path} is not writable by user 1000, but owned by 0: `sudo chown 1000:1000 {path}`" in reason
    os.chown(path, 1000, 1000)
    assert as_the_service(write_one, data) == ""


def test_start_is_refused_when_the_file_is_read_only(data: Path) -> None:
    path = data / "app.db"
    path.chmod(0o444)
    reason = as_the_service(write_one, data)
    assert reason == f"{path} is not writable by user 1000, who owns it: `chmod u+rwX {path}`"


def test_ready_says_that_the_file_has_become_read_only(data: Path) -> None:
    before, _, after = as_the_service(ready_with_a_read_only_file, data).partition(" ")
    assert before == "ready"
    path = data / "app.db"
    reason = f"{path} is not writable by user 1000, who owns it: `chmod u+rwX {path}`"
    assert json.loads(after) == {"status": "degraded", "database": reason}


def test_what_root_makes_belongs_to_the_service(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["maintain"],
        ["backup", "--label", "by-root"],
        ["sql", "UPDATE items SET name = 'y'"],
        ["restore", "--txid", "2"],
        ["restore", "latest", "-o", str(data / "look.db")],
        ["status"],
    ):
        assert main(arguments) in (0, 1, 4), capsys.readouterr().err
    shutil.rmtree(data / "backups")
    assert main(["maintain"]) == 0
    assert {name: owner for name, owner in owners(data).items() if owner != SERVICE} == {}
    assert as_the_service(write_one, data) == ""
    (data / "app.db").unlink()
    open_at(data / "app.db").close()  # a server that root has started
    assert {name: owner for name, owner in owners(data).items() if owner != SERVICE} == {}
