import json

from handler.asgi import ROUTES
from handler.openapi.document import build_openapi

print(json.dumps(build_openapi(ROUTES), indent=2))  # noqa: T201
