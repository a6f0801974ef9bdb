"""Who has written the newest commit of a log."""

from core.errors import LogInUse, ObjectMissing
from infra.commitlog.chain import START, Position
from infra.commitlog.log import CommitLog


def check_written_here(log: CommitLog, head: Position) -> None:
    """Raises LogInUse when the newest commit is of another program, as Litestream when it replicates to that place.

    Commits of this one have an id, and merged runs the checksum of their last commit, where Litestream writes 0.
    """
    if head != START and not (head.checksum and _has_commit_id(log, head)):
        raise LogInUse(
            f"{log.url} is being written by another program, such as `litestream replicate`: TXID {head.txid:016x} "
            "is not of this service. Both would destroy each other's commits, so nothing was written. Set REPLICA_URL "
            "to a prefix of its own; to take the data over, end that program, `litestream restore -o` the database to "
            "DATABASE_PATH, and start with the new prefix"
        )


def _has_commit_id(log: CommitLog, head: Position) -> bool:
    try:
        return log.header_of(head.txid).node_id != 0
    except ObjectMissing:
        return True  # merged, and so looked at already
