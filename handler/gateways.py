"""What stands between a caller and the function: function URL, HTTP API, REST API, application load balancer."""

import base64
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from handler.problems import Code, Refusal

Event = dict[str, Any]

FUNCTION_LIMIT = 6_000_000  # bytes of an answer as JSON, whatever is in front
LOAD_BALANCER_LIMIT = 1_000_000

_HOST = re.compile(r"[^:]*(:[0-9]{1,5})?", re.ASCII)
_PARAMETER = re.compile(r"\{([^}+]+)\+?\}")


def readable(event: Event) -> Event:
    """The event as Mangum can read it. Raises Refusal (400) for a body that is not base64."""
    made = {**event, "headers": _headers(event, event.get("headers") or {})}
    if event.get("multiValueHeaders"):
        made["multiValueHeaders"] = _headers(event, event["multiValueHeaders"])
    if event.get("isBase64Encoded"):
        try:
            made |= {"body": base64.b64decode(event.get("body") or ""), "isBase64Encoded": False}
        except ValueError:
            raise Refusal(Code.MALFORMED_BODY, "The body is not base64, as the event says.") from None
    return made


def _headers(event: Event, headers: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in headers.items() if not _disturbs(event, name.lower(), value)}


def _disturbs(event: Event, name: str, value: Any) -> bool:
    """Mangum takes a port out of these, which nothing here needs, and fails when it is none. A REST API hands a
    compressed answer on as base64 unless it is told of binary types; it can compress by itself.
    """
    if name == "host":
        return not _HOST.fullmatch(value if isinstance(value, str) else "".join(value))
    return name == "x-forwarded-port" or (name == "accept-encoding" and _is_rest(event))


def _is_rest(event: Event) -> bool:
    return "resource" in event and "version" not in event


def mount_point(event: Event, path: str) -> tuple[str, str]:
    """Where the service is for its caller, and the path below that: a stage or base path may be before it."""
    context = event["requestContext"]
    resource = event.get("resource", "$default")
    if resource != "$default":
        return _below_resource(resource, event.get("pathParameters") or {}, unquote(context.get("path") or path), path)
    stage = f"/{context.get('stage')}"
    if stage == "/$default" or not f"{path}/".startswith(f"{stage}/"):
        return "", path
    # a domain of one's own leads to a stage without naming it; the event has it all the same
    named = context.get("domainName", "").startswith(f"{context.get('apiId')}.")
    return stage if named else "", path.removeprefix(stage) or "/"


def _below_resource(resource: str, parameters: dict[str, str], outside: str, path: str) -> tuple[str, str]:
    below = unquote(_PARAMETER.sub(lambda found: parameters.get(found[1], ""), resource)).rstrip("/")
    if not outside.rstrip("/").endswith(below):
        return "", path
    mount = outside.rstrip("/").removesuffix(below)
    return mount, outside.removeprefix(mount) or "/"


def answer_limit(scope: Mapping[str, Any]) -> int | None:
    """How many bytes an answer may have; None for a server's, which may have any number."""
    event = scope.get("aws.event")
    return None if event is None else _limit(event)


def _limit(event: Event) -> int:
    return LOAD_BALANCER_LIMIT if "elb" in event["requestContext"] else FUNCTION_LIMIT


def excess(event: Event, answer: dict[str, Any]) -> str | None:
    """Why an answer would not arrive, or None when it is small enough."""
    limit = _limit(event)
    size = len(json.dumps(answer))
    if size <= limit:
        return None
    return (
        f"The request was carried out, but its answer has {size} bytes as Lambda hands it on, and {limit} at most get "
        "through. Ask for less at once, or for gzip (Accept-Encoding)."
    )


def headers_of(answer: dict[str, Any]) -> dict[str, str]:
    """Those of an answer that are true of whatever is sent in its place."""
    several = {name: values[0] for name, values in answer.get("multiValueHeaders", {}).items()}
    return {name: value for name, value in {**several, **answer.get("headers", {})}.items() if name.startswith("x-")}


def refusal(event: Event, status: int, headers: dict[str, str], body: bytes) -> dict[str, Any]:
    answer = {"statusCode": status, "headers": headers, "body": body.decode(), "isBase64Encoded": False}
    if "elb" in event["requestContext"] and "multiValueHeaders" in event:
        answer["multiValueHeaders"] = {name: [value] for name, value in headers.items()}
        del answer["headers"]
    return answer
