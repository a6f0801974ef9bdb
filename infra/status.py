"""What an operator asks first: is the database sound, who has it, how old is the newest backup."""

from dataclasses import dataclass
from datetime import UTC, datetime

from core.errors import ServiceError
from infra.backups import Backups
from infra.owner_lock import OwnerLock
from infra.settings import Settings
from infra.snapshot import count_rows


@dataclass(frozen=True, slots=True)
class Status:
    database: str
    size_bytes: int | None
    rows: dict[str, int] | None
    owner: str
    backup_url: str
    newest_backup: str | None
    backup_age: str | None
    problems: list[str]


def read_status(settings: Settings, backups: Backups) -> Status:
    path = settings.database_path
    problems: list[str] = []
    rows: dict[str, int] | None = None
    try:
        rows = count_rows(path)
    except ServiceError as error:
        problems.append(str(error))
    owner = "unknown"
    try:
        lock = OwnerLock(path)
        owner = lock.owner() if lock.held() else "nobody: the service is stopped"
    except ServiceError as error:
        problems.append(str(error))
    newest, age = None, None
    try:
        newest = backups.newest()
        if newest is None:
            problems.append("there is no backup yet (`make backup`)")
    except ServiceError as error:
        problems.append(str(error))
    if newest:
        age = datetime.now(UTC) - newest.modified
        interval = settings.backup_interval_seconds
        if interval and age.total_seconds() > 2 * interval:
            problems.append(f"the newest backup is older than two intervals of {interval} s")
    return Status(
        database=str(path),
        size_bytes=path.stat().st_size if path.is_file() else None,
        rows=rows,
        owner=owner,
        backup_url=settings.backup_url,
        newest_backup=newest.name if newest else None,
        backup_age=str(age).split(".")[0] if age is not None else None,
        problems=problems,
    )
