"""Whom the engine tells what becomes of its work, in its own words."""

from typing import Protocol


class Observer(Protocol):
    """Called by whichever thread works; must be quick, and raise nothing."""

    def query_finished(self, kind: str, seconds: float) -> None: ...
    def use_case_repeated(self) -> None: ...
    def lock_met(self) -> None: ...
    def lock_waited(self, seconds: float) -> None: ...
    def commit_stored(self, size: int, seconds: float) -> None: ...
    def commit_shared(self, txid: int, writes: int) -> None: ...
    def commit_conflicted(self) -> None: ...
    def outcome_unknown(self) -> None: ...
    def log_asked(self, verb: str, answered: bool, seconds: float) -> None: ...


class Unobserved:
    """An `Observer` that takes note of nothing; says what each means."""

    def query_finished(self, kind: str, seconds: float) -> None:
        """Say how long a use case was in SQLite; `kind`: read or write."""

    def use_case_repeated(self) -> None:
        """Say that a use case runs again: after a conflict, or alone after it has shared a transaction."""

    def lock_met(self) -> None:
        """Say that SQLite was kept out by another connection."""

    def lock_waited(self, seconds: float) -> None:
        """Say how long such a lock was waited for, whether it was had then or not."""

    def commit_stored(self, size: int, seconds: float) -> None:
        """Say that a commit is in the log, of so many bytes, and how long that took."""

    def commit_shared(self, txid: int, writes: int) -> None:
        """Say how many requests a commit of theirs holds."""

    def commit_conflicted(self) -> None:
        """Say that another instance was faster."""

    def outcome_unknown(self) -> None:
        """Say that nobody knows whether a commit is stored."""

    def log_asked(self, verb: str, answered: bool, seconds: float) -> None:
        """Say what the log's store was asked; see ObjectStore."""
