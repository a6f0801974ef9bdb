"""Whether the event loop keeps up."""

import asyncio
from collections.abc import Callable

_INTERVAL_SECONDS = 0.5


async def watch_event_loop(delayed: Callable[[float], None]) -> None:
    """Tell now and then, for ever, how many seconds later than asked for the loop came back."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _INTERVAL_SECONDS
        await asyncio.sleep(_INTERVAL_SECONDS)
        delayed(max(0.0, loop.time() - due))
