"""/dashboard: how the service is, on one page for people. There is nothing in it: its script asks /ops/status and
/ops/history, with the key of whoever looks.
"""

from html import escape
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route

from handler.docs import directory_of
from handler.service import service_of

# Only our own files, only data from here, no style or script in the page, and no text that becomes markup by a script
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_HEADERS = {"Content-Security-Policy": _POLICY}
_HERE = Path(__file__).parent
_FILES = ("page.css", "page.js", "elements.js", "plots.js", "units.js", "icon.svg")


async def page(request: Request) -> Response:
    text = (_HERE / "page.html").read_text("utf-8")
    runbook = escape(service_of(request).settings.runbook_url)
    return HTMLResponse(text.replace('data-runbook=""', f'data-runbook="{runbook}"'), headers=_HEADERS)


async def static_file(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _FILES:
        raise HTTPException(404)
    return FileResponse(_HERE / name, headers=_HEADERS)


async def chart_script(request: Request) -> Response:
    path = directory_of("chartkick") / "django/static/chartkick/Chart.bundle.js"
    return FileResponse(path, headers={**_HEADERS, "Cache-Control": "public, max-age=86400"})


routes = [
    Route("/dashboard", page),
    Route("/dashboard/chart.js", chart_script),
    Route("/dashboard/{name}", static_file),
]
