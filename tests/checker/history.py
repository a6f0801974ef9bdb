"""What was asked and answered, and when: the evidence that the checks judge."""

import json
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

NO_ANSWER = 0  # the status of an operation whose connection ended before all of the answer was there


class Row(NamedTuple):
    """An item, as far as it is compared."""

    id: int
    name: str
    description: str | None
    quantity: int
    version: int


@dataclass(slots=True)
class Operation:
    """One request and its answer. Times are seconds by one monotonic clock, the checker's; TXIDs are 0 for none."""

    kind: str  # create, invalid, patch, delete, item, list
    client: str
    server: int
    freshness: float  # READ_FRESHNESS_SECONDS of the server
    value: str = ""  # the name that is created, the description that is set: unique to this operation
    item: int = 0
    q: str = ""
    sent: int = 0  # X-Commit-Txid, taken from an earlier answer
    invoked: float = 0.0
    returned: float = 0.0
    status: int = NO_ANSWER
    token: int = 0  # X-Commit-Txid of the answer
    stored: str = ""  # of a problem
    named: int = 0  # the TXID that a problem names for a write of unknown outcome
    rows: list[Row] = field(default_factory=list)

    @property
    def is_write(self) -> bool:
        return self.kind in ("create", "invalid", "patch", "delete")

    @property
    def is_acknowledged(self) -> bool:
        return self.is_write and 200 <= self.status < 300

    @property
    def is_unknown(self) -> bool:
        if self.status == 503:
            return self.is_write and self.stored != "no"
        return self.is_write and (self.status == NO_ANSWER or self.status >= 500)

    @property
    def shows_state(self) -> bool:
        """Whether the answer tells what is in the database: also a 404 does, for an item."""
        return (self.status == 200 and not self.is_write) or self.status == 404


@dataclass(frozen=True, slots=True)
class Window:
    """Something that was so from one moment to another.

    `empty`: the log's prefix held nothing. `moving`: it was being emptied or filled, or empty. `asleep`: both clocks of
    a server stood still while time passed.
    """

    kind: str
    begin: float
    end: float
    server: int = -1

    def overlaps(self, operation: Operation) -> bool:
        return operation.invoked < self.end and operation.returned > self.begin

    def holds(self, operation: Operation) -> bool:
        return self.begin < operation.invoked and operation.returned < self.end


class History:
    """Of one round; any thread may add to it."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.windows: list[Window] = []
        self.shell: list[tuple[int, str]] = []  # server, name: rows that a shell has committed to the server's file
        self.faults: list[tuple[float, str]] = []
        self._lock = threading.Lock()

    def add(self, operation: Operation) -> None:
        with self._lock:
            self.operations.append(operation)

    def note(self, moment: float, text: str) -> None:
        with self._lock:
            self.faults.append((moment, text))

    def write(self, path: Path) -> None:
        """One JSON object a line, by time: operations and what the nemesis did."""
        lines: list[tuple[float, dict[str, object]]] = [(op.invoked, asdict(op)) for op in self.operations]
        lines += [(window.begin, {"window": asdict(window)}) for window in self.windows]
        lines += [(moment, {"at": moment, "nemesis": text}) for moment, text in self.faults]
        lines.sort(key=lambda line: line[0])
        with path.open("w") as file:
            for _, line in lines:
                file.write(json.dumps(line) + "\n")
