"""PostgreSQL, and what speaks its protocol: the same use cases, on a server that others look after."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from core.errors import SettingsError
from infra.database import Database, GiveUp, UseCase

if TYPE_CHECKING:
    from infra.settings import Settings
    from infra.telemetry.metrics import Metrics


T = TypeVar("T")


def open_postgresql(
    settings: "Settings", *, lasting: bool, metrics: "Metrics", give_up: GiveUp | None = None
) -> Database:
    """See `PostgresqlDatabase`. Raises SettingsError when what it needs is not installed."""
    with driver_is_needed():
        from infra.postgresql.database import PostgresqlDatabase
    return PostgresqlDatabase(settings, lasting=lasting, metrics=metrics, give_up=give_up)


@contextmanager
def driver_is_needed() -> Iterator[None]:
    """For what is imported. Raises SettingsError when it is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"DATABASE_URL is set, and {error.name} is not installed: pip install -r requirements-postgres.txt, "
            "or build the image with POSTGRES=yes, or unset it"
        ) from error


def run_once(settings: "Settings", use_case: UseCase[T]) -> T:
    """Run an operator's use case in a transaction. Raises NotServed when no service has made the tables yet."""
    with driver_is_needed():
        from infra.postgresql.operators import in_a_transaction
    return in_a_transaction(settings, use_case)
