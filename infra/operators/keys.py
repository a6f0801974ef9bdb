"""Keys of callers, made and revoked as `sql` changes rows: by commits of the log, whoever serves it meanwhile."""

import re
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import apsw
import peewee

from core.api_keys import KeyView
from core.errors import CommitOutcomeUnknown, NotServed, SettingsError
from core.migrations import check_served
from core.stored import as_stored
from infra.clock import Clock
from infra.commitlog import CommitLog, open_database, opened_image
from infra.operators.sql import private_copy
from infra.settings import Settings
from infra.sqlite_errors import translated_errors

T = TypeVar("T")

_DAYS = re.compile(r"([1-9][0-9]{0,4})d", re.ASCII)
_SECONDS = 60.0  # to try to commit
_LONGEST = 100  # characters of a name


def parse_name(text: str) -> str:
    """Raises SettingsError for what would not be readable in a list."""
    if not text.strip() or len(text) > _LONGEST or not text.isprintable():
        raise SettingsError(
            f"{text!r} is no name for a key: 1 to {_LONGEST} printable characters, not all of them blank"
        )
    return text


def parse_expiry(text: str) -> str:
    """A moment still to come, as it is stored; `30d` is so many days from now. Raises SettingsError."""
    now = datetime.now(UTC)
    if days := _DAYS.fullmatch(text):
        return as_stored(now + timedelta(days=int(days[1])))
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError("without a time zone")
        moment = moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise SettingsError(f"--expires {text!r} is no time; write it as 2027-01-31T00:00:00Z, or as 30d") from None
    if moment <= now:
        raise SettingsError(f"--expires {text!r} has passed; it is {now.isoformat(timespec='seconds')}")
    return as_stored(moment)


def in_log(log: CommitLog, file: Path, use_case: Callable[[peewee.Database], T]) -> T:
    """Run a use case in the log's newest state; when this returns, what it has changed is in the log.

    `file`: where a private copy is to be. Raises NotServed when the log has no table of keys yet.
    """
    clock = Clock()
    with private_copy(log, clock, file) as replica:
        if not check_served(replica.reader.connection()):
            raise NotServed(f"{log.url} is of an older release, without keys: start this release's service once")
        try:
            return replica.write(use_case, clock.now() + _SECONDS, clock.now())
        except CommitOutcomeUnknown as error:
            raise CommitOutcomeUnknown(
                f"it is not known whether TXID {error.txid:016x} is this commit ({error}). Once `python -m infra log` "
                "shows that TXID or a later one, `python -m infra keys list` tells; revoke a key that nobody was told",
                error.txid,
            ) from error


def in_postgresql(settings: Settings, use_case: Callable[[peewee.Database], T]) -> T:
    """The same where PostgreSQL is the database: a transaction like any other."""
    from infra.postgresql import run_once  # and its driver

    try:
        return run_once(settings, use_case)
    except CommitOutcomeUnknown as error:
        raise CommitOutcomeUnknown(
            f"it is not known whether that is stored ({error}): `python -m infra keys list` tells; revoke a key that "
            "nobody was told",
            error.txid,
        ) from error


def keep_callers(database: Path, newest: Path) -> None:
    """Make the keys in a database file those of another one, which nobody writes."""
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI
    with translated_errors(database), closing(open_database(str(database), flags)) as connection:
        connection.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)
        connection.execute("ATTACH ? AS newest", (f"{newest.absolute().as_uri()}?immutable=1",))
        with connection:
            theirs = _columns(connection, "newest")
            columns = ", ".join(name for name in _columns(connection, "main") if name in theirs)
            if not theirs:  # of a release without keys: nobody has one
                connection.execute("DELETE FROM main.api_keys")
            elif _differ(connection, columns):
                connection.execute("DELETE FROM main.api_keys")
                copy = f"INSERT INTO main.api_keys ({columns}) SELECT {columns} FROM newest.api_keys"  # noqa: S608
                connection.execute(copy)


def keys_in(database: Path) -> int:
    """How many a file has, which nobody writes, that were not revoked."""
    with translated_errors(database), opened_image(database) as connection:
        if not connection.execute("SELECT 1 FROM pragma_table_info('api_keys')").fetchall():  # of an older release
            return 0
        return len(connection.execute("SELECT id FROM api_keys WHERE revoked_at IS NULL").fetchall())


def _columns(connection: apsw.Connection, schema: str) -> list[str]:
    found = connection.execute("SELECT name FROM pragma_table_info('api_keys', ?)", (schema,)).fetchall()
    return ['"{}"'.format(str(name).replace('"', '""')) for (name,) in found]


def _differ(connection: apsw.Connection, columns: str) -> bool:
    """What is the same is left as it is: there may be nothing to commit."""
    mine, theirs = (
        connection.execute(f"SELECT {columns} FROM {schema}.api_keys ORDER BY {columns}").fetchall()  # noqa: S608
        for schema in ("main", "newest")
    )
    return mine != theirs


def state_of(key: KeyView, moment: str) -> str:
    """Say in a word whether it lets anybody in at a moment, which is as it is stored."""
    if key.revoked_at:
        return "revoked"
    return "expired" if key.expires_at and key.expires_at <= moment else "valid"


def as_line(key: KeyView, moment: str) -> str:
    """Write it for a terminal."""
    return (
        f"{key.id:<8}  {state_of(key, moment):<7}  {key.scopes:<14}  made {key.created_at[:10]}, "
        f"{f'expires {key.expires_at[:16]}Z' if key.expires_at else 'never expires'}, "
        f"{f'used {key.last_used_on}' if key.last_used_on else 'never used'}: {key.name}"
    )
