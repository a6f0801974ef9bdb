"""What time a commit is given: this machine's, corrected by what the store has said of earlier commits."""

import logging
import threading
from dataclasses import dataclass

from infra.clock import Clock

logger = logging.getLogger(__name__)

_TOLERANCE_MS = 3000  # between this machine's clock and the store's
_SECOND_MS = 1000  # S3 tells whole seconds, rounded down
_REMEMBERED = 16


@dataclass(frozen=True, slots=True)
class _Stamp:
    wall: int  # by this machine's clock, milliseconds since 1970
    at: float  # by the clock that also counts sleep, seconds


class CommitClock:
    """Dates commits. Any thread may ask.

    The store had the object of a commit of ours after it was stamped here, and before its time was learned here: that
    bounds how far the two clocks are apart. Only what is beyond doubt, and beyond some seconds, is corrected.
    """

    def __init__(self, clock: Clock, url: str) -> None:
        """`url`: the store's, for the log lines."""
        self._clock = clock
        self._url = url
        self._offset = 0  # milliseconds that the store's clock is ahead of this machine's
        self._newest = _Stamp(0, 0.0)
        self._stored: dict[int, _Stamp] = {}  # by TXID
        self._lock = threading.Lock()

    def stamp(self, previous: int) -> int:
        """Return the date for a commit to be made, never before that of the previous one; both milliseconds since
        1970.
        """
        with self._lock:
            self._newest = _Stamp(self._clock.timestamp(), self._clock.now())
            return max(self._newest.wall + self._offset, previous)

    def stored(self, txid: int) -> None:
        """Take down that the newest stamp is of the commit with this TXID, which this process has just stored."""
        with self._lock:
            self._stored[txid] = self._newest
            if len(self._stored) > _REMEMBERED:
                del self._stored[min(self._stored)]

    def doubts(self, previous: int) -> bool:
        """Say whether the previous commit's date, milliseconds since 1970, is of a time to come: then ask the store for
        its time of it, and give `dates.corrected` to the next stamp. If it is this machine's clock that is slow, the
        store confirms the date.
        """
        return previous > self._clock.timestamp() + self._offset + _TOLERANCE_MS

    def learned(self, txid: int, modified: int) -> None:
        """Compare the clocks by the store's time of a commit, milliseconds since 1970; ignored if that was not stored
        here, or long ago.
        """
        with self._lock:
            if stamp := self._stored.pop(txid, None):
                self._correct(stamp, modified)

    def _correct(self, stamp: _Stamp, modified: int) -> None:
        on_its_way = int((self._clock.now() - stamp.at) * 1000)
        seen = modified - stamp.wall
        least, most = seen - on_its_way, seen + _SECOND_MS
        if least - _TOLERANCE_MS <= self._offset <= most + _TOLERANCE_MS:
            return
        if least - _TOLERANCE_MS <= 0 <= most + _TOLERANCE_MS:
            self._offset = 0
            logger.warning("this machine's clock agrees with that of %s again", self._url)
            return
        self._offset = seen if self._offset > most else least
        logger.error(
            "this machine's clock is %s s %s that of %s: commits are dated by the store's from now on; mend the clock",
            f"{abs(self._offset) / 1000:,.0f}",
            "ahead of" if self._offset < 0 else "behind",
            self._url,
        )
