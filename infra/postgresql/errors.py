"""Errors of PostgreSQL and its driver, as the service's own."""

from collections.abc import Iterator

import peewee
import psycopg

from core import errors

CONFLICTS = {"40001", "40P01"}  # another transaction was first; the same runs well behind it
_LOST = {"57P01", "57P02", "57P03", "57P04", "57P05", "25P03", "25P04"}  # and class 08
_NO_PREPARED = {"26000", "42P05"}  # what is between gives each transaction another session
_DUPLICATE = "23505"
_ABORTED = "25P02"
WRITES_STOPPED = "WS001"  # of the triggers that a move has left behind: infra/moving/source.py

# What the server says before there is a session, of which the driver gives the text alone
_REFUSALS = (
    "password authentication failed", "no password supplied", "authentication failed", "no pg_hba.conf entry",
    "is not permitted to log in", "permission denied for database", "certificate", "does not support SSL",
    "invalid sslmode", "root certificate file", "SSL connection is required",
)  # fmt: skip
_NOT_THERE = ("role", "database")
_FULL = ("too many clients", "remaining connection slots", "too many connections")


def driver_error(error: BaseException) -> psycopg.Error | None:
    """What came first: once a statement has failed, so does each on the way out of its transaction."""
    found = None
    for cause in _chain(error):
        if isinstance(cause, psycopg.Error) and cause.sqlstate != _ABORTED:
            found = cause
    return found


def is_conflict(error: psycopg.Error | None) -> bool:
    return error is not None and error.sqlstate in CONFLICTS


def is_duplicate(error: psycopg.Error | None) -> bool:
    """Whether a row with this key is there, perhaps since this transaction began: then it is seen the next time."""
    return error is not None and error.sqlstate == _DUPLICATE


def is_lost(error: psycopg.Error | None) -> bool:
    """Whether the connection is gone, or the server's session."""
    if error is None:
        return False
    if error.sqlstate is None:
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return error.sqlstate in _LOST or error.sqlstate.startswith("08")


def is_stale(error: psycopg.Error) -> bool:
    """Whether the session knows a statement as it was before another release has migrated."""
    return error.sqlstate == "0A000" and "cached plan" in str(error)


def needs_plain_statements(error: psycopg.Error | None) -> bool:
    return error is not None and error.sqlstate in _NO_PREPARED


def is_refused(error: psycopg.Error) -> bool:
    """Whether a server that is there lets nobody in like this, so that to wait for it is of no use."""
    text = str(error)
    return any(part in text for part in _REFUSALS) or (
        "does not exist" in text and any(f'FATAL:  {what} "' in text for what in _NOT_THERE)
    )


def is_full(error: psycopg.Error) -> bool:
    """Whether others have all the connections that the server has."""
    return any(part in str(error) for part in _FULL)


def translated(error: psycopg.Error) -> errors.ServiceError | None:
    """None for a fault of the code, which stays what it is."""
    state, said = error.sqlstate or "", _said(error)
    match state, state[:2]:
        case "57014", _:
            return errors.TransactionTooSlow("The request took too long in the database and was stopped.")
        case _, _ if state == WRITES_STOPPED:
            return errors.WritesStopped(said)
        case "55P03", _:
            return errors.DatabaseLocked(f"Another transaction holds what the request needs: {said}")
        case "53100", _:
            return errors.DatabaseFull(f"No space is left on the database's server, nothing was written: {said}")
        case ("25006", _) | ("0A000", _) if state == "25006" or "recovery" in said or "standby" in said:
            return errors.DatabaseUnavailable(f"The database's server takes no writes: {said}")
        case "42501", _:
            return errors.DatabaseRefused(f"The database's user may not do that: {said}")
        case (("42P01" | "42703" | "3F000"), _):
            return errors.NotServed(f"The database lacks what this release needs: {said}")
        case _, ("22" | "23" | "54" | "P0"):  # the last: in a trigger's own words
            return errors.WriteRefused(f"The database refuses it: {said}")
        case _, ("08" | "53" | "57" | "58" | "XX"):
            return errors.DatabaseUnavailable(f"The database cannot be used now: {said}")
    if isinstance(error, psycopg.DataError):  # of the driver: what PostgreSQL's text cannot hold
        return errors.WriteRefused(f"The database refuses it: {said}")
    if is_lost(error):
        return errors.DatabaseUnavailable(f"The connection to the database is lost: {said}")
    return None


class translated_errors:
    """What happens to the database, and what stands in it against a write, as our errors."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, peewee.PeeweeException | psycopg.Error):
            found = driver_error(error)
            if found is not None and (service_error := translated(found)) is not None:
                raise service_error from error


def _said(error: psycopg.Error) -> str:
    """In one line, and without the values that it names: those of a row are its owner's."""
    text = error.diag.message_primary or str(error)
    return " ".join(text.split())


def _chain(error: BaseException) -> Iterator[BaseException]:
    """It, and what it came from; the first cause is the last."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        inner = getattr(found, "orig", None)  # Peewee keeps the driver's error there
        if isinstance(inner, BaseException):
            yield inner
        found = found.__cause__ or found.__context__
