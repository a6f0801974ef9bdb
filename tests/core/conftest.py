from collections.abc import Iterator

import pytest
from peewee import Database
from playhouse.apsw_ext import APSWDatabase

from core.migrations import migrate


@pytest.fixture
def db() -> Iterator[Database]:
    database = APSWDatabase(":memory:", thread_safe=False)
    database.connect()
    migrate(database)
    yield database
    database.close()
