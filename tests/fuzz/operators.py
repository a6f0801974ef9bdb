"""What operators write, and what lies beside log and backups for them: settings, moments, SQL, manifests, reports."""

import argparse
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from typing import Any
from unittest import mock

from hypothesis import strategies as st

from core.errors import BackupDamaged, SettingsError, StatementRefused
from infra.__main__ import _parser
from infra.backups.backups import Backups
from infra.backups.retention import Retention
from infra.maintenance import report
from infra.maintenance.drill import Drill, read_drill
from infra.operators.restore import parse_moment
from infra.operators.sql import parts_of
from infra.settings import Settings
from infra.storage.object_store import ObjectStore
from infra.storage.url import redacted
from tests.fuzz import odd
from tests.fuzz.target import Look

# Settings

_sound = st.sampled_from(
    [
        "s3://bucket/prefix",
        "file:///tmp/x",
        "1",
        "0.5",
        "INFO",
        "127.0.0.1",
        "10.0.0.0/8",
        "https://example.com",
        "~/x",
        "s3://b",
    ]
)
_written = _sound | odd.spoilt(_sound) | odd.texts
_aliases = [str(field.alias) for field in Settings.model_fields.values()]
settings = st.dictionaries(st.sampled_from([*_aliases, "AWS_LAMBDA_FUNCTION_NAME"]), _written, max_size=4)


def read_settings(environ: dict[str, str]) -> None:
    with suppress(SettingsError):
        Settings.from_environment({name: value for name, value in environ.items() if "\0" not in value})
    for value in environ.values():
        redacted(value)


# Commands

_moments = st.sampled_from(["2026-01-31T12:00:00Z", "2026-01-31", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59Z"])
_verbs = [
    "restore",
    "sql",
    "verify",
    "backup",
    "changes",
    "--at",
    "--txid",
    "--label",
    "--timeout",
    "-o",
    "--json",
    "-",
]
commands = st.tuples(
    _moments | odd.spoilt(_moments) | odd.texts,
    st.lists(st.sampled_from(_verbs) | odd.texts, max_size=5),
)


def read_command(case: tuple[str, list[str]]) -> None:
    moment, words = case
    with suppress(SettingsError):
        assert parse_moment(moment).utcoffset() == timedelta(0)
    try:
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            assert isinstance(_parser().parse_args(words), argparse.Namespace)
    except SystemExit as end:
        if end.code not in (0, 2):
            raise


_SQL: tuple[str, ...] = (
    *";'\"[`\n\ufeff\0",
    "/*",
    "*/",
    "--",
    "SELECT 1",
    "VACUUM",
    "BEGIN",
    "END",
    "PRAGMA x",
    "ATTACH",
    "EXPLAIN",
)
_SQL += ("CREATE TRIGGER t AFTER INSERT ON items BEGIN SELECT 1",)
sql = st.lists(st.sampled_from(_SQL) | odd.texts, max_size=12)


def read_sql(words: list[str]) -> None:
    with suppress(StatementRefused):
        for part in parts_of(" ".join(words)):
            assert part.statements


# What lies beside

_members = [
    *report.Report.__dataclass_fields__,
    "name",
    "created_at",
    "size",
    "sha256",
    "rows",
    "schema_version",
    "checksum",
]
_manifest = {
    "name": "app-20260131-1200.db.gz",
    "created_at": "2026-01-31T12:00:00+00:00",
    "size": 1,
    "sha256": "0" * 64,
    "rows": {"items": 1},
    "schema_version": 1,
    "txid": "0" * 16,
    "checksum": "0" * 16,
}


def _spoilt_documents(sound: dict[str, Any]) -> st.SearchStrategy[bytes]:
    changed = st.dictionaries(st.sampled_from(_members) | odd.texts, odd.values, max_size=3).map(lambda x: sound | x)
    removed = st.sampled_from(list(sound)).map(lambda gone: {k: v for k, v in sound.items() if k != gone})
    texts = (changed | removed | odd.values).map(json.dumps)
    return (texts | odd.spoilt(texts) | odd.texts).map(lambda text: text.encode("utf-8", "surrogatepass"))


documents = _spoilt_documents(_manifest) | st.binary(max_size=20)


class _OneObject(ObjectStore):
    """Whose every object is these bytes."""

    def __init__(self, body: bytes) -> None:
        self.url = "s3://bucket/prefix"
        self._body = body

    def read(self, name: str) -> Iterator[bytes]:
        yield self._body

    def read_range(self, name: str, begin: int, end: int) -> bytes:
        return self._body[begin:end]


@contextmanager
def without_warnings() -> Iterator[Look]:
    """There is one for nearly each case."""
    with mock.patch.object(report.logger, "disabled", True):
        yield read_document


def read_document(body: bytes) -> None:
    store = _OneObject(body)
    assert isinstance(report.read_report(store), report.Report)
    assert isinstance(read_drill(store), Drill | None)
    backups = Backups(store, Retention(timedelta(days=1), timedelta(days=1)))
    try:
        manifest = backups.manifest_of("app-20260131-1200.db.gz")
    except BackupDamaged:
        return
    assert all(isinstance(table, str) and count >= 0 for table, count in manifest.rows.items())
    assert isinstance(manifest.name + manifest.created_at + manifest.sha256 + manifest.txid + manifest.checksum, str)
    assert manifest.schema_version >= 0
