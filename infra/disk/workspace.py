"""Scratch directories, and what processes that were killed left of theirs."""

import atexit
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from core.errors import BackupError
from infra.settings import SERVICE

_PREFIX = f"{SERVICE}-scratch-"


@contextmanager
def workspace() -> Iterator[Path]:
    """A new temporary directory for as long as the context lasts. Raises BackupError when the disk is in the way."""
    top = Path(tempfile.gettempdir())
    with disk_errors(top), workspace_in(top) as directory:
        yield directory


@contextmanager
def workspace_in(top: Path) -> Iterator[Path]:
    """The same in a directory of the caller's. Raises OSError."""
    _remove_abandoned(top)
    with ExitStack() as stack:
        yield _locked_directory(top, stack)


def workspace_of_this_process() -> Path:
    """A new temporary directory until the process ends. Raises BackupError."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(workspace())


@contextmanager
def disk_errors(directory: Path) -> Iterator[None]:
    """Raises BackupError in place of OSError, with what to do."""
    try:
        yield
    except OSError as error:
        raise BackupError(f"Cannot work in {directory}: {error} (TMPDIR names another temporary directory)") from error


def _locked_directory(top: Path, stack: ExitStack) -> Path:
    """The kernel drops the lock when the process dies, however it dies."""
    while True:
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=top))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        with suppress(FileNotFoundError):  # taken for abandoned, in the moment before it was locked
            descriptor = _open(directory)
            stack.callback(os.close, descriptor)
            with suppress(OSError):  # a file system without locks, where nobody takes it for abandoned either
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if directory.exists():
                return directory


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
