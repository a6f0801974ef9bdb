from starlette.types import ASGIApp, Receive, Scope, Send

from handler.gateways import mount_point


class OutsideAddress:
    """Tells the service where it is for its caller: as `root_path`, which `path` begins with."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "aws.event" in scope:
            root, path = mount_point(scope["aws.event"], scope["path"])
            scope.update(root_path=root, path=root + path)
        await self.app(scope, receive, send)
