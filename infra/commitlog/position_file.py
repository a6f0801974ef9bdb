"""What a lasting database file should be: `<database>.position`, a small file beside it, written after every commit.

Its format: two slots of 512 bytes, written in turn, so that a torn write leaves the older one. A slot is the CRC-32 of
what follows the space after it, in 8 hex digits, and the fields of a `Note` as JSON; spaces,
which the checksum leaves out, and a newline fill it up. The slot with the higher `sequence` is the newer one.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from infra.commitlog.chain import START, Position
from infra.commitlog.file_state import FileState
from infra.commitlog.wal import WalEnd
from infra.disk.ownership import give_to_owner_of

_SLOT = 512  # bytes


@dataclass(frozen=True, slots=True)
class Note:
    """Which commit a database file is at, and how it was left."""

    position: Position
    checkpointed: int  # the TXID up to which the file has everything without its WAL
    wal: WalEnd | None = None  # what the file needs of its WAL to have all of `position`
    applying: bool = False  # the file is being written to past SQLite: torn, if nobody is at it
    closed: FileState | None = None  # the file as it was left, with all of it; None while it is in use

    @property
    def needs_wal(self) -> bool:
        """Whether some commit up to `position` may be in the file's WAL only."""
        return self.checkpointed != self.position.txid


class PositionFile:
    """Reads and writes the notes of one database. Raises OSError."""

    def __init__(self, database: Path, *, lasting: bool = True) -> None:
        """`lasting`: the database outlives this process. Of any other nothing is written."""
        self.newest = START  # the newest commit that the database has been at
        self.checkpointed = 0  # the TXID up to which the database has everything without its WAL
        self._lasting = lasting
        self.path = database.with_name(database.name + ".position")
        self._database = database
        self._sequence = 0
        self._descriptor: int | None = None

    def read(self) -> Note | None:
        """Return the newest note, or None when there is none that can be read."""
        if not self._lasting:
            return None
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        found = [_decode(content[start : start + _SLOT]) for start in (0, _SLOT)]
        newest = max((slot for slot in found if slot), key=lambda slot: slot[0], default=None)
        if newest is None:
            return None
        self._sequence = newest[0]
        return newest[1]

    def note(self, position: Position, wal: WalEnd | None = None) -> None:
        """Note which commit the database is at. `wal`: what it needs of its WAL to have all of that."""
        self.newest = position
        self.write(Note(position, self.checkpointed, wal))

    def write(self, note: Note) -> None:
        """Write over the older note. What was written outlives this process; a power cut only after `sync`."""
        if not self._lasting:
            return
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            give_to_owner_of(self._database.parent, self._descriptor)
        self._sequence += 1
        os.pwrite(self._descriptor, _encode(self._sequence, note), self._sequence % 2 * _SLOT)

    def sync(self) -> None:
        """Wait until what was written is on disk."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file; a later `write` opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _encode(sequence: int, note: Note) -> bytes:
    position, closed = note.position, note.closed
    fields = {
        "sequence": sequence,
        "position": [position.txid, position.checksum, position.timestamp, position.log_id],
        "checkpointed": note.checkpointed,
        "wal": note.wal and [note.wal.frames, note.wal.header.hex()],
        "applying": note.applying,
        "closed": closed and [closed.inode, closed.size, closed.modified_ns],
    }
    text = json.dumps(fields, separators=(",", ":")).encode()
    return f"{crc32(text):08x} ".encode() + text.ljust(_SLOT - 10) + b"\n"


def _decode(slot: bytes) -> tuple[int, Note] | None:
    checksum, _, text = slot.partition(b" ")
    text = text.rstrip()
    if checksum != f"{crc32(text):08x}".encode():
        return None
    fields = json.loads(text)
    closed = FileState(*fields["closed"]) if fields["closed"] else None
    wal = WalEnd(fields["wal"][0], bytes.fromhex(fields["wal"][1])) if fields["wal"] else None
    position = Position(*fields["position"])
    return fields["sequence"], Note(position, fields["checkpointed"], wal, fields["applying"], closed)
