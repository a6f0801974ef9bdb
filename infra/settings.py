"""The environment, read once into one frozen object."""

import os
import re
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from core.errors import SettingsError
from infra.storage.url import HOME_UNKNOWN, check_store_url, redacted

SERVICE = "cloud-native-poc"

_MOST_DAYS = 36500
_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", re.ASCII)
_FUNCTION_NAME = "AWS_LAMBDA_FUNCTION_NAME"  # set by Lambda; only whether it is there matters


class Settings(BaseModel):
    """One field for each environment variable; the alias is the variable's name.

    The object store's client reads the usual AWS_* variables by itself (see infra/storage/object_store.py).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    database_url: str = Field("", alias="DATABASE_URL")
    database_connections: int = Field(8, alias="DATABASE_CONNECTIONS", ge=1, le=1000)
    database_token: Literal["", "rds", "dsql"] = Field("", alias="DATABASE_TOKEN")
    database_path: Path = Field(Path("data/app.db"), alias="DATABASE_PATH", validate_default=True)
    replica_url: str = Field("", alias="REPLICA_URL", validate_default=True)
    read_freshness_seconds: float = Field(1.0, alias="READ_FRESHNESS_SECONDS", ge=0)
    paged_above_mb: int | Literal["always", "never"] = Field(32, alias="PAGED_ABOVE_MB")
    page_cache_mb: int = Field(256, alias="PAGE_CACHE_MB", ge=1, le=100_000)
    commit_timeout_seconds: float = Field(10.0, alias="COMMIT_TIMEOUT_SECONDS", gt=0, le=600)
    backup_url: str = Field("", alias="BACKUP_URL", validate_default=True)
    maintenance_interval_seconds: int = Field(3600, alias="MAINTENANCE_INTERVAL_SECONDS", ge=0)
    keep_commits_hours: int = Field(24, alias="KEEP_COMMITS_HOURS", ge=24, le=24 * _MOST_DAYS)
    keep_runs_days: int = Field(7, alias="KEEP_RUNS_DAYS", ge=1, le=_MOST_DAYS)
    keep_daily_days: int = Field(30, alias="KEEP_DAILY_DAYS", ge=1, le=_MOST_DAYS)
    backup_keep_hourly_days: int = Field(7, alias="BACKUP_KEEP_HOURLY_DAYS", ge=1, le=_MOST_DAYS)
    backup_keep_daily_days: int = Field(30, alias="BACKUP_KEEP_DAILY_DAYS", ge=1, le=_MOST_DAYS)
    busy_timeout_seconds: float = Field(5.0, alias="BUSY_TIMEOUT_SECONDS", ge=0, le=600)
    write_queue_limit: int = Field(1000, alias="WRITE_QUEUE_LIMIT", ge=1)
    require_if_match: bool = Field(False, alias="REQUIRE_IF_MATCH")
    keep_idempotency_keys_hours: int = Field(24, alias="KEEP_IDEMPOTENCY_KEYS_HOURS", ge=1, le=24 * 7)
    max_body_bytes: int = Field(1024 * 1024, alias="MAX_BODY_BYTES", ge=1)
    request_timeout_seconds: float = Field(30.0, alias="REQUEST_TIMEOUT_SECONDS", gt=0, le=3600)
    keep_alive_seconds: int = Field(5, alias="KEEP_ALIVE_SECONDS", ge=1, le=3600)
    max_connections: int = Field(800, alias="MAX_CONNECTIONS", ge=1)
    rate_limit: float = Field(0.0, alias="RATE_LIMIT", ge=0, le=1_000_000, allow_inf_nan=False)
    rate_burst: int = Field(100, alias="RATE_BURST", ge=1, le=1_000_000)
    cors_origins: tuple[str, ...] = Field((), alias="CORS_ORIGINS")
    hsts_seconds: int = Field(0, alias="HSTS_SECONDS", ge=0)
    forwarded_allow_ips: tuple[str, ...] = Field((), alias="FORWARDED_ALLOW_IPS")
    host: str = Field("127.0.0.1", alias="HOST", min_length=1)
    port: int = Field(8000, alias="PORT", ge=0, le=65535)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", alias="LOG_LEVEL")
    access_log_sample: float = Field(1.0, alias="ACCESS_LOG_SAMPLE", ge=0, le=1)
    slow_request_ms: int = Field(1000, alias="SLOW_REQUEST_MS", ge=0)
    slow_statement_ms: int = Field(50, alias="SLOW_STATEMENT_MS", ge=0)
    otlp_endpoint: str = Field("", alias="OTEL_EXPORTER_OTLP_ENDPOINT")
    auth_mode: Literal["keys", "iam", "jwt", "none"] | None = Field(None, alias="AUTH_MODE")
    docs_open: bool = Field(True, alias="DOCS_OPEN")
    runbook_url: str = Field("", alias="RUNBOOK_URL")
    jwt_issuer: str = Field("", alias="JWT_ISSUER")
    jwt_audience: str = Field("", alias="JWT_AUDIENCE")
    jwt_jwks_url: str = Field("", alias="JWT_JWKS_URL")
    jwt_scope_prefix: str = Field("", alias="JWT_SCOPE_PREFIX")
    iam_ops_arns: tuple[str, ...] = Field((), alias="IAM_OPS_ARNS")

    @property
    def database(self) -> str:
        """Which it is, for messages."""
        if not self.database_url:
            return str(self.database_path)
        parts = urlsplit(self.database_url)
        return f"{parts.netloc.rpartition('@')[2]}{parts.path}"

    @field_validator("paged_above_mb", mode="before")
    @classmethod
    def _is_size_or_word(cls, above: Any) -> Any:
        if above not in ("always", "never") and not re.fullmatch("[0-9]{1,9}", str(above), re.ASCII):
            raise ValueError("is a number of MB, or always, or never")
        return above

    @field_validator("runbook_url")
    @classmethod
    def _is_page(cls, url: str) -> str:
        if url and not (urlsplit(url).scheme in ("http", "https") and urlsplit(url).hostname):
            raise ValueError("is no address of a page: give one like https://example.com/RUNBOOK.md")
        return url

    @field_validator("jwt_jwks_url")
    @classmethod
    def _is_https(cls, url: str) -> str:
        if url and not (urlsplit(url).scheme == "https" and urlsplit(url).hostname):
            raise ValueError("begins with https://, or anybody on the way could put keys of their own there")
        return url

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_http(cls, url: str) -> str:
        if url and not (urlsplit(url).scheme in ("http", "https") and urlsplit(url).hostname):
            raise ValueError("begins with http:// or https://; the collector takes OTLP over HTTP there")
        return url

    @field_validator("iam_ops_arns", mode="before")
    @classmethod
    def _listed(cls, arns: Any) -> Any:
        return [arn.strip() for arn in arns.split(",") if arn.strip()] if isinstance(arns, str) else arns

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, level: Any) -> Any:
        return level.upper() if isinstance(level, str) else level

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _are_origins(cls, listed: str | list[str]) -> list[str]:
        origins = _parts(listed)
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} is no origin: name each one as browsers send it, like https://example.com"
                )
        return origins

    @field_validator("forwarded_allow_ips", mode="before")
    @classmethod
    def _are_networks(cls, listed: str | list[str]) -> list[str]:
        networks = _parts(listed)
        for network in networks:
            try:
                ip_network(network)
            except ValueError:
                raise ValueError(f"{network!r} is neither an address nor a network like 10.0.0.0/8") from None
        return networks

    @field_validator("database_url")
    @classmethod
    def _is_postgresql(cls, url: str) -> str:
        if url and not url.startswith(("postgresql://", "postgres://")):
            raise ValueError("begins with postgresql://; without it the service has a database of its own")
        return url

    @field_validator("database_path", mode="before")
    @classmethod
    def _without_home(cls, path: Any) -> Any:
        if str(path).startswith("~"):
            raise ValueError(HOME_UNKNOWN)
        return path

    @field_validator("database_path", mode="after")
    @classmethod
    def _real(cls, path: Path) -> Path:
        # two names of one file must be one owner's
        return Path(os.path.realpath(path))

    @field_validator("backup_url", "replica_url")
    @classmethod
    def _is_store(cls, url: str) -> str:
        if url:
            check_store_url(url)
        return url

    @field_validator("replica_url")
    @classmethod
    def _has_prefix(cls, url: str) -> str:
        if url and not urlsplit(url).path.strip("/"):
            raise ValueError("needs a prefix of its own in the bucket: s3://bucket/prefix")
        return url

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: dict[str, Any]) -> dict[str, Any]:
        database = Path(os.path.realpath(values.get("DATABASE_PATH") or cls.model_fields["database_path"].default))
        is_function = values.pop(_FUNCTION_NAME, None)
        if values.get("DATABASE_URL"):
            return _on_postgresql(values, is_function=bool(is_function))
        if is_function:
            if not values.get("BACKUP_URL") and not values.get("REPLICA_URL"):
                raise ValueError("REPLICA_URL must be set on Lambda: nothing else outlives the function's /tmp")
            return {"READ_FRESHNESS_SECONDS": 0, **values}
        return {
            "BACKUP_URL": (database.parent / "backups").as_uri(),
            "REPLICA_URL": (database.parent / "replica").as_uri(),
            **values,
        }

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "Settings":
        """Read the variables that are set and not empty. Raises SettingsError naming each wrong one."""
        names = [_FUNCTION_NAME, *(str(field.alias) for field in cls.model_fields.values())]
        try:
            return cls.model_validate({name: environ[name] for name in names if environ.get(name)})
        except ValidationError as error:
            raise SettingsError("; ".join(map(_explain, error.errors()))) from None


def _on_postgresql(values: dict[str, Any], *, is_function: bool) -> dict[str, Any]:
    """It keeps its own log and backups."""
    for name in ("REPLICA_URL", "BACKUP_URL"):
        if values.get(name):
            raise ValueError(f"DATABASE_URL is set, and so is {name}, for another database: unset one of the two")
    defaults = {"DATABASE_CONNECTIONS": 1} if is_function else {}
    return {**defaults, **values, "REPLICA_URL": "", "BACKUP_URL": "", "MAINTENANCE_INTERVAL_SECONDS": 0}


def _parts(listed: str | list[str]) -> list[str]:
    return [part.strip() for part in (listed.split(",") if isinstance(listed, str) else listed)]


def _explain(error: Any) -> str:
    message: str = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return message
    name, value = str(error["loc"][0]), error["input"]
    shown = "***" if name == "DATABASE_URL" else redacted(value) if name.endswith("_URL") else value
    return f"{name}={shown!r}: {message[0].lower()}{message[1:]}"
