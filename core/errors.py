"""Every error this service raises on purpose.

ServiceError
├── SettingsError               an environment variable is missing or wrong
│   └── MoveRefused             the data cannot be moved as they are, or not there
├── InvalidInput                the caller's input, field by field
├── NotFound                    what the caller names is not there
│   ├── ItemNotFound
│   └── KeyNotFound
├── KeyRefused                  an API key that lets nobody in
├── IdentityProviderUnavailable its public keys cannot be had
├── IdempotencyKeyReused        it came with another request before
├── DatabaseError
│   ├── DatabaseLocked          another connection held the write lock too long
│   ├── TooManyWrites           the queue of writes is full
│   ├── TooManyCopies           as many copies of it are being read as may be at once
│   ├── DatabaseFull            no space left for the database
│   ├── WritesStopped           for a while, or for good: the data is moved to another engine
│   ├── WriteRefused            the database's own constraint or trigger stands against it, or no id is left
│   ├── DatabaseInUse           another process owns the file
│   ├── DatabaseUnavailable     missing, replaced or unreadable file; a server that is away
│   │   ├── DatabaseRefused     a wrong password, no such database: stays wrong until somebody acts
│   │   └── DatabaseDamaged
│   └── NotServed               a database that this release cannot serve: another program's, not whole, or one that
│       │                       needs what this SQLite lacks
│       └── SchemaTooNew        written by a newer version of this service
├── StoreError                  the object store
│   ├── ObjectExists            create-if-absent found the name taken
│   ├── ObjectMissing
│   ├── StoreRefused            no such bucket, access denied: stays wrong until somebody acts
│   │   └── StoreFull           no space is left in its directory
│   └── StoreUnavailable        timeouts, 5xx: may work again later
│       ├── StoreUnreachable    no connection: the store has not even seen the request
│       └── SnapshotGone        the snapshot whose pages are read was deleted: a newer one has them
├── CommitError                 the commit log
│   ├── CommitConflict          another instance stored a commit under this number first
│   ├── CommitNotStored         given up, and certainly not stored
│   ├── CommitOutcomeUnknown    given up, and it may be stored, or may yet be
│   ├── TransactionTooLarge
│   ├── TransactionTooSlow      stopped, so that others get their turn; nothing stored
│   ├── TxidNotKept             the log has this commit only together with others, or no more at all
│   ├── MomentNotKept           the same of a moment
│   ├── TxidNotReached          the caller has seen a commit that this log does not have
│   ├── LogInUse                another program writes into this log
│   └── LogDamaged              an object is missing, cut short or altered
│       └── LogReplaced         the log is not the one it was: emptied, cut short, or another one
├── StatementRefused            SQL of an operator or a migration that cannot be run, or makes what nobody could serve
├── BackupError
│   ├── BackupMissing
│   └── BackupDamaged
├── MaintenanceError
│   ├── MaintenanceOutOfTime    the next run goes on
│   └── MaintenanceCancelled    the process is stopping
└── MoveFailed                  nothing has changed for anybody: the move may be run again
"""

from dataclasses import dataclass


class ServiceError(Exception):
    """Base of the tree. The message says what was found, what was expected and what to do."""


class SettingsError(ServiceError):
    pass


class MoveRefused(SettingsError):
    pass


@dataclass(frozen=True, slots=True)
class FieldError:
    field: str
    message: str


class InvalidInput(ServiceError):
    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__("; ".join(f"{error.field}: {error.message}" for error in errors))
        self.errors = errors


class NotFound(ServiceError):
    pass


class ItemNotFound(NotFound):
    def __init__(self, item_id: int | str) -> None:
        super().__init__(f"There is no item {item_id}.")


class KeyNotFound(NotFound):
    def __init__(self, key_id: str) -> None:
        super().__init__(f"There is no key {key_id}.")


class KeyRefused(ServiceError):
    def __init__(self, key_id: str, reason: str) -> None:
        """`reason`: for the log; the caller learns that the key is not valid, and no more."""
        super().__init__(f"Key {key_id} is refused: {reason}.")
        self.key_id = key_id
        self.reason = reason


class IdentityProviderUnavailable(ServiceError):
    pass


class IdempotencyKeyReused(ServiceError):
    def __init__(self, key: str) -> None:
        super().__init__(f"The Idempotency-Key {key} came with another request before. Give each request its own.")


class DatabaseError(ServiceError):
    pass


class DatabaseLocked(DatabaseError):
    pass


class TooManyWrites(DatabaseError):
    pass


class TooManyCopies(DatabaseError):
    pass


class DatabaseFull(DatabaseError):
    pass


class WritesStopped(DatabaseError):
    pass


class WriteRefused(DatabaseError):
    pass


class DatabaseInUse(DatabaseError):
    pass


class DatabaseUnavailable(DatabaseError):
    pass


class DatabaseRefused(DatabaseUnavailable):
    pass


class DatabaseDamaged(DatabaseUnavailable):
    pass


class NotServed(DatabaseError):
    pass


class SchemaTooNew(NotServed):
    pass


class StoreError(ServiceError):
    pass


class ObjectExists(StoreError):
    pass


class ObjectMissing(StoreError):
    pass


class StoreRefused(StoreError):
    pass


class StoreFull(StoreRefused):
    pass


class StoreUnavailable(StoreError):
    pass


class StoreUnreachable(StoreUnavailable):
    pass


class SnapshotGone(StoreUnavailable):
    pass


class CommitError(ServiceError):
    pass


class CommitConflict(CommitError):
    pass


class CommitNotStored(CommitError):
    pass


class CommitOutcomeUnknown(CommitError):
    def __init__(self, message: str, txid: int) -> None:
        """`txid`: the number under which the commit is, if it is stored."""
        super().__init__(message)
        self.txid = txid


class TransactionTooLarge(CommitError):
    pass


class TransactionTooSlow(CommitError):
    pass


class TxidNotKept(CommitError):
    pass


class MomentNotKept(CommitError):
    pass


class TxidNotReached(CommitError):
    pass


class LogInUse(CommitError):
    pass


class LogDamaged(CommitError):
    pass


class LogReplaced(LogDamaged):
    pass


class StatementRefused(ServiceError):
    pass


class BackupError(ServiceError):
    pass


class BackupMissing(BackupError):
    pass


class BackupDamaged(BackupError):
    pass


class MaintenanceError(ServiceError):
    pass


class MaintenanceOutOfTime(MaintenanceError):
    pass


class MaintenanceCancelled(MaintenanceError):
    pass


class MoveFailed(ServiceError):
    pass
