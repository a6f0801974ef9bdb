from starlette.types import ASGIApp, Receive, Scope, Send

from handler.gateways import mount_point, source_of


class OutsideAddress:
    """Tells the service where it is for its caller: as `root_path`, which `path` begins with. And where that one is."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "aws.event" in scope:
            root, path = mount_point(scope["aws.event"], scope["path"])
            client = source_of(scope["aws.event"], str(scope["client"][0])), scope["client"][1]
            scope.update(root_path=root, path=root + path, client=client)
        await self.app(scope, receive, send)
