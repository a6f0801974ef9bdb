"""A whole table at once, as NDJSON or CSV, of one state."""

import io
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from anyio import move_on_after
from peewee import Database
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from core.errors import DatabaseFull
from handler.gateways import answer_limit
from handler.problems import Code, Refusal
from handler.service import read, service_of, session_of
from infra.database import UseCase

logger = logging.getLogger(__name__)

V = TypeVar("V")

NDJSON, CSV = "application/x-ndjson", "text/csv"
SLOWEST_SECONDS = 10.0  # for a chunk; a client that reads more slowly is given up
_CHUNK_BYTES = 256 * 1024
_FORMULA = re.compile(r"(?!-[0-9.]+\Z)[-=+@\t\r\n\uff0d\uff1d\uff0b\uff20]")  # the last ones are their full-width forms
_INNER_FORMULA = re.compile(r"([;\t][\s\"]*)(?=[-=+@\uff0d\uff1d\uff0b\uff20])")  # where such a separator ends a cell


@dataclass(frozen=True, slots=True)
class Form:
    """How rows are written."""

    name: str  # and the end of the file's
    media_type: str
    lines: Callable[[list[str], Iterable[Any]], Iterator[bytes]]


async def exported(request: Request, name: str, view: Any, form: Form, rows: UseCase[Iterator[V]]) -> Response:
    """Answer with all rows that the use case yields, as dataclasses of the class `view`: whole behind a gateway, which
    takes no other answer, and streamed by a server.

    Raises Refusal: 413 for more than the gateway lets through.
    """
    headers = {"Content-Disposition": f'attachment; filename="{name}.{form.name}"', "Vary": "Accept"}

    def chunks(db: Database) -> Iterator[bytes]:
        return _chunks(form.lines([field.name for field in fields(view)], rows(db)))

    if request.method == "HEAD":
        await read(request, _nothing)
        answer = Response(None, 200, headers, form.media_type)
        del answer.headers["Content-Length"]
        return answer
    if limit := answer_limit(request.scope):
        return Response(await read(request, lambda db: _whole(chunks(db), limit)), 200, headers, form.media_type)
    await read(request, _nothing)  # whatever is here is fresh enough for the caller then, and the copy is no older
    stack, shown = ExitStack(), session_of(request).shown
    try:
        copy = await run_in_threadpool(stack.enter_context, service_of(request).database.copy(shown))
    except BaseException as error:
        stack.close()
        if isinstance(error, DatabaseFull):
            detail = "No space is left for the copy that an export is read from, in the directory for temporary files."
            raise Refusal(Code.DATABASE_FULL, detail) from error
        raise
    session_of(request).shown = copy.txid
    return _Download(chunks(copy.db), stack, headers, form.media_type)


def _nothing(db: Database) -> None:
    pass


class _Download(StreamingResponse):
    """Closes what it reads from when it has been sent, and when nobody reads on."""

    def __init__(self, chunks: Iterator[bytes], stack: ExitStack, headers: dict[str, str], media_type: str) -> None:
        super().__init__(chunks, 200, headers, media_type)
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._stack:
            await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for chunk in self.body_iterator:
            with move_on_after(SLOWEST_SECONDS) as patience:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            if patience.cancelled_caught:
                logger.warning("an export is given up: its client has not taken %d bytes in time", len(chunk))
                return  # without an end, so that nobody takes it for all
        await send({"type": "http.response.body"})


def _whole(chunks: Iterator[bytes], limit: int) -> bytes:
    found, size = [], 0
    for chunk in chunks:
        size += len(chunk)
        if size > limit:
            raise Refusal(
                Code.ANSWER_TOO_LARGE,
                f"The export has more than the {limit} bytes that get through here. Read the list page by page, or let "
                "a server with the same commit log export it.",
            )
        found.append(chunk)
    return b"".join(found)


def _chunks(lines: Iterator[bytes]) -> Iterator[bytes]:
    chunk = bytearray()
    for line in lines:
        chunk += line
        if len(chunk) >= _CHUNK_BYTES:
            yield bytes(chunk)
            chunk.clear()
    if chunk:
        yield bytes(chunk)


# Formats


def _ndjson(columns: list[str], views: Iterable[Any]) -> Iterator[bytes]:
    for view in views:
        yield to_json(view) + b"\n"


def _csv(columns: list[str], views: Iterable[Any]) -> Iterator[bytes]:
    """RFC 4180, with a line of names first."""
    import csv

    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")

    def line(cells: Iterable[Any]) -> bytes:
        buffer.seek(0)
        buffer.truncate()
        writer.writerow(map(_harmless, cells))
        return buffer.getvalue().encode()

    yield line(columns)
    for view in views:
        yield line(getattr(view, column) for column in columns)


def _harmless(cell: Any) -> Any:
    """A text that a spreadsheet would take for a formula gets an apostrophe in front, and so does what one would that
    separates cells by semicolons or tabs (OWASP, CSV injection).
    """
    if not isinstance(cell, str):
        return cell
    cell = _INNER_FORMULA.sub(r"\1'", cell)
    return f"'{cell}" if _FORMULA.match(cell) else cell


FORMS = (Form("ndjson", NDJSON, _ndjson), Form("csv", CSV, _csv))


# What the caller accepts (RFC 9110, 12.5.1)

_RANGE = re.compile(r"([\w!#$%&'*+.^`|~-]+)/([\w!#$%&'*+.^`|~-]+)((?:[ \t]*;[^;]*)*)", re.ASCII)
_WEIGHT = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?", re.ASCII)


def form_for(request: Request, name: str | None) -> Form:
    """The form of this name, or that which the caller likes best. Raises Refusal (406) when it likes none."""
    if name:
        return next(form for form in FORMS if form.name == name)
    accepted = ",".join(request.headers.getlist("accept"))
    if not accepted:
        return FORMS[0]
    found = [_RANGE.fullmatch(part.strip(" \t")) for part in accepted.split(",")]
    ranges = [(kind[1].lower(), kind[2].lower(), _weight(kind[3])) for kind in found if kind]
    best = max(FORMS, key=lambda form: _quality(form, ranges))
    if not _quality(best, ranges):
        detail = f"There is {NDJSON} and {CSV}: name one in Accept, or add ?format=ndjson or ?format=csv."
        raise Refusal(Code.NOT_ACCEPTABLE, detail)
    return best


def _weight(parameters: str) -> float:
    """0 for one that is none."""
    for parameter in parameters.split(";"):
        name, _, value = parameter.strip(" \t").partition("=")
        if name.lower() == "q":
            return float(value) if _WEIGHT.fullmatch(value) else 0.0
    return 1.0


def _quality(form: Form, ranges: list[tuple[str, str, float]]) -> float:
    """That of the range that fits best."""
    kind, subkind = form.media_type.split("/")
    fitting = [
        (one != "*", two != "*", weight) for one, two, weight in ranges if one in (kind, "*") and two in (subkind, "*")
    ]
    return max(fitting, default=(False, False, 0.0))[2]
