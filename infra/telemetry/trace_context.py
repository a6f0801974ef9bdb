"""Which trace a request belongs to, as its caller says: W3C Trace Context. https://www.w3.org/TR/trace-context/"""

import re
from typing import NamedTuple

# Later versions may have more behind it; ff is none
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?", re.ASCII)


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
