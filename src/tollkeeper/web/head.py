"""HEAD on every route that answers GET: the same status and headers, and no body.

Load balancers and `curl -I` ask this way (RFC 9110, section 9.3.2). Plain ASGI before the
framework, which would want a second handler for each route. The server itself leaves out the body
of any answer to a HEAD, a problem's of an outer layer too; it does not look at our copy of the
scope.
"""

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send


class HeadAsGet:
    """Passes a HEAD on as a GET."""

    __slots__ = ("_app",)

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] == ScopeType.HTTP and scope["method"] == "HEAD":
            asked: HTTPScope = {**scope, "method": "GET"}
            await self._app(asked, receive, send)
            if "path_template" in asked:  # for the log
                scope["path_template"] = asked["path_template"]
            return
        await self._app(scope, receive, send)
