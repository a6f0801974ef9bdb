"""Work that several threads do, while its results come in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


def side_by_side(do: Callable[[T], U], items: Iterable[T], at_once: int) -> Generator[U, None, None]:
    """Yield what `do` makes of each, in the order of the items. No more than `at_once` are done, or done and not taken
    yet. Raises what `do` raises, in its turn; what was begun behind that is waited for, and then forgotten.
    """
    rest = iter(items)
    waiting: deque[Future[U]] = deque()
    with ThreadPoolExecutor(at_once) as pool:
        try:
            waiting.extend(pool.submit(do, item) for item in islice(rest, at_once))
            while waiting:
                found = waiting.popleft().result()
                waiting.extend(pool.submit(do, item) for item in islice(rest, 1))
                yield found
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
