"""A way to PostgreSQL that can be shut: loudly, as a firewall that rejects, or silently."""

import asyncio

from tests.proxy import PostgresProxy


class Valve(PostgresProxy):
    """Listens on loopback and passes everything on, until it is shut."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        self._writers: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._takes_new = True
        self._is_silent = False

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

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on what both ends say while the valve is open."""
        if not self._takes_new:
            writer.transport.abort()
            return
        server_reader, server_writer = await self.connect()
        ends = writer, server_writer
        self._writers.update(ends)
        await self.pump(
            [self._pump(reader, server_writer), self._pump(server_reader, writer)], ends
        )
        self._writers.difference_update(ends)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            await self._flows.wait()
            writer.write(data)
            await writer.drain()
