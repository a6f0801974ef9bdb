"""Where a connection leads, how it is protected, and who comes."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs

import boto3
import pytest

from core.errors import DatabaseRefused, DatabaseUnavailable, SettingsError
from infra.database import open_database
from infra.postgresql import tokens
from infra.postgresql.connections import target_of
from infra.postgresql.tokens import token_of
from infra.settings import Settings
from infra.telemetry.metrics import Metrics
from tests.infra.postgresql.conftest import Open, settings_of
from tests.infra.postgresql.test_transactions import add, run
from tests.infra.storage.certificates import Authority
from tests.postgresql import PASSWORD, Cluster

# The URL


@pytest.mark.parametrize("url", ["mysql://host/db", "host=h password=secret", "sqlite:///x"])
def test_url_of_something_else_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(SettingsError, match="DATABASE_URL") as error:
        settings_of(url)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "url", ["postgresql://u:secret%zz@h/db", "postgresql://u:se/cret@h/db", "postgresql://h/d?no=1"]
)
def test_url_that_cannot_be_read_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(SettingsError, match="DATABASE_URL cannot be read") as error:
        target_of(settings_of(url))
    assert "cret" not in str(error.value)


def test_what_is_set_beside_it_is_named() -> None:
    for name in ("REPLICA_URL", "BACKUP_URL"):
        with pytest.raises(SettingsError, match=name):
            settings_of("postgresql://h/db", **{name: "file:///somewhere"})


def test_defaults_with_it() -> None:
    settings = settings_of("postgresql://u:secret@h:1234/db?sslmode=disable")
    assert (settings.replica_url, settings.backup_url, settings.maintenance_interval_seconds) == ("", "", 0)
    assert settings.database == "h:1234/db"
    assert settings.database_connections == 8
    on_lambda = {"DATABASE_URL": "postgresql://h/db", "AWS_LAMBDA_FUNCTION_NAME": "items"}
    assert Settings.from_environment(on_lambda).database_connections == 1


# Protection


@pytest.mark.parametrize(
    ("url", "is_protected"),
    [
        ("postgresql:///db", False),
        ("postgresql://localhost/db", False),
        ("postgresql://127.0.0.1/db", False),
        ("postgresql://[::1]/db", False),
        ("postgresql:///db?host=/var/run/postgresql", False),
        ("postgresql://db.example.com/db", True),
        ("postgresql://127.0.0.1,db.example.com/db", True),
        ("postgresql://localhost/db?hostaddr=192.0.2.1", True),
        ("postgresql://192.0.2.1/db", True),
    ],
)
def test_whoever_is_not_this_machine_must_prove_who_it_is(url: str, is_protected: bool) -> None:
    parameters = target_of(settings_of(url)).parameters
    assert (parameters.get("sslmode") == "verify-full") == is_protected
    assert ("sslrootcert" in parameters) == is_protected


def test_what_the_url_says_of_tls_is_what_counts() -> None:
    parameters = target_of(settings_of("postgresql://h/db?sslmode=disable")).parameters
    assert (parameters["sslmode"], "sslrootcert" in parameters) == ("disable", False)
    own = target_of(settings_of("postgresql://h/db?sslrootcert=/own/ca.pem")).parameters
    assert (own["sslmode"], own["sslrootcert"]) == ("verify-full", "/own/ca.pem")


@contextmanager
def speaking_tls(postgresql: Cluster, certificate_and_key: Path) -> Iterator[None]:
    owner, file = postgresql.directory.stat(), postgresql.directory / "server.pem"
    file.write_bytes(certificate_and_key.read_bytes())
    file.chmod(0o600)
    os.chown(file, owner.st_uid, owner.st_gid)
    postgresql.stop()
    postgresql.start(ssl="on", ssl_cert_file=str(file), ssl_key_file=str(file))
    try:
        yield
    finally:
        postgresql.stop()
        postgresql.start()


def test_server_is_who_its_certificate_says_or_nobody(
    postgresql: Cluster, migrated_url: str, opened: Open, tmp_path: Path
) -> None:
    (theirs, ours) = (tmp_path / "theirs", tmp_path / "ours")
    for directory in (theirs, ours):
        directory.mkdir()
    authority, other = Authority(ours), Authority(theirs)
    authority.server()
    with speaking_tls(postgresql, ours / "server.pem"):
        database = opened(f"{migrated_url}?sslmode=verify-full&sslrootcert={authority.file}")
        is_tls = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        assert run(database.read(lambda db: db.execute_sql(is_tls).fetchone())) == (True,)
        with pytest.raises(DatabaseRefused, match="certificate verify failed"):
            opened(f"{migrated_url}?sslmode=verify-full&sslrootcert={other.file}")
        elsewhere = migrated_url.replace("127.0.0.1", "db.example.com")
        with pytest.raises(DatabaseRefused, match="certificate"):
            opened(f"{elsewhere}?hostaddr=127.0.0.1&sslmode=verify-full&sslrootcert={authority.file}")


# Tokens

WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
RDS, DSQL = "db.abcdef.eu-west-1.rds.amazonaws.com", "abcdef.dsql.us-east-1.on.aws"


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "se/cr+et")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "to/k+en==")


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("user", ["admin", "an app"])
@pytest.mark.parametrize("kind", ["rds", "dsql"])
def test_token_is_what_the_aws_sdk_makes(kind: str, user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda remove_tzinfo=True: WHEN.replace(tzinfo=None))
    monkeypatch.setattr(tokens, "datetime", type("At", (datetime,), {"now": classmethod(lambda cls, zone: WHEN)}))
    if kind == "rds":
        theirs = boto3.client("rds", region_name="eu-west-1").generate_db_auth_token(RDS, 5432, user)
        ours = token_of("rds", {"host": RDS, "user": user})()
    else:
        client = boto3.client("dsql", region_name="us-east-1")
        make = client.generate_db_connect_admin_auth_token if user == "admin" else client.generate_db_connect_auth_token
        theirs, ours = make(DSQL, "us-east-1", 900), token_of("dsql", {"host": DSQL, "user": user})()
    assert parse_qs(ours) == parse_qs(theirs)
    assert "Signature" in ours


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://{RDS}/db",
        f"postgresql://app:password@{RDS}/db",
        f"postgresql://app@{RDS},{RDS}/db",
        "postgresql://app@db.example.com/db",
    ],
)
def test_token_needs_to_know_for_whom_it_is_and_where(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_REGION", raising=False)
    with pytest.raises(SettingsError, match="DATABASE_TOKEN"):
        target_of(settings_of(url, DATABASE_TOKEN="rds"))


def test_each_connection_has_a_token_of_its_own(
    postgresql: Cluster, migrated_url: str, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def token() -> str:
        made.append(PASSWORD)
        return made[-1]

    monkeypatch.setattr(tokens, "token_of", lambda kind, parameters: token)
    database = opened(migrated_url.replace(f":{PASSWORD}", ""), DATABASE_TOKEN="rds", DATABASE_CONNECTIONS=1)
    run(database.write(add))
    assert len(made) == 2  # the start, and the first of the pool
    with postgresql.away():
        pass
    run(database.write(add))
    assert len(made) == 3


class _Credentials(BaseHTTPRequestHandler):
    """Of a container and of an instance."""

    asked: ClassVar[list[tuple[str, str, str]]] = []
    until = datetime.now(UTC) + timedelta(hours=1)

    def do_GET(self) -> None:
        token = self.headers.get("Authorization") or self.headers.get("X-aws-ec2-metadata-token") or ""
        self.asked.append((self.command, self.path, token))
        found = {"AccessKeyId": "k", "SecretAccessKey": "s", "Token": "t", "Expiration": self.until.isoformat()}
        text = "role" if self.path.endswith("/") else "session" if self.command == "PUT" else json.dumps(found)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    do_PUT = do_GET

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    server = HTTPServer(("127.0.0.1", 0), _Credentials)
    _Credentials.asked.clear()
    threading.Thread(target=server.serve_forever, args=(0.01,)).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_credentials_of_a_container(place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{place}/creds")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(tmp_path / "token"))
    token = token_of("dsql", {"host": DSQL, "user": "app"})
    assert "X-Amz-Security-Token=t" in token()
    token()
    assert _Credentials.asked == [("GET", "/creds", "secret")]  # asked for once in an hour
    monkeypatch.setattr(_Credentials, "until", datetime.now(UTC) + timedelta(minutes=1))
    token = token_of("dsql", {"host": DSQL, "user": "app"})
    token()
    token()
    assert len(_Credentials.asked) == 3  # and again before they end


def test_credentials_of_an_instance(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tokens, "_INSTANCE", place)
    assert "X-Amz-Security-Token=t" in token_of("dsql", {"host": DSQL, "user": "app"})()
    assert [(verb, token) for verb, _, token in _Credentials.asked] == [
        ("PUT", ""), ("GET", "session"), ("GET", "session"),
    ]  # fmt: skip


def test_without_credentials_the_database_cannot_be_used(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_INSTANCE", "http://127.0.0.1:9")
    with pytest.raises(DatabaseUnavailable, match="no AWS credentials"):
        token_of("dsql", {"host": DSQL, "user": "app"})()


# The driver


def test_driver_is_imported_when_it_is_needed() -> None:
    script = "import sys, handler.asgi, infra.__main__; assert not [name for name in sys.modules if 'psycopg' in name]"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_driver_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    for name in [name for name in sys.modules if name.startswith("infra.postgresql.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SettingsError, match=r"pip install -r requirements-postgres\.txt"):
        open_database(settings_of("postgresql:///db"), lasting=False, metrics=Metrics())


def test_prepared_statements_that_what_is_between_has_lost_are_not_used_again(migrated_url: str, opened: Open) -> None:
    """As PgBouncer before 1.21 does, which gives each transaction another session."""
    database = opened(migrated_url, DATABASE_CONNECTIONS=1)
    for _ in range(20):
        run(database.write(add))
    is_prepared = "SELECT count(*) > 0 FROM pg_prepared_statements"
    assert run(database.read(lambda db: db.execute_sql(is_prepared).fetchone())) == (True,)
    run(database.read(lambda db: db.execute_sql("DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$")))
    for _ in range(20):
        run(database.write(add))
    assert run(database.read(lambda db: db.execute_sql(is_prepared).fetchone())) == (False,)


def test_slow_statement_is_logged_without_its_values(
    migrated_url: str, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    database = opened(migrated_url, SLOW_STATEMENT_MS=1)
    run(database.read(lambda db: db.execute_sql("SELECT pg_sleep(%s), 'secret'", (0.01,))))
    [line] = [record.getMessage() for record in caplog.records if "sleep" in record.getMessage()]
    assert line.startswith("a statement took ")
    assert line.endswith(" ms: SELECT pg_sleep(%s), ?")
