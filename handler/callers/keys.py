"""AUTH_MODE=keys: callers have keys of the table `api_keys`.

Each request reads its key's row, in a state as fresh as any other read, so a key that was revoked lets nobody in after
READ_FRESHNESS_SECONDS, whichever instance is asked. The row has the day on which the key was last used: that is noted
by the request's own commit, or by one that nobody waits for.
"""

import asyncio
import logging
from functools import partial
from typing import TypeVar

import peewee
from starlette.types import Scope as AsgiScope

from core import api_keys
from core.api_keys import Holder, Scope
from core.errors import KeyRefused, ServiceError, StoreError
from core.stored import now
from handler.callers import Caller, know
from handler.callers.credentials import credential, invalid
from infra.database import Database, Session, UseCase

logger = logging.getLogger(__name__)

T = TypeVar("T")

_AGAIN_SECONDS = 60.0  # after a commit that was for a note alone, whatever became of it


class Use:
    """Of a key, on a day that its row does not have yet."""

    def __init__(self, key_id: str, day: str) -> None:
        self.key_id = key_id
        self._note = partial(api_keys.note_use, key_id=key_id, day=day)

    def with_it(self, use_case: UseCase[T]) -> UseCase[T]:
        """Note it in the same transaction."""

        def both(db: peewee.Database) -> T:
            try:
                self._note(db)
            except peewee.IntegrityError as error:  # a trigger that somebody has made
                logger.warning("the use of key %s is not noted: %s", self.key_id, error)
            return use_case(db)

        return both

    async def note(self, database: Database) -> None:
        try:
            await database.write(self._note)
        except (ServiceError, peewee.IntegrityError) as error:
            logger.warning("the use of key %s is not noted: %s", self.key_id, error)


class ByKey:
    takes_bearers = True

    def __init__(self, database: Database) -> None:
        self._database = database
        self._not_again: dict[str, float] = {}  # by key: the time until which no commit is made for a note alone
        self._under_way: set[asyncio.Task[None]] = set()

    async def admit(self, scope: AsgiScope, needed: Scope) -> Caller:
        """Raises ServiceError when the database cannot be read."""
        found = api_keys.parse(credential(scope, or_api_key=True))
        if not found:
            raise invalid("key", "malformed")
        key_id, secret = found
        session: Session | None = scope["state"].get("session")
        moment = now()
        find = partial(api_keys.holder, key_id=key_id, secret=secret, moment=moment)
        try:
            # a session of its own: whoever is not let in is not told how far the log is
            held = await self._held(find, needed, session and Session(arrived=session.arrived))
        except KeyRefused as error:
            raise invalid("key", error.reason, key_id=key_id) from None
        know(scope, key_id=key_id)
        if not held.used_today:
            scope["state"]["use"] = Use(key_id, moment[:10])
        return Caller(key_id, held.scopes)

    async def _held(self, find: UseCase[Holder], needed: Scope, session: Session | None) -> Holder:
        """An operator must see how the service is just when the store is away: then the keys that are here count, but
        not those of a snapshot that nobody has looked past yet: they may have been revoked since.
        """
        try:
            return await self._database.read(find, session)
        except StoreError:
            if needed is not Scope.OPS or not self._database.has_been_current:
                raise
            return await self._database.read_local(find)

    async def leave(self, scope: AsgiScope) -> None:
        use: Use | None = scope["state"].get("use")
        loop = asyncio.get_running_loop()
        if not use or self._not_again.get(use.key_id, 0.0) > loop.time():
            return
        self._not_again[use.key_id] = loop.time() + _AGAIN_SECONDS
        if "aws.event" in scope:  # nothing goes on between two invocations
            return await use.note(self._database)
        task = asyncio.create_task(use.note(self._database))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
