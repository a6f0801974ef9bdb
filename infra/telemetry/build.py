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
