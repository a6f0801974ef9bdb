"""What Schemathesis cannot know of the requests that it draws."""

import uuid
from typing import Any

import schemathesis


@schemathesis.hook  # type: ignore[untyped-decorator]
def before_call(context: Any, case: Any, arguments: Any) -> None:
    """A key is for one request. Schemathesis draws the same for several, and would have each of them accepted."""
    if case.meta and case.meta.generation.mode.is_positive and "Idempotency-Key" in (case.headers or {}):
        case.headers["Idempotency-Key"] = str(uuid.uuid4())
