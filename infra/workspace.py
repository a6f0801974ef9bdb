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
        directory, descriptor = _locked_directory()
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)
            os.close(descriptor)


@contextmanager
def disk_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BackupError(f"Cannot work in {directory}: {error} (TMPDIR names another temporary directory)") from error


def _locked_directory() -> tuple[Path, int]:
    """The kernel drops the lock when the process dies, however it dies."""
    while True:
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
        with suppress(FileNotFoundError):  # taken for abandoned, in the moment before it was locked
            descriptor = _open(directory)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if directory.exists():
                return directory, descriptor
            os.close(descriptor)


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
