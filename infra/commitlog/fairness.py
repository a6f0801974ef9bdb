"""Fairness among writers that know nothing of each other.

Whoever has just stored a commit is ready for the next number at once, while the others must first fetch what
they lost to: without a pause it would win for ever. So a writer that stores one commit right after the other
stands back now and then, for as long as a loser needs to fetch and to store. If nobody shows up, it does so
more rarely; as soon as it loses, often.
"""

import random

from infra.clock import Clock

_FEWEST, _MOST = 2, 32  # commits in a row before standing back
_FETCH_AND_STORE = 3.0  # in times of one create
_PATIENCE = 6  # lost numbers after which a writer goes at once
_LONGEST_CREATE = 1.0  # seconds; what took longer was a time-out or a sleep of the machine


class Fairness:
    """One writer's share of it."""

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self._clock = clock
        self._random = rng
        self._create_seconds = 0.0  # of late
        self._in_a_row = 0
        self._allowed = _FEWEST
        self._stood_back = False
        self._last_stored = float("-inf")

    def before_first_attempt(self) -> None:
        """Stand back for the others, if it is time to: wait as long as a loser needs to fetch and to store."""
        pause = _FETCH_AND_STORE * self._create_seconds
        if self._clock.now() - self._last_stored > pause:
            self._in_a_row = 0  # there was room for others anyway
        elif self._in_a_row >= self._allowed:
            self._clock.sleep(pause)
            self._in_a_row = 0
            self._stood_back = True

    def stored(self, seconds: float) -> None:
        """Take note of a commit that was stored. `seconds`: what the create took."""
        self._create_seconds += (min(seconds, _LONGEST_CREATE) - self._create_seconds) / 4
        self._last_stored = self._clock.now()
        self._in_a_row += 1
        if self._stood_back:
            self._allowed = min(2 * self._allowed, _MOST)
            self._stood_back = False

    def lost(self, times: int) -> None:
        """Wait a little after a conflict, less each time. `times`: how often this commit has lost; who has waited
        longest goes first.
        """
        self._allowed = _FEWEST
        self._in_a_row = 0
        self._stood_back = False
        self._clock.sleep(self._create_seconds * self._random.random() * max(0.0, 1 - times / _PATIENCE))
