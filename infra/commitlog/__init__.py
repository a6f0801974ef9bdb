"""Every commit of the SQLite database as one immutable object, ordered by the object store.

This is an engine: whoever uses it imports from here or from `infra.commitlog.upkeep`, never from deeper. The path of
one commit, from top to bottom:

    replica.py         again after each conflict, until the commit is in the log: one look at what others have done
    group.py           the writes that wait share a transaction, each in a savepoint
    open_file.py       begins it, and keeps what may not become a commit from becoming one
    vfs.py             SQLite writes the frames; the last one's header, the commit mark, is held back until the sync
    commit.py          the changed pages, on top of the commit that the file is at
    log.py             creates the object under the next number, only if it is absent, and settles what that became
    head.py            by looking, after the store's reply, whether the commit before it still stands
    objects.py         what objects are called, and how they are read and listed
    position_file.py   then the note beside the file says which commit it is at
    vfs.py             and the commit mark is written: only now a reader can see it

A start goes through `at_rest/`, which brings the file to the log's head; docs/commit-log.md has the whole of it.
"""

from infra.commitlog.at_rest.file_commit import START_SECONDS
from infra.commitlog.at_rest.kept import kept_files
from infra.commitlog.at_rest.publish import publish_file
from infra.commitlog.at_rest.row_changes import statements as statements_of_changes
from infra.commitlog.chain import START, LogObject, Position
from infra.commitlog.defences import OUT_OF_PROPORTION, defend, in_proportion, open_database
from infra.commitlog.group import Write
from infra.commitlog.log import CommitLog, open_log
from infra.commitlog.observer import Observer, Unobserved
from infra.commitlog.paging.newest_snapshot import Paging
from infra.commitlog.replica import Replica
from infra.commitlog.schema import is_new, opened_image
from infra.commitlog.soundness import soundness_of

__all__ = [
    "OUT_OF_PROPORTION",
    "START",
    "START_SECONDS",
    "CommitLog",
    "LogObject",
    "Observer",
    "Paging",
    "Position",
    "Replica",
    "Unobserved",
    "Write",
    "defend",
    "in_proportion",
    "is_new",
    "kept_files",
    "open_database",
    "open_log",
    "opened_image",
    "publish_file",
    "soundness_of",
    "statements_of_changes",
]
