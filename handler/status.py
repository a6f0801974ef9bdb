"""What operators and the dashboard ask: /ops/status, /ops/history"""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from core.schemas import Model
from handler.openapi import operation
from handler.ops import condition_of
from handler.requests import read_query
from handler.service import Service, service_of
from infra.database import Database
from infra.objectives.status import Condition, HistoryView, StatusView

if TYPE_CHECKING:
    from infra.objectives.watch import Watch

_ASK_SECONDS = 1.5  # as /ready
_CONDITION_SECONDS = 2.0  # the store has its 1.5
_PROBE_SECONDS = 3.0
_PAUSE_SECONDS = 60.0  # in a bucket, where each question has a price; the dashboard and /ready ask besides


class HistoryQuery(Model):
    span: Literal["hour", "day"] = "hour"


@operation("status", "How the service is: objectives, alerts, log, backups, errors", answers={200: StatusView})
async def status(request: Request) -> Response:
    service = service_of(request)
    is_answered = service.watch.stores.ask()
    condition, is_in_time = await asyncio.gather(
        _condition(service.database, ask_store=True), asyncio.to_thread(is_answered.wait, _ASK_SECONDS)
    )
    not_asked = [] if is_in_time else ["log and backups: the stores did not answer in time, so what is shown is older"]
    return _json(await asyncio.to_thread(_looked, service.watch, condition, not_asked))


def _looked(watch: "Watch", condition: Condition, not_asked: list[str]) -> StatusView:
    watch.look(condition)
    return watch.status(not_asked)


async def _condition(database: Database, *, ask_store: bool) -> Condition:
    try:
        async with asyncio.timeout(_CONDITION_SECONDS):
            return await condition_of(database, ask_store=ask_store)
    except TimeoutError:  # another program keeps even readers out
        return Condition(unready="no answer of the database in time", degraded=None)


def prober(service: Service, loop: asyncio.AbstractEventLoop) -> Callable[[], Condition]:
    """For a thread that asks now and then: it is asked on the loop, which may have come to a stop."""
    asked = float("-inf")
    pause = _PAUSE_SECONDS if service.settings.replica_url.startswith("s3:") else 0.0

    def probe() -> Condition:
        nonlocal asked
        if ask_store := time.monotonic() - asked >= pause:
            asked = time.monotonic()
        asking = asyncio.run_coroutine_threadsafe(_condition(service.database, ask_store=ask_store), loop)
        try:
            return asking.result(_PROBE_SECONDS)
        except TimeoutError:
            asking.cancel()
            return Condition(unready=f"the process did not answer within {_PROBE_SECONDS:.0f} s", degraded=None)

    return probe


@operation("history", "The last hour, or day, in steps: for plots", query=HistoryQuery, answers={200: HistoryView})
async def history(request: Request) -> Response:
    span = read_query(request, HistoryQuery).span
    return _json(await asyncio.to_thread(service_of(request).watch.points, span))


def _json(model: Model) -> Response:
    return Response(model.model_dump_json(), media_type="application/json")


routes = [Route("/ops/status", status), Route("/ops/history", history)]
