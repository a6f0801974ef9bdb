"""What operators and load balancers ask: /health, /ready, /metrics"""

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from core.errors import CommitError, DatabaseError, StoreError
from core.items import probe
from handler.openapi import operation
from handler.service import service_of

_STORE_TIMEOUT_SECONDS = 1.5  # a container's health check gives up after 2


@operation("Whether the process answers; touches nothing else", answers={200: None})
async def health(request: Request) -> Response:
    return JSONResponse({"status": "healthy"})


@operation("Whether requests can be served: a real query of the database", answers={200: None, 503: None})
async def ready(request: Request) -> Response:
    database = service_of(request).database
    try:
        database.check()
        await database.read_local(probe)
    except DatabaseError as error:
        return JSONResponse({"status": "not ready", "database": str(error)}, 503)
    try:
        await asyncio.wait_for(asyncio.shield(database.verify()), _STORE_TIMEOUT_SECONDS)
    except (StoreError, CommitError, DatabaseError) as error:
        return JSONResponse({"status": "degraded", "database": "connected", "store": str(error)})
    except TimeoutError:
        return JSONResponse({"status": "degraded", "database": "connected", "store": "The store does not answer."})
    return JSONResponse({"status": "ready", "database": "connected"})


@operation("Prometheus metrics", answers={200: None})
async def metrics(request: Request) -> Response:
    service = service_of(request)
    body, media_type = service.metrics.exposition(service.gauges)
    return Response(body, media_type=media_type)


routes = [Route("/health", health), Route("/ready", ready), Route("/metrics", metrics)]
