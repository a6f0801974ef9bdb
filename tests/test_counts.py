import copy
import json
from typing import Any

import pytest

from benchmarks.counts import BANDS, EXPECTED, OF_PYTHON, PYTHON, Counts, hold


@pytest.fixture
def expected() -> Any:
    return {**json.loads(EXPECTED.read_text()), "python": PYTHON}


@pytest.fixture
def found(expected: Any) -> Counts:
    """Just what the file says."""
    return {what: counts for what, counts in copy.deepcopy(expected).items() if what != "python"}


def test_counts_as_the_file_says_are_held_in_silence(
    found: Counts, expected: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hold(found, expected) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("what", sorted(json.loads(EXPECTED.read_text()).keys() - {"python"}))
def test_count_that_is_more_fails_and_says_how_it_is_accepted(
    what: str, found: Counts, expected: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    where, count = list(found[what].items())[-1]
    found[what][where] = int(count * (1 + BANDS.get(what, 0))) + 1
    assert hold(found, expected) == 1
    said = capsys.readouterr().err
    assert f"\n- {what}, {where}: {found[what][where]:,} instead of {count:,}\n" in said
    assert "`python -m benchmarks.counts --write`" in said


def test_count_that_is_less_passes_and_is_told(
    found: Counts, expected: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    found["statements"]["POST"] -= 1
    assert hold(found, expected) == 0
    assert "statements, POST: " in capsys.readouterr().out


def test_request_that_the_file_does_not_name_has_to_be_written_into_it(found: Counts, expected: Any) -> None:
    found["statements"]["PUT of another kind"] = 1
    assert hold(found, expected) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"python": "2.7"}, f"the file has those of Python 2.7, and this is {PYTHON}"),
        ({}, "needs valgrind: apt-get install valgrind"),
    ],
)
def test_what_cannot_be_compared_is_not_held_and_says_why(
    change: dict[str, str], reason: str, found: Counts, expected: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    found["instructions"] = {name: count * 2 for name, count in found["instructions"].items()} if change else {}
    assert hold(found, {**expected, **change}) == 0
    assert f"SKIPPED: instructions are not held to counts.json: {reason}" in capsys.readouterr().out
    assert "instructions" in OF_PYTHON
