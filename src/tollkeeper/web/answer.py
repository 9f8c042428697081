"""A finished answer: JSON bytes that leave as they are.

Litestar's `ASGIResponse` prepares for cookies, background work and encodings; for a body that is
ready this took 5 % of a loaded service's time. Plain ASGI, so that a handler of the framework and
the express layer can both return it.
"""

from litestar.types import Receive, Scope, Send

_JSON = (b"content-type", b"application/json")


class JsonAnswer:
    """Sends `body` with `status`; `headers` are extra ones, names in lower case."""

    __slots__ = ("_body", "_headers", "_status")

    def __init__(
        self, body: bytes, status: int, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        self._body = body
        self._status = status
        self._headers = headers

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Send head and body; the server leaves the body out when it was asked for the head."""
        length = (b"content-length", b"%d" % len(self._body))
        headers = [_JSON, length, *self._headers]
        await send({"type": "http.response.start", "status": self._status, "headers": headers})
        await send({"type": "http.response.body", "body": self._body, "more_body": False})


class EmptyAnswer(JsonAnswer):
    """Sends `status` alone, one whose answers have no body; `headers` as above."""

    __slots__ = ()

    def __init__(self, status: int, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(b"", status, headers)

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Send the head."""
        headers = list(self._headers)
        await send({"type": "http.response.start", "status": self._status, "headers": headers})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
