import errno
import fcntl
import os
from pathlib import Path
from typing import NoReturn

import pytest

from core.errors import DatabaseInUse, DatabaseUnavailable
from infra.disk.owner_lock import OwnerLock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


def test_second_owner_is_told_who_the_first_is(path: Path) -> None:
    first, second = OwnerLock(path), OwnerLock(path)
    assert not second.held()
    first.acquire()
    assert second.held()
    with pytest.raises(DatabaseInUse, match=f"process {os.getpid()}"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_file_system_without_locks_is_not_taken_for_an_owner(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.with_name("app.db.lock").touch()

    def fail(*arguments: object) -> NoReturn:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fail)
    descriptors = len(os.listdir("/proc/self/fd"))
    for question in (OwnerLock(path).acquire, OwnerLock(path).held):
        with pytest.raises(DatabaseUnavailable, match=r"Cannot lock .*: No locks available"):
            question()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_file_that_cannot_be_opened_is_named(path: Path) -> None:
    lock = path.with_name("app.db.lock")
    lock.symlink_to(lock)
    with pytest.raises(DatabaseUnavailable, match=f"Cannot write {lock}: "):
        OwnerLock(path).acquire()
    with pytest.raises(DatabaseUnavailable, match=f"Cannot read {lock}: "):
        OwnerLock(path).held()
