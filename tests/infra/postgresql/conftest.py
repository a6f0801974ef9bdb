from collections.abc import Callable, Iterator
from typing import Any

import pytest

from infra.postgresql.database import PostgresqlDatabase
from infra.settings import Settings
from infra.telemetry.metrics import Metrics

Open = Callable[..., PostgresqlDatabase]


def settings_of(url: str, **environment: Any) -> Settings:
    quick = {"BUSY_TIMEOUT_SECONDS": "2", "COMMIT_TIMEOUT_SECONDS": "5"}
    given = {name: str(value) for name, value in environment.items()}
    return Settings.from_environment({"DATABASE_URL": url, **quick, **given})


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens databases, which are closed at the end."""
    found: list[PostgresqlDatabase] = []

    def open_one(url: str, *, metrics: Metrics | None = None, give_up: Any = None, **environment: Any) -> Any:
        settings = settings_of(url, **environment)
        database = PostgresqlDatabase(settings, lasting=False, metrics=metrics or Metrics(), give_up=give_up)
        found.append(database)
        return database

    yield open_one
    for database in found:
        database.close()
