"""The benchmarks themselves: what they count is what happens, and a wrong answer ends them."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from benchmarks import counts
from benchmarks.servers import Server, command
from core.stored import Stored

pytestmark = pytest.mark.e2e


def test_statement_too_many_fails_and_what_is_as_before_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = json.loads(counts.EXPECTED.read_text())
    found = asyncio.run(counts.count_requests(tmp_path / "as-it-is"))
    assert counts.hold(found, expected) == 0
    find = Stored.find

    def twice(self, db, row_id):  # type: ignore[no-untyped-def]
        find(self, db, row_id)
        return find(self, db, row_id)

    monkeypatch.setattr(Stored, "find", twice)
    found = asyncio.run(counts.count_requests(tmp_path / "twice"))
    capsys.readouterr()
    assert counts.hold(found, expected) == 1
    [complaint] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("- ")]
    assert complaint == "- statements, GET an item: 2 instead of 1"


@pytest.mark.skipif(not shutil.which("wrk"), reason="needs wrk")
def test_answer_that_is_no_success_ends_the_run(tmp_path: Path) -> None:
    server = Server("ours", command("ours"), {}, tmp_path / "server")
    try:
        server.wait_until_ready()
        loaded = server.load("post", 2, 1)
        assert loaded.rate > 0
        assert loaded.cpu > 0
        with pytest.raises(SystemExit, match=r"ours does not answer .*/api/absent.* as it should: \{'statuses': \d+\}"):
            server.load("get", 2, 1, "/api/absent")
    finally:
        server.close()
