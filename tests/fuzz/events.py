"""Events of Lambda, each field of which may be anything, through the function's own handler."""

import asyncio
import base64
import copy
import importlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from hypothesis import strategies as st

from handler.gateways import FUNCTION_LIMIT
from tests.fuzz import cursors, odd
from tests.fuzz.target import Look

EVENTS = Path(__file__).parents[1] / "events"
_HTTP = ("function_url_create", "http_api_list", "rest_api_create", "alb_read_missing")

Event = dict[str, Any]


class Context:
    function_name = "items"
    memory_limit_in_mb = 1024
    invoked_function_arn = "arn:aws:lambda:eu-central-1:123456789012:function:items"
    aws_request_id = "6f0b1f3e-3a4c-4a3e-9a68-7a4b8a1d2c33"
    tenant_id = None


def _with_several_values(event: Event) -> Event:
    """As a load balancer sends it that is told to."""
    event["multiValueHeaders"] = {name: [value] for name, value in event.pop("headers").items()}
    event["multiValueQueryStringParameters"] = event.pop("queryStringParameters")
    return event


def _read(name: str) -> Event:
    return dict(json.loads((EVENTS / f"{name}.json").read_text()))


_SOUND = [*map(_read, _HTTP), _read("rest_api_create") | {"version": "1.0"}, _with_several_values(_read(_HTTP[-1]))]


