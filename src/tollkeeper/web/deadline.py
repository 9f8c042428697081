"""Every request has a deadline: nothing it asks of the database waits beyond it.

Plain ASGI. It cancels nothing: what a request has begun is finished, but it does not begin to wait
for what would come too late to be of use.
"""

from collections.abc import Awaitable

from litestar.types import ASGIApp, Receive, Scope, Send

from tollkeeper.database.deadline import begin
from tollkeeper.kernel.clock import Clock


class Deadline:
    """Sets the deadline of each request; its task's context ends with it."""

    def __init__(self, app: ASGIApp, *, timeout_s: float, clock: Clock) -> None:
        self._app = app
        self._timeout_s = timeout_s
        self._clock = clock

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Pass the request on; not a coroutine of its own, which would cost each request."""
        begin(self._timeout_s, self._clock)
        return self._app(scope, receive, send)
