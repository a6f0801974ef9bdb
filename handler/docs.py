"""/docs and /openapi.json: Swagger UI from our own origin, its files out of a pinned package."""

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route

from handler.openapi import API_TITLE
from handler.service import service_of

# Nothing but our own files may run or load on the page; Swagger UI needs inline styles and data: images
_POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"
_HEADERS = {"Content-Security-Policy": _POLICY}

_PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{API_TITLE}</title>
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="icon" href="docs/favicon-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true});\n'
_FILES = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png")


async def page(request: Request) -> Response:
    return HTMLResponse(_PAGE, headers=_HEADERS)


async def start_script(request: Request) -> Response:
    return Response(_START, media_type="text/javascript", headers=_HEADERS)


async def static_file(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _FILES:
        raise HTTPException(404)
    path = directory_of("flask_swagger_ui") / "dist" / name
    return FileResponse(path, headers={**_HEADERS, "Cache-Control": "public, max-age=86400"})


async def openapi(request: Request) -> Response:
    from handler.openapi.document import build_openapi

    document = build_openapi(request.app.routes, service_of(request).settings.auth_mode)
    return Response(json.dumps(document), media_type="application/json")


@cache
def directory_of(package: str) -> Path:
    """Return where a package lies of which only files are served."""
    # found, not imported: for that Swagger UI's would need Flask
    spec = find_spec(package)
    assert spec is not None
    return Path(str(spec.origin)).parent


routes = [
    Route("/docs", page),
    Route("/docs/start.js", start_script),
    Route("/docs/{name}", static_file),
    Route("/openapi.json", openapi),
]
