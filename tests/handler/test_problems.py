"""Each way to an error has its code."""

from typing import Any

import httpx2
import pytest

from core import errors
from handler.problems import Code
from handler.service import Service
from tests.conftest import assert_problem
from tests.log_watch import kept_lines

JSON = {"content-type": "application/json"}
FAR = {"x-commit-txid": "7fffffffffffffff"}

REQUESTS: list[tuple[Code, str, str, dict[str, Any]]] = [
    (Code.MALFORMED_HEADER, "GET", "/api/items", {"headers": {"x-commit-txid": "1"}}),
    (Code.MALFORMED_HEADER, "GET", "/health", {"headers": {"x-commit-txid": "1"}}),
    (Code.MALFORMED_HEADER, "POST", "/api/items", {"json": {"name": "x"}, "headers": {"idempotency-key": '"'}}),
    (Code.MALFORMED_QUERY, "GET", "/api/items?q=%ff", {}),
    (Code.MALFORMED_QUERY, "GET", "/api/items?" + "&".join(f"a{n}=" for n in range(51)), {}),
    (Code.MALFORMED_BODY, "POST", "/api/items", {"content": b"{", "headers": JSON}),
    (Code.NOT_FOUND, "GET", "/nowhere", {}),
    (Code.NOT_FOUND, "PUT", "/nowhere", {"content": b"x"}),
    (Code.NOT_FOUND, "GET", "/docs/nothing", {}),
    (Code.NOT_FOUND, "GET", "/api/items/999", {}),
    (Code.NOT_FOUND, "GET", "/api/items/x", {}),
    (Code.NOT_FOUND, "DELETE", "/api/items/999", {}),
    (Code.NOT_FOUND, "GET", "/api/items?cursor=~999", {}),
    (Code.NOT_ACCEPTABLE, "GET", "/api/items/export", {"headers": {"accept": "image/png"}}),
    (Code.METHOD_NOT_ALLOWED, "OPTIONS", "/api/items", {}),
    (Code.METHOD_NOT_ALLOWED, "TRACE", "/api/items/1", {}),
    (Code.METHOD_NOT_ALLOWED, "PROPFIND", "/health", {}),
    (Code.METHOD_NOT_ALLOWED, "PUT", "/api/items", {"content": b"x"}),
    (Code.PRECONDITION_FAILED, "GET", "/api/items", {"headers": {"if-match": '"x"'}}),
    (Code.TXID_NOT_REACHED, "GET", "/api/items", {"headers": FAR}),
    (Code.TXID_NOT_REACHED, "DELETE", "/api/items/1", {"headers": FAR}),
    (Code.BODY_TOO_LARGE, "POST", "/api/items", {"content": b" " * (2**20 + 1), "headers": JSON}),
    (Code.UNSUPPORTED_MEDIA_TYPE, "POST", "/api/items", {"content": b"{}"}),
    (Code.UNSUPPORTED_MEDIA_TYPE, "PATCH", "/api/items/1", {"content": b"{}", "headers": {"content-type": "a/b"}}),
    (Code.INVALID_INPUT, "POST", "/api/items", {"json": {}}),
    (Code.INVALID_INPUT, "GET", "/api/items?limit=0", {}),
    (Code.HEADERS_TOO_LARGE, "GET", "/health", {"headers": {"x-long": "x" * 40_000}}),
]
FAILURES = [
    (Code.WRITE_REFUSED, errors.WriteRefused("a trigger")),
    (Code.TRANSACTION_TOO_LARGE, errors.TransactionTooLarge("large")),
    (Code.IDEMPOTENCY_KEY_REUSED, errors.IdempotencyKeyReused("key")),
    (Code.INTERNAL_ERROR, RuntimeError("a bug")),
    (Code.DATABASE_LOCKED, errors.DatabaseLocked("locked")),
    (Code.DATABASE_UNAVAILABLE, errors.DatabaseUnavailable("gone")),
    (Code.DATABASE_UNAVAILABLE, errors.SchemaTooNew("new")),
    (Code.TOO_MANY_WRITES, errors.TooManyWrites("many")),
    (Code.TOO_MANY_EXPORTS, errors.TooManyCopies("four")),
    (Code.TRANSACTION_TOO_SLOW, errors.TransactionTooSlow("slow")),
    (Code.WRITES_STOPPED, errors.WritesStopped("moved")),
    (Code.OUTCOME_UNKNOWN, errors.CommitOutcomeUnknown("perhaps", 7)),
    (Code.STORE_UNAVAILABLE, errors.StoreUnavailable("away")),
    (Code.STORE_UNAVAILABLE, errors.CommitNotStored("no")),
    (Code.DATABASE_FULL, errors.DatabaseFull("full")),
]
# Shown elsewhere: by what is no HTTP, by the function on Lambda, by a server that stops, and where limits are set
ELSEWHERE = {Code.MALFORMED_REQUEST, Code.ANSWER_TOO_LARGE, Code.STOPPING}
ELSEWHERE |= {Code.PREFLIGHT_REFUSED, Code.REQUEST_TIMEOUT, Code.RATE_LIMITED, Code.TOO_MANY_CONNECTIONS}
ELSEWHERE |= {Code.IF_MATCH_REQUIRED, Code.UNAUTHENTICATED, Code.FORBIDDEN, Code.IDENTITY_PROVIDER_UNAVAILABLE}


def test_each_code_is_shown() -> None:
    assert {code for code, *_ in REQUESTS} | {code for code, _ in FAILURES} | ELSEWHERE == set(Code)


def marked(request: tuple[Any, ...]) -> Any:
    names_a_commit = "x-commit-txid" in str(request[-1]).lower()
    return pytest.param(*request, marks=[pytest.mark.sqlite_only("X-Commit-Txid")] * names_a_commit)


@pytest.mark.parametrize(
    ("code", "method", "path", "sent"), [*map(marked, REQUESTS)], ids=lambda value: str(value)[:30]
)
def test_what_a_caller_does_wrong(
    shared_client: httpx2.Client, code: Code, method: str, path: str, sent: dict[str, Any]
) -> None:
    response = shared_client.request(method, path, **sent)
    assert assert_problem(response, code.status)["code"] == code
    assert ("allow" in response.headers) is (code == Code.METHOD_NOT_ALLOWED)
    if method == "GET":
        assert shared_client.request("HEAD", path, **sent).status_code == code.status


@pytest.mark.parametrize(("code", "failure"), FAILURES, ids=lambda value: str(value))
def test_what_goes_wrong_behind(
    service: Service,
    client: httpx2.Client,
    monkeypatch: pytest.MonkeyPatch,
    code: Code,
    failure: Exception,
) -> None:
    async def fail(*arguments: Any) -> None:
        raise failure

    with kept_lines("handler.request") as lines:
        with monkeypatch.context() as patch:
            patch.setattr(service.database, "write", fail)
            response = client.post("/api/items", json={"name": "x"})
        assert assert_problem(response, code.status)["code"] == code
        client.get("/health")  # on the same connection, so the line of the one before is written by now
    line = lines[0]
    assert (line["status_code"], line["code"]) == (code.status, code)
