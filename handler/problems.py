"""Errors as RFC 9457 problem details: the one place where an exception becomes an HTTP answer."""

import logging
from collections.abc import Mapping
from enum import StrEnum
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import Scope

from core.errors import (
    CommitError,
    CommitNotStored,
    CommitOutcomeUnknown,
    DatabaseError,
    DatabaseFull,
    DatabaseLocked,
    IdempotencyKeyReused,
    IdentityProviderUnavailable,
    InvalidInput,
    NotFound,
    ServiceError,
    StoreError,
    StoreFull,
    TooManyCopies,
    TooManyWrites,
    TransactionTooLarge,
    TransactionTooSlow,
    TxidNotReached,
    WriteRefused,
    WritesStopped,
)

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = "1"
IDEMPOTENCY_KEY = "Idempotency-Key"


class Code(StrEnum):
    """What a problem is, for programs, with the status that it is answered with; it stays when `detail` is reworded."""

    status: HTTPStatus

    def __new__(cls, value: str, status: int) -> "Code":
        code = str.__new__(cls, value)
        code._value_ = value
        code.status = HTTPStatus(status)
        return code

    MALFORMED_REQUEST = "malformed_request", 400
    MALFORMED_HEADER = "malformed_header", 400
    MALFORMED_QUERY = "malformed_query", 400
    MALFORMED_BODY = "malformed_body", 400
    UNAUTHENTICATED = "unauthenticated", 401
    FORBIDDEN = "forbidden", 403
    PREFLIGHT_REFUSED = "preflight_refused", 403
    NOT_FOUND = "not_found", 404
    METHOD_NOT_ALLOWED = "method_not_allowed", 405
    NOT_ACCEPTABLE = "not_acceptable", 406
    REQUEST_TIMEOUT = "request_timeout", 408
    WRITE_REFUSED = "write_refused", 409
    TXID_NOT_REACHED = "txid_not_reached", 412
    PRECONDITION_FAILED = "precondition_failed", 412
    BODY_TOO_LARGE = "body_too_large", 413
    TRANSACTION_TOO_LARGE = "transaction_too_large", 413
    ANSWER_TOO_LARGE = "answer_too_large", 413
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type", 415
    INVALID_INPUT = "invalid_input", 422
    IDEMPOTENCY_KEY_REUSED = "idempotency_key_reused", 422
    IF_MATCH_REQUIRED = "if_match_required", 428
    RATE_LIMITED = "rate_limited", 429
    HEADERS_TOO_LARGE = "headers_too_large", 431
    INTERNAL_ERROR = "internal_error", 500
    DATABASE_LOCKED = "database_locked", 503
    DATABASE_UNAVAILABLE = "database_unavailable", 503
    TOO_MANY_CONNECTIONS = "too_many_connections", 503
    TOO_MANY_WRITES = "too_many_writes", 503
    TOO_MANY_EXPORTS = "too_many_exports", 503
    TRANSACTION_TOO_SLOW = "transaction_too_slow", 503
    WRITES_STOPPED = "writes_stopped", 503
    OUTCOME_UNKNOWN = "outcome_unknown", 503
    STORE_UNAVAILABLE = "store_unavailable", 503
    IDENTITY_PROVIDER_UNAVAILABLE = "identity_provider_unavailable", 503
    STOPPING = "stopping", 503
    DATABASE_FULL = "database_full", 507


