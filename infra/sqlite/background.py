"""Work that nobody waits for, while a function answers and no longer."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from core.errors import ServiceError

logger = logging.getLogger(__name__)


class Background:
    """Goes on with its work during each invocation but the first, for which somebody has waited long enough.

    Between two invocations Lambda stops the process: what is asked of the store then has no answer. So the thread takes
    its next step only while one is under way.
    """

    def __init__(self, steps: Callable[[], Iterator[None]]) -> None:
        """`steps`: begins the work, of which each step takes a moment. A ServiceError ends it."""
        self._steps = steps
        self._invocations = 0
        self._may_go_on = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def during(self) -> Iterator[None]:
        """Let it go on for as long as the context lasts."""
        self._invocations += 1
        if self._invocations > 1:
            self._may_go_on.set()
            if not self._thread:
                self._thread = threading.Thread(target=self._work, name="warm-up", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            self._may_go_on.clear()

    def _work(self) -> None:
        try:
            for _ in self._steps():
                self._may_go_on.wait()
        except ServiceError as error:
            logger.info("what will be asked for next is not read ahead: %s", error)
        except Exception:
            logger.exception("reading ahead what will be asked for next has failed")
