"""Which trace a request belongs to, as its caller says: W3C Trace Context. https://www.w3.org/TR/trace-context/"""

import re
from collections.abc import Sequence
from contextvars import Context, ContextVar
from typing import NamedTuple, Protocol

# Later versions may have more behind it; ff is none
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?", re.ASCII)


# On the thread that writes: the contexts of the requests whose writes are being stored
WORKED_FOR: ContextVar[Sequence[Context]] = ContextVar("WORKED_FOR", default=())


class Trace(NamedTuple):
    """Of which trace, and which of its spans; in hexadecimal digits."""

    trace_id: str
    span_id: str


def trace_of(traceparent: str) -> Trace | None:
    """Read the header; None for one that is not valid, which counts as if it were not there."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if not found or (found[1] == "00" and len(traceparent) != 55):
        return None
    trace = Trace(found[2], found[3])
    return trace if all(id.strip("0") for id in trace) else None


class Spans(Protocol):
    """Whom to tell what has taken how long, right after it: in the context of the request that it was done for, or
    for the PUT of a commit on the thread that writes. `Tracing` makes spans of it.
    """

    def worked(self, name: str, seconds: float) -> None: ...

    def stored(self, seconds: float, answered: bool) -> None: ...


class NoSpans:
    """`Spans` that are none."""

    def worked(self, name: str, seconds: float) -> None:
        pass

    def stored(self, seconds: float, answered: bool) -> None:
        pass
