"""Every error this service raises on purpose.

ServiceError
├── SettingsError               an environment variable is missing or wrong
├── InvalidInput                the caller's input, field by field
├── ItemNotFound
├── DatabaseError
│   ├── DatabaseLocked          another connection held the write lock too long
│   ├── DatabaseFull            no space left for the database
│   ├── DatabaseInUse           another process owns the file
│   ├── DatabaseUnavailable     missing, replaced, unreadable or damaged file
│   └── SchemaTooNew            written by a newer version of this service
├── StoreError                  the object store
│   ├── ObjectExists            create-if-absent found the name taken
│   ├── ObjectMissing
│   ├── StoreRefused            no such bucket, access denied: stays wrong until somebody acts
│   └── StoreUnavailable        timeouts, 5xx: may work again later
└── BackupError
    ├── BackupMissing
    ├── BackupDamaged
    └── BackupCancelled         the process is stopping
"""

from dataclasses import dataclass


class ServiceError(Exception):
    """Base of the tree. The message says what was found, what was expected and what to do."""


class SettingsError(ServiceError):
    pass


@dataclass(frozen=True, slots=True)
class FieldError:
    field: str
    message: str


class InvalidInput(ServiceError):
    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__("; ".join(f"{error.field}: {error.message}" for error in errors))
        self.errors = errors


class ItemNotFound(ServiceError):
    def __init__(self, item_id: int | str) -> None:
        super().__init__(f"There is no item {item_id}.")


class DatabaseError(ServiceError):
    pass


class DatabaseLocked(DatabaseError):
    pass


class DatabaseFull(DatabaseError):
    pass


class DatabaseInUse(DatabaseError):
    pass


class DatabaseUnavailable(DatabaseError):
    pass


class SchemaTooNew(DatabaseError):
    pass


class StoreError(ServiceError):
    pass


class ObjectExists(StoreError):
    pass


class ObjectMissing(StoreError):
    pass


class StoreRefused(StoreError):
    pass


class StoreUnavailable(StoreError):
    pass


class BackupError(ServiceError):
    pass


class BackupMissing(BackupError):
    pass


class BackupDamaged(BackupError):
    pass


class BackupCancelled(BackupError):
    pass
