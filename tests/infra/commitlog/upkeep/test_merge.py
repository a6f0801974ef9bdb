from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import LogDamaged
from infra.commitlog import ltx
from infra.commitlog.chain import Change, Position, write_pages
from infra.commitlog.raw_file import pages_of
from infra.commitlog.upkeep.merge import write_merged, write_snapshot

PAGE_SIZE = 512


@dataclass(frozen=True)
class Commit:
    size: int  # pages
    written: frozenset[int]


@st.composite
def histories(draw: st.DrawFn) -> list[Commit]:
    """The first commit writes every page, a later one any of its pages; the database grows and shrinks."""
    sizes = draw(st.lists(st.integers(1, 8), min_size=2, max_size=6))
    written = [st.just(set(range(1, sizes[0] + 1))), *(st.sets(st.integers(1, size)) for size in sizes[1:])]
    return [Commit(size, frozenset(draw(pages))) for size, pages in zip(sizes, written, strict=True)]


def content(txid: int, page: int) -> bytes:
    return f"page {page} of commit {txid}".encode().ljust(PAGE_SIZE, b".")


def changes(history: list[Commit]) -> list[Change]:
    result = []
    predecessor = 0
    for txid, commit in enumerate(history, 1):
        header = ltx.Header(PAGE_SIZE, commit.size, txid, txid, 1000 + txid, predecessor, 7)
        body, predecessor = ltx.encode(header, [(page, content(txid, page)) for page in sorted(commit.written)])
        result.append(Change([bytes(body)], 0))
    return result


def applied(base: bytes, changes: list[Change], path: Path) -> bytes:
    path.write_bytes(base)
    with path.open("r+b") as file:
        size = len(base)
        for change in changes:
            size = write_pages(file, change.header, change.pages(), size)
    return path.read_bytes()


def merged(parts: list[Change], path: Path) -> Change:
    path.unlink(missing_ok=True)
    write_merged(parts, path, parts[-1].header.timestamp)
    return Change([path.read_bytes()], 1)


@pytest.fixture(autouse=True)
def closed_afterwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    made: list[Change] = []
    monkeypatch.setattr(Change, "__init__", partialmethod(_remembered, Change.__init__, made))
    yield
    for change in made:
        change.close()


def _remembered(change: Change, init: Callable[..., None], made: list[Change], *arguments: Any) -> None:
    init(change, *arguments)
    made.append(change)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(history=histories(), data=st.data())
def test_merged_run_does_what_its_commits_do_byte_by_byte(
    tmp_path: Path, history: list[Commit], data: st.DataObject
) -> None:
    commits = changes(history)
    split = data.draw(st.integers(0, len(commits) - 1))
    before, run = commits[:split], commits[split:]
    base = applied(b"", before, tmp_path / "base")
    one = merged(run, tmp_path / "merged.ltx")
    assert applied(base, [one], tmp_path / "one") == applied(base, run, tmp_path / "each")
    assert one.position == run[-1].position
    assert one.header.predecessor == run[0].header.predecessor


def test_merged_runs_merge(tmp_path: Path) -> None:
    commits = changes([Commit(3, frozenset({1, 2, 3})), *(Commit(3, frozenset({n % 3 + 1})) for n in range(7))])
    halves = [merged(commits[:4], tmp_path / "a.ltx"), merged(commits[4:], tmp_path / "b.ltx")]
    whole = merged(halves, tmp_path / "c.ltx")
    assert list(whole.pages()) == list(merged(commits, tmp_path / "d.ltx").pages())
    assert whole.position == commits[-1].position


def test_snapshot_has_every_page_and_the_position(tmp_path: Path) -> None:
    image = tmp_path / "app.db"
    image.write_bytes(_first_page() + bytes(PAGE_SIZE) * 3)
    write_snapshot(image, Position(9, 5, 1234), tmp_path / "snapshot.ltx")
    snapshot = Change([(tmp_path / "snapshot.ltx").read_bytes()], 9)
    assert (snapshot.header.is_snapshot, snapshot.header.size) == (True, 4)
    assert snapshot.position == Position(9, 5, 1234)
    assert list(snapshot.pages()) == list(pages_of(image, PAGE_SIZE))


def _first_page() -> bytes:
    page = bytearray(PAGE_SIZE)
    page[16:18] = PAGE_SIZE.to_bytes(2, "big")
    return bytes(page)


def test_merge_fills_up_no_terabytes(tmp_path: Path) -> None:
    bodies = [ltx.encode(ltx.Header(512, size, 2, 2, 0, 0, 7), [])[0] for size in (1, 2**32 - 1)]
    with pytest.raises(LogDamaged, match="longer than what it holds"):
        merged([Change([bytes(body)], 0) for body in bodies], tmp_path / "run.ltx")
    assert (tmp_path / "run.ltx").stat().st_size < 4096
