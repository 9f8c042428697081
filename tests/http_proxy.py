"""A proxy before a service that sends requests twice, or late, and loses requests and answers.

Takes HTTP/1.1 as our client speaks it: every body has its length. What becomes of a request is
drawn from `fates` by a `random.Random`.
"""

import asyncio
import random
import re
from collections.abc import Sequence
from enum import Enum
from urllib.parse import urlsplit

from tests.proxy import Proxy

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)\r\n")


class Fate(Enum):
    """What becomes of a request."""

    PASS = "pass"
    TWICE = "twice"
    LATE = "late"
    LOSE_REQUEST = "lose request"
    LOSE_ANSWER = "lose answer"


class HttpProxy(Proxy):
    """Listens on loopback before the service at `url`; `late` are requests yet to be sent again."""

    def __init__(self, url: str, fates: Sequence[Fate], dice: random.Random) -> None:
        super().__init__()
        place = urlsplit(url)
        self._service = place.hostname, place.port
        self._fates = fates
        self._dice = dice
        self.seen: dict[Fate, int] = dict.fromkeys(Fate, 0)
        self.late: list[tuple[bytes, bytes]] = []
        self.twice: list[tuple[bytes, bytes]] = []

    @property
    def url(self) -> str:
        """Return the address of the service through this proxy."""
        return f"http://127.0.0.1:{self.port}"

    async def send_late(self) -> list[tuple[bytes, bytes]]:
        """Send again what was kept back; return the first answer and the second, for each."""
        return [(answer, await self.ask(request)) for request, answer in self.late]

    async def ask(self, request: bytes) -> bytes:
        """Send a request over a connection of its own; return the answer."""
        reader, writer = await asyncio.open_connection(*self._service)
        try:
            writer.write(request)
            return await _message(reader)
        finally:
            writer.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Do to each request what its fate says."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._pass_on(await _message(reader), writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _pass_on(self, request: bytes, writer: asyncio.StreamWriter) -> bool:
        """Do with a request what its fate says; return whether the connection lives on."""
        fate = self._dice.choice(self._fates)
        self.seen[fate] += 1
        if fate is Fate.LOSE_REQUEST:
            return False
        if fate is Fate.TWICE:
            first, second = await asyncio.gather(self.ask(request), self.ask(request))
            self.twice.append((first, second))
            answer = self._dice.choice((first, second))
        else:
            answer = await self.ask(request)
        if fate is Fate.LATE:
            self.late.append((request, answer))
        if fate is Fate.LOSE_ANSWER:
            return False
        writer.write(answer)
        await writer.drain()
        return True


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = _LENGTH.search(head)
    return head + (await reader.readexactly(int(length[1])) if length else b"")
