"""A write that is done once, however often it is sent: its key, what was asked and what was answered are rows of its
own transaction.

So they are there if and only if the write is, on every instance. Two that come at once are one behind the other, on one
instance in its queue, on two by the log, which makes the second run again on what the first has left. PostgreSQL does
that, too: there the key is taken first, and the second waits for the first.
"""

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from peewee import Database

from core.dialects import execute, is_postgresql
from core.errors import IdempotencyKeyReused, WriteRefused
from core.models import IdempotencyKey
from core.prepared import Row

_MOST_REMOVED = 4  # of what is too old, by each write that adds one
_HOUR_SECONDS = 3600
# In each hour that has any, one after the other; in later ones there is what an instance has done whose clock is ahead
_FIND = """
WITH RECURSIVE hours (hour) AS (
    SELECT min(hour) FROM idempotency_keys WHERE hour >= ?
    UNION ALL
    SELECT (SELECT min(hour) FROM idempotency_keys WHERE hour > hours.hour) FROM hours WHERE hour IS NOT NULL
)
SELECT fingerprint, status, headers, body
FROM hours CROSS JOIN idempotency_keys AS kept ON kept.hour = hours.hour AND caller = ? AND key = ?
LIMIT 1
"""
_OLD = "SELECT hour, caller, key FROM idempotency_keys WHERE hour < ? ORDER BY hour, caller, key LIMIT ?"
_REMOVE = "DELETE FROM idempotency_keys WHERE hour = ? AND caller = ? AND key = ?"  # of several at once it is a scan

# On PostgreSQL, where a serializable transaction must not read an index that all others write to: what finds out
# whether the key is taken is an INSERT, of no answer yet, and what then keeps the answer is the same once more.
_TAKE = """
INSERT INTO idempotency_keys AS kept (hour, caller, key, fingerprint, status, headers, body)
VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (caller, key) DO UPDATE SET hour = excluded.hour, fingerprint = excluded.fingerprint,
    status = excluded.status, headers = excluded.headers, body = excluded.body
WHERE kept.hour < ? OR kept.status = 0
RETURNING 1
"""
_FIND_TAKEN = "SELECT fingerprint, status, headers, body FROM idempotency_keys WHERE caller = ? AND key = ?"
_REMOVE_SOME = """
DELETE FROM idempotency_keys
WHERE (caller, key) IN (SELECT caller, key FROM idempotency_keys WHERE hour < ? ORDER BY hour LIMIT ?)
"""
_ONE_IN = 16  # writes removes what each would: two that remove at once are in each other's way


@dataclass(frozen=True, slots=True)
class Attempt:
    """One sending of a write. `fingerprint`: of all that was asked, which tells another request under the key."""

    caller: str
    key: str
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    is_repeated: bool = False


_NONE_YET = Answer(0, {}, b"")


def oldest_kept(keep_hours: int) -> int:
    """The hour of the oldest keys that anybody still asks for."""
    return _this_hour() - keep_hours


def once(db: Database, attempt: Attempt, write: Callable[[Database], Answer], keep_hours: int) -> Answer:
    """Write, and keep the answer for as long; or return what an earlier attempt was answered.

    Raises IdempotencyKeyReused for a key that came with another request, WriteRefused for a row that is no answer, and
    what `write` raises: then nothing is kept.
    """
    hour = _this_hour()
    if is_postgresql(db):
        return _once_taken(db, attempt, write, hour, hour - keep_hours)
    if found := _find(db, attempt, hour - keep_hours):
        return found
    answer = write(db)
    IdempotencyKey.insert(
        hour=hour,
        caller=attempt.caller,
        key=attempt.key,
        fingerprint=attempt.fingerprint,
        status=answer.status,
        headers=json.dumps(answer.headers),
        body=answer.body,
    ).execute(db)
    _remove_old(db, hour - keep_hours)
    return answer


def _this_hour() -> int:
    return int(time.time()) // _HOUR_SECONDS


def _once_taken(
    db: Database, attempt: Attempt, write: Callable[[Database], Answer], hour: int, first_kept: int
) -> Answer:
    if not _take(db, attempt, _NONE_YET, hour, first_kept):
        return _answer_of(attempt, execute(db, _FIND_TAKEN, (attempt.caller, attempt.key)).fetchone())
    answer = write(db)
    _take(db, attempt, answer, hour, first_kept)
    if random.randrange(_ONE_IN) == 0:  # noqa: S311 (no secret)
        execute(db, _REMOVE_SOME, (first_kept, _MOST_REMOVED * _ONE_IN))
    return answer


def _take(db: Database, attempt: Attempt, answer: Answer, hour: int, first_kept: int) -> bool:
    """False when somebody else has the key."""
    kept = (answer.status, json.dumps(answer.headers), answer.body)
    row = (hour, attempt.caller, attempt.key, attempt.fingerprint, *kept)
    return bool(execute(db, _TAKE, (*row, first_kept)).fetchall())


def _find(db: Database, attempt: Attempt, first_kept: int) -> Answer | None:
    found = db.execute_sql(_FIND, (first_kept, attempt.caller, attempt.key)).fetchone()
    return found and _answer_of(attempt, found)


def _answer_of(attempt: Attempt, found: Row) -> Answer:
    fingerprint, status, headers, body = found
    if bytes(fingerprint) != attempt.fingerprint:
        raise IdempotencyKeyReused(attempt.key)
    return Answer(_status(status), _headers(headers), bytes(body), is_repeated=True)


def _status(stored: int) -> int:
    if 200 <= stored <= 299:  # nothing else is kept
        return stored
    raise _unreadable(f"status {stored}")


def _headers(stored: str) -> dict[str, str]:
    headers = json.loads(stored)
    if isinstance(headers, dict) and all(isinstance(value, str) for value in headers.values()):
        return headers
    raise _unreadable(f"headers {stored}")


def _unreadable(what: str) -> WriteRefused:
    """Somebody else has written into the table."""
    return WriteRefused(f"What is kept for this Idempotency-Key is no answer ({what}). Take another key.")


def _remove_old(db: Database, first_kept: int) -> None:
    for old in db.execute_sql(_OLD, (first_kept, _MOST_REMOVED)).fetchall():
        db.execute_sql(_REMOVE, old)
