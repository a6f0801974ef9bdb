"""AUTH_MODE=none, which lets in everybody who reaches the port; and no AUTH_MODE, which lets in this machine alone."""

import re
from functools import lru_cache
from ipaddress import ip_address
from typing import Any

from starlette.types import Scope as AsgiScope

from core.api_keys import Scope
from handler.callers import ANYBODY, Caller, NotLetIn
from handler.fields import field_of
from handler.problems import Code

_PORT = re.compile(r":[0-9]*\Z")


class Everybody:
    leave = None
    takes_bearers = False

    async def admit(self, scope: AsgiScope, needed: Scope) -> Caller:
        return ANYBODY


class ThisMachine(Everybody):
    """The address that the connection came in at is what counts: settings do not see what `uvicorn --host` says."""

    async def admit(self, scope: AsgiScope, needed: Scope) -> Caller:
        client = scope.get("client")  # whom a proxy has named, if one is believed
        if not is_loopback((scope.get("server") or [""])[0]) or (client and not is_loopback(client[0])):
            detail = (
                "AUTH_MODE is not set, so only this machine itself is let in, over a loopback address. Start the "
                "service with AUTH_MODE=keys, or with AUTH_MODE=none for everybody who reaches it."
            )
            raise NotLetIn(Code.FORBIDDEN, detail, "not_this_machine")
        if not _is_own_name(field_of(scope, b"host") or ""):
            detail = (
                "AUTH_MODE is not set, so only this machine itself is let in, by the name localhost or an address: a "
                "web page may have had another name lead here. With AUTH_MODE=none any name is good."
            )
            raise NotLetIn(Code.FORBIDDEN, detail, "not_this_machine")
        return ANYBODY


@lru_cache(1024)
def is_loopback(address: Any) -> bool:
    try:
        found = ip_address(address)
    except ValueError:  # a path, of a socket that others may open, too
        return False
    return bool((getattr(found, "ipv4_mapped", None) or found).is_loopback)


@lru_cache(1024)
def _is_own_name(host: str) -> bool:
    """Names without a dot are not to be had in the Internet's DNS, whose owners may have them lead anywhere."""
    name = _PORT.sub("", host).strip("[]")
    if "." not in name or name.endswith(".localhost"):
        return True
    try:
        return bool(ip_address(name))
    except ValueError:
        return False
