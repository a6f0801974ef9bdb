"""Token buckets under a clock that only the test moves."""

import pytest

from handler import buckets
from handler.buckets import Buckets, Level


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def take(taken_from: Buckets, key: str, times: int) -> int:
    """How many there were."""
    found = 0
    for _ in range(times):
        if taken_from.level(key).tokens > 0:
            taken_from.take(key)
            found += 1
    return found


@pytest.mark.parametrize("rate", [0.001, 1 / 3, 1, 7, 1000, 1_000_000])
@pytest.mark.parametrize("burst", [1, 2, 100])
def test_bucket_gives_its_burst_at_once_and_then_its_rate(rate: float, burst: int) -> None:
    clock = Clock()
    tokens = Buckets(rate, burst, clock)
    assert take(tokens, "a", 2 * burst) == burst
    for _ in range(20):
        clock.now += 0.5 / rate
        assert take(tokens, "a", 2) == 0
        clock.now += 0.5 / rate
        assert take(tokens, "a", 2) == 1
    clock.now += 10 * burst / rate
    assert take(tokens, "a", 2 * burst) == burst
    assert take(tokens, "b", 2 * burst) == burst


def test_who_waits_as_long_as_told_gets_one() -> None:
    clock = Clock()
    tokens = Buckets(0.3, 2, clock)
    assert take(tokens, "a", 2) == 2
    clock.now += 0.1
    level = tokens.level("a")
    assert level == Level(0, 4)
    clock.now += level.wait
    assert take(tokens, "a", 2) == 1


def test_what_was_taken_without_being_there_is_owed() -> None:
    clock = Clock()
    tokens = Buckets(1, 2, clock)
    for _ in range(5):
        tokens.take("a")
    assert tokens.level("a") == Level(-3, 4)
    levels = []
    for _ in range(5):
        clock.now += 1
        levels.append(tokens.level("a").tokens)
    assert levels == [-2, -1, 0, 1, 2]


def test_memory_is_bounded_and_the_longest_unused_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "MAX_BUCKETS", 3)
    tokens = Buckets(1, 2, Clock())
    for key in ("a", "b", "a", "c", "d"):
        tokens.take(key)
    assert len(tokens) == 3
    assert [tokens.level(key).tokens for key in "abcd"] == [0, 2, 1, 1]
