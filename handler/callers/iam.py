"""AUTH_MODE=iam: callers have signed their requests, and AWS has verified that before it made the event.

What they have sent themselves, a header say, tells nothing: the identity is in the event's `requestContext`, which is
AWS's alone. A function URL and an HTTP API put it under `authorizer.iam`, a REST API under `identity`.
https://docs.aws.amazon.com/lambda/latest/dg/urls-invocation.html#urls-payloads
https://docs.aws.amazon.com/apigateway/latest/developerguide/set-up-lambda-proxy-integrations.html
"""

from collections.abc import Sequence
from typing import Any

from starlette.types import Scope as AsgiScope

from core.api_keys import Scope
from handler.callers import Caller, NotLetIn, know
from handler.problems import Code

_CALLER = frozenset({Scope.READ, Scope.WRITE})


class ByIam:
    leave = None
    takes_bearers = False

    def __init__(self, operators: Sequence[str]) -> None:
        """`operators`: ARNs whose callers have the scope `ops`, too; a `*` at the end stands for whatever follows."""
        self._operators = operators

    async def admit(self, scope: AsgiScope, needed: Scope) -> Caller:
        arn = verified_arn(scope["aws.event"]["requestContext"])
        if not arn:
            detail = (
                "The request has no identity that AWS has verified: sign it, and have the function URL or the API in "
                "front ask for that (AWS_IAM)."
            )
            raise NotLetIn(Code.FORBIDDEN, detail, "unverified")
        know(scope, caller=arn)
        return Caller(arn, _CALLER | {Scope.OPS} if self._is_operator(arn) else _CALLER)

    def _is_operator(self, arn: str) -> bool:
        return any(arn == one or (one.endswith("*") and arn.startswith(one[:-1])) for one in self._operators)


def verified_arn(context: dict[str, Any]) -> str:
    """Empty where the gateway in question puts none: a load balancer verifies nobody."""
    if "elb" in context:
        return ""
    found: Any = context
    for name in ("authorizer", "iam", "userArn") if "http" in context else ("identity", "userArn"):
        found = found.get(name) if isinstance(found, dict) else None
    return found.encode("utf-8", "replace").decode() if isinstance(found, str) else ""
