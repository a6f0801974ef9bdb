"""What stands between a caller and the function: function URL, HTTP API, REST API, application load balancer."""

import base64
import json
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

from handler.problems import Code, Refusal

Event = dict[str, Any]

FUNCTION_LIMIT = 6_000_000  # bytes of an answer as JSON, whatever is in front
LOAD_BALANCER_LIMIT = 1_000_000


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _are_named(are: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(are, value.values()))


def _is_anything(value: Any) -> bool:
    return True


# What Mangum and this service take for granted of an event, where it is there
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "body": _is_text,
    "cookies": _are_texts,
    "headers": _are_named(_is_text),
    "httpMethod": _is_text,
    "isBase64Encoded": lambda value: isinstance(value, bool),
    "multiValueHeaders": _are_named(_are_texts),
    "multiValueQueryStringParameters": _are_named(_are_texts),
    "path": _is_text,
    "pathParameters": _are_named(_is_text),
    "queryStringParameters": _are_named(_is_text),
    "rawQueryString": _is_text,
    "requestContext.apiId": _is_text,
    "requestContext.domainName": _is_text,
    "requestContext.http": _are_named(_is_text),
    "requestContext.identity": _are_named(_is_anything),
    "requestContext.path": _is_text,
    "requestContext.stage": _is_text,
    "resource": _is_text,
}
_REQUIRED = ("httpMethod", "path")
_REQUIRED_OF_2_0 = ("requestContext.http.method", "requestContext.http.path", "requestContext.http.sourceIp")
_HOST = re.compile(r"[^:]*(:[0-9]{1,5})?", re.ASCII)
_PARAMETER = re.compile(r"\{([^}+]+)\+?\}")


def is_request(event: Any) -> bool:
    """Whether it is from one of these, whatever it holds."""
    if not isinstance(found_in(event, "requestContext"), dict):
        return False
    return _is_balancers(event) or any(event.get(name) is not None for name in ("version", "resource"))


def readable(event: Event) -> Event:
    """The event as Mangum can read it. Raises Refusal (400) for one that no gateway sends, and for a body that is
    not base64.
    """
    made = _without_nulls(event) | {"requestContext": _without_nulls(event["requestContext"])}
    _check(made)
    made["headers"] = _headers(made, made.get("headers", {}))
    if "multiValueHeaders" in made:
        made["multiValueHeaders"] = _headers(made, made["multiValueHeaders"])
    if made.get("isBase64Encoded"):
        try:
            made |= {"body": base64.b64decode(made.get("body", "")), "isBase64Encoded": False}
        except ValueError:
            raise Refusal(Code.MALFORMED_BODY, "The body is not base64, as the event says.") from None
    return made


def _without_nulls(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _check(event: Event) -> None:
    """Only a caller of Lambda itself can send what fails here, and deserves to be told."""
    required = _REQUIRED_OF_2_0 if event.get("version") == "2.0" and not _is_balancers(event) else _REQUIRED
    for place in required:
        if found_in(event, place) is None:
            raise Refusal(Code.MALFORMED_REQUEST, f"The event is no request: it lacks {place}.")
    for place, is_right in _FIELDS.items():
        value = found_in(event, place)
        if value is not None and not is_right(value):
            raise Refusal(Code.MALFORMED_REQUEST, f"The event is no request: no gateway sends such a {place}.")


def found_in(event: Any, place: str) -> Any:
    """What an event has at a place, as `requestContext.http.path`; None if nothing."""
    value = event
    for name in place.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _headers(event: Event, headers: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in headers.items() if not _disturbs(event, name.lower(), value)}


def _disturbs(event: Event, name: str, value: Any) -> bool:
    """Mangum takes a port out of these, which nothing here needs, and fails when it is none. A REST API hands a
    compressed answer on as base64 unless it is told of binary types; it can compress by itself.
    """
    if name == "host":
        return not _HOST.fullmatch(value if isinstance(value, str) else ", ".join(value))
    return name == "x-forwarded-port" or (name == "accept-encoding" and _is_rest(event))


def _is_balancers(event: Event) -> bool:
    return found_in(event, "requestContext.elb") is not None


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


def source_of(event: Event, client: str) -> str:
    """The address that the gateway was called from, whatever the caller says of itself.

    A load balancer writes it behind what `X-Forwarded-For` held before; Mangum takes all of that for the address.
    """
    return client.rpartition(",")[2].strip() if "elb" in event["requestContext"] else client


def answer_limit(scope: Mapping[str, Any]) -> int | None:
    """How many bytes an answer may have; None for a server's, which may have any number."""
    event = scope.get("aws.event")
    return None if event is None else _limit(event)


def _limit(event: Event) -> int:
    return LOAD_BALANCER_LIMIT if _is_balancers(event) else FUNCTION_LIMIT


def excess(event: Event, answer: dict[str, Any]) -> str | None:
    """Why an answer would not arrive, or None when it is small enough."""
    limit = _limit(event)
    size = len(json.dumps(answer))
    if size <= limit:
        return None
    outcome = "carried out, but its" if answer["statusCode"] < 400 else "refused, and the"
    return (
        f"The request was {outcome} answer has {size} bytes as Lambda hands it on, and {limit} at most get through. "
        "Ask for less at once, or for gzip (Accept-Encoding)."
    )


def headers_of(answer: dict[str, Any]) -> dict[str, str]:
    """Those of an answer that are true of whatever is sent in its place."""
    several = {name: values[0] for name, values in answer.get("multiValueHeaders", {}).items()}
    return {name: value for name, value in {**several, **answer.get("headers", {})}.items() if name.startswith("x-")}


def refusal(event: Event, status: int, headers: dict[str, str], body: bytes) -> dict[str, Any]:
    answer = {"statusCode": status, "headers": headers, "body": body.decode(), "isBase64Encoded": False}
    if _is_balancers(event) and event.get("multiValueHeaders") is not None:
        answer["multiValueHeaders"] = {name: [value] for name, value in headers.items()}
        del answer["headers"]
    return answer
