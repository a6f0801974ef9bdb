"""Checkpoints: pages move from the WAL into the database file, as far as nobody reads before them (backfill)."""

from dataclasses import dataclass

import apsw

CHECKPOINT_FRAMES = 1000  # of one page each; SQLite's own default


@dataclass(frozen=True, slots=True)
class Backfill:
    """How many frames of the WAL with these salts are in the file, too."""

    salts: bytes
    frames: int


@dataclass(frozen=True, slots=True)
class WalIndex:
    """What the WAL's index says: of which WAL, how many of its frames are committed, and how many are in the file."""

    salts: bytes
    frames: int
    in_file: int

    @classmethod
    def read(cls, connection: apsw.Connection, salts: bytes) -> "WalIndex":
        """Ask without a checkpoint. `salts`: those of the WAL that is there. Raises apsw.Error."""
        frames, in_file = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
        return cls(salts, max(frames, 0), in_file)

    @property
    def backfilled(self) -> Backfill:
        return Backfill(self.salts, self.in_file)


NO_BACKFILL = Backfill(b"", 0)
NOTHING = WalIndex(b"", 0, 0)


def backfill(connection: apsw.Connection) -> bool:
    """Move into the file what nobody keeps in the WAL; returns whether that is all of it. Raises apsw.Error."""
    in_wal, in_file = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
    return in_wal == in_file
