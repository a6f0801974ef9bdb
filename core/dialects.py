"""What SQLite and PostgreSQL are told differently; all else is said in the same way, where it is needed."""

from typing import Any

from peewee import Context, Database, DataError, IntegrityError, Node, PeeweeException, PostgresqlDatabase

# What a connection to PostgreSQL is set to. A serializable transaction that reads a small table from end to end, as a
# planner likes to, is in the way of all who write to it; and a plan that must do so all the same is priced so high that
# it would be compiled first.
SETTINGS = {"enable_seqscan": "off", "jit": "off"}

_RAISED = "P0001"  # raise_exception: a trigger's own words


def is_postgresql(db: Database) -> bool:
    return isinstance(db, PostgresqlDatabase)


def state_of(error: BaseException) -> str:
    """The SQLSTATE of what PostgreSQL has said; empty for whatever is nothing of it."""
    return getattr(getattr(error, "orig", error), "sqlstate", None) or ""


def refusal(error: PeeweeException) -> str:
    """Why a table does not take a row, in one line; empty if that is not the error."""
    refused = isinstance(error, IntegrityError | DataError) or state_of(error) == _RAISED
    return str(error).partition("\n")[0] if refused else ""


def execute(db: Database, sql: str, values: tuple[Any, ...] = ()) -> Any:
    """Run SQL that both take, with a `?` for each value and nowhere else."""
    return db.execute_sql(sql if db.param == "?" else sql.replace("?", db.param), values)


class Either(Node):
    """A part of a query that each is told in its own way."""

    def __init__(self, *, sqlite: Any, postgresql: Any) -> None:
        self._sqlite = sqlite
        self._postgresql = postgresql

    def __sql__(self, ctx: Context) -> Context:
        told: Context = ctx.sql(self._sqlite if ctx.state.param == "?" else self._postgresql)
        return told
