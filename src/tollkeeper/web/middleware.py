"""A layer around the application, as plain ASGI: a limit on bodies.

It wraps the Litestar application from outside, because Litestar's own middleware is entered after
routing and costs objects per request; this costs a few hundred nanoseconds. It holds no state but
its settings.
"""

from collections.abc import Iterable

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, ReceiveMessage, Scope, Send

from tollkeeper.web.errors import BodyTooLarge
from tollkeeper.web.problem import ProblemTable, problem_of, send_problem


class BodyLimit:
    """Refuses bodies of more than `limit_bytes`, announced or streamed, with a 413 problem.

    An announced body that is too large is refused before a byte is read. The connection stays
    usable: the server reads past what is left of the body, as it must to find the next request.
    """

    __slots__ = ("_app", "_limit_bytes", "_problems")

    def __init__(self, app: ASGIApp, *, limit_bytes: int, problems: ProblemTable) -> None:
        self._app = app
        self._limit_bytes = limit_bytes
        self._problems = problems

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on unless its length says that it is too large."""
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        announced = _announced_length(scope["headers"])
        if announced is None:
            await self._app(scope, self._counted(receive), send)
        elif announced > self._limit_bytes:
            error = BodyTooLarge(limit_bytes=self._limit_bytes)
            await send_problem(send, problem_of(error, self._problems))
        else:  # the server itself holds a body to its announced length
            await self._app(scope, receive, send)

    def _counted(self, receive: Receive) -> Receive:
        received = 0

        async def counting() -> ReceiveMessage:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self._limit_bytes:
                    raise BodyTooLarge(limit_bytes=self._limit_bytes)
            return message

        return counting


def _announced_length(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """Return Content-Length; 0 when there is no body; None when it comes in chunks."""
    length = 0
    for name, value in headers:
        if name == b"transfer-encoding":
            return None
        if name == b"content-length":
            if not value.isdigit():  # the server refused it already, unless it is a lax one
                return None
            length = int(value)
    return length
