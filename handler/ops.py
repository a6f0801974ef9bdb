"""What operators and load balancers ask: /health, /ready, /metrics"""

import asyncio
from typing import Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from core.errors import CommitError, DatabaseError, LogDamaged, LogReplaced, StoreError, StoreUnavailable
from core.items import probe
from core.schemas import Model
from handler.openapi import may_be_left_out, operation
from handler.service import service_of
from infra.database import Database
from infra.objectives.status import Condition

_STORE_TIMEOUT_SECONDS = 1.5  # a container's health check gives up after 2


class Health(Model):
    status: Literal["healthy"]


class Ready(Model):
    """`degraded`: requests can be served in part; `database` or `store` says what is wrong with it."""

    status: Literal["ready", "degraded"]
    database: str
    store: str = Field(default="", json_schema_extra=may_be_left_out)


class NotReady(Model):
    """`database` says why."""

    status: Literal["not ready"]
    database: str


@operation("health", "Whether the process answers; touches nothing else", answers={200: Health})
async def health(request: Request) -> Response:
    return JSONResponse({"status": "healthy"})


@operation("ready", "Whether requests can be served: a real query of the database", answers={200: Ready, 503: NotReady})
async def ready(request: Request) -> Response:
    found = await condition_of(service_of(request).database)
    if found.unready:
        return JSONResponse(NotReady(status="not ready", database=found.unready).model_dump(), 503)
    answer = Ready(
        status="degraded" if found.unwritable or found.degraded else "ready",
        database=found.unwritable or "connected",
        store=found.degraded or "",
    )
    return JSONResponse(answer.model_dump(exclude_defaults=True))


async def condition_of(database: Database, *, ask_store: bool = True) -> Condition:
    try:
        database.check()
        await database.read_local(probe)
    except DatabaseError as error:
        return Condition(unready=str(error), degraded=None)
    try:
        database.check_unlocked()
        database.check_writable()
    except DatabaseError as error:
        return Condition(unwritable=str(error), degraded=None)
    return await _condition_of_log(database) if ask_store else Condition(degraded=None)


async def _condition_of_log(database: Database) -> Condition:
    asking = asyncio.ensure_future(database.verify())
    try:
        done, _ = await asyncio.wait([asking], timeout=_STORE_TIMEOUT_SECONDS)
    finally:
        asking.cancel()  # if it is not done: the question itself goes on, for whoever else waits for it
    if not done and (lock := database.waits_for):
        return Condition(unwritable=str(lock), degraded=None)
    error = asking.exception() if done else StoreUnavailable("No answer in time: the store is away.")
    match error:
        case None:
            return Condition()
        case DatabaseError():
            return Condition(unwritable=str(error), degraded=None)
        case LogReplaced():
            return Condition(degraded=str(error), cause="other_log")
        case LogDamaged():
            return Condition(degraded=str(error), cause="unsound")
        case StoreError() | CommitError():
            return Condition(degraded=str(error))
    raise error


@operation("metrics", "Prometheus metrics", answers={200: ("text/plain",)})
async def metrics(request: Request) -> Response:
    service = service_of(request)
    body, media_type = service.metrics.exposition(service.gauges)
    return Response(body, media_type=media_type)


routes = [Route("/health", health), Route("/ready", ready), Route("/metrics", metrics)]
