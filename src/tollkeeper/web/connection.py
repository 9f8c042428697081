"""A connection's HTTP/1.1 parsing: uvicorn's, with the limit on heads that it does not have.

Without it a caller needs no key to fill the memory, with a header that never ends. The limit is on
what is neither body nor a finished head, so it holds for trailers and chunk extensions too.
"""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_LIMIT_BYTES = 65_536
"""Four times what common servers and load balancers let through.

A head that comes in one piece may be longer by what the event loop reads at once.
"""

_REFUSAL = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-length: 0\r\nconnection: close\r\n\r\n"
)


class LimitedConnection(HttpToolsProtocol):
    """Answers 431 to a head of more than `HEAD_LIMIT_BYTES`, and closes."""

    _unfinished_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Parse what came, and count what did not finish anything."""
        self._unfinished_bytes += len(data)
        super().data_received(data)
        if self._unfinished_bytes > HEAD_LIMIT_BYTES and not self.transport.is_closing():
            self.transport.write(_REFUSAL)
            self.transport.close()

    def on_headers_complete(self) -> None:
        """Note that a head is finished."""
        self._unfinished_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Note that a piece of a body is finished."""
        self._unfinished_bytes = 0
        super().on_body(body)
