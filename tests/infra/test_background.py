import logging
import threading
from collections.abc import Callable, Iterator

import pytest

from core.errors import ServiceError, StoreUnavailable
from infra.sqlite.background import Background


class Steps:
    """Work of so many steps, each of which waits until it may be taken."""

    def __init__(self, many: int, error: ServiceError | None = None) -> None:
        self.taken = 0
        self.began = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)
        self._many = many
        self._error = error

    def __call__(self) -> Iterator[None]:
        for _ in range(self._many):
            self.began.release()
            self.may_end.acquire()
            self.taken += 1
            yield
        if self._error:
            raise self._error


def end_of(name: str) -> None:
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(timeout=10)


def test_first_invocation_is_left_alone() -> None:
    steps = Steps(1)
    background = Background(steps)
    with background.during():
        pass
    assert not steps.began.acquire(timeout=0.05)


def test_goes_on_only_while_an_invocation_is_under_way() -> None:
    steps = Steps(2)
    background = Background(steps)
    with background.during():
        pass
    with background.during():
        assert steps.began.acquire(timeout=10)
    steps.may_end.release()  # the step that was under way ends
    assert not steps.began.acquire(timeout=0.05)
    assert steps.taken == 1
    with background.during():
        assert steps.began.acquire(timeout=10)
        steps.may_end.release()
        end_of("warm-up")
    assert steps.taken == 2


def test_error_of_the_store_ends_it_and_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    steps = Steps(1, StoreUnavailable("the store is away"))
    steps.may_end.release()
    background = Background(steps)
    for _ in range(2):
        with background.during():
            pass
    with background.during():
        end_of("warm-up")
    assert [(record.levelname, "the store is away" in record.message) for record in caplog.records] == [("INFO", True)]


def test_what_fails_in_an_invocation_is_not_hidden() -> None:
    background = Background(Steps(0))

    def fail() -> None:
        with background.during():
            raise ValueError("of the request")

    check: Callable[[], None] = fail
    with pytest.raises(ValueError, match="of the request"):
        check()
