"""How new a state a read sees: when the store is asked, and how often for what callers only claim."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial

from infra.clock import Clock
from infra.commitlog import CommitLog, Replica

# A caller may name a TXID that the log does not have. Whoever asks the store for it in vain may do so so often
_VAIN_SECONDS = 0.05  # from one question to the next, all callers together
_VAIN_BURST_SECONDS = 1.0  # but this much of it at once
# and what no log can have reached since a good look at it is not asked for
_MOST_AHEAD = 1_000_000
_LOOKED_SECONDS = 60.0


class Freshness:
    """Belongs to the event loop."""

    def __init__(
        self, replica: Replica, log: CommitLog, clock: Clock, catch_up: Callable[[], Coroutine[None, None, None]]
    ) -> None:
        """`catch_up` asks the store, and brings the replica up to date."""
        self._replica = replica
        self._log = log
        self._clock = clock
        self._catch_up = catch_up
        self._catching_up: asyncio.Future[None] | None = None
        self._asked = self._answered = 0  # questions to the store so far; the latest that had an answer
        self._vain_until = 0.0  # questions in vain have used up their time until then

    async def reach(self, not_before: float, txid: int) -> None:
        """One question to the store answers all reads that were waiting when it was asked."""
        before = self._asked
        while not self._replica.is_fresh(not_before, txid):
            self._check_plausible(txid)
            if self._answered > before:
                self._replica.check_reached(txid)
                return
            if self._catching_up is None and (pause := self._pause_before_asking(not_before)) > 0:
                await asyncio.sleep(pause)
                continue
            if self._catching_up is None:
                self._catching_up = self._ask(txid)
            covers_this = self._asked > before
            done, _ = await asyncio.wait([self._catching_up])
            if covers_this:
                done.pop().result()

    def _ask(self, txid: int) -> "asyncio.Future[None]":
        self._asked += 1
        asking = asyncio.ensure_future(self._catch_up())
        asking.add_done_callback(partial(self._caught_up, txid))
        return asking

    def _check_plausible(self, txid: int) -> None:
        """Raises TxidNotReached for what is so far ahead that nobody need be asked."""
        known = self._replica.visible.txid
        if txid > known + _MOST_AHEAD and self._log.head.seen_at(known) > self._clock.now() - _LOOKED_SECONDS:
            self._replica.check_reached(txid)

    def _pause_before_asking(self, not_before: float) -> float:
        """Seconds; none for a question that is due without any TXID that a caller has named."""
        if not self._replica.is_fresh(not_before):
            return 0.0
        return self._vain_until - self._clock.now()

    def _caught_up(self, txid: int, done: "asyncio.Future[None]") -> None:
        self._catching_up = None
        if not done.cancelled() and not done.exception():  # whoever waited has it; nobody need have
            self._answered = self._asked
            if not self._replica.is_fresh(float("-inf"), txid):
                self._vain_until = max(self._vain_until, self._clock.now() - _VAIN_BURST_SECONDS) + _VAIN_SECONDS
