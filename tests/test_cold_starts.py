"""What README.md says of cold starts is what docs/cold-starts.md has measured."""

import re
from pathlib import Path

import pytest

from benchmarks.cold_start import FOLLOWING, PAGE, STEPS

ROOT = Path(__file__).parent.parent
LARGE = "1,000 MB"

Figures = dict[str, list[list[float]]]  # by the row's title, of each cell: first page by page, then whole
Rows = dict[str, Figures]  # by heading


@pytest.fixture(scope="module")
def rows() -> Rows:
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
    return {section.partition("\n")[0]: figures_of(section) for section in sections}


def figures_of(section: str) -> Figures:
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return {title.strip(): [[*map(number, cell.split("/"))] for cell in cells] for title, *cells in lines[2:]}


def number(text: str) -> float:
    return float(text.replace(",", "")) if text.strip() else 0.0


def first_rows(rows: Rows) -> Figures:
    return rows["From nothing to an item by its id"]


def test_first_answer_page_by_page_takes_five_requests_at_every_size(
    rows: Rows,
) -> None:
    readme = (ROOT / "README.md").read_text()
    assert "with [five requests to S3](docs/cold-starts.md) for its first answer at 1 GB" in readme
    at_the_head = {title: cells for title, cells in first_rows(rows).items() if "behind" not in title}
    assert {title: cells[0][1] for title, cells in at_the_head.items()} == dict.fromkeys(at_the_head, 5)
    assert {rows[title]["a function's first answer"][0][1] for title in at_the_head} == {5}


def test_first_answer_of_a_large_database_reads_and_holds_little_of_it(
    rows: Rows,
) -> None:
    paged, whole = first_rows(rows)[LARGE][:2]
    assert paged[2] < 0.005 * whole[2]
    assert rows[LARGE]["memory at most, MB"][0][0] < 120


def test_what_was_read_once_is_read_with_a_look_at_the_log_only(rows: Rows) -> None:
    for title in (LARGE, f"{LARGE}, and {FOLLOWING} commits behind the snapshot"):
        paged, whole = rows[title][STEPS["again"]][:2]
        assert paged[1] == whole[1] == 2
        paged, whole = rows[title][STEPS["write"]][:2]
        assert paged[1] - whole[1] <= 3
