"""The history beside the database, `<database>.history`: what a restart must not forget. It is no part of the database.

Its format: a line with the CRC-32 of all that follows it, 8 hex digits; a line of JSON with what there is one of; and
one for each slot, in which what is 0 or empty is left out.
"""

import json
import logging
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, fields
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal
from zlib import crc32

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.disk.ownership import give_to_owner_of
from infra.objectives.history import HOUR, MINUTE, History, Noted, Ring, Slot
from infra.objectives.status import Cause, State
from infra.telemetry.catalogue import DURATION_BUCKETS
from infra.telemetry.metrics import Totals

logger = logging.getLogger(__name__)

_VERSION = 1
_MOST_BYTES = 4 * 1024 * 1024
_TOGETHER = 50  # slots that are written before another thread gets its turn
_RINGS = ("minutes", "hours")
_FAR_AWAY = 200_000_000_000  # seconds since 1970, in the year 8307
_BUCKETS = len(DURATION_BUCKETS) + 1
_COUNTED = tuple(each.name for each in fields(Totals))
_NONE = (0, (0,) * _BUCKETS)

Count = Annotated[int, Field(ge=0, lt=2**63)]
Counts = Annotated[list[Count], Field(min_length=_BUCKETS, max_length=_BUCKETS)]
Number = Annotated[float, Field(ge=0, lt=2**63, allow_inf_nan=False)]
Moment = Annotated[float, Field(ge=0, lt=_FAR_AWAY, allow_inf_nan=False)]


class _Head(BaseModel):
    model_config = ConfigDict(extra="forbid", defer_build=True)

    version: Literal[1]
    began: Moment
    until: Moment
    state: State
    since: Moment
    firing: dict[str, Moment]
    unready: str
    degraded: str
    cause: Cause = "store"
    unwritable: str = ""
    txid: Count
    fell: Moment
    gauges: dict[str, Annotated[float, Field(allow_inf_nan=False)]]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", defer_build=True)

    ring: Literal["minutes", "hours"]
    number: Annotated[int, Field(ge=0, lt=_FAR_AWAY // MINUTE)]
    ready: Annotated[float, Field(ge=0, le=HOUR)] = 0.0
    starts: Count = 0
    requests: Count = 0
    errors: Count = 0
    durations: Counts = [0] * _BUCKETS
    queries: Counts = [0] * _BUCKETS
    commits: Count = 0
    conflicts: Count = 0
    unknown: Count = 0
    writes: Count = 0
    refused: Count = 0
    locked: Count = 0
    gauges: dict[str, Number] = {}

    def slot(self) -> Slot:
        counted = self.model_dump(exclude={"ring", "number", "ready", "starts", "gauges"})
        found: dict[str, Any] = {name: tuple(it) if isinstance(it, list) else it for name, it in counted.items()}
        counts = Totals(**found)
        return Slot(self.number, self.ready, self.starts, counts, self.gauges)


class HistoryFile:
    """Reads and writes the history of one database."""

    def __init__(self, database: Path) -> None:
        self.path = database.with_name(database.name + ".history")
        self._directory = database.parent

    def read(self) -> History | None:
        """Return what was kept; None when there is nothing, or nothing that can be used, which the log says."""
        try:
            body = self._content()
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("%s cannot be read, and is begun anew: %s", self.path, error.strerror)
            return None
        try:
            return _decoded(body)
        except (ValueError, ValidationError) as error:
            why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            logger.warning("%s is no history that this release reads, and is begun anew: %s", self.path, why)
            return None

    def seen_at(self) -> float:
        """Return when a server was last known to be there, seconds since 1970; 0 for never."""
        try:
            return self.path.stat().st_mtime
        except OSError:
            return 0.0

    def touch(self) -> None:
        """Say that the server is there, which needs no room on the disk. Raises OSError."""
        os.utime(self.path)

    def write(self, history: History) -> None:
        """Put it in place of the one before. Raises OSError."""
        body = b"".join(_lines(history))
        unfinished = self.path.with_name(self.path.name + ".new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        with open(os.open(unfinished, flags, 0o600), "wb") as file:  # noqa: PTH123  # a descriptor
            give_to_owner_of(self._directory, file.fileno())
            file.write(f"{crc32(body):08x}\n".encode() + body)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self.path)

    def _content(self) -> bytes:
        # whatever somebody has put there, a pipe say: nobody waits for it
        descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:  # noqa: PTH123  # a descriptor
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return b""
            return file.read(_MOST_BYTES)


def _lines(history: History) -> Iterator[bytes]:
    noted = asdict(history.noted)
    yield _json({"version": _VERSION, "began": history.began, "until": history.until, **noted})
    for name in _RINGS:
        ring: Ring = getattr(history, name)
        for index, slot in enumerate(ring.slots):
            if index % _TOGETHER == 0:
                time.sleep(0)
            counts = {name: value for name in _COUNTED if (value := getattr(slot.counts, name)) not in _NONE}
            seen = {"ready": round(slot.ready, 3), "starts": slot.starts, "gauges": slot.gauges}
            yield _json({"ring": name, "number": slot.number, **{key: it for key, it in seen.items() if it}, **counts})


def _json(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def _decoded(content: bytes) -> History:
    """Raises ValueError."""
    checksum, _, body = content.partition(b"\n")
    if checksum != f"{crc32(body):08x}".encode():
        raise ValueError("it is damaged, or cut off")
    first, *rest = body.splitlines()
    head = _Head.model_validate_json(first)
    history = History(head.began)
    history.until = head.until
    history.noted = Noted(**head.model_dump(exclude={"version", "began", "until"}))
    for line in map(_Line.model_validate_json, rest):
        ring: Ring = getattr(history, line.ring)
        ring.slots.append(line.slot())
    for name in _RINGS:
        ring = getattr(history, name)
        if len(ring.slots) > ring.most or any(a.number >= b.number for a, b in pairwise(ring.slots)):
            raise ValueError(f"its {name} are not in order")
    return history
