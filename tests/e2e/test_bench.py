"""The benchmarks themselves: what they count is what happens, and a wrong answer ends them."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from benchmarks import cold_start, counts
from benchmarks.cold_start import FOLLOWING, Start
from benchmarks.servers import Server, command
from core.stored import Stored
from tests.e2e.stores import bucket_at

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


@pytest.fixture(scope="module")
def starts(ministack_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Start]]:
    """By the commits behind the snapshot of a database of 1 MB, and the way to start."""
    found = {}
    with bucket_at(ministack_endpoint) as s3:
        for following in (0, FOLLOWING):
            url = cold_start.make_log(s3, 1, following, tmp_path_factory.mktemp("made"))
            measured = cold_start.measured(s3, url, 1, following, rounds=1)
            found[following] = {kind: some[0] for kind, some in measured.items()}
    return found


def test_first_answer_page_by_page_takes_five_requests(starts: dict[int, dict[str, Start]]) -> None:
    assert starts[0]["paged"].first_answer()[1] == 5
    assert starts[0]["paged"].first_answer()[2] < starts[0]["whole"].first_answer()[2] / 10


def test_list_that_was_read_once_takes_no_request_but_the_look_at_the_log(
    starts: dict[int, dict[str, Start]],
) -> None:
    for each in starts.values():
        assert [each[kind].steps["again"][1] for kind in ("paged", "whole", "restore")] == [2, 2, 0]


def test_write_page_by_page_takes_at_most_three_requests_more(starts: dict[int, dict[str, Start]]) -> None:
    for each in starts.values():
        assert each["paged"].steps["write"][1] - each["whole"].steps["write"][1] <= 3


def test_page_shows_every_way_to_start(starts: dict[int, dict[str, Start]]) -> None:
    shown = cold_start.page(
        {(1, following): {kind: [one] for kind, one in each.items()} for following, each in starts.items()}, 1
    )
    assert shown.count("| open |") == 2
    assert "cannot" in shown