def _places(event: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in an event, from the top."""
    yield path
    if isinstance(event, dict | list):
        for key in event if isinstance(event, dict) else range(len(event)):
            yield from _places(event[key], (*path, key))


_ADDED: tuple[str, ...] = (
    "version",
    "resource",
    "cookies",
    "elb",
    "http",
    "identity",
    "sourceIp",
    "stage",
    "path",
    "pathParameters",
)
_ADDED += ("multiValueHeaders", "multiValueQueryStringParameters", "queryStringParameters", "Records", "domainName")
_FIELDS = st.sampled_from(
    ["host", "x-forwarded-proto"] * 2
    + ["accept", "accept-encoding", "authorization", "content-encoding", "content-length", "content-type", "cookie"]
    + ["expect", "host", "idempotency-key", "if-match", "if-none-match", "origin", "range", "transfer-encoding"]
    + ["upgrade", "x-api-key", "x-commit-txid", "x-forwarded-for", "x-forwarded-port", "x-forwarded-proto"]
    + ["x-request-id", "Set-Cookie", "HOST"]
)
_PATHS = ["/", "/api/items", "/api/items/1", "/docs", "/docs/start.js", "/metrics", "/ready", "/prod/api/items"]
_PATHS += ["/openapi.json", "/api/items/batch", "/api/items/export"]
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY", "get", ""]
_words = st.sampled_from(["gzip", "*", '"1"', 'W/"1"', "application/json", "Bearer x", "0000000000000001", "a=1; b=2"])
_paths = st.sampled_from(_PATHS)
_bodies = st.sampled_from(['{"name": "x"}', '{"price": 1}', "[]", '{"items": [{"name": "=1"}]}']) | odd.values.map(
    json.dumps
)
_texts = _words | odd.spoilt(_words) | odd.texts
_queries = st.sampled_from(["limit=2", "q=a", "order=-created_at", "format=csv", "count=true"]) | cursors.tokens.map(
    "cursor={}".format
)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode("utf-8", "surrogatepass")).decode()


@st.composite
def events(draw: st.DrawFn) -> Event:
    """A sound event that is another request, with some of its fields spoilt."""
    event: Event = copy.deepcopy(draw(st.sampled_from(_SOUND)))
    _make_another_request(draw, event)
    for _ in range(draw(st.integers(0, 3))):
        _spoil(draw, event)
    return event


def _make_another_request(draw: st.DrawFn, event: Event) -> None:
    path, method = draw(_paths | odd.spoilt(_paths)), draw(st.sampled_from(_METHODS))
    http = event["requestContext"].get("http", {})
    if http:
        http |= {"path": path, "method": method}
        event["rawQueryString"] = "&".join(draw(st.lists(_queries | odd.spoilt(_queries), max_size=2)))
    else:
        event |= {"path": path, "httpMethod": method}
        pairs = [query.partition("=") for query in draw(st.lists(_queries, max_size=2))]
        if "multiValueHeaders" in event:
            event["multiValueQueryStringParameters"] = {name: [value] for name, _, value in pairs}
        else:
            event["queryStringParameters"] = {name: value for name, _, value in pairs}
    if draw(st.booleans()):
        event["body"] = draw(_bodies | odd.spoilt(_bodies) | odd.texts)
        event["isBase64Encoded"] = draw(st.booleans())
        if event["isBase64Encoded"] and draw(st.integers(0, 3)):
            event["body"] = _base64(event["body"])
    for name in draw(st.lists(_FIELDS | odd.texts, max_size=3)):
        value = draw(_texts)
        if "headers" in event:
            event["headers"][name] = value
        if "multiValueHeaders" in event:
            event["multiValueHeaders"][name] = [value, *draw(st.lists(_texts, max_size=1))]
    if "cookies" in event:
        event["cookies"] = draw(st.lists(_texts, max_size=3))


def _spoil(draw: st.DrawFn, event: Event) -> None:
    """Replace, remove or add something somewhere."""
    places = [path for path in _places(event) if path]
    *above, last = draw(st.sampled_from(places))
    place: Any = event
    for key in above:
        place = place[key]
    match draw(st.integers(0, 3)):
        case 0 if isinstance(place, dict):
            place[draw(st.sampled_from(_ADDED) | odd.texts)] = draw(odd.values)
        case 1:
            del place[last]
        case _:
            place[last] = draw(odd.values)


cases = st.integers(0, 19).flatmap(lambda n: events() if n else odd.values)


@contextmanager
def opened() -> Iterator[Look]:
    """The function, as a cold start makes it, over a log in a directory."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    root.handlers = []  # those of a test would be closed
    with (
        TemporaryDirectory() as directory,
        mock.patch.dict(os.environ) as environ,
        open(os.devnull, "w") as nowhere,  # noqa: PTH123
        redirect_stdout(nowhere),  # its metrics
    ):
        assert environ is not None
        environ |= {"AWS_LAMBDA_FUNCTION_NAME": "items", "REPLICA_URL": f"file://{directory}/log", "TMPDIR": directory}
        environ |= {"LOG_LEVEL": "ERROR"}
        sys.modules.pop("handler.aws_lambda", None)
        module = importlib.import_module("handler.aws_lambda")
        root.handlers = [_Loud()]
        try:
            yield lambda event: look(module.handler, event)
        finally:
            root.handlers = handlers
            root.setLevel(level)
            logging.captureWarnings(False)
            module._service.database.close()
            module._loop.close()
            asyncio.set_event_loop(None)


class _Loud(logging.Handler):
    """An error in the log is a finding as well: nobody's fault but ours makes one."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            raise AssertionError(record.getMessage()) from (record.exc_info or (None, None))[1]


def look(handler: Any, event: Event) -> None:
    """An answer below 500 that the gateway can hand on, or the one error that says it is no request."""
    try:
        answer = handler(event, Context())
    except ValueError as error:
        if not str(error).startswith("unknown event"):
            raise
        return
    status = answer["statusCode"]
    assert 200 <= status < 500, answer
    sent = json.dumps(answer)
    assert len(sent) <= FUNCTION_LIMIT
    sent.encode("ascii")
    json.loads(sent)
    headers = answer.get("headers") or {name: values[0] for name, values in answer["multiValueHeaders"].items()}
    assert all(isinstance(value, str) and value.isprintable() for value in headers.values()), headers
    if status >= 400 and answer["body"]:
        assert json.loads(answer["body"])["status"] == status
