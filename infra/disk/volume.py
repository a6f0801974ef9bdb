"""The volume that the database lies on."""

import os
from pathlib import Path


def gauges(directory: Path) -> dict[str, float]:
    """Return the room left and the room of the volume, bytes; nothing when it cannot be asked."""
    try:
        found = os.statvfs(directory)
    except OSError:
        return {}
    return {
        "data_volume_free_bytes": found.f_bavail * found.f_frsize,
        # without what is kept for others, so that the share in use is that of `df`
        "data_volume_size_bytes": (found.f_blocks - found.f_bfree + found.f_bavail) * found.f_frsize,
    }