class Refusal(HTTPException):
    """A request that is refused before any use case has seen it."""

    def __init__(self, code: Code, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(code.status, detail, headers)
        self.code = code


def problem(
    scope: Mapping[str, Any],
    code: Code,
    detail: str,
    headers: Mapping[str, str] | None = None,
    **members: Any,
) -> JSONResponse:
    scope["state"]["code"] = code
    body = {
        "type": "about:blank",
        "title": code.status.phrase,
        "status": code.status,
        "code": code,
        "detail": detail,
        "instance": scope["path"],
        "request_id": scope["state"]["request_id"],
        **members,
    }
    return JSONResponse(body, code.status, headers, MEDIA_TYPE)


def answer_to(scope: Scope, error: HTTPException | ServiceError) -> JSONResponse:
    return _answer_to_service_error(scope, error) if isinstance(error, ServiceError) else _refused(scope, error)


def _refused(scope: Scope, error: HTTPException) -> JSONResponse:
    detail = error.detail
    if detail == HTTPStatus(error.status_code).phrase:
        detail = _DETAILS.get(error.status_code, detail).format(method=scope["method"], path=scope["path"])
    code = error.code if isinstance(error, Refusal) else _CODES[error.status_code]
    return problem(scope, code, detail, error.headers)


def _answer_to_service_error(scope: Scope, error: ServiceError) -> JSONResponse:
    match error:
        case NotFound():
            return problem(scope, Code.NOT_FOUND, str(error))
        case InvalidInput(errors=errors):
            members = [{"field": error.field, "message": error.message} for error in errors]
            return problem(scope, Code.INVALID_INPUT, "The input is not valid; see errors.", errors=members)
        case IdempotencyKeyReused():
            return problem(scope, Code.IDEMPOTENCY_KEY_REUSED, str(error))
        case WriteRefused():
            logger.warning("%s", error)
            return problem(scope, Code.WRITE_REFUSED, str(error))
        case WritesStopped():
            logger.warning("%s", error)
            return _try_again(
                scope,
                Code.WRITES_STOPPED,
                "The data is being moved to another database: reads go on, writes are stopped. Try again.",
            )
        case DatabaseLocked():
            logger.error("%s", error)
            scope["app"].service.metrics.database_locked()
            return _try_again(scope, Code.DATABASE_LOCKED, "The database is busy, or locked. Try again.")
        case TooManyWrites():
            logger.warning("%s", error)
            return _try_again(scope, Code.TOO_MANY_WRITES, "Too many writes are waiting. Try again.")
        case TooManyCopies():
            logger.warning("%s", error)
            return _try_again(scope, Code.TOO_MANY_EXPORTS, "Too many exports are under way. Try again.")
        case TransactionTooSlow():
            logger.error("%s", error)
            return _try_again(scope, Code.TRANSACTION_TOO_SLOW, "The request took too long in the database. Try again.")
        case DatabaseFull() | StoreFull() | CommitNotStored(__cause__=StoreFull()):
            logger.error("%s", error)
            return problem(
                scope, Code.DATABASE_FULL, "No space is left for the database or its log; nothing was stored."
            )
        case TxidNotReached():
            return problem(scope, Code.TXID_NOT_REACHED, str(error))
        case TransactionTooLarge():
            return problem(scope, Code.TRANSACTION_TOO_LARGE, str(error))
        case CommitOutcomeUnknown(txid=txid):
            logger.error("%s may be stored, or not: %s", f"TXID {txid:016x}" if txid else "a transaction", error)
            return _outcome_unknown(scope, txid)
        case IdentityProviderUnavailable():
            logger.error("%s", error)
            return _try_again(
                scope,
                Code.IDENTITY_PROVIDER_UNAVAILABLE,
                "The keys that tokens are verified with cannot be had now. Try again.",
            )
        case CommitError() | StoreError():
            logger.error("%s", error)
            return _try_again(
                scope,
                Code.STORE_UNAVAILABLE,
                "The store that holds the newest state cannot be used now. Try again.",
            )
        case DatabaseError():
            logger.error("%s", error)
            return _try_again(
                scope,
                Code.DATABASE_UNAVAILABLE,
                "The database cannot be used now; GET /ready and the log say why.",
            )
    raise error


def _outcome_unknown(scope: Mapping[str, Any], txid: int) -> JSONResponse:
    detail = f"The store did not confirm the commit: it is stored, or not, or may yet be. {_how_to_repeat(scope)}"
    if "session" not in scope["state"]:  # no other answer names a TXID either
        return _try_again(scope, Code.OUTCOME_UNKNOWN, detail, stored="unknown")
    wait = (
        f"Or wait until an answer names TXID {txid:016x} or a later one (send it as X-Commit-Txid: it is a 412 until "
        "the log is there). Then a read is certain: it is there, or it never will be."
    )
    return _try_again(scope, Code.OUTCOME_UNKNOWN, f"{detail} {wait}", stored="unknown", txid=f"{txid:016x}")


def stopping(scope: Mapping[str, Any]) -> JSONResponse:
    """What is under way has no number yet, or none that is its last."""
    detail = "The service is stopping, and no longer knows what becomes of this request."
    return _try_again(scope, Code.STOPPING, f"{detail} {_how_to_repeat(scope)}", stored="unknown")


def _how_to_repeat(scope: Mapping[str, Any]) -> str:
    if IDEMPOTENCY_KEY in Headers(raw=scope["headers"]):
        return "Send it again with the same Idempotency-Key: it is done once."
    return "Read before you try again, or send each write with an Idempotency-Key: then it may be repeated."


def too_many_connections(scope: Mapping[str, Any]) -> JSONResponse:
    detail = "Too many connections are open. Try again."
    answer = _try_again(scope, Code.TOO_MANY_CONNECTIONS, detail)
    answer.headers["Connection"] = "close"
    return answer


def _try_again(scope: Mapping[str, Any], code: Code, detail: str, **outcome: str) -> JSONResponse:
    """A write says whether it was stored; a read has nothing to say about that."""
    members = {} if scope["method"] in ("GET", "HEAD") else {"stored": "no", **outcome}
    return problem(scope, code, detail, {"Retry-After": RETRY_AFTER_SECONDS}, **members)


_CODES = {404: Code.NOT_FOUND, 405: Code.METHOD_NOT_ALLOWED}  # of what the router refuses
_DETAILS = {
    404: "There is nothing at {path}.",
    405: "{method} is not allowed here; the Allow header lists what is.",
}
