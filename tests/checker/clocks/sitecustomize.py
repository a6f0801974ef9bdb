"""Runs at the start of a server whose clocks the checker moves: the monotonic clock is off by what a file says.

The wall clock is libfaketime's business. That library cannot do this one too: under it every timed wait hangs.
"""

import os
import time

_REAL = time.monotonic
_FILE = os.open(os.environ["CHECKER_MONOTONIC_FILE"], os.O_RDONLY)


def _monotonic() -> float:
    return _REAL() + float(os.pread(_FILE, 32, 0))


time.monotonic = _monotonic
