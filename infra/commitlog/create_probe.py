"""Whether a store keeps create-if-absent, on which everything else here rests."""

import random
import re
from typing import Protocol

from core.errors import ObjectExists, StoreRefused, StoreUnavailable

PROBE = "create-if-absent"
RACED = re.compile(PROBE + "-[0-9a-f]{16}")

_RACERS = 3
_ROUNDS = 2


class Store(Protocol):
    """What the proof asks of an object store; see ObjectStore for the errors."""

    @property
    def url(self) -> str: ...
    def create(self, name: str, body: bytes | bytearray) -> None: ...
    def race(self, name: str, body: bytes, racers: int) -> int: ...


def prove_create_if_absent(store: Store, rng: random.Random) -> None:
    """Create one object twice, one after the other, then others from several connections at the same moment.

    Many S3-compatible stores take If-None-Match and ignore it, and some look first and write a moment later: on them
    writers would overwrite each other's commits. Leaves the objects `create-if-absent` and `create-if-absent-<16 hex
    digits>`, of which maintenance removes the latter. Raises StoreRefused, or StoreUnavailable when nothing is proven.
    """
    _prove_one_after_the_other(store)
    for _ in range(_ROUNDS):
        name = f"{PROBE}-{rng.getrandbits(64):016x}"
        won = store.race(name, b"Several creates of this object at the same moment: only one may succeed.\n", _RACERS)
        if won > 1:
            raise _refused(store, f"{won} of {_RACERS} creates of one object at the same moment were all confirmed")
        if not won:
            raise StoreUnavailable(f"{store.url}/{name}: none of {_RACERS} creates of this new object was confirmed")


def _prove_one_after_the_other(store: Store) -> None:
    for _ in range(2):
        try:
            store.create(PROBE, b"Two creates of this object: the second one must fail.\n")
        except ObjectExists:
            return
    raise _refused(store, "this store overwrites an object that was to be created only if absent")


def _refused(store: Store, seen: str) -> StoreRefused:
    return StoreRefused(
        f"{store.url}: {seen} (If-None-Match); commits of different instances would destroy each other. Use S3 or a "
        "store that keeps this promise."
    )
