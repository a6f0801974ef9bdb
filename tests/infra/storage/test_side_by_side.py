import threading

import pytest

from infra.storage.side_by_side import side_by_side


def test_results_come_in_the_order_of_the_items_whichever_is_done_first() -> None:
    second_is_done = threading.Event()

    def do(item: int) -> int:
        if item == 1:
            assert second_is_done.wait(10)
        elif item == 2:
            second_is_done.set()
        return 10 * item

    assert list(side_by_side(do, [1, 2, 3, 4], 2)) == [10, 20, 30, 40]


def test_no_more_is_begun_than_may_be_waiting() -> None:
    begun: list[int] = []
    results = side_by_side(begun.append, range(100), 3)
    for taken in range(1, 11):
        next(results)
        assert len(begun) <= taken + 3
    results.close()
    assert len(begun) <= 13


def test_failure_is_raised_in_its_turn_and_nothing_is_begun_after_it() -> None:
    begun: list[int] = []

    def do(item: int) -> int:
        begun.append(item)
        if item == 2:
            raise ValueError(item)
        return item

    results = side_by_side(do, range(100), 3)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="2"):
        next(results)
    assert len(begun) <= 5
