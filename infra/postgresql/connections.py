"""How a connection is made: where to, how it is protected, who comes, and how long anything may take."""

import logging
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

import peewee
import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus

from core.dialects import SETTINGS
from core.errors import DatabaseRefused, DatabaseUnavailable, SettingsError
from core.statements import without_values
from infra.postgresql.errors import is_full, is_refused
from infra.settings import SERVICE, Settings

logger = logging.getLogger(__name__)

_GRACE_SECONDS = 1.0  # for a server to end by itself what takes too long, before it is not waited for any more
_CONNECT_SECONDS = 5
_AWAY_SECONDS = 1.0
_LONGEST = 1000  # characters of a statement in the log
# Where systems keep the authorities they trust; the driver's own TLS library looks elsewhere
_AUTHORITIES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
_PORTS = re.compile(r"[0-9,]*", re.ASCII)
_IDLE: dict[str, Any] = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}


class Connection(psycopg.Connection[Any]):
    """Waits until its deadline for an answer: a server that is frozen keeps its connections, and their keepalives."""

    deadline = float("inf")  # of the clock `monotonic`

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        if timeout is None and self.deadline != float("inf"):
            timeout = max(0.0, self.deadline - monotonic())
        return super().wait(gen, interval, timeout)

    @property
    def takes_writes(self) -> bool:
        """As far as the server has said: no standby, and not set to be only read."""
        said = self.info.parameter_status
        return "on" not in (said("in_hot_standby"), said("default_transaction_read_only"))


