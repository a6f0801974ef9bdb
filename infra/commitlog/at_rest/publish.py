"""A database file as the log's next commit, whatever the log has: somebody has decided so."""

from collections.abc import Callable
from pathlib import Path

from core.errors import CommitConflict
from infra.clock import Clock
from infra.commitlog.at_rest.alone import check_sound, consolidated, give_pages_of
from infra.commitlog.at_rest.file_commit import FileCommits
from infra.commitlog.chain import START, Position
from infra.commitlog.log import CommitLog
from infra.commitlog.raw_file import page_size_of

_BUSY_SECONDS = 5.0  # to wait for another program


def publish_file(
    path: Path, log: CommitLog, clock: Clock, keep: Callable[[Path, Path], None] = lambda path, newest: None
) -> tuple[Position, Position]:
    """Make a file's content the log's next commit, with no connection of this process open.

    `keep` may change the file before, by what is in the log's newest state, an image of which is at the second path.
    Returns where the log ended before, and where it ends now: the same if there was no difference. Raises what
    CommitLog raises, and DatabaseError when the file cannot be used.
    """
    commits = FileCommits(path, log, clock)
    image = path.with_name(f"{path.name}.comparing")
    with consolidated(path, _BUSY_SECONDS) as connection:
        check_sound(connection, path)
    while True:
        image.unlink(missing_ok=True)
        head = log.restore(image)
        try:
            if head != START:
                keep(path, image)
                give_pages_of(page_size_of(image), path, _BUSY_SECONDS)
            with consolidated(path, _BUSY_SECONDS) as connection:
                if head == START:
                    return head, commits.append_first(connection)
                difference = commits.difference(connection, image)
                return head, commits.append_next(head, difference) if difference.pages else head
        except CommitConflict:
            continue
        finally:
            image.unlink(missing_ok=True)
