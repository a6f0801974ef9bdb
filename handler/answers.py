"""Writing an answer: views and models of them as JSON, with an entity tag."""

from typing import Any
from urllib.parse import quote

from pydantic_core import to_json
from starlette.responses import Response

from handler.conditions import Representation


def answer(view: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    shown = Representation.of(view)
    return Response(shown.body, status, {"ETag": shown.tag, **(headers or {})}, "application/json")


def created(view: Any, path: str) -> Response:
    """Say where it is from now on: at `path`."""
    return answer(view, 201, {"Location": quote(path)})


def no_content(_: None) -> Response:
    return Response(status_code=204)


def created_together(views: Any) -> Response:
    """Give no entity tag, which would be that of one resource."""
    return Response(to_json(views), 201, media_type="application/json")
