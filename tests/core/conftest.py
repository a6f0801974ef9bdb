from collections.abc import Iterator
from contextlib import closing

import pytest
from peewee import Database, PostgresqlDatabase
from playhouse.apsw_ext import APSWDatabase

from core import migrations
from core.migrations.postgresql import migrate
from infra.postgresql.connections import Connection, PeeweeConnection
from tests.postgresql import Cluster


@pytest.fixture(params=["on_sqlite", "on_postgresql"])
def db(request: pytest.FixtureRequest) -> Database:
    """With the newest schema, and nothing in it: what is asked of it holds on both."""
    found: Database = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def on_sqlite() -> Iterator[Database]:
    database = APSWDatabase(":memory:", thread_safe=False)
    with closing(database):
        database.connect()
        migrations.migrate(database)
        yield database


@pytest.fixture
def on_postgresql(shared_url: str) -> Iterator[PostgresqlDatabase]:
    """Of one database for all tests; one that changes more than rows has its own."""
    with closing(connected(shared_url)) as database:
        for table in ("items", "idempotency_keys", "api_keys"):
            database.execute_sql(f"DELETE FROM {table}")  # TRUNCATE takes many times as long
        database.execute_sql("ALTER TABLE items ALTER id RESTART")
        yield database


@pytest.fixture(scope="session")
def shared_url(postgresql: Cluster) -> str:
    url = postgresql.url(postgresql.create_database())
    with closing(connected(url)) as database:
        migrate(database)
    return url


def connected(url: str) -> PostgresqlDatabase:
    return PeeweeConnection(Connection.connect(url, autocommit=True))
