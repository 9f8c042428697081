"""What listens on loopback before something else, and what lies in front of PostgreSQL."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Sequence
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit


class Proxy(ABC):
    """Listens on a free port during a block; each connection is `serve`d in a task of its own."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
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
    def port(self) -> int:
        """Return the port that it listens on."""
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @abstractmethod
    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""


class PostgresProxy(Proxy):
    """A proxy before the server whose socket a DSN names."""

    def __init__(self, dsn: str) -> None:
        super().__init__()
        parts = urlsplit(dsn)
        place = parse_qs(parts.query)
        self._socket = f"{place['host'][0]}/.s.PGSQL.{place['port'][0]}"
        self._login = f"{parts.username}@", parts.path

    @property
    def dsn(self) -> str:
        """Return the address of the same database through this proxy."""
        user, database = self._login
        return f"postgresql://{user}127.0.0.1:{self.port}{database}?sslmode=disable"

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection to the server."""
        return await asyncio.open_unix_connection(self._socket)

    async def pump(
        self,
        works: Sequence[Coroutine[object, object, None]],
        ends: Sequence[asyncio.StreamWriter],
    ) -> None:
        """Run both directions until either ends; then hang up on both ends."""
        pumps = [asyncio.create_task(work) for work in works]
        self._tasks.update(pumps)
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        self._tasks.difference_update(pumps)
        for end in ends:
            end.transport.abort()
