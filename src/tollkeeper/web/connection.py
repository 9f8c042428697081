"""A connection's HTTP/1.1 parsing: uvicorn's, with the limit on heads that it does not have.

What cannot be read as HTTP is answered with a problem document like everything else.
Without it a caller needs no key to fill the memory, with a header that never ends. The limit is on
what is neither body nor a finished head, so it holds for trailers and chunk extensions too.
"""

from http import HTTPStatus

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tollkeeper.web.problem import HEAD_TOO_LARGE, MALFORMED, MEDIA_TYPE, Problem, ProblemKind

HEAD_LIMIT_BYTES = 65_536
"""Four times what common servers and load balancers let through.

A head that comes in one piece may be longer by what the event loop reads at once.
"""


class LimitedConnection(HttpToolsProtocol):
    """Answers 431 to a head of more than `HEAD_LIMIT_BYTES`, and closes."""

    _unfinished_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Parse what came, and count what did not finish anything."""
        self._unfinished_bytes += len(data)
        super().data_received(data)
        if self._unfinished_bytes > HEAD_LIMIT_BYTES and not self.transport.is_closing():
            detail = f"a request's head may have at most {HEAD_LIMIT_BYTES:,} bytes"
            self._refuse(HEAD_TOO_LARGE, detail)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP/1.1; what follows on this connection cannot be read either."""
        self._refuse(MALFORMED, msg)

    def _refuse(self, kind: ProblemKind, detail: str) -> None:
        problem = Problem(status=kind.status, type=kind.type, title=kind.title, detail=detail)
        body = msgspec.json.encode(problem.document())
        head = (
            f"HTTP/1.1 {kind.status} {HTTPStatus(kind.status).phrase}\r\n"
            f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()

    def on_headers_complete(self) -> None:
        """Note that a head is finished."""
        self._unfinished_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Note that a piece of a body is finished."""
        self._unfinished_bytes = 0
        super().on_body(body)
