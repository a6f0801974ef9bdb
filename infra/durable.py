"""What must survive a power cut."""

import os
from pathlib import Path


def fsync_directory(path: Path) -> None:
    """Make sure that the names in a directory are on disk; fsync of a file says nothing of its name."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
