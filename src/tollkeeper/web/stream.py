"""An answer that is sent while it is made, in constant memory.

Plain ASGI. What fails before the first bytes becomes a problem document like any failure; later the
connection is cut, so that nobody takes a part for the whole. A client that goes away, or takes
nothing for a while, ends the work: what it holds (a connection, a cursor) is given back at once.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import structlog
from litestar.types import Receive, Scope, Send

TAKE_LIMIT_S = 10.0
"""A client that takes nothing for so long is gone. Shorter than what its session may idle."""

_log = structlog.get_logger(__name__)


class StreamedAnswer:
    """Sends `chunks` with status 200; `headers` have names in lower case."""

    __slots__ = ("_chunks", "_has_begun", "_headers")

    def __init__(
        self, chunks: AsyncGenerator[bytes, None], headers: tuple[tuple[bytes, bytes], ...]
    ) -> None:
        self._chunks = chunks
        self._headers = headers
        self._has_begun = False

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send until it is done, or nobody is there any more."""
        sending = asyncio.create_task(self._send(send))
        watching = asyncio.create_task(_until_gone(receive))
        try:
            await asyncio.wait({sending, watching}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watching.cancel()
            is_cut = sending.cancel()
            await asyncio.wait({sending, watching})
        if is_cut:
            _log.info("web.stream_cut", has_begun=self._has_begun)
            return
        sending.result()

    async def _send(self, send: Send) -> None:
        async with aclosing(self._chunks) as chunks:
            async for chunk in chunks:
                async with asyncio.timeout(TAKE_LIMIT_S):
                    if not self._has_begun:
                        self._has_begun = True
                        headers = list(self._headers)
                        await send(
                            {"type": "http.response.start", "status": 200, "headers": headers}
                        )
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
