"""The migrations on PostgreSQL, and on what speaks its protocol.

Each statement is a transaction of its own, as Aurora DSQL wants it of those that change a schema. So a start that is
killed leaves a migration half done, and the next one runs it again from its first statement: each must say `IF NOT
EXISTS`, or what else lets it run twice. A row of `schema_migrations` is the lease of whoever runs that migration, and
says afterwards that it is done.
"""

import logging
import re
import secrets
import time
from collections.abc import Iterator
from typing import Any

from peewee import Database, PeeweeException

from core.dialects import state_of
from core.errors import DatabaseLocked, NotServed, StatementRefused
from core.migrations import check_known, schema_after, scripts
from core.statements import first_word, shortened

logger = logging.getLogger(__name__)

UNFINISHED_MOVE = "unfinished_move"  # a table; while it is there, all else is the move's

LEASE_SECONDS = 60  # without a sign of whoever has it: each statement is one
PATIENCE_SECONDS = 60.0  # with somebody else who migrates

_POLL_SECONDS = 0.1
_ATTEMPTS = 5  # of a statement that another one was in the way of
_IN_THE_WAY = (
    "40001",
    "40P01",
    "23505",
    "42P07",
    "42710",
    "XX000",
)  # two that create the same: not always a clean error
_FAULTS = ("0A", "21", "22", "23", "2B", "3F", "42", "44", "54", "P0", "XX")  # of a statement, or of what it meets
_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    number bigint PRIMARY KEY,
    holder text NOT NULL,
    held_until timestamptz NOT NULL,
    finished_at timestamptz
)
"""
_COLUMNS = {"number", "holder", "held_until", "finished_at"}
_HOLD = """
INSERT INTO schema_migrations AS lease (number, holder, held_until)
VALUES (%s, %s, now() + make_interval(secs => %s))
ON CONFLICT (number) DO UPDATE SET holder = excluded.holder, held_until = excluded.held_until
WHERE lease.finished_at IS NULL AND (lease.holder = excluded.holder OR lease.held_until < now())
RETURNING number
"""
_FINISH = "UPDATE schema_migrations SET finished_at = now() WHERE number = %s AND finished_at IS NULL"
_VERSION = "SELECT coalesce(max(number), 0) FROM schema_migrations WHERE finished_at IS NOT NULL"
_FOUND = """
SELECT table_name, column_name, is_nullable = 'NO' FROM information_schema.columns WHERE table_schema = current_schema()
"""
# In quotes of each kind, in dollars, or in a comment a semicolon ends nothing
_PART = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|(?P<dollars>\$\w*\$).*?(?P=dollars)|--[^\n]*|/\*.*?\*/|(?P<end>;)""", re.DOTALL
)


def schema_version(db: Database, *, for_move: bool = False) -> int:
    """0: nothing is there. Raises NotServed for a database that is another program's, or that a move has not filled
    yet; `for_move`: unless it is that which asks.
    """
    tables = _tables(db)
    if tables.pop(UNFINISHED_MOVE, None) and not for_move:
        raise NotServed(
            "A move into this database has not come to its end: run `python -m infra move` again, or with --cancel"
        )
    if "schema_migrations" not in tables:
        if tables:
            raise NotServed(
                f"It is not a database of this service, but has tables of another program ({listed(tables)}): give "
                "the service one of its own, or a schema of its own that comes first in its user's search_path"
            )
        return 0
    if missing := _COLUMNS - tables["schema_migrations"].keys():
        raise NotServed(
            f"It is not a database of this service: its table schema_migrations lacks {listed(missing)}, so it is "
            "another program's. Give the service a database of its own"
        )
    return int(db.execute_sql(_VERSION).fetchone()[0])


def is_migrated(db: Database) -> bool:
    """Ask whether `migrate` would find nothing to do. Raises NotServed, as that does."""
    known = len(scripts("postgresql"))
    return schema_version(db) in (known, known + 1)


