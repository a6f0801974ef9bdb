"""Whom the engine tells what becomes of its work, in its own words."""

from typing import Protocol


class Observer(Protocol):
    """Called by the thread that works; must be quick, and raise nothing."""

    def query_finished(self, kind: str, seconds: float) -> None: ...
    def commit_stored(self) -> None: ...
    def commit_conflicted(self) -> None: ...
    def outcome_unknown(self) -> None: ...


class Unobserved:
    """An `Observer` that takes note of nothing."""

    def query_finished(self, kind: str, seconds: float) -> None:
        """Say how long a use case has been in SQLite; `kind`: read or write."""

    def commit_stored(self) -> None:
        """Say that a commit is in the log."""

    def commit_conflicted(self) -> None:
        """Say that another instance was faster."""

    def outcome_unknown(self) -> None:
        """Say that nobody knows whether a commit is stored."""
