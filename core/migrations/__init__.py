"""Numbered SQL files, run in order; `PRAGMA user_version` is the number of the last one that ran.

A file is never edited after a release: add the next number. Each version of the code must work on the
next version's schema (add first, remove later), so that a rollback of the code is safe.
"""

from importlib import resources

from peewee import Database

from core.errors import SchemaTooNew


def scripts() -> list[str]:
    """The SQL of every migration, in order."""
    files = [file for file in resources.files(__name__).iterdir() if file.name.endswith(".sql")]
    return [file.read_text("utf-8") for file in sorted(files, key=lambda file: file.name)]


def schema_version(db: Database) -> int:
    return int(db.execute_sql("PRAGMA user_version").fetchone()[0])


def check_known(version: int) -> None:
    """Raises SchemaTooNew for a schema that only a newer version of the code can serve.

    The next version's is served as well, so that a release can be rolled back after it has migrated.
    """
    known = len(scripts())
    if version > known + 1:
        raise SchemaTooNew(
            f"The database has schema version {version}, this release serves up to {known + 1}: "
            "deploy the release that wrote it, or restore an older backup."
        )


def migrate(db: Database) -> int:
    """Bring the database to the newest schema, all or nothing, and return the version it has.

    Raises SchemaTooNew when the file was written by a version of the code that is newer than the next one.
    """
    wanted = scripts()
    with db.atomic("IMMEDIATE"):
        found = schema_version(db)
        check_known(found)
        for script in wanted[found:]:
            for statement in script.split(";"):
                if statement.strip():
                    db.execute_sql(statement)
        if found < len(wanted):
            db.execute_sql(f"PRAGMA user_version = {len(wanted)}")
    return max(found, len(wanted))
