"""Bringing a state back: of the log at any commit or moment, or of a backup.

In the live service it becomes the next commit of the log, made here as by any other instance: whoever serves that log
takes it up by itself, and nothing of what came before is gone.
"""

from datetime import UTC, datetime
from pathlib import Path

from core.errors import (
    BackupDamaged,
    BackupError,
    DatabaseDamaged,
    DatabaseFull,
    DatabaseUnavailable,
    LogDamaged,
    SettingsError,
)
from infra.clock import Clock
from infra.commitlog import START, CommitLog, Position, publish_file
from infra.inspection import inspect
from infra.progress import Progress
from infra.served import ServedSchema, check_image


def parse_moment(text: str) -> datetime:
    """Raises SettingsError for what is no moment, may be several, or is still to come."""
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo:
            moment = moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise SettingsError(f"--at {text!r} is no time; write it as 2026-01-31T12:00:00Z") from None
    if moment.tzinfo is None:
        raise SettingsError(f"--at {text!r} does not say in which time zone: append Z for UTC, or an offset as +01:00")
    if moment > datetime.now(UTC):
        raise SettingsError(f"--at {text!r} is still to come; it is {datetime.now(UTC).isoformat(timespec='seconds')}")
    return moment


def restore_log(log: CommitLog, target: Path, txid: int | None, progress: Progress) -> Position:
    """Write the log's state after a commit, or the newest, to a new file. Raises TxidNotKept."""
    position = log.restore(target, txid, progress)
    if position == START:
        target.unlink()
        raise LogDamaged(f"{log.url} is empty: there is nothing to restore")
    return position


def publish(log: CommitLog, clock: Clock, image: Path) -> tuple[Position, Position]:
    """Make a database file, which nobody else uses and which is changed on the way, the log's next commit.

    It is brought to this release's schema first. Returns where the log ended before, and where it ends now. Raises
    BackupDamaged or NotServed, and commits nothing, when the file could not be served.
    """
    inspect(image)
    check_image(image)
    try:
        ServedSchema().migrate(image)
        return publish_file(image, log, clock)
    except DatabaseDamaged as error:
        raise BackupDamaged(str(error)) from error
    except (DatabaseFull, DatabaseUnavailable) as error:
        raise BackupError(f"{error} (is there room? TMPDIR names another temporary directory)") from error
