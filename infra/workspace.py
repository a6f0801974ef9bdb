"""Temporary directories for backups, and what processes that were killed left of theirs."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from core.errors import BackupError
from infra.settings import SERVICE

_PREFIX = f"{SERVICE}-backup-"


@contextmanager
def workspace() -> Iterator[Path]:
    """A new directory for as long as the context lasts. Raises BackupError when the disk does not play along."""
    top = Path(tempfile.gettempdir())
    with disk_errors(top):
        _remove_abandoned(top)
        with tempfile.TemporaryDirectory(prefix=_PREFIX) as directory:
            descriptor = _open(Path(directory))
            try:
                # the kernel drops it when the process dies, however it dies
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield Path(directory)
            finally:
                os.close(descriptor)


@contextmanager
def disk_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BackupError(f"Cannot work in {directory}: {error} (TMPDIR names another temporary directory)") from error


def _remove_abandoned(top: Path) -> None:
    for directory in top.glob(_PREFIX + "*"):
        # one that is locked is in use; a link, or one that vanishes or is another user's, is no concern of ours
        with suppress(OSError):
            descriptor = _open(directory)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory)
            finally:
                os.close(descriptor)


def _open(directory: Path) -> int:
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
