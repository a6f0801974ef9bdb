"""Which scope a request needs. A new resource is below /api, and so in this table already."""

import re

from core.api_keys import Scope

_DOCS = re.compile(r"/docs(/[^/]*)?|/openapi\.json")
_ACCESS = (
    (re.compile(r"/health|/ready"), None),
    (re.compile(r"/dashboard(/[^/]*)?"), None),  # a page without data: its script asks /ops, with the key of who looks
    # each of these with all that begins like it, whatever the router makes of that
    (re.compile(r"/(metrics|dashboard|ops).*", re.DOTALL), Scope.OPS),
)
_READING = ("GET", "HEAD", "OPTIONS")  # of all other paths, which may be any: whoever is not let in learns of none


def scope_needed(method: str, path: str, docs_open: bool) -> Scope | None:
    """None when anybody may. `path`: below wherever the service is for its caller."""
    if not path.startswith("/api/"):
        if docs_open and _DOCS.fullmatch(path):
            return None
        for pattern, needed in _ACCESS:
            if pattern.fullmatch(path):
                return needed
    return Scope.READ if method in _READING else Scope.WRITE
