"""Errors of SQLite, and of the system below it, as the service's own."""

import errno
from pathlib import Path

import apsw
import peewee

from core import errors
from core.migrations import what_is_missing

WRITES_ARE_STOPPED = "writes are stopped: "  # what the triggers of infra/moving/write_stop.py say, and no others


class translated_errors:
    """What happens to the file, and what stands in it against a write, as our errors. A fault of the code (bad SQL)
    stays what it is.
    """

    __slots__ = ("_path",)

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, peewee.PeeweeException | apsw.Error | OSError | errors.WriteRefused):
            translated = _translate(error, self._path)
            if translated is not None:
                raise translated from error


def root_cause(error: Exception, path: Path) -> Exception:
    """What came first: once SQLite has ended a transaction, each statement on the way out of it fails as well.

    An error that somebody has made out of it on purpose stays what it is.
    """
    if isinstance(error, errors.ServiceError) or not isinstance(error, peewee.PeeweeException | apsw.Error):
        return error
    first: Exception = error
    context = error.__context__
    while isinstance(context, Exception):
        # Peewee's error has SQLite's inside; one of ours may be both, and says already what was below it
        if isinstance(context, errors.ServiceError):
            first = context
            break
        if not isinstance(context, apsw.Error):
            first = context
        context = context.__context__
    return _translate(first, path) or first


def _translate(error: Exception, path: Path) -> errors.ServiceError | None:
    cause = getattr(error, "orig", error)  # Peewee keeps the driver's error there
    match cause:
        case errors.WriteRefused(__cause__=Exception() as refusal):  # a use case has said which row it was
            return stop if isinstance(stop := _translate(refusal, path), errors.WritesStopped) else None
        case errors.ServiceError():  # raised below SQLite, which has handed it on
            return None
        case apsw.BusyError() | apsw.LockedError() | apsw.ProtocolError():
            return errors.DatabaseLocked(f"{path} is locked by another connection.")
        case apsw.FullError() | OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return errors.DatabaseFull(f"No space left for {path}: free disk space, nothing was written.")
        case apsw.InterruptError():
            return errors.TransactionTooSlow("The request took too long in the database and was stopped.")
        case apsw.CantOpenError() | apsw.IOError() | apsw.ReadOnlyError() | apsw.PermissionsError() | OSError():
            return errors.DatabaseUnavailable(f"{path} cannot be opened or written: {_said(cause)}")
        case apsw.ConstraintError() if getattr(cause, "extendedresult", 0) == apsw.SQLITE_CONSTRAINT_FOREIGNKEY:
            why = "a row would refer to one that is not there, or not any more"
            return errors.WriteRefused(f"The database refuses it: {cause}; {why}")
        case apsw.ConstraintError() if str(cause).startswith(WRITES_ARE_STOPPED):
            return errors.WritesStopped(str(cause))
        case apsw.ConstraintError() | apsw.MismatchError() | apsw.TooBigError():
            return errors.WriteRefused(f"The database refuses it: {cause}")
        case apsw.SQLError() if missing := what_is_missing(cause):
            return errors.NotServed(f"{path} needs the {missing}, which is not here.")
        case apsw.CorruptError() | apsw.NotADBError():
            return errors.DatabaseDamaged(f"{path} is damaged ({_said(cause)}): a restart rebuilds it from the log.")
    return None


def _said(cause: Exception) -> str:
    """SQLite's words are the same for every disk error; what it was doing is in the extended code alone."""
    code = apsw.mapping_extended_result_codes.get(getattr(cause, "extendedresult", 0))
    return f"{cause} ({code})" if code else str(cause)
