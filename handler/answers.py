"""Writing an answer: checked models as JSON."""

from urllib.parse import quote

from pydantic import BaseModel
from starlette.responses import Response


def answer(model: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(model.model_dump_json(), status, headers, "application/json")


def created(model: BaseModel, path: str) -> Response:
    """Say where it is from now on: at `path`."""
    return answer(model, 201, {"Location": quote(path)})


def no_content(_: None) -> Response:
    return Response(status_code=204)
