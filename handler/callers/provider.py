"""The public keys of an identity provider, by their ids: fetched when one is needed that is not here."""

import asyncio
import json
import logging
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from typing import Any

from core.errors import IdentityProviderUnavailable

logger = logging.getLogger(__name__)
clock: Callable[[], float] = time.monotonic

_KEPT_SECONDS = 600.0  # from one fetch to the next while all that is asked for is here
_USED_SECONDS = 3600.0  # how long they are good when no fetch succeeds
_PAUSE_SECONDS = 10.0  # from one fetch to the next for an id that is not here: anybody may make one up
_TIMEOUT_SECONDS = 5.0
_LARGEST = 512 * 1024  # bytes


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any, **options: Any) -> None:
        return None


class Provider:
    """Belongs to the event loop. `url`: of its JSON Web Key Set (RFC 7517)."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: dict[str, Any] = {}
        self._fetched = self._tried = float("-inf")
        self._fetching: asyncio.Future[None] | None = None

    async def key(self, kid: str) -> Any | None:
        """None when the provider has no such key; raises IdentityProviderUnavailable when it cannot be asked."""
        now = clock()
        if kid not in self._keys or now - self._fetched > _KEPT_SECONDS:
            await self._fetch_unless_just_tried(now)
        is_good = now - self._fetched <= _USED_SECONDS
        if kid in self._keys and is_good:
            return self._keys[kid]
        if self._fetched < self._tried:
            raise IdentityProviderUnavailable(f"{self._url} cannot be fetched: see the log.")
        return None

    async def _fetch_unless_just_tried(self, now: float) -> None:
        """One fetch is for all that wait for one."""
        if self._fetching is None:
            if now - self._tried < _PAUSE_SECONDS:
                return
            self._tried = now
            self._fetching = asyncio.ensure_future(self._fetch(now))
        await asyncio.wait([self._fetching])

    async def _fetch(self, now: float) -> None:
        try:
            self._keys = await asyncio.to_thread(fetched_keys, self._url)
            self._fetched = now
        except (OSError, ValueError, HTTPException, RecursionError) as error:
            logger.error("%s cannot be fetched: %s", self._url, error)
        finally:
            self._fetching = None


def fetched_keys(url: str) -> dict[str, Any]:
    """By id; keys without one, for encryption, or of a kind that is not known, are left out. Raises OSError, ValueError
    or HTTPException.
    """
    from joserfc.errors import JoseError
    from joserfc.jwk import import_key

    handlers = (_NoRedirect, urllib.request.HTTPSHandler(context=ssl.create_default_context()))
    with urllib.request.build_opener(*handlers).open(url, timeout=_TIMEOUT_SECONDS) as answer:
        body = answer.read(_LARGEST + 1)
    if len(body) > _LARGEST:
        raise ValueError(f"it has more than {_LARGEST} bytes")
    found = json.loads(body)
    if not isinstance(found, dict) or not isinstance(found.get("keys"), list):
        raise ValueError("it is no JSON Web Key Set")
    keys: dict[str, Any] = {}
    for one in found["keys"]:
        if not isinstance(one, dict) or one.get("kty") not in ("RSA", "EC", "OKP") or one.get("use", "sig") != "sig":
            continue
        try:
            keys[str(one["kid"])] = import_key(one)
        except (JoseError, KeyError, ValueError, TypeError) as error:
            logger.warning("%s: a key is left out: %s", url, error)
    return keys
