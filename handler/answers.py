"""Writing an answer: checked models as JSON, with an entity tag."""

from urllib.parse import quote

from pydantic import BaseModel
from starlette.responses import Response

from handler.conditions import Representation


def answer(model: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    shown = Representation.of(model)
    return Response(shown.body, status, {"ETag": shown.tag, **(headers or {})}, "application/json")


def created(model: BaseModel, path: str) -> Response:
    """Say where it is from now on: at `path`."""
    return answer(model, 201, {"Location": quote(path)})


def no_content(_: None) -> Response:
    return Response(status_code=204)


def created_together(model: BaseModel) -> Response:
    """Give no entity tag, which would be that of one resource."""
    return Response(model.model_dump_json(), 201, media_type="application/json")
