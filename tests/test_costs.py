from pathlib import Path

import pytest

from benchmarks.costs import Measured, measure, row

PAGE = Path(__file__).parent.parent / "docs" / "costs.md"


@pytest.mark.parametrize("rate", [1, pytest.param(100, marks=pytest.mark.e2e)])
def test_page_says_what_a_day_of_the_real_code_asks_of_the_bucket(rate: int) -> None:
    measured = measure(rate)
    [line] = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| {rate:,} |")]
    # a snapshot is due by bytes, and those of the times that are stored differ: there may be one more
    assert numbers(line)[:5] == pytest.approx(numbers(row(measured))[:5], rel=0.001)
    for said, found in zip(cells(line)[5:9], gigabytes(measured), strict=True):
        assert float(said) == pytest.approx(found, rel=0.1, abs=0.001)


def numbers(line: str) -> list[float]:
    return [float(cell.replace(",", "")) for cell in cells(line)]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def gigabytes(measured: Measured) -> list[float]:
    return [measured.gigabytes[kind] for kind in ("commits", "runs", "snapshots", "backups")]
