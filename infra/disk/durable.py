"""What must survive a power cut."""

import errno
import os
from pathlib import Path

_NOT_OFFERED = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)  # by FUSE, CIFS and the like: it is theirs to keep names


def fsync_directory(path: Path) -> None:
    """Make sure that the names in a directory are on disk; fsync of a file says nothing of its name."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_OFFERED:
            raise
    finally:
        os.close(descriptor)
