"""Writing an answer: checked models as JSON, with an entity tag."""

from urllib.parse import quote

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from handler.conditions import Representation


def answer(model: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    shown = Representation.of(model)
    return Response(shown.body, status, {"ETag": shown.tag, **(headers or {})}, "application/json")


def created(request: Request, model: BaseModel, path: str) -> Response:
    """Say where it is from now on: at `path`, below wherever the service is for its caller."""
    return answer(model, 201, {"Location": quote(f"{request.scope.get('root_path', '')}{path}")})
