"""What a target is, and how many cases are put to it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import hypothesis
from hypothesis import HealthCheck
from hypothesis import strategies as st

Look = Callable[[Any], None]


@dataclass(frozen=True)
class Target:
    """One thing that reads what comes from outside."""

    cases: st.SearchStrategy[Any]
    opened: Callable[[], AbstractContextManager[Look]]  # gives what takes a case, and fails for what may not come of it
    share: int = 1  # of all cases, beside the other targets'


def plain(cases: st.SearchStrategy[Any], look: Look, share: int = 1) -> Target:
    """A target that needs nothing to be opened."""
    return Target(cases, lambda: nullcontext(look), share)


def put(target: Target, look: Look, cases: int, seed: int) -> int:
    """Put so many cases to a target, and return how many it were. The smallest that fails is raised."""
    seen = 0

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @hypothesis.given(target.cases)
    def every(case: Any) -> None:
        nonlocal seen
        seen += 1
        look(case)

    every()
    return seen
