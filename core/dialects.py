"""What SQLite and PostgreSQL are told differently; all else is said in the same way, where it is needed."""

from typing import Any

from peewee import Context, Database, Node, PostgresqlDatabase


def is_postgresql(db: Database) -> bool:
    return isinstance(db, PostgresqlDatabase)


def execute(db: Database, sql: str, values: tuple[Any, ...] = ()) -> Any:
    """Run SQL that both take, with a `?` for each value and nowhere else."""
    return db.execute_sql(sql if db.param == "?" else sql.replace("?", db.param), values)


class Either(Node):
    """A part of a query that each is told in its own way."""

    def __init__(self, *, sqlite: Any, postgresql: Any) -> None:
        self._sqlite = sqlite
        self._postgresql = postgresql

    def __sql__(self, ctx: Context) -> Context:
        return ctx.sql(self._sqlite if ctx.state.param == "?" else self._postgresql)
