"""A service that is about to leave says so with every answer: `Connection: close`.

A caller that keeps its connections opens its next one elsewhere, so nothing is sent on a connection
that is being closed at the other end. Plain ASGI; while the service stays, it costs one question.
"""

from collections.abc import Awaitable, Callable

from litestar.types import ASGIApp, Message, Receive, Scope, Send

_CLOSE = (b"connection", b"close")


class Leaving:
    """Closes every connection with its next answer while `is_leaving`."""

    __slots__ = ("_app", "_is_leaving")

    def __init__(self, app: ASGIApp, *, is_leaving: Callable[[], bool]) -> None:
        self._app = app
        self._is_leaving = is_leaving

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Pass the request on; what came after we began to leave closes its connection."""
        if not self._is_leaving():
            return self._app(scope, receive, send)

        def closing(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], _CLOSE]
            return send(message)

        return self._app(scope, receive, closing)
