"""Writing an answer: views and models of them as JSON, with an entity tag."""

from typing import Any
from urllib.parse import quote

from pydantic_core import to_json
from starlette.responses import Response

from handler.conditions import tag_of


class Shown(Response):
    """A view, or a model of some, as JSON with its entity tag."""

    def __init__(self, view: Any, status: int = 200) -> None:
        self.status_code, self.background, self.body = status, None, to_json(view)
        self.raw_headers = [
            (b"etag", tag_of(view, self.body).encode()),
            (b"content-length", b"%d" % len(self.body)),
            (b"content-type", b"application/json"),
        ]


def created(view: Any, path: str) -> Response:
    """Say where it is from now on: at `path`."""
    response = Shown(view, 201)
    response.headers["Location"] = quote(path)
    return response


def no_content(_: None) -> Response:
    return Response(status_code=204)


def created_together(views: Any) -> Response:
    """Give no entity tag, which would be that of one resource."""
    return Response(to_json(views), 201, media_type="application/json")
