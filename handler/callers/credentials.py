"""What a caller shows: `Authorization: Bearer`, or `X-API-Key`."""

from starlette.datastructures import Headers
from starlette.types import Scope as AsgiScope

from handler.callers import NotLetIn, challenge
from handler.problems import Code


def credential(scope: AsgiScope, *, or_api_key: bool) -> str:
    """Raises NotLetIn when there is none, and when there are several."""
    headers = Headers(scope=scope)
    authorizations = [value.partition(" ") for value in headers.getlist("authorization")]
    # another scheme is for whatever stands in front, as AWS's signature is
    found = {token.strip() for scheme, _, token in authorizations if scheme.lower() == "bearer"}
    if or_api_key:
        found |= {value.strip() for value in headers.getlist("x-api-key")}
    if len(found) > 1:
        detail = "The request has more than one key or token; send one."
        raise NotLetIn(Code.MALFORMED_HEADER, detail, "several", challenge("invalid_request"))
    if not found:
        where = "Authorization (as Bearer) or X-API-Key" if or_api_key else "Authorization (as Bearer)"
        detail = f"Say who you are: the header {where} is not there."
        raise NotLetIn(Code.UNAUTHENTICATED, detail, "missing", challenge())
    return found.pop()


def invalid(what: str, reason: str, **who: str) -> NotLetIn:
    """The same for all that is wrong with a credential: `reason` is not for the caller."""
    detail = f"The {what} is not valid: not known, expired or revoked."
    return NotLetIn(Code.UNAUTHENTICATED, detail, reason, challenge("invalid_token"), **who)
