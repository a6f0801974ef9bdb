import random
from itertools import pairwise

import pytest

from infra.commitlog.fairness import Fairness
from tests.infra.commitlog.conftest import ManualClock, StartInstance

CREATE = 0.025  # seconds


@pytest.fixture
def fairness(clock: ManualClock) -> Fairness:
    return Fairness(clock, random.Random(1))


def commit(fairness: Fairness, clock: ManualClock) -> float:
    """How long the writer stood back before it."""
    before = clock.now()
    fairness.before_first_attempt()
    waited = clock.now() - before
    clock.sleep(CREATE)
    fairness.stored(CREATE)
    return waited


def test_writer_without_rivals_stands_back_more_and_more_rarely(fairness: Fairness, clock: ManualClock) -> None:
    stood_back = [n for n in range(200) if commit(fairness, clock)]
    gaps = [later - earlier for earlier, later in pairwise(stood_back)]
    assert gaps[:4] == [4, 8, 16, 32]
    assert set(gaps[4:]) == {32}


def test_pause_is_long_enough_to_fetch_and_to_store(fairness: Fairness, clock: ManualClock) -> None:
    waits = [commit(fairness, clock) for _ in range(100)]
    assert max(waits) > 2.5 * CREATE
    assert sum(waits) < 0.3 * 100 * CREATE


def test_idle_writer_never_waits(fairness: Fairness, clock: ManualClock) -> None:
    for _ in range(50):
        assert commit(fairness, clock) == 0
        clock.sleep(1)


def test_writer_that_loses_gives_way_again(fairness: Fairness, clock: ManualClock) -> None:
    for _ in range(100):
        commit(fairness, clock)
    fairness.lost(1)
    assert [bool(commit(fairness, clock)) for _ in range(3)] == [False, False, True]


def test_whoever_has_lost_most_goes_at_once(fairness: Fairness, clock: ManualClock) -> None:
    for _ in range(50):
        commit(fairness, clock)
    before = clock.now()
    fairness.lost(6)
    assert clock.now() == before
    fairness.lost(1)
    assert before < clock.now() < before + CREATE


def test_busy_rival_lets_the_other_in(start: StartInstance, file_url: str) -> None:
    """Both write without a pause; what one does in its sleeps is what the other has time for."""
    a, b = start("a", file_url), start("b", file_url)
    a.sql("CREATE TABLE t (v)")
    a.store.after = lambda verb, name: a.clock.sleep(CREATE)
    stood_back = 0
    sleep = a.clock.sleep

    def let_in(seconds: float) -> None:
        nonlocal stood_back
        if seconds > 2 * CREATE:
            stood_back += 1
            a.clock.sleep = sleep  # type: ignore[method-assign]
            b.sql("INSERT INTO t VALUES ('b')")
            a.clock.sleep = let_in  # type: ignore[method-assign]
        sleep(seconds)

    a.clock.sleep = let_in  # type: ignore[method-assign]
    for n in range(10):
        a.sql(f"INSERT INTO t VALUES ({n})")
    assert stood_back >= 3
    assert a.fresh_rows().count("b") == stood_back


def test_one_frozen_create_does_not_make_the_next_wait_long(fairness: Fairness, clock: ManualClock) -> None:
    fairness.stored(3600)
    before = clock.now()
    for _ in range(3):
        fairness.before_first_attempt()
        fairness.stored(CREATE)
    fairness.lost(1)
    assert clock.now() - before < 2
