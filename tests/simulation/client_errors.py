"""What obstore says of requests that went wrong, word for word, and what ObjectStore makes of that."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from textwrap import indent

from obstore.exceptions import AlreadyExistsError, GenericError, PermissionDeniedError

from core.errors import StoreError
from infra.storage.object_store import ObjectStore

URL = "s3://simulated/log"
_ENDPOINT = "http://127.0.0.1:9000"
_ELSEWHERE = "127.0.0.1:9001"  # where a redirect leads to, and nobody listens
_METADATA = "http://169.254.169.254/latest/api/token"
_OS_ERRORS = {104: ("ConnectionReset", "Connection reset by peer"), 111: ("ConnectionRefused", "Connection refused")}
_REASONS = {
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    409: "Conflict",
    412: "Precondition Failed",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
}


@dataclass(frozen=True)
class Request:
    method: str
    uri: str
    path: str  # of the object
    lists: bool = False

    def moved_to(self, uri: str) -> "Request":
        return Request(self.method, uri, self.path, self.lists)


Fault = Callable[[Request], Exception]


def request_for(verb: str, name: str) -> Request:
    """`verb`: create, put, read, list or delete."""
    if verb == "delete":
        return Request("POST", f"{_ENDPOINT}/simulated?delete", f"log/{name}")
    if verb == "list":
        return Request("GET", f"{_ENDPOINT}/simulated?list-type=2&prefix=log%2F{name}", "", lists=True)
    return Request("PUT" if verb in ("create", "put") else "GET", f"{_ENDPOINT}/simulated/log/{name}", f"log/{name}")


def translated(error: Exception) -> StoreError:
    """As the service classifies it."""
    return _client()._translate(error)


@cache
def _client() -> ObjectStore:
    return ObjectStore(URL)  # which asks nobody


# There was no connection


def refused(request: Request) -> Exception:
    return _unconnected(request, "Connect", _os_error(111))


def not_accepted(request: Request) -> Exception:
    elapsed = _tuple("Elapsed", "()")
    return _unconnected(request, "Timeout", _struct("Custom", "kind: TimedOut", f"error: {elapsed}"))


def no_credentials(request: Request) -> Exception:
    return refused(request.moved_to(_METADATA))


# There was one, and no reply


def redirected_to_nowhere(request: Request) -> Exception:
    """It has followed a 303, and there was no connection there."""
    return _unconnected(request, "Connect", _os_error(111), _ELSEWHERE)


def reset(request: Request) -> Exception:
    return _unanswered(request, "Interrupted", _sent(_tuple("hyper::Error", "Io", _os_error(104))))


def closed(request: Request) -> Exception:
    return _unanswered(request, "Request", _sent(_tuple("hyper::Error", "IncompleteMessage")))


def timed_out(request: Request) -> Exception:
    return _unanswered(request, "Timeout", "TimedOut")


def half_a_reply(request: Request) -> Exception:
    end = _struct("Custom", "kind: UnexpectedEof", "error: IncompleteBody")
    inner = _struct("reqwest::Error", "kind: Body", f"source: {_tuple('hyper::Error', 'Body', end)}")
    return _without_reply(request, "request or response body error", "Interrupted", "Body", inner)


def cut_body(request: Request) -> Exception:
    """In the body of a GET that was answered with 200."""
    inner = _struct("reqwest::Error", "kind: Body", "source: TimedOut")
    error = _struct(
        "HttpError", "kind: Timeout", f"source: {_struct('reqwest::Error', 'kind: Body', f'source: {inner}')}"
    )
    debug = _struct("Generic", 'store: "S3"', f"source: {error}")
    return GenericError(f"Generic S3 error: HTTP error: request or response body error\n\nDebug source:\n{debug}")


# There was a reply


def replied(status: int, body: str = "") -> Fault:
    def fault(request: Request) -> Exception:
        escaped = body.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        inner = _struct("Status", f"status: {status}", "body: " + _tuple("Some", f'"{escaped}"'))
        return _error(
            request, f"Server returned non-2xx status code: {status} {_REASONS[status]}: {body}", inner, status
        )

    return fault


def said(code: str) -> str:
    """As S3 does."""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>no</Message>'
        "<Resource>kind: Connect</Resource></Error>"
    )


# As Rust prints it


def _unconnected(request: Request, kind: str, cause: str, address: str = "") -> Exception:
    host = address or request.uri.split("/")[2]
    host += "" if ":" in host else ":80"
    connect = _tuple("ConnectError", '"tcp connect error"', host, cause)
    return _unanswered(request, kind, _tuple("hyper_util::client::legacy::Error", "Connect", connect))


def _sent(error: str) -> str:
    return _tuple("hyper_util::client::legacy::Error", "SendRequest", error)


def _unanswered(request: Request, kind: str, source: str) -> Exception:
    return _without_reply(request, "error sending request", kind, "Request", source)


def _without_reply(request: Request, summary: str, kind: str, inner_kind: str, source: str) -> Exception:
    error = _struct("reqwest::Error", f"kind: {inner_kind}", f"source: {source}")
    http = _tuple("Http", _struct("HttpError", f"kind: {kind}", f"source: {error}"))
    return _error(request, f"HTTP error: {summary}", http)


def _error(request: Request, ending: str, inner: str, status: int = 0) -> Exception:
    retry = _tuple(
        "RetryError",
        _struct(
            "RetryErrorImpl",
            f"method: {request.method}",
            "uri: " + _tuple("Some", request.uri),
            "retries: 0",
            "max_retries: 0",
            "elapsed: 1ms",
            "retry_timeout: 30s",
            f"inner: {inner}",
        ),
    )
    kind, prefix, debug = _kind(request, status, retry)
    text = f"{prefix}Error performing {request.method} {request.uri} in 1ms - {ending}"
    return kind(f"{text}\n\nDebug source:\n{debug}")


def _kind(request: Request, status: int, retry: str) -> tuple[type[Exception], str, str]:
    """Exception, the beginning of its text, and its structure."""
    path = f'path: "{request.path}"'
    if request.lists:
        inner = _struct("ListRequest", f"source: {retry}")
        debug = _struct("Generic", 'store: "S3"', f"source: {inner}")
        return GenericError, "Generic S3 error: Error performing list request: ", debug
    match status:
        case 403:
            prefix = f"The operation lacked the necessary privileges to complete for path {request.path}: "
            return PermissionDeniedError, prefix, _struct("PermissionDenied", path, f"source: {retry}")
        case 404:
            prefix = f"Object at location {request.path} not found: "
            return FileNotFoundError, prefix, _struct("NotFound", path, f"source: {retry}")
        case 409:
            prefix = f"Object at location {request.path} already exists: "
            return AlreadyExistsError, prefix, _struct("AlreadyExists", path, f"source: {retry}")
        case 412:
            prefix = (
                f"Object at location {request.path} already exists: Request precondition failure for path "
                f"{request.path}: "
            )
            inner = _struct("Precondition", path, f"source: {retry}")
            return AlreadyExistsError, prefix, _struct("AlreadyExists", path, f"source: {inner}")
    return GenericError, "Generic S3 error: ", _struct("Generic", 'store: "S3"', f"source: {retry}")


def _os_error(code: int) -> str:
    kind, message = _OS_ERRORS[code]
    return _struct("Os", f"code: {code}", f"kind: {kind}", f'message: "{message}"')


def _struct(name: str, *fields: str) -> str:
    return f"{name} {{\n" + "".join(indent(f"{field},\n", "    ") for field in fields) + "}"


def _tuple(name: str, *fields: str) -> str:
    return f"{name}(\n" + "".join(indent(f"{field},\n", "    ") for field in fields) + ")"


# What there is to draw from

_EARLIER = Request("PUT", f"{_ENDPOINT}/simulated/log/a", "log/a")
_BODIES = (
    "kind: Connect",
    str(refused(_EARLIER)),
    "\n\nDebug source:\n" + str(refused(_EARLIER)).partition("Debug source:\n")[2],
    str(replied(403, said("AccessDenied"))(_EARLIER)),
    "HTTP error: error sending request\n\nDebug source:\n",
    said("NoSuchBucket"),
    said("AccessDenied"),
)
_HOSTILE = tuple(replied(status, body) for status in (500, 502, 503) for body in _BODIES)
MISLEADING = {redirected_to_nowhere, *_HOSTILE}
_UNSENT: tuple[Fault, ...] = (refused, not_accepted, no_credentials)
_NO_REPLY: tuple[Fault, ...] = (reset, closed, timed_out, timed_out, half_a_reply)
_REFUSALS = (
    replied(403, said("AccessDenied")),
    replied(403, "<html>403</html>"),
    replied(400, said("ExpiredToken")),
    replied(404, said("NoSuchBucket")),
)
_FAULTS = (
    replied(500, said("InternalError")),
    replied(503, said("SlowDown")),
    replied(502, "<html>502</html>"),
    replied(400, said("RequestTimeout")),
)
CONFLICT, EXISTS = replied(409, said("ConditionalRequestConflict")), replied(412, said("PreconditionFailed"))
MISSING = replied(404, said("NoSuchKey"))


def drawn(rng: random.Random, kind: str, misleading: bool) -> Fault:
    """`kind`: unsent, silent, error or refusal. `misleading`: the text speaks of another end than the request had."""
    match kind:
        case "unsent":
            return rng.choice(_UNSENT)
        case "silent":
            return redirected_to_nowhere if misleading else rng.choice(_NO_REPLY)
        case "refusal":
            return rng.choice(_REFUSALS)
        case _:
            return rng.choice(_HOSTILE) if misleading else rng.choice(_FAULTS)
