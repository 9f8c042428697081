"""A proxy before PostgreSQL that cuts the connection at a commit, before or after it has happened.

It speaks just enough of PostgreSQL's protocol (manual, "Message Formats") to see a commit
coming: the Bind of the ledger's commit statement, or the COMMIT of a unit of work that may write.
`AFTER` waits for the server's ReadyForQuery, so the commit is done and durable, and swallows the
answer (a statement that the server refuses was no commit: then the one of the next unit is cut);
`BEFORE` lets nothing through; `DELAY` keeps the commit from the server, says so by `held`, and
waits for `go_on`.
"""

import asyncio
import struct
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from enum import Enum

from tests.proxy import PostgresProxy

_COMMIT_STATEMENT = b"WITH moved AS"
_HEADER = struct.Struct(">cI")


class Cut(Enum):
    """What happens to the next commit that comes by."""

    BEFORE = "before"
    AFTER = "after"
    PASS = "pass"
    DELAY = "delay"


class CuttingProxy(PostgresProxy):
    """Listens on loopback, and does to each commit what `cuts` says; then lets everything pass."""

    def __init__(self, dsn: str, cuts: Iterable[Cut]) -> None:
        super().__init__(dsn)
        self.cuts = deque(cuts)
        self.has_cut = asyncio.Event()
        self.held = asyncio.Event()
        self.go_on = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on what both ends say, and cut."""
        server = await self.connect()
        session = _Session(self, (reader, writer), server)
        await self.pump([session.to_server(), session.to_client()], [writer, server[1]])


class _Session:
    """One connection through the proxy; ends when either pump ends."""

    def __init__(
        self,
        proxy: CuttingProxy,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._proxy = proxy
        self._client_reader, self._client_writer = client
        self._reader, self._writer = server
        self._commit_statements: set[bytes] = set()
        self._only_reads = False
        self._swallows = False
        self._swallowed = b""

    async def to_server(self) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            greeting = await self._client_reader.readexactly(4)
            length = int.from_bytes(greeting, "big") - 4
            self._writer.write(greeting + await self._client_reader.readexactly(length))
            while True:
                kind, head, body = await _message(self._client_reader)
                if self._is_commit(kind, body) and self._proxy.cuts:
                    cut = self._proxy.cuts.popleft()
                    if cut is Cut.BEFORE:
                        self._proxy.has_cut.set()
                        return
                    if cut is Cut.DELAY:
                        self._proxy.held.set()
                        await self._proxy.go_on.wait()
                    self._swallows, self._swallowed = cut is Cut.AFTER, b""
                self._writer.write(head + body)
                await self._writer.drain()

    async def to_client(self) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                kind, head, body = await _message(self._reader)
                if self._swallows and kind == b"E":
                    self._swallows = False
                    # What is tried again locks first: its statement passes, its COMMIT is cut.
                    self._proxy.cuts.extendleft((Cut.AFTER, Cut.PASS))
                    self._client_writer.write(self._swallowed)
                if not self._swallows:
                    self._client_writer.write(head + body)
                    await self._client_writer.drain()
                    continue
                self._swallowed += head + body
                if kind == b"Z":
                    self._proxy.has_cut.set()
                    return

    def _is_commit(self, kind: bytes, body: bytes) -> bool:
        if kind == b"P":
            name, query, _ = body.split(b"\0", 2)
            if _COMMIT_STATEMENT in query:
                self._commit_statements.add(name)
        if kind == b"B":
            return body.split(b"\0", 2)[1] in self._commit_statements
        if kind == b"Q" and body.startswith(b"BEGIN"):
            self._only_reads = b"READ ONLY" in body
        return kind == b"Q" and body.startswith(b"COMMIT") and not self._only_reads


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes, bytes]:
    head = await reader.readexactly(_HEADER.size)
    kind, length = _HEADER.unpack(head)
    return kind, head, await reader.readexactly(length - 4)
