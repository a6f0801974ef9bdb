"""What the objects of a log are called. The names are Litestream's.

In a bucket `<prefix>/<level, 4 hex digits>/<first TXID>-<last TXID>.ltx`, in a directory `ltx/<level>/...`, TXIDs as
16 hex digits. Level 0 holds one commit each, the levels 1 to 4 merged runs of them, level 9 snapshots; Litestream
itself writes others between, all of which are read.
"""

import re

from infra.commitlog.chain import LogObject
from infra.object_store import ObjectInfo

COMMITS, SNAPSHOTS = 0, 9  # levels

_BUCKETS_LEVEL = re.compile("000[0-9]")
_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.ltx")


class Names:
    def __init__(self, url: str) -> None:
        self._in_directory = url.startswith("file:")
        self.levels = "ltx" if self._in_directory else ""  # the directory that holds those of all levels

    def directory(self, level: int) -> str:
        return f"ltx/{level}" if self._in_directory else f"{level:04x}"

    def level_of(self, directory: str) -> int | None:
        text = directory.rpartition("/")[2]
        try:
            level = int(text, 10 if self._in_directory else 16)
        except ValueError:
            return None
        return level if directory == self.directory(level) else None

    def misnamed(self, directories: list[str]) -> str:
        """What these, right under the URL, are instead of a log of this service, and what to do."""
        found = set(directories)
        if "generations" in found:
            return (
                "generations/ is a replica of Litestream 0.3: restore it with that release (`litestream restore -o "
                "app.db`), start with that file at DATABASE_PATH, and set REPLICA_URL to a prefix of its own"
            )
        if self._in_directory and (level := min(filter(_BUCKETS_LEVEL.fullmatch, found), default="")):
            return (
                f"{level}/ is a log as a bucket has it: in a directory 0000/ is ltx/0/, 0001/ is ltx/1/, …: move them"
            )
        if not self._in_directory and "ltx" in found:
            return "ltx/ is a log as a directory has it: in a bucket ltx/0/ is 0000/, ltx/1/ is 0001/, …: move them"
        return ""

    def path(self, level: int, low: int, high: int) -> str:
        return f"{self.directory(level)}/{low:016x}-{high:016x}.ltx"

    def commit(self, txid: int) -> str:
        return self.path(COMMITS, txid, txid)

    def path_of(self, item: LogObject) -> str:
        return self.path(item.level, item.min_txid, item.max_txid)

    def object_of(self, level: int, info: ObjectInfo) -> LogObject | None:
        match = _NAME.fullmatch(info.name.rpartition("/")[2])
        if not match:
            return None
        low, high = (int(text, 16) for text in match.groups())
        return LogObject(level, low, high, info.size, info.modified, info.dated)
