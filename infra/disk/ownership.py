"""Whose files these are, and whether they can be written."""

import errno
import os
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.disk.durable import fsync_directory

# What FAT, CIFS and FUSE say of owners, modes and times that they do not keep
_NOT_KEPT = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def give_to_owner_of(reference: Path, file: Path | int) -> None:
    """As root, hand what is new to whoever owns `reference`: the service's user must be able to use it.

    `file`: a path or a descriptor.
    """
    if os.geteuid() == 0:
        status = reference.stat()
        with if_kept():
            os.chown(file, status.st_uid, status.st_gid)


@contextmanager
def if_kept() -> Iterator[None]:
    """Go on when the file system does not know owners, modes or times."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NOT_KEPT:
            raise


def make_directories(path: Path) -> None:
    """Make a directory and those above it, whose names outlive a power cut. Raises OSError."""
    if not path.is_dir():
        make_directories(path.parent)
        make_directory(path)


def make_directory(path: Path) -> None:
    """Also when it is there: whoever has made it may not have come to the fsync of its name yet. Raises OSError."""
    try:
        path.mkdir()
    except FileExistsError:
        if not path.is_dir():
            raise
    else:
        give_to_owner_of(path.parent, path)
    fsync_directory(path.parent)


def why_not_writable(paths: Iterable[Path]) -> str:
    """What is wrong with those that this process may not write, and the command that mends it; empty if it may.

    Opens nothing: to close any descriptor of a database would drop SQLite's locks on it.
    """
    refused = [path for path in paths if os.path.exists(path) and not _is_writable(path)]
    if not refused:
        return ""
    names, user = shlex.join(map(str, refused)), os.geteuid()
    if any(os.statvfs(path).f_flag & os.ST_RDONLY for path in refused):
        return f"{names} is not writable: {os.strerror(errno.EROFS)}; mount it for writing"
    strangers = [path for path in refused if path.stat().st_uid != user]
    if not strangers:
        return f"{names} is not writable by user {user}, who owns it: `chmod u+rwX {names}`"
    names, owner = shlex.join(map(str, strangers)), strangers[0].stat().st_uid
    return f"{names} is not writable by user {user}, but owned by {owner}: `sudo chown {user}:{os.getegid()} {names}`"


def _is_writable(path: Path) -> bool:
    wanted = os.R_OK | os.W_OK | (os.X_OK if path.is_dir() else 0)
    return os.access(path, wanted, effective_ids=True)
