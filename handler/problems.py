"""Errors as RFC 9457 problem details: the one place where an exception becomes an HTTP answer."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from core.errors import (
    CommitError,
    CommitOutcomeUnknown,
    DatabaseError,
    DatabaseFull,
    DatabaseLocked,
    InvalidInput,
    NotFound,
    ServiceError,
    StoreError,
    TooManyWrites,
    TransactionTooLarge,
    TransactionTooSlow,
    TxidNotReached,
    WriteRefused,
)

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = "1"


def problem(
    scope: Mapping[str, Any],
    status: int,
    detail: str,
    headers: Mapping[str, str] | None = None,
    **members: Any,
) -> JSONResponse:
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "instance": scope["path"],
        "request_id": scope["state"]["request_id"],
        **members,
    }
    return JSONResponse(body, status, headers, MEDIA_TYPE)


async def on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    detail = error.detail
    if detail == HTTPStatus(error.status_code).phrase:
        detail = _DETAILS.get(error.status_code, detail).format(method=request.method, path=request.scope["path"])
    return problem(request.scope, error.status_code, detail, error.headers)


async def on_service_error(request: Request, error: Exception) -> JSONResponse:
    match error:
        case NotFound():
            return problem(request.scope, 404, str(error))
        case InvalidInput(errors=errors):
            members = [{"field": error.field, "message": error.message} for error in errors]
            return problem(request.scope, 422, "The input is not valid; see errors.", errors=members)
        case WriteRefused():
            logger.warning("%s", error)
            return problem(request.scope, 409, str(error))
        case DatabaseLocked():
            logger.error("%s", error)
            request.app.state.service.metrics.database_locked()
            return _try_again(request.scope, "The database is busy, or locked. Try again.")
        case TooManyWrites():
            logger.warning("%s", error)
            return _try_again(request.scope, "Too many writes are waiting. Try again.")
        case TransactionTooSlow():
            logger.error("%s", error)
            return _try_again(request.scope, "The request took too long in the database. Try again.")
        case DatabaseFull():
            logger.error("%s", error)
            return problem(request.scope, 507, "No space is left for the database; nothing was stored.")
        case TxidNotReached():
            return problem(request.scope, 412, str(error))
        case TransactionTooLarge():
            return problem(request.scope, 413, str(error))
        case CommitOutcomeUnknown(txid=txid):
            logger.error("TXID %016x may be stored, or not: %s", txid, error)
            return _outcome_unknown(request.scope, txid)
        case CommitError() | StoreError():
            logger.error("%s", error)
            return _try_again(request.scope, "The store that holds the newest state cannot be used now. Try again.")
        case DatabaseError():
            logger.error("%s", error)
            return _try_again(request.scope, "The database cannot be used now; GET /ready and the log say why.")
    raise error


def _outcome_unknown(scope: Mapping[str, Any], txid: int) -> JSONResponse:
    detail = "The store did not confirm the commit: it is stored, or not, or may yet be."
    if "session" not in scope["state"]:  # no other answer names a TXID either
        return _try_again(scope, f"{detail} Read before you try again.", stored="unknown")
    wait = (
        f"Wait until an answer names TXID {txid:016x} or a later one (send it as X-Commit-Txid: it is a 412 until the "
        "log is there). Then a read is certain: it is there, or it never will be."
    )
    return _try_again(scope, f"{detail} {wait}", stored="unknown", txid=f"{txid:016x}")


def stopping(scope: Mapping[str, Any]) -> JSONResponse:
    """What is under way has no number yet, or none that is its last."""
    detail = "The service is stopping, and no longer knows what becomes of this request."
    return _try_again(scope, f"{detail} Read more than once before you try again.", stored="unknown")


def _try_again(scope: Mapping[str, Any], detail: str, **outcome: str) -> JSONResponse:
    """A write says whether it was stored; a read has nothing to say about that."""
    members = {} if scope["method"] in ("GET", "HEAD") else {"stored": "no", **outcome}
    return problem(scope, 503, detail, {"Retry-After": RETRY_AFTER_SECONDS}, **members)


_DETAILS = {
    404: "There is nothing at {path}.",
    405: "{method} is not allowed here; the Allow header lists what is.",
}

EXCEPTION_HANDLERS: dict[Any, Any] = {HTTPException: on_http_exception, ServiceError: on_service_error}
