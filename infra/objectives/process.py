"""What the kernel says of this process."""

import os
import time
from contextlib import suppress
from pathlib import Path

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_NO_LIMIT = 1 << 50  # bytes; version 1 of control groups writes nearly 2**63


def elapsed() -> float:
    """Seconds since the machine was booted, also those in which it slept."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def gauges() -> dict[str, float]:
    """Bytes of memory in use, and how many it may be; what is not known is left out."""
    found: dict[str, float] = {}
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        found["memory_bytes"] = float(pages * os.sysconf("SC_PAGE_SIZE"))
    for path in _LIMITS:
        with suppress(OSError, ValueError):
            limit = int(path.read_text())
            if limit < _NO_LIMIT:
                found["memory_limit_bytes"] = float(limit)
                break
    return found
