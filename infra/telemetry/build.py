"""Which release this is, of what it is made."""

import os
import platform
from functools import cache

import apsw

from core import __version__


@cache
def build() -> dict[str, str]:
    """Return the version, the revision that the image was built from, and the versions of Python and SQLite."""
    return {
        "version": __version__,
        "revision": os.environ.get("REVISION") or "unknown",
        "python": platform.python_version(),
        "sqlite": apsw.sqlite_lib_version(),
    }


def coverage() -> float | None:
    """Return the share of the code that the tests have run when this release was built, None if that does not say."""
    try:
        percent = float(os.environ.get("COVERAGE", ""))
    except ValueError:
        return None
    return percent / 100 if 0 <= percent <= 100 else None
