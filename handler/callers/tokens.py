"""AUTH_MODE=jwt: callers have tokens of an identity provider.

On Lambda the HTTP API's own authorizer has verified them, and AWS has put what they claim into the event. On a server
it is done here, with the provider's public keys, by joserfc.
https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-jwt-authorizer.html
"""

import re
from typing import Any

from starlette.types import Scope as AsgiScope

from core.api_keys import Scope
from core.errors import SettingsError
from handler.callers import Caller, know
from handler.callers.credentials import credential, invalid
from handler.callers.provider import Provider
from infra.settings import Settings

_LEEWAY_SECONDS = 30  # by which its clock and ours may differ
_LONGEST = 16 * 1024  # characters of a token
_LONGEST_SUBJECT = 255  # as OpenID Connect has it
_WORDS = re.compile(r"[\s,\[\]]+")  # the event has a list as text: [read write]
# Public keys only: with a shared secret whoever can check a token can make one
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519", "EdDSA"]


class ByToken:
    leave = None
    takes_bearers = True

    def __init__(self, settings: Settings) -> None:
        self._prefix = settings.jwt_scope_prefix
        self._issuer, self._audience = settings.jwt_issuer, settings.jwt_audience
        self._provider = Provider(settings.jwt_jwks_url)

    async def admit(self, scope: AsgiScope, needed: Scope) -> Caller:
        """Raises IdentityProviderUnavailable when nobody can say now whose token it is."""
        claims = _claims_of_event(scope["aws.event"]) if "aws.event" in scope else await self._verified(scope)
        subject = claims.get("sub")
        if not isinstance(subject, str) or not 0 < len(subject) <= _LONGEST_SUBJECT:
            raise invalid("token", "malformed")
        know(scope, caller=subject)
        return Caller(subject, scopes_in(claims, self._prefix))

    async def _verified(self, scope: AsgiScope) -> dict[str, Any]:
        from joserfc import jws, jwt
        from joserfc.errors import ExpiredTokenError, JoseError

        token = credential(scope, or_api_key=False)
        if len(token) > _LONGEST:
            raise invalid("token", "malformed")
        try:
            kid = jws.extract_compact(token.encode()).headers().get("kid")
            key = await self._provider.key(kid) if isinstance(kid, str) else None
            if key is None:
                raise invalid("token", "unknown")
            claims = jwt.decode(token, key, ALGORITHMS).claims
            jwt.JWTClaimsRegistry(
                leeway=_LEEWAY_SECONDS,
                iss={"essential": True, "value": self._issuer},
                aud={"essential": True, "value": self._audience},
                exp={"essential": True},
            ).validate(claims)
        except ExpiredTokenError:
            raise invalid("token", "expired") from None
        except (JoseError, ValueError, TypeError, KeyError, AttributeError, RecursionError):  # whatever it may hold
            raise invalid("token", "malformed") from None
        return claims


def _claims_of_event(event: dict[str, Any]) -> dict[str, Any]:
    """Those that the HTTP API has verified: its authorizer lets through no token that is not its issuer's."""
    found: Any = event["requestContext"]
    for name in ("authorizer", "jwt", "claims"):
        found = found.get(name) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        raise invalid("token", "unverified")
    return found


def scopes_in(claims: dict[str, Any], prefix: str) -> frozenset[Scope]:
    """Of the claim `scope` (RFC 8693), a text, or of `scp`, which may be a list."""
    found = [claims.get("scope"), claims.get("scp")]
    texts = [text for value in found for text in (value if isinstance(value, list) else [value])]
    words = {word for text in texts if isinstance(text, str) for word in _WORDS.split(text)}
    return frozenset(scope for scope in Scope if f"{prefix}{scope}" in words)


def check_jwt_settings(settings: Settings) -> None:
    """Raises SettingsError when a server could verify no token."""
    needed = {
        "JWT_ISSUER": settings.jwt_issuer,
        "JWT_AUDIENCE": settings.jwt_audience,
        "JWT_JWKS_URL": settings.jwt_jwks_url,
    }
    if missing := [name for name, value in needed.items() if not value]:
        raise SettingsError(f"AUTH_MODE=jwt needs {', '.join(missing)}: whose tokens are good, for whom, by which keys")
