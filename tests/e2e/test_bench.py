"""The benchmarks themselves: what they count is what happens, and a wrong answer ends them."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from benchmarks import cold_start, counts
from benchmarks.cold_start import CALLED, FOLLOWING, STEPS
from benchmarks.large_logs import make_log, write_on
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
def starts(ministack_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> cold_start.Found:
    """Two rounds with a database of 1 MB."""
    found = {}
    with bucket_at(ministack_endpoint) as s3:
        url = make_log(s3, 1, tmp_path_factory.mktemp("made"))
        for following in (0, FOLLOWING):
            write_on(s3, url, following)
            found[1, following] = cold_start.measured(s3, url, 1, following, rounds=2)
    return found


def test_each_round_finds_the_same_log(starts: cold_start.Found) -> None:
    for each in starts.values():
        for kind in ("paged", "whole"):
            first, second = each[kind]
            assert [first.steps[step][1] for step in STEPS] == [second.steps[step][1] for step in STEPS]


def test_first_answer_page_by_page_takes_five_requests(starts: cold_start.Found) -> None:
    for paged, whole in zip(starts[1, 0]["paged"], starts[1, 0]["whole"], strict=True):
        assert paged.first_answer()[1] == 5
        assert paged.first_answer()[2] < whole.first_answer()[2] / 10
        assert paged.function
        assert paged.function[1] == 5


def test_list_that_was_read_once_takes_no_request_but_the_look_at_the_log(starts: cold_start.Found) -> None:
    for each in starts.values():
        assert [each[kind][0].steps["again"][1] for kind in ("paged", "whole", "restore")] == [2, 2, 0]


def test_write_page_by_page_takes_at_most_three_requests_more(starts: cold_start.Found) -> None:
    for each in starts.values():
        for paged, whole in zip(each["paged"], each["whole"], strict=True):
            assert paged.steps["write"][1] - whole.steps["write"][1] <= 3


def test_page_shows_every_way_to_start(starts: cold_start.Found) -> None:
    shown = cold_start.page(starts, 2)
    for title in (*CALLED.values(), *STEPS.values(), "1 MB, and 20 commits behind the snapshot"):
        assert shown.count(f"| {title} |") >= 1
