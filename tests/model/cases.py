"""What is explored, and what must come out: the protocol holds, and everything that is known to break it does."""

from collections.abc import Iterator
from dataclasses import dataclass

from tests.model.explorer import Verdict, explore
from tests.model.protocol import Model, Rules, World

_QUICK = 20_000  # states: so many take a second or less


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    rules: Rules
    world: World
    broken: str = ""  # the property that does not hold
    steps: int = 0  # the length of a shortest way there
    states: int = 0  # about, to tell how long it takes

    @property
    def is_quick(self) -> bool:
        return self.states <= _QUICK

    def explore(self) -> Verdict:
        model = Model(self.rules, self.world)
        return explore(model.start(), model.steps)


_RIGHT = Rules()
_LOST = "acknowledged, but lost"
_STALE, _FOREIGN = "read less than was acknowledged", "read what is not of the history"
_DENIED, _TWICE, _MERGED = "denied, but stored", "applied twice", "merged what is not of the history"
_SLEEPER, _READER = World((2, 1)), World((2,), readers=1)
_ANY_END = (0, 1, 2)


def _merged_before(
    writes: tuple[int, ...], readers: int = 0, repeats: bool = False, bounded: bool = False, attempts: int = 2
) -> World:
    """One PUT is late, and a run is merged already."""
    return World(writes, 2, 2, readers, unclear=1, repeats=repeats, bounded=bounded, attempts=attempts)


RIGHT = (
    Case("a sleeping writer", _RIGHT, _SLEEPER, states=4_000),
    Case("an empty log", _RIGHT, World((3, 1), begun=0), states=8_000),
    Case("a sleeping reader", _RIGHT, _READER, states=1_000),
    Case("two runs of maintenance", _RIGHT, World((2, 1), keepers=2), states=36_000),
    Case("three writers", _RIGHT, World((1, 1, 1)), states=30_000),
    Case("a late PUT", _RIGHT, World((2, 1), unclear=1), states=20_000),
    Case("two late PUTs", _RIGHT, World((2, 1), unclear=2), states=170_000),
    Case("a late PUT, two runs merged", _RIGHT, World((3, 1), unclear=1), states=130_000),
    Case("a late PUT and a crash", _RIGHT, World((2, 1), unclear=1, crashes=1), states=230_000),
    Case("two writers and a reader", _RIGHT, World((2, 1), readers=1), states=90_000),
    Case("two writers and a new reader", _RIGHT, World((2, 1), strangers=1), states=170_000),
    Case("a PUT that lands twice, in time", _RIGHT, _merged_before((3, 1), repeats=True, bounded=True), states=120_000),
    Case("an emptied prefix", _RIGHT, World((2, 1), keepers=0, emptied=_ANY_END), states=15_000),
    Case("an emptied prefix, a late PUT", _RIGHT, World((1, 1), keepers=0, unclear=1, emptied=_ANY_END), states=20_000),
    Case("one attempt only", Rules(attempts="same"), _merged_before((3, 1), attempts=1), states=110_000),
    Case(
        "an emptied prefix, readers",
        _RIGHT,
        World((1,), readers=1, strangers=1, keepers=0, emptied=_ANY_END),
        states=20_000,
    ),
)

BROKEN = (
    Case("no check after the PUT", Rules(check="never"), _SLEEPER, _LOST, 11),
    Case("the check before the PUT", Rules(check="before"), _SLEEPER, _LOST, 14),
    Case("the check beside the PUT", Rules(check="beside"), _SLEEPER, _LOST, 13),
    Case("a read without the check", Rules(reading="never"), _READER, _STALE, 12),
    Case("a read with both GETs together", Rules(reading="together"), _READER, _STALE, 13),
    Case("a listing believed", Rules(listed="believed"), World((2, 1), strangers=1), _FOREIGN, 16),
    Case("deletes in any order", Rules(deletes="in any order"), _SLEEPER, _LOST, 12),
    Case("the newest deleted", Rules(newest="deleted"), World((1, 1), strangers=1), _STALE, 11),
    Case('"exists" taken for success', Rules(exists="success"), World((1, 1)), _LOST, 3),
    Case('"exists" taken for conflict', Rules(exists="conflict"), World((1, 1), unclear=1), _DENIED, 4),
    Case("a conflict believed", Rules(sure="believed"), World((1, 1, 1), unclear=1), _DENIED, 16, 130_000),
    Case("an unknown outcome run again", Rules(unknown="run again"), World((1, 1), unclear=2), _TWICE, 9),
    Case("merging without its check", Rules(merging="believed"), World((2, 1), keepers=2), _MERGED, 15),
    Case("only the number compared", Rules(compare="number"), _merged_before((3, 1)), _LOST, 22, 80_000),
    Case(
        "only the number compared, prefix emptied",
        Rules(compare="number"),
        World((1, 1), keepers=0, emptied=_ANY_END),
        _FOREIGN,
        3,
    ),
    Case(
        "listings compared by number, prefix emptied",
        Rules(listings="number"),
        World((1,), keepers=0, emptied=_ANY_END),
        _LOST,
        5,
    ),
    Case("the same bytes put twice", Rules(attempts="same"), _merged_before((3, 1)), _LOST, 22, 60_000),
    Case(
        "the same bytes put twice, in time",
        Rules(attempts="same"),
        _merged_before((1, 2), 1, bounded=True),
        _STALE,
        24,
        600_000,
    ),
    Case(
        "the same bytes put twice, N read before",
        Rules(attempts="same", again="checked"),
        _merged_before((1, 2), 1, bounded=True),
        _STALE,
        25,
        700_000,
    ),
    Case("a PUT that lands twice, a day apart", _RIGHT, _merged_before((3, 1), repeats=True), _LOST, 20, 80_000),
)


def row(case: Case) -> str:
    """Of the tables in docs/model.md."""
    if case.broken:
        return f"| {case.name} | {case.broken} | {case.steps} |"
    world = case.world
    readers = f"{world.readers} + {world.strangers} new" if world.strangers else f"{world.readers}"
    writes = " + ".join(map(str, world.writes))
    end = "yes" if world.emptied else ""
    return f"| {case.name} | {writes} | {readers} | {world.keepers} | {world.unclear} | {world.crashes} | {end} |"


def every_case() -> Iterator[Case]:
    yield from RIGHT
    yield from BROKEN
