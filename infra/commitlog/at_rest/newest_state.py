"""The log's newest state, and whether it may take the place of a file."""

from pathlib import Path

import apsw

from core.errors import LogDamaged, NotServed
from infra.commitlog.chain import START, Position
from infra.commitlog.log import CommitLog
from infra.commitlog.schema import Schema, is_new, opened_image


def restore_newest_state(log: CommitLog, image: Path, schema: Schema, database: Path, newest: Position) -> Position:
    """Restore the log's newest state to a new file, `image`, and return where the log ends. `newest`: the newest commit
    that `database` has been at.

    Raises LogDamaged when the log ends before that or is another log, NotServed when its state is not for this release.
    """
    head = log.restore(image)
    try:
        check_goes_on(head, log, database, newest)
    except LogDamaged:
        image.unlink()
        raise
    if head != START:
        with opened_image(image) as connection:
            check_log_served(connection, log, schema)
    return head


def check_goes_on(head: Position, log: CommitLog, database: Path, newest: Position) -> None:
    """Raise LogDamaged when the log, which ends at `head`, ends before `newest` or is another one. `newest`: the newest
    commit that `database` has been at.
    """
    is_another = head.log_id and newest.log_id and head.log_id != newest.log_id
    if head.txid < newest.txid or is_another:
        note = database.with_name(f"{database.name}.position")
        found = f"is the log {head.log_id:016x}" if is_another else f"ends at TXID {head.txid:016x}"
        seen = f"of {newest.log_id:016x}" if is_another else f"at {newest.txid:016x}"
        raise LogDamaged(
            f"{log.url} {found}, but {database} has been {seen}: "
            f"the log was {'replaced' if is_another else 'emptied'} or REPLICA_URL is wrong. "
            + (
                f"To begin a log with this file, remove {note}"
                if head == START
                else f"To serve that log, move {database} and {note.name} away"
            )
        )


def check_log_served(connection: apsw.Connection, log: CommitLog, schema: Schema) -> None:
    """Raises NotServed when the log's newest state, on which this connection is open, is not for this release."""
    try:
        if not is_new(connection):
            schema.check(connection)
    except NotServed as error:
        raise type(error)(
            f"The newest state at {log.url} cannot be served. {error}. Nothing was written to it; if the log "
            "is another program's, set REPLICA_URL to a prefix of its own; if somebody has spoilt this one, "
            "`python -m infra sql` may drop what is in the way, and `python -m infra restore --txid N` brings an "
            "earlier state back"
        ) from error
