"""`make dev`: the service follows its code."""

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import apsw
import httpx2
import pytest

from infra.disk.owner_lock import OwnerLock
from tests.e2e.checkout import cloned
from tests.e2e.processes import Process, StartProcess, listens, until

pytestmark = pytest.mark.e2e


class Developer:
    """Whoever edits a copy of the project while it serves."""

    def __init__(self, code: Path, data: Path, process: Process) -> None:
        self.code, self.data, self.process = code, data, process
        url = process.wait_for(r"Uvicorn running on (http://[0-9.:]+)")[1]
        self.port = int(url.rpartition(":")[2])
        self.client = httpx2.Client(base_url=url, timeout=30, trust_env=False)

    def edits(self, name: str, old: str, new: str) -> None:
        text = (self.code / name).read_text()
        assert old in text
        (self.code / name).write_text(text.replace(old, new))

    def title(self) -> str:
        """What the code says; empty while there is nobody who answers."""
        with suppress(httpx2.HTTPError):
            return str(self.client.get("/openapi.json").json()["info"]["title"])
        return ""

    def starts(self) -> int:
        return sum("Application startup complete" in line for line in self.process.lines)

    def schema(self) -> int:
        with closing(apsw.Connection(str(self.data / "app.db"), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
            connection.set_busy_timeout(10_000)  # a start has the file for itself now and then
            return int(next(connection.execute("PRAGMA user_version"))[0])

    def complaints(self) -> list[str]:
        return [line for line in self.process.lines if re.search('"level":"(ERROR|CRITICAL)"', line)]


@pytest.fixture
def developer(tmp_path: Path, start_process: StartProcess) -> Iterator[Developer]:
    code, data = cloned(tmp_path / "project"), tmp_path / "data"
    process = start_process("env", "-C", str(code), sys.executable, "-m", "handler.dev")
    developer = Developer(code, data, process)
    until(lambda: developer.title() == "Items API")
    yield developer
    developer.client.close()


def in_group(process: Process) -> bool:
    """Whether any process that it has started is left."""
    with suppress(ProcessLookupError):
        os.killpg(process.popen.pid, 0)
        return True
    return False


def test_service_follows_its_code_and_keeps_the_data(developer: Developer) -> None:
    developer.client.post("/api/items", json={"name": "kept"}).raise_for_status()
    developer.edits("handler/openapi/__init__.py", "Items API", "Shelves API")
    until(lambda: developer.title() == "Shelves API")
    assert [item["name"] for item in developer.client.get("/api/items").json()["items"]] == ["kept"]
    assert developer.client.post("/api/items", json={"name": "new"}).status_code == 201  # it has the file's lock
    assert not developer.complaints()


def test_new_migration_is_run(developer: Developer) -> None:
    version = developer.schema()
    migration = developer.code / "core" / "migrations" / f"{version + 1:04}_shelves.sqlite.sql"
    migration.write_text("CREATE TABLE shelves (id);")
    until(lambda: developer.schema() == version + 1)


def test_code_that_cannot_start_is_waited_for_until_it_can(developer: Developer) -> None:
    developer.edits("handler/openapi/__init__.py", "from typing import", "from typong import")
    developer.process.wait_for("No module named 'typong'")
    developer.edits("handler/openapi/__init__.py", "from typong import", "from typing import")
    until(lambda: developer.title() == "Items API")
    assert developer.starts() == 2


def test_http_is_that_of_make_serve(developer: Developer) -> None:
    offer = {"connection": "upgrade, http2-settings", "upgrade": "h2c", "http2-settings": "AAMAAABkAAQAAP__"}
    answer = developer.client.post("/api/items", json={"name": "with an offer"}, headers=offer)
    assert (answer.status_code, "server" in answer.headers) == (201, False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_leaves_nothing_behind(developer: Developer, number: signal.Signals) -> None:
    """Ctrl-C in a terminal signals every process of the group, as `end` does."""
    developer.client.post("/api/items", json={"name": "x"}).raise_for_status()
    assert developer.process.end(number) == 0
    until(lambda: not in_group(developer.process))
    assert not listens(developer.port)
    assert not OwnerLock(developer.data / "app.db").held()
    assert not (developer.data / "app.db-wal").exists()  # closed, not ended
    assert not developer.complaints()


def test_wrong_setting_is_one_clear_line_and_exit_code_2(start_process: StartProcess) -> None:
    process = start_process(sys.executable, "-m", "handler.dev", HOST="256.1.1.1")
    assert process.popen.wait(30) == 2
    process.end()
    (line,) = process.log
    assert "HOST='256.1.1.1' is no address to listen on" in line["message"]
