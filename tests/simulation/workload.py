"""What the simulated clients do: use cases as the service has them, made so that every error shows."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import peewee

from core.errors import ItemNotFound, NotServed
from core.idempotency import Answer, Attempt, once
from core.migrations import scripts
from core.statements import statements

_SCHEMA = (
    # No unique write: applying one twice must show, not fail
    "CREATE TABLE IF NOT EXISTS writes (position INTEGER PRIMARY KEY, number INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS counter (id INTEGER PRIMARY KEY, value INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY, number INTEGER NOT NULL, payload BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS unique_only (value INTEGER UNIQUE)",
    next(statement for script in scripts() for statement in statements(script) if "idempotency_keys" in statement),
)
APPLICATION_ID = 0x53494D55
VERSION = 2  # of the schema; that of the release before is 1, and nothing else is known
_NEEDED = {"writes", "counter", "rows", "idempotency_keys"}
_KEEP_HOURS = 24
_REWRITES = 4  # one of so many writes writes old rows anew as well
SCHEMA_ONLY = 2  # the newest TXID that may be there without any client's write


class State(NamedTuple):
    """Everything in the database, small enough to compare."""

    writes: tuple[int, ...] = ()
    counter: int = 0
    rows: tuple[tuple[int, int, int], ...] = ()  # (write, rows, bytes)
    keys: tuple[int, ...] = ()  # the writes whose answers are kept


@dataclass
class Read:
    arrived: float
    at_least: int  # TXID
    freshness: float  # seconds


@dataclass
class Write:
    arrived: float
    at_least: int
    freshness: float
    number: int
    increments: bool = False
    rows: int = 0
    row_bytes: int = 0
    changes_mind: bool = False  # rolls a savepoint back
    ends: str = "commit"  # or "error", or "nothing": then it is a read; or "abort", which takes the transaction along
    has_key: bool = False  # so that it may be sent again: it is done once
    if_counter: int | None = None  # what it was when a client read it; if it is another now, nothing is changed
    seen: State = field(default_factory=State)  # by the last run
    runs: int = 0
    answer: Answer | None = None  # of the last run, when it has a key

    def __call__(self, database: peewee.Database) -> None:
        self.runs += 1
        self.seen = state_in(database)
        if self.has_key:
            attempt = Attempt("client", str(self.number), b"")
            self.answer = once(database, attempt, self._apply_and_answer, _KEEP_HOURS)
        else:
            self._apply(database)

    @property
    def is_repeated(self) -> bool:
        """Whether its answer is that of an attempt before."""
        return self.answer is not None and self.answer.is_repeated

    def sent_again(self, arrived: float, at_least: int) -> "Write":
        return replace(self, arrived=arrived, at_least=at_least, seen=State(), runs=0, answer=None)

    def _apply_and_answer(self, database: peewee.Database) -> Answer:
        self._apply(database)
        return Answer(201, {}, answer_on(self.seen))

    def _apply(self, database: peewee.Database) -> None:
        if self.ends == "error" or self.if_counter not in (None, self.seen.counter):
            raise ItemNotFound(self.number)
        if self.ends == "nothing":
            return
        if self.ends == "abort":
            database.execute_sql("INSERT OR ROLLBACK INTO unique_only (value) VALUES (1), (1)")
        database.execute_sql("INSERT INTO writes (number) VALUES (?)", (self.number,))
        if self.increments:
            database.execute_sql("UPDATE counter SET value = ?", (self.seen.counter + 1,))
        if self.number % _REWRITES == 0:
            self._write_old_rows_anew(database)
            self._take_room_for_nothing(database)
        if self.changes_mind:
            with database.atomic() as savepoint:
                self._insert_rows(database)
                savepoint.rollback()
        self._insert_rows(database)

    def _insert_rows(self, database: peewee.Database) -> None:
        for _ in range(self.rows):
            payload = self.number.to_bytes(4, "big") * (self.row_bytes // 4)
            database.execute_sql("INSERT INTO rows (number, payload) VALUES (?, ?)", (self.number, payload))

    def _write_old_rows_anew(self, database: peewee.Database) -> None:
        """On pages that perhaps nobody else has asked for; what a state says of them stays the same."""
        old = "SELECT id, length(payload) FROM rows WHERE number < ? ORDER BY id DESC LIMIT 3"
        for row, size in database.execute_sql(old, (self.number - _REWRITES,)).fetchall():
            payload = self.number.to_bytes(4, "big") * (size // 4)
            database.execute_sql("UPDATE rows SET payload = ? WHERE id = ?", (payload, row))

    def _take_room_for_nothing(self, database: peewee.Database) -> None:
        database.execute_sql("INSERT INTO rows (id, number, payload) VALUES (-1, 0, zeroblob(8000))")
        database.execute_sql("DELETE FROM rows WHERE id = -1")

    def applied_to(self, before: State) -> State:
        """What this write must make of a state."""
        rows = (self.number, self.rows, self.rows * (self.row_bytes // 4) * 4)
        return State(
            (*before.writes, self.number),
            before.counter + self.increments,
            tuple(sorted((*before.rows, *([rows] if self.rows else [])))),
            tuple(sorted((*before.keys, *([self.number] if self.has_key else [])))),
        )


def answer_on(before: State) -> bytes:
    """Of a write that was made on this state: no two are alike."""
    return f"number {len(before.writes) + 1}, the counter was {before.counter}".encode()


def has_schema(database: peewee.Database) -> bool:
    return "counter" in database.get_tables()


def create_schema(database: peewee.Database) -> None:
    if has_schema(database):
        return
    for statement in _SCHEMA:
        database.execute_sql(statement)
    database.execute_sql("INSERT INTO counter (value) VALUES (0)")
    database.execute_sql(f"PRAGMA application_id = {APPLICATION_ID}")
    database.execute_sql(f"PRAGMA user_version = {VERSION}")


class SimulatedSchema:
    """As the service tells its own databases from others."""

    def check(self, connection: apsw.Connection) -> bool:
        version = connection.pragma("user_version")
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
        if connection.pragma("application_id") != APPLICATION_ID or not 1 <= version <= VERSION or _NEEDED - tables:
            raise NotServed(f"It is of schema version {version} and lacks {sorted(_NEEDED - tables)}.")
        return bool(version == VERSION)

    def migrate(self, path: Path) -> None:
        with closing(apsw.Connection(str(path))) as connection, connection:
            connection.execute(f"PRAGMA user_version = {VERSION}")


def another_programs() -> bytes:
    """A database."""
    with closing(apsw.Connection(":memory:")) as connection:
        connection.execute("CREATE TABLE contacts (name); INSERT INTO contacts VALUES ('A'); PRAGMA user_version = 2")
        return connection.serialize("main")


def state_in(database: peewee.Database) -> State:
    return state_of(lambda sql: database.execute_sql(sql).fetchall())


def state_of(query: Callable[[str], list[Any]]) -> State:
    if not query("SELECT 1 FROM sqlite_schema WHERE name = 'counter'"):
        return State()
    return State(
        tuple(number for (number,) in query("SELECT number FROM writes ORDER BY position")),
        query("SELECT value FROM counter")[0][0],
        tuple(
            (number, rows, size)
            for number, rows, size in query(
                "SELECT number, count(*), sum(length(payload)) FROM rows GROUP BY number ORDER BY number"
            )
        ),
        tuple(sorted(int(key) for (key,) in query("SELECT key FROM idempotency_keys"))),
    )
