"""The other end of a socket that behaves as badly as it is told to."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec

HANG = b"\0hang"
"""In place of an answer: never answer."""


@dataclass
class Peer:
    """Answers each request with the next of `answers`; an answer may be empty, cut or garbage.

    After an answer in `cuts` (by index) the connection is closed. `requests` is what came in.
    """

    answers: Sequence[bytes]
    cuts: frozenset[int] = frozenset()
    url: str = ""
    connections: int = 0
    requests: list[bytes] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while (request := await _read_request(reader)) is not None:
                index = len(self.requests)
                self.requests.append(request)
                answer = self.answers[index]
                if answer == HANG:
                    continue
                writer.write(answer)
                await writer.drain()
                if index in self.cuts:
                    return
        except (ConnectionError, asyncio.CancelledError):
            return  # gone, or the test is over
        finally:
            writer.close()
            self.closed.set()


async def _read_request(reader: asyncio.StreamReader) -> bytes | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    length = 0
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    return head + await reader.readexactly(length)


@asynccontextmanager
async def peer(answers: Sequence[bytes], cuts: Sequence[int] = ()) -> AsyncIterator[Peer]:
    """Listen on a free loopback port while the block runs."""
    other = Peer(answers=answers, cuts=frozenset(cuts))
    server = await asyncio.start_server(other.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    other.url = f"http://{host}:{port}"
    try:
        yield other
    finally:
        server.close()


@asynccontextmanager
async def routed(respond: Callable[[bytes], bytes], port: int = 0) -> AsyncIterator[str]:
    """Answer every request on a loopback port by a function while the block runs."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_ones.add(writer)
        try:
            while (request := await _read_request(reader)) is not None:
                writer.write(respond(request))
                await writer.drain()
        except (ConnectionError, asyncio.CancelledError):
            return  # gone, or the test is over
        finally:
            open_ones.discard(writer)
            writer.close()

    open_ones: set[asyncio.StreamWriter] = set()
    server = await asyncio.start_server(serve, "127.0.0.1", port)
    host, port = server.sockets[0].getsockname()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.close()
        for writer in tuple(open_ones):
            writer.close()


def answer(status: int, document: object = None, headers: Sequence[tuple[str, str]] = ()) -> bytes:
    """Put a whole HTTP answer together."""
    body = msgspec.json.encode(document)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode() + body


def key_of(request: bytes) -> str:
    """Return the idempotency key of a recorded request."""
    for line in request.split(b"\r\n"):
        if line.lower().startswith(b"idempotency-key:"):
            return line.split(b":", 1)[1].strip().decode()
    raise AssertionError("the request has no key")
