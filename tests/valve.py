"""A way to PostgreSQL that can be shut: loudly, as a firewall that rejects, or silently."""

import asyncio
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit


class Valve:
    """Listens on loopback and passes everything on, until it is shut."""

    def __init__(self, dsn: str) -> None:
        parts = urlsplit(dsn)
        place = parse_qs(parts.query)
        self._socket = f"{place['host'][0]}/.s.PGSQL.{place['port'][0]}"
        self._login = f"{parts.username}@", parts.path
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._takes_new = True
        self._is_silent = False

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def dsn(self) -> str:
        """Return the address of the same database through this valve."""
        port = self._server.sockets[0].getsockname()[1]
        user, database = self._login
        return f"postgresql://{user}127.0.0.1:{port}{database}?sslmode=disable"

    def shut(self, *, is_silent: bool) -> None:
        """Pass nothing on; unless silent, hang up on everybody and on whoever comes."""
        self._takes_new = self._is_silent = is_silent
        self._flows.clear()
        if not is_silent:
            self._hang_up()

    def refuse_new(self) -> None:
        """Hang up on whoever comes; what flows, flows on."""
        self._takes_new = False

    def open(self) -> None:
        """Pass everything on again; what was swallowed silently is gone with its connections."""
        self._hang_up()
        self._takes_new, self._is_silent = True, False
        self._flows.set()

    def _hang_up(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(
        self, client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter
    ) -> None:
        if not self._takes_new:
            client_writer.transport.abort()
            return
        reader, writer = await asyncio.open_unix_connection(self._socket)
        self._writers.update((client_writer, writer))
        pumps = [
            asyncio.create_task(self._pump(client_reader, writer)),
            asyncio.create_task(self._pump(reader, client_writer)),
        ]
        self._tasks.update(pumps)
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        self._tasks.difference_update(pumps)
        self._writers.difference_update((client_writer, writer))
        for end in (client_writer, writer):
            end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            await self._flows.wait()
            writer.write(data)
            await writer.drain()