def migrate(db: Database, *, is_dsql: bool = False, for_move: bool = False) -> int:
    """Bring the database to the newest schema, and return the version it has. It runs outside of any transaction, in
    any number of processes at once, of which one does the work and the others wait.

    Raises SchemaTooNew for what only a newer release serves, NotServed for a database that is another program's or
    lacks what its version has, StatementRefused for a migration that cannot run, DatabaseLocked when another process
    takes too long to migrate; what was done by then is done.
    """
    _check_encoding(db)
    wanted, holder, given_up = scripts("postgresql"), secrets.token_hex(8), time.monotonic() + PATIENCE_SECONDS
    while (found := schema_version(db, for_move=for_move)) < len(wanted):
        _run(db, "The table of the migrations", _TABLE)
        if _hold(db, found + 1, holder):
            _run_script(db, found + 1, wanted[found], holder, is_dsql)
            given_up = time.monotonic() + PATIENCE_SECONDS
        elif time.monotonic() > given_up:
            raise DatabaseLocked(
                f"Another process is still at migration {found + 1} of the database: it is waited for."
            )
        else:
            time.sleep(_POLL_SECONDS)
    check_known(found)
    check_whole(db, found)
    return found


def check_whole(db: Database, version: int) -> None:
    """Raises NotServed when the database lacks a table or a column that its version has, by SQLite's files."""
    tables = _tables(db)
    for table, columns in schema_after(min(version, len(scripts()))).columns.items():
        found = tables.get(table, {})
        missing = {column.name for column in columns if not found.get(column.name, False) >= column.not_null}
        missing |= {column.name for column in columns} - found.keys()
        if missing:
            raise NotServed(
                f"It lacks what schema version {version} has in table {table}: {listed(missing)} (or its user may "
                "not see it)"
            )


def statements(script: str) -> Iterator[str]:
    """Split at the semicolons that end a statement, as PostgreSQL sees it."""
    begin = 0
    for part in _PART.finditer(script):
        if part["end"]:
            yield from _unless_empty(script[begin : part.start()])
            begin = part.end()
    yield from _unless_empty(script[begin:])


def for_dsql(statement: str) -> str:
    """The same for Aurora DSQL, which sorts by bytes alone, and makes indexes in the background."""
    statement = statement.replace(' COLLATE "C"', "")
    return re.sub(r"\bCREATE (UNIQUE )?INDEX (?!ASYNC)", r"CREATE \1INDEX ASYNC ", statement)


def _run_script(db: Database, number: int, script: str, holder: str, is_dsql: bool) -> None:
    for statement in statements(script):
        if not _hold(db, number, holder):
            logger.warning("migration %d took too long: another process has taken it over", number)
            return
        told = for_dsql(statement) if is_dsql else statement
        _run(db, f"Migration {number}, {shortened(statement)}", told.replace("%", "%%"))
    _run(db, f"The end of migration {number}", _FINISH, (number,))
    logger.info("migration %d is done", number)


def _hold(db: Database, number: int, holder: str) -> bool:
    """Take the lease of a migration, or go on holding it; False while another process has it, or when it is done."""
    return bool(_run(db, f"The lease of migration {number}", _HOLD, (number, holder, LEASE_SECONDS)).fetchall())


def _run(db: Database, what: str, statement: str, values: tuple[Any, ...] = ()) -> Any:
    for attempt in range(_ATTEMPTS):
        try:
            return db.execute_sql(statement, values)
        except PeeweeException as error:
            state = state_of(error)
            if state in _IN_THE_WAY and attempt + 1 < _ATTEMPTS:
                time.sleep(_POLL_SECONDS * secrets.randbelow(100) / 100)
                continue
            if state[:2] in _FAULTS:
                raise StatementRefused(f"{what}: {error}".strip()) from error
            raise
    raise AssertionError


def _check_encoding(db: Database) -> None:
    encoding = db.connection().info.parameter_status("server_encoding")
    if encoding not in ("UTF8", None):
        raise NotServed(
            f"The database keeps its text as {encoding}: create one with ENCODING 'UTF8' TEMPLATE template0"
        )


def _tables(db: Database) -> dict[str, dict[str, bool]]:
    """Of the schema that the service writes to: for each column whether it is NOT NULL."""
    found: dict[str, dict[str, bool]] = {}
    for table, column, not_null in db.execute_sql(_FOUND).fetchall():
        found.setdefault(table, {})[column] = not_null
    return found


def listed(names: Any) -> str:
    """The first few of them, for a message."""
    shown = sorted(names)
    return ", ".join(shown[:5]) + (", ..." if len(shown) > 5 else "")


def _unless_empty(statement: str) -> Iterator[str]:
    if first_word(statement):
        yield statement.strip()
