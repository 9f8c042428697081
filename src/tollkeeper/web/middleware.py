"""Layers around the application, as plain ASGI: a limit on bodies, an account of every request.

They wrap the Litestar application from outside, because Litestar's own middleware is entered after
routing and costs objects per request; these cost a few hundred nanoseconds each. They hold no state
but their settings.
"""

from collections.abc import Callable, Iterable

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, ReceiveMessage, Scope, Send

from tollkeeper.kernel.clock import Clock
from tollkeeper.web.errors import BodyTooLarge
from tollkeeper.web.problem import ProblemTable, problem_of, send_problem

RequestObserver = Callable[[Scope, int, float], None]
"""Called once per answered request with its scope, status and seconds. The scope's `path_template`
is the route's closed label; it is missing where no route matched. Status 0: no answer was begun."""


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


class RequestAccounting:
    """Tells an observer about every request: scope, status, and seconds until it was done with."""

    __slots__ = ("_app", "_clock", "_observe")

    def __init__(self, app: ASGIApp, *, observe: RequestObserver, clock: Clock) -> None:
        self._app = app
        self._observe = observe
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request, then report it, also when it failed."""
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        status = 0
        started_s = self._clock.monotonic_s()

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            self._observe(scope, status, self._clock.monotonic_s() - started_s)


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