class PeeweeConnection(peewee.PostgresqlDatabase):
    """One connection for Peewee, of one thread at a time. Once it is lost, it stays so."""

    begin_statement = "BEGIN"  # of `atomic`, outside of a transaction

    def __init__(self, connection: Connection, slow_statement_ms: int = 0) -> None:
        self.driver = connection
        self._slow_seconds = slow_statement_ms / 1000
        super().__init__(connection.info.dbname, thread_safe=False)
        self._adapter: Any = _Adapter()
        self.connect()

    def _connect(self) -> Connection:
        return self.driver

    def execute_sql(self, sql: str, params: Any = None) -> Any:
        began = perf_counter()
        cursor = super().execute_sql(sql, params)  # type: ignore[no-untyped-call]
        if not self._slow_seconds:
            return cursor
        if (took := perf_counter() - began) > self._slow_seconds:
            milliseconds, text = round(took * 1000, 3), without_values(sql)[:_LONGEST]
            fields = {"duration_ms": milliseconds, "sql": text, "plan": None}
            logger.warning("a statement took %d ms: %s", milliseconds, text, extra=fields)
        return cursor

    @property
    def is_in_transaction(self) -> bool:
        return self.driver.info.transaction_status != TransactionStatus.IDLE

    def atomic(self, *args: Any, **kwargs: Any) -> AbstractContextManager[object]:  # type: ignore[override]
        """One state for what is in it. Where there is a transaction that is so already: there are no savepoints."""
        return nullcontext() if self.is_in_transaction else _Transaction(self)

    def savepoint(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("There are no savepoints: a use case that fails undoes all of its transaction.")

    def rollback(self) -> None:
        """Raises psycopg.Error when there is nothing more to be had from this connection."""
        if self.driver.info.transaction_status == TransactionStatus.ACTIVE:  # nobody waits for the answer any more
            self.driver.close()
            raise psycopg.OperationalError("The statement before was not answered.")
        self.driver.execute("ROLLBACK")

    def check_is_there(self) -> None:
        """Raises psycopg.OperationalError when the server has ended the connection."""
        for _ in range(2):  # its last words, and then the end
            self.driver.pgconn.consume_input()


class _Transaction:
    def __init__(self, db: PeeweeConnection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.driver.execute(self._db.begin_statement)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self._db.driver.execute("COMMIT")
        elif not self._db.driver.closed:
            self._db.rollback()


class _Adapter(peewee.Psycopg3Adapter):
    """Peewee's own needs the driver to be there when Peewee is imported."""

    txn_idle = TransactionStatus.IDLE
    txn_inerror = TransactionStatus.INERROR
    txn_unknown = TransactionStatus.UNKNOWN

    def check_driver(self) -> None:
        pass

    def get_binary_type(self) -> Any:
        return psycopg.Binary


@dataclass(frozen=True, slots=True)
class Target:
    """Where to, and as who. `shown`: for messages."""

    parameters: dict[str, Any]
    token: Callable[[], str] | None

    @property
    def shown(self) -> str:
        host, port = self.parameters.get("host") or "localhost", self.parameters.get("port")
        return f"{host}{f':{port}' if port else ''}/{self.parameters.get('dbname') or ''}"


def target_of(settings: Settings) -> Target:
    """Raises SettingsError for a URL that cannot be used."""
    try:
        parameters: dict[str, Any] = dict(conninfo_to_dict(settings.database_url))
        if "@" in parameters.get("dbname", "") or not _PORTS.fullmatch(parameters.get("port", "")):
            raise ValueError("a / of the password ends the host")
    except (psycopg.Error, ValueError):  # which say what they could not read, and that may be the password
        raise SettingsError(
            "DATABASE_URL cannot be read: write postgresql://user:password@host:port/database?name=value, with what "
            "is no letter and no digit in user and password as %XX"
        ) from None
    token = None
    if settings.database_token:
        from infra.postgresql.tokens import token_of

        if parameters.get("password"):
            raise SettingsError("DATABASE_TOKEN is set, and DATABASE_URL has a password: leave that out")
        token = token_of(settings.database_token, parameters)
    defaults = {"application_name": SERVICE, "connect_timeout": _CONNECT_SECONDS, **_IDLE, **_protection(parameters)}
    return Target({**defaults, **parameters}, token)


class Connector:
    """Makes connections. Any thread may call it."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError for a URL that cannot be used."""
        self.target = target_of(settings)
        self._settings = settings
        self.is_dsql = settings.database_token == "dsql"  # noqa: S105
        self._is_away: tuple[DatabaseUnavailable, float] | None = None  # and since when, by the clock `monotonic`
        self.prepare_after: int | None = 5  # uses of a statement; None: never

    def connect(self) -> PeeweeConnection:
        """Raises DatabaseUnavailable, DatabaseRefused when the server is there and lets nobody in like this."""
        parameters = dict(self.target.parameters)
        if self.target.token:
            parameters["password"] = self.target.token()
        try:
            driver = Connection.connect(autocommit=True, prepare_threshold=self.prepare_after, **parameters)
            driver.deadline = monotonic() + _CONNECT_SECONDS
            driver.execute(self._session_of(driver))
        except psycopg.Error as error:
            told = self._told(error)
            if not is_full(error):
                self._is_away = told, monotonic()
            raise told from None  # the driver's text could have what is in the URL
        self._is_away = None
        return PeeweeConnection(driver, self._settings.slow_statement_ms)

    def check_not_away(self) -> None:
        """Raises DatabaseUnavailable when a moment ago it was: one request in a second looks, and the others need not
        wait for what it will be told.
        """
        if (away := self._is_away) and monotonic() - away[1] < _AWAY_SECONDS:
            raise DatabaseUnavailable(str(away[0]))

    @property
    def isolation(self) -> str:
        """Of a write."""
        return "REPEATABLE READ" if self.is_dsql else "SERIALIZABLE"  # DSQL has no other

    def _session_of(self, driver: Connection) -> str:
        """What holds until the connection ends."""
        if self.is_dsql:  # which knows none of these
            return "SELECT 1"
        longest = round(self._settings.commit_timeout_seconds * 1000)
        lock = max(1, round(self._settings.busy_timeout_seconds * 1000))
        isolation = "repeatable read" if driver.info.parameter_status("in_hot_standby") == "on" else "serializable"
        return (
            f"SET statement_timeout = {longest}; SET lock_timeout = {lock}; "
            f"SET idle_in_transaction_session_timeout = {longest + round(_GRACE_SECONDS * 1000)}; "
            f"SET default_transaction_isolation = '{isolation}'"
            + "".join(f"; SET {name} = {value}" for name, value in SETTINGS.items())
        )

    def _told(self, error: psycopg.Error) -> DatabaseUnavailable:
        said = " ".join(str(error).split())
        if (password := self.target.parameters.get("password")) and str(password) in said:
            said = "its answer holds the password"
        kind = DatabaseRefused if is_refused(error) else DatabaseUnavailable
        return kind(f"No connection to {self.target.shown}: {said}")


def _protection(parameters: dict[str, Any]) -> dict[str, str]:
    """Nobody on the way reads along, or is taken for the server, unless the URL says otherwise."""
    hosts = (parameters.get("hostaddr") or parameters.get("host") or "").split(",")
    if "sslmode" in parameters or all(_is_here(host) for host in hosts):
        return {}
    given = (os.environ.get("SSL_CERT_FILE", ""), *_AUTHORITIES)
    authorities = next((name for name in given if name and Path(name).is_file()), "system")
    return {"sslmode": "verify-full", "sslrootcert": authorities}


def _is_here(host: str) -> bool:
    """A socket, or the loopback address."""
    if host in ("", "localhost") or host.startswith(("/", "@")):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
