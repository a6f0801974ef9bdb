from collections.abc import Awaitable

from starlette.types import ASGIApp, Receive, Scope, Send

from handler.gateways import mount_point, source_of


class OutsideAddress:
    """Tells the service where it is for its caller: as `root_path`, which `path` begins with. And where that one is."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if event := scope.get("aws.event"):
            root, path = mount_point(event, scope["path"])
            address, port = scope["client"]
            scope.update(root_path=root, path=root + path, client=(source_of(event, str(address)), port))
        return self.app(scope, receive, send)
