"""Visit every state that a model can reach, breadth first, so that the way to the first bad one is a shortest."""

import re
import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar


class ModelState(Hashable, Protocol):
    @property
    def broken(self) -> str: ...


_NAMES = re.compile(r"[A-Z]?\d[abc]?")

S = TypeVar("S", bound=ModelState)


@dataclass(frozen=True, slots=True)
class Verdict:
    broken: str  # the property that does not hold, "" when all of them do in every state
    trace: tuple[str, ...]  # the steps that lead there
    states: int
    depth: int  # the longest of the shortest ways to a state, in steps
    seconds: float  # of one processor
    taken: frozenset[str]  # every kind of step, numbers and names left out


def explore(start: S, steps: Callable[[S], Iterable[tuple[str, S]]]) -> Verdict:
    """`steps` gives what may happen next and the state after it. Ends at the first state with `broken` set, else when
    there is no new one.
    """
    began = time.process_time()
    came_from: dict[S, tuple[S, str] | None] = {start: None}
    layer, depth, taken = [start], 0, set[str]()
    while layer:
        following: list[S] = []
        for state in layer:
            for step, after in steps(state):
                if after in came_from:
                    continue
                came_from[after] = state, step
                taken.add(_NAMES.sub("", step))
                if after.broken:
                    trace = _trace(came_from, after)
                    return Verdict(after.broken, trace, len(came_from), depth + 1, _since(began), frozenset(taken))
                following.append(after)
        layer, depth = following, depth + bool(following)
    return Verdict("", (), len(came_from), depth, _since(began), frozenset(taken))


def _trace(came_from: dict[S, tuple[S, str] | None], state: S) -> tuple[str, ...]:
    steps: list[str] = []
    while before := came_from[state]:
        state, step = before
        steps.append(step)
    return tuple(reversed(steps))


def _since(began: float) -> float:
    return time.process_time() - began
