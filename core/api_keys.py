"""Keys that let callers in, `cnp_<id>_<secret>`: the use cases of their table.

A secret is 178 random bits, so its SHA-256 is all that need be kept: nobody can try them all, and a slow hash would
only make requests slow. The last six characters are a check sum, which tells a key that was cut short or mistyped from
one that is not known, without a look into the database. `FORM` finds keys wherever somebody has left one.
"""

import hashlib
import hmac
import re
import secrets
import string
import zlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from peewee import Database

from core.dialects import execute, is_postgresql
from core.errors import KeyNotFound, KeyRefused
from core.stored import now

FORM = re.compile(r"cnp_([a-z2-7]{8})_([0-9A-Za-z]{36})", re.ASCII)

_ID_LETTERS = string.ascii_lowercase + "234567"
_LETTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
_NOBODYS = bytes(32)  # no secret that anybody knows has this hash


class Scope(StrEnum):
    """What a caller may do; none of them implies another."""

    READ = "read"
    WRITE = "write"
    OPS = "ops"


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has come in with a key."""

    key_id: str
    scopes: frozenset[Scope]
    used_today: bool


@dataclass(frozen=True, slots=True)
class KeyView:
    """A key as its row shows it: all but the secret, of which there is only the hash."""

    id: str
    name: str
    scopes: str
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    last_used_on: str | None


def parse(text: str) -> tuple[str, str] | None:
    """The id and the secret; None when it is no key."""
    found = FORM.fullmatch(text)
    if not found or _check_sum(text[:-6]) != text[-6:]:
        return None
    return found[1], found[2]


def create(db: Database, name: str, scopes: frozenset[Scope], expires_at: str | None) -> str:
    """The key, which nobody can be told again."""
    key = _new_key()
    key_id, secret = key.split("_")[1:]
    execute(
        db,
        "INSERT INTO api_keys (id, name, secret_sha256, scopes, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)",
        (key_id, name, _sha256(secret), " ".join(scope for scope in Scope if scope in scopes), now(), expires_at),
    )
    return key


def list_keys(db: Database) -> list[KeyView]:
    """Oldest first."""
    if is_postgresql(db):
        encoding, as_bytes = "UTF-8", "convert_to({}, 'UTF8')"
    else:
        [(encoding,)] = db.execute_sql("PRAGMA encoding").fetchall()
        as_bytes = "CAST({} AS BLOB)"
    columns = ", ".join(as_bytes.format(name) for name in KeyView.__slots__)
    rows = db.execute_sql(f"SELECT {columns} FROM api_keys ORDER BY created_at, id")  # noqa: S608 (of the class)
    return [KeyView(*(_shown(value, encoding) for value in row)) for row in rows.fetchall()]


def revoke(db: Database, key_id: str) -> None:
    """From now on it lets nobody in; the row stays, for whoever finds its id in a log. Raises KeyNotFound."""
    if not execute(db, "SELECT 1 FROM api_keys WHERE id = ?", (key_id,)).fetchall():
        raise KeyNotFound(key_id)
    execute(db, "UPDATE api_keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (now(), key_id))


def holder(db: Database, key_id: str, secret: str, moment: str) -> Holder:
    """Whom a key lets in at a moment. Raises KeyRefused, as late for an id that is not there as for a wrong secret.

    Whatever a shell has written into the row, it comes as numbers and bytes.
    """
    given = _sha256(secret)
    query = _HOLDER_ON_POSTGRESQL if is_postgresql(db) else _HOLDER
    rows = execute(db, query, (moment, moment[:10], key_id)).fetchall()
    kept, is_revoked, is_expired, used_today, *has = rows[0] if rows else (_NOBODYS, 0, 0, 0, 0, 0, 0)
    if not hmac.compare_digest(given, kept or _NOBODYS):
        raise KeyRefused(key_id, "wrong_secret" if rows else "unknown")
    if is_revoked or is_expired:
        raise KeyRefused(key_id, "revoked" if is_revoked else "expired")
    return Holder(key_id, frozenset(scope for scope, there in zip(Scope, has, strict=True) if there), bool(used_today))


def note_use(db: Database, key_id: str, day: str) -> None:
    """Changes nothing when that day, or a later one, is noted."""
    execute(
        db,
        "UPDATE api_keys SET last_used_on = ? WHERE id = ? AND (last_used_on IS NULL OR last_used_on < ?)",
        (day, key_id, day),
    )


_HAS = ", ".join(f"ifnull(instr(' ' || scopes || ' ', ' {scope} ') > 0, 0)" for scope in Scope)
# A time that is none has passed
_HOLDER = f"""
    SELECT CAST(secret_sha256 AS BLOB), revoked_at IS NOT NULL,
        expires_at IS NOT NULL AND NOT ifnull(julianday(expires_at) > julianday(?), 0), ifnull(last_used_on >= ?, 0),
        {_HAS}
    FROM api_keys WHERE id = ?
"""  # noqa: S608 (of the scopes)
_HAS_ON_POSTGRESQL = ", ".join(f"position(' {scope} ' IN ' ' || scopes || ' ') > 0" for scope in Scope)
# Its table takes times of one form, so they compare as text
_HOLDER_ON_POSTGRESQL = f"""
    SELECT secret_sha256, revoked_at IS NOT NULL, coalesce(expires_at <= ?, FALSE), coalesce(last_used_on >= ?, FALSE),
        {_HAS_ON_POSTGRESQL}
    FROM api_keys WHERE id = ?
"""  # noqa: S608 (of the scopes)


def _new_key() -> str:
    key = f"cnp_{_random(_ID_LETTERS, 8)}_{_random(_LETTERS, 30)}"
    return key + _check_sum(key)


def _random(letters: str, length: int) -> str:
    return "".join(secrets.choice(letters) for _ in range(length))


def _check_sum(text: str) -> str:
    """CRC-32 in six digits of base 62."""
    number, digits = zlib.crc32(text.encode()), ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits = _LETTERS[digit] + digits
    return digits


def _sha256(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _shown(value: Any, encoding: str) -> Any:
    """For a terminal, whatever a shell has written."""
    if value is None:
        return None
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in value.decode(encoding, "replace"))
