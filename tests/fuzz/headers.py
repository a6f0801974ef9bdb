"""Headers that are read with rules of their own."""

from collections.abc import Coroutine
from typing import Any

from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.requests import Request

from handler.conditions import Conditions
from handler.idempotency import attempt_of
from tests.fuzz import odd

_bytes = st.text(st.characters(max_codepoint=255), max_size=300)  # as they are on the wire


def _values(sound: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
    """Of one header, which mostly comes once."""
    value = sound | odd.spoilt(sound) | odd.texts | _bytes
    return st.lists(value, min_size=1, max_size=1) | st.lists(value, max_size=3)


def _request(name: str, values: list[str]) -> Request:
    """A server hands over Latin-1, Mangum UTF-8; what neither can write, comes from neither."""
    headers = [(name.encode(), value.encode("utf-8", "replace")) for value in values]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "POST", "path": "/api/items", "query_string": b"", "headers": headers}
    return Request(scope, receive)


def _result(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Of one that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


idempotency_keys = _values(st.sampled_from(['"8e03978e-40d5-43dd-bc93"', "8e03978e", '"a\\"b\\\\"', '" "', '""']))


def read_idempotency_key(values: list[str]) -> None:
    try:
        attempt = _result(attempt_of(_request("idempotency-key", values)))
    except HTTPException as error:
        if error.status_code != 400:
            raise
        return
    assert (attempt is None) is (not values)
    if attempt:
        assert 1 <= len(attempt.key) <= 255
        assert attempt.key.isascii()
        assert attempt.key.isprintable()


entity_tags = _values(st.sampled_from(['"3-9f86d081884c7d65"', 'W/"a"', '"a", W/"b,c" ,, "d"', '""', "*"]))


def read_entity_tags(values: list[str]) -> None:
    for field in ("if-match", "if-none-match"):
        try:
            conditions = Conditions.read(_request(field, values).headers)
        except HTTPException as error:
            if error.status_code != 400:
                raise
            continue
        tags = conditions.if_match or conditions.if_none_match
        assert (tags is None) is (not values)
        if tags:
            assert tags.any or tags.tags
