"""Blocks of a snapshot that were fetched, in a file of bounded size: the least recently used one gives way."""

import errno
import os
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

_FEWEST = 8  # slots, however little room was asked for


class PageCache:
    """Slots of one block each in a file of its own. One thread at a time; raises OSError."""

    def __init__(self, path: Path, block_size: int, most_bytes: int) -> None:
        """Begin an empty file. `block_size`: bytes. `most_bytes`: how long the file may become."""
        self.slots = max(most_bytes // block_size, _FEWEST)  # as many as there may be; none once it is closed
        self._path = path
        self._block_size = block_size
        self._slot_of: OrderedDict[int, int] = OrderedDict()  # by block, the least recently used first
        self._begun = 0  # how many slots the file has
        path.unlink(missing_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def __contains__(self, block: int) -> bool:
        return block in self._slot_of

    def read(self, block: int, begin: int, end: int) -> bytes | None:
        """Return a part of a block, from offset `begin` to before `end`, or None if the block is not here."""
        slot = self._slot_of.get(block)
        if slot is None:
            return None
        self._slot_of.move_to_end(block)
        found = os.pread(self._file, end - begin, slot * self._block_size + begin)
        if len(found) != end - begin:
            raise OSError(errno.EIO, f"{self._path} was cut off by somebody else")
        return found

    def put(self, block: int, content: bytes) -> None:
        """Keep a block; where the disk has little room only in the place of another one, and without one not at all."""
        if self._begun < self.slots:
            if self._leaves_room() and self._write(block, self._begun, content):
                self._begun += 1
                return
            self.slots = self._begun
        if self._slot_of:
            _, slot = self._slot_of.popitem(last=False)
            self._write(block, slot, content)  # a slot that a full disk takes no more is not used again

    def close(self) -> None:
        """Remove the file; from then on no block is here, and none is kept."""
        self._slot_of.clear()
        self.slots = self._begun = 0
        os.close(self._file)
        with suppress(OSError):  # of a private directory, which may be gone
            self._path.unlink(missing_ok=True)

    def _leaves_room(self) -> bool:
        """Whether the disk has as much left as the file takes, with one slot more: the database is to grow, too."""
        disk = os.fstatvfs(self._file)
        return disk.f_bavail * disk.f_frsize >= (self._begun + 2) * self._block_size

    def _write(self, block: int, slot: int, content: bytes) -> bool:
        begin = slot * self._block_size
        try:
            if os.pwrite(self._file, content, begin) == len(content):
                self._slot_of[block] = slot
                return True
            if slot == self._begun:
                os.ftruncate(self._file, begin)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
        return False
