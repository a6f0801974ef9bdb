from functools import cache
from pathlib import Path

import pytest

from tests.model.cases import BROKEN, RIGHT, Case, every_case, row
from tests.model.explorer import Verdict

_PAGE = Path(__file__).parents[2] / "docs" / "model.md"

_QUICK = [case for case in every_case() if case.is_quick]


@cache
def explored(case: Case) -> Verdict:
    return case.explore()


@pytest.mark.parametrize("case", _QUICK, ids=lambda case: case.name)
def test_verdict_is_the_one_on_record(case: Case) -> None:
    verdict = explored(case)
    assert (verdict.broken, len(verdict.trace)) == (case.broken, case.steps), "\n".join(verdict.trace)


def test_every_case_has_a_name_of_its_own() -> None:
    assert len({case.name for case in every_case()}) == len(RIGHT) + len(BROKEN)


def test_the_protocol_was_led_into_every_corner() -> None:
    taken = "\n".join(sorted(frozenset[str]().union(*(explored(case).taken for case in RIGHT if case.is_quick))))
    for corner in (
        "acknowledged",
        "created (a leftover)",
        "created (of another history)",
        "conflict, not stored",
        "unknown",
        "no answer",
        "lands: created",
        "LIST commits: ours is the newest",
        "LIST: nothing beyond, and the same",
        "a gap, or less than it has seen",
    ):
        assert corner in taken


def test_page_has_every_verdict() -> None:
    rows = [line for line in _PAGE.read_text().splitlines() if line.startswith("| ")]
    missing = [row(case) for case in every_case() if row(case) not in rows]
    assert not missing, "\n".join(missing)
