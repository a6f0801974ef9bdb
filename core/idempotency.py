"""A write that is done once, however often it is sent: its key, what was asked and what was answered are rows of its
own transaction.

So they are there if and only if the write is, on every instance. Two that come at once are one behind the other, on one
instance in its queue, on two by the log, which makes the second run again on what the first has left.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

from peewee import Database, Tuple

from core.errors import IdempotencyKeyReused
from core.models import IdempotencyKey

_MOST_REMOVED = 4  # of what is too old, by each write that adds one
_AHEAD_HOURS = 1  # by which the clock of another instance may be
_HOUR_SECONDS = 3600


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


def once(db: Database, attempt: Attempt, write: Callable[[Database], Answer], keep_hours: int) -> Answer:
    """Write, and keep the answer for as long; or return what an earlier attempt was answered.

    Raises IdempotencyKeyReused for a key that came with another request, and what `write` raises: then nothing is kept.
    """
    hour = int(time.time()) // _HOUR_SECONDS
    if found := _find(db, attempt, range(hour - keep_hours, hour + _AHEAD_HOURS + 1)):
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


def _find(db: Database, attempt: Attempt, hours: range) -> Answer | None:
    of_attempt = (IdempotencyKey.caller == attempt.caller) & (IdempotencyKey.key == attempt.key)
    for row in IdempotencyKey.select().where(IdempotencyKey.hour.in_(hours), of_attempt).limit(1).dicts().execute(db):
        if bytes(row["fingerprint"]) != attempt.fingerprint:
            raise IdempotencyKeyReused(attempt.key)
        return Answer(row["status"], json.loads(row["headers"]), bytes(row["body"]), is_repeated=True)
    return None


def _remove_old(db: Database, first_kept: int) -> None:
    key = Tuple(IdempotencyKey.hour, IdempotencyKey.caller, IdempotencyKey.key)
    old = (
        IdempotencyKey.select(IdempotencyKey.hour, IdempotencyKey.caller, IdempotencyKey.key)
        .where(IdempotencyKey.hour < first_kept)
        .order_by(IdempotencyKey.hour, IdempotencyKey.caller, IdempotencyKey.key)
        .limit(_MOST_REMOVED)
    )
    IdempotencyKey.delete().where(key.in_(old)).execute(db)
