"""Writes that share a transaction, and so a commit: each in a savepoint of its own."""

import time
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any, TypeVar

import apsw
import peewee

from core import errors
from infra.clock import Clock
from infra.commitlog.observer import Observer
from infra.commitlog.open_file import OpenFile, SavepointLost
from infra.sqlite_errors import root_cause, translated_errors

T = TypeVar("T")
UseCase = Callable[[peewee.Database], T]

# Whatever ends the transaction of several and is the doing of one of them; nothing of it was stored then
FAULTS_OF_ONE = (
    errors.TransactionTooLarge,
    errors.DatabaseFull,
    errors.WriteRefused,
    peewee.PeeweeException,
    apsw.Error,
)
_SHARE_SECONDS = 1.0  # how long one of several writes in a transaction may keep the others waiting


@dataclass(slots=True)
class Write:
    """A request to write, and what became of it."""

    use_case: UseCase[Any]
    not_before: float = float("-inf")  # by the clock: it may answer from a state that was the newest then, or later
    txid: int = 0  # and that is not older than this commit
    result: Any = None
    error: Exception | None = None
    shown: int = 0  # the newest commit that the outcome reflects, a TXID
    has_run: bool = False
    context: Context = field(default_factory=copy_context)  # of whoever asks: the use case runs in it

    def outcome(self) -> Any:
        """Return what the use case has returned, or raise what became of it."""
        if self.error:
            raise self.error
        return self.result


class Aborted(Exception):
    """A write has ended the transaction that it was to share."""

    def __init__(self, write: Write) -> None:
        super().__init__(write)
        self.write = write


def run_together(writes: Sequence[Write], file: OpenFile, clock: Clock, deadline: float, observer: Observer) -> None:
    """Run writes in one transaction and set the outcome of each. Raises Aborted when one of them has ended it, and what
    the commit raises.
    """
    share = _SHARE_SECONDS if len(writes) > 1 else float("inf")
    with file.transaction():
        for write in writes:
            file.run_until = min(deadline, clock.now() + share)
            _run(write, file, observer)
        if len(writes) == 1 and writes[0].error:
            raise Aborted(writes[0])  # what its savepoint has undone would be a commit of nothing


def fail_together(writes: Sequence[Write], error: Exception) -> None:
    """Set their outcome after their common commit has failed."""
    for write in writes:
        if write.error and isinstance(error, errors.CommitOutcomeUnknown):
            write.error = errors.CommitNotStored(str(error))  # it had failed by itself, and has no part in the commit
        else:
            write.error = error


def _run(write: Write, file: OpenFile, observer: Observer) -> None:
    """In a savepoint, so that its failure undoes nothing but itself. Raises Aborted when that is not possible."""
    if write.has_run:
        observer.use_case_repeated()
    write.result, write.error, write.has_run = None, None, True
    started = time.perf_counter()
    try:
        with file.savepoint(), translated_errors(file.path):
            write.result = write.context.run(write.use_case, file.writer)
    except SavepointLost as lost:
        write.result, write.error = None, root_cause(lost.cause, file.path)
        raise Aborted(write) from None
    except Exception as error:
        write.error = error
    finally:
        write.context.run(observer.query_finished, "write", time.perf_counter() - started)
    # Alone it may take its time; and what is made of damaged pages must not become history
    if isinstance(write.error, errors.TransactionTooSlow | errors.DatabaseDamaged | errors.SnapshotGone):
        raise Aborted(write)
