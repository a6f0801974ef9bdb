"""What operators do by hand, on a connection of their own, whoever serves from the database meanwhile."""

from contextlib import closing
from typing import TypeVar

import peewee

from core.errors import NotServed
from core.migrations.postgresql import is_migrated
from infra.database import UseCase
from infra.postgresql.connections import Connector
from infra.postgresql.transactions import Transactions
from infra.settings import Settings
from infra.telemetry.metrics import Metrics

T = TypeVar("T")

_SECONDS = 60.0  # to try to commit


def in_a_transaction(settings: Settings, use_case: UseCase[T]) -> T:
    """Run a use case; when this returns, it is stored. Raises NotServed when the tables are not there yet."""

    def checked(db: peewee.Database) -> T:
        if not is_migrated(db):
            raise NotServed(f"{settings.database} is empty, or of an older release: start this release's service once")
        return use_case(db)

    with closing(Transactions(Connector(settings), Metrics(), _SECONDS)) as transactions:
        return transactions.write(checked)
