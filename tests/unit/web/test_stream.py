"""What a client and the server see of an answer that is sent while it is made."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from tollkeeper.web.stream import StreamedAnswer

HEADERS = ((b"content-type", b"text/csv"),)


class Peer:
    """The server's side of a connection: what was sent, and when the client leaves."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.has_left = asyncio.Event()
        self._is_asked = False

    async def receive(self) -> Any:
        if not self._is_asked:
            self._is_asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.has_left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def ask(self, chunks: AsyncGenerator[bytes, None]) -> None:
        scope: Any = {"type": "http"}
        await StreamedAnswer(chunks, HEADERS)(scope, self.receive, self.send)


async def test_all_of_it_is_sent_and_its_end() -> None:
    async def chunks() -> AsyncGenerator[bytes, None]:
        yield b"a"
        yield b"b"

    peer = Peer()
    await peer.ask(chunks())

    assert {"type": "http.response.start", "status": 200, "headers": [*HEADERS]} == peer.sent[0]
    assert [(b"a", True), (b"b", True), (b"", False)] == [
        (each["body"], each["more_body"]) for each in peer.sent[1:]
    ]


@pytest.mark.parametrize("chunks_before", [0, 1])
async def test_what_fails_is_the_callers_and_has_no_end(chunks_before: int) -> None:
    """Nothing was sent yet: it becomes a problem. Something was: the server cuts the connection."""

    async def chunks() -> AsyncGenerator[bytes, None]:
        for _ in range(chunks_before):
            yield b"a"
        raise LookupError

    peer = Peer()
    with pytest.raises(LookupError):
        await peer.ask(chunks())

    assert [True] * chunks_before == [each["more_body"] for each in peer.sent[1:]]
    assert bool(peer.sent) == bool(chunks_before)


@pytest.mark.parametrize("chunks_before", [0, 1])
async def test_a_client_that_leaves_ends_the_work(chunks_before: int) -> None:
    peer, has_ended = Peer(), asyncio.Event()

    async def chunks() -> AsyncGenerator[bytes, None]:
        try:
            for _ in range(chunks_before):
                yield b"a"
            peer.has_left.set()
            await asyncio.Event().wait()  # a query that takes for ever
        finally:
            has_ended.set()

    await peer.ask(chunks())

    assert has_ended.is_set()
    assert all(each.get("more_body", True) for each in peer.sent)


async def test_one_that_is_cancelled_ends_the_work_too() -> None:
    begun, has_ended = asyncio.Event(), asyncio.Event()

    async def chunks() -> AsyncGenerator[bytes, None]:
        try:
            begun.set()
            await asyncio.Event().wait()
            yield b""
        finally:
            has_ended.set()

    asking = asyncio.create_task(Peer().ask(chunks()))
    await begun.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking

    assert has_ended.is_set()
