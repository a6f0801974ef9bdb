"""What this release serves, and how a database comes to be that: the one answer for start, restore and live files."""

from contextlib import closing
from pathlib import Path

import apsw
import peewee
from playhouse.apsw_ext import APSWDatabase

from core.errors import DatabaseDamaged
from core.migrations import check_served, migrate
from infra.commitlog import OUT_OF_PROPORTION, defend, in_proportion, is_new, opened_image
from infra.sqlite_errors import translated_errors


class ServedSchema:
    """The `Schema` of this application; see there."""

    def check(self, connection: apsw.Connection) -> bool:
        return check_served(connection)

    def migrate(self, path: Path) -> None:
        with translated_errors(path), closing(APSWDatabase(str(path))) as database:
            database.connect()
            defend(database.connection())
            try:
                with in_proportion(database.connection()):
                    migrate(database)
            except (peewee.PeeweeException, *OUT_OF_PROPORTION) as error:
                if isinstance(getattr(error, "orig", error), OUT_OF_PROPORTION):
                    raise DatabaseDamaged(f"{path} cannot be migrated: {error}") from error
                raise


def check_image(path: Path) -> None:
    """Raises NotServed for a file that this release could not serve, migrated or not; it could a new database."""
    with translated_errors(path), opened_image(path) as connection:
        if not is_new(connection):
            check_served(connection)
