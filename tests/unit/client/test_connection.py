"""One connection against a peer that cuts, hangs and garbles."""

import asyncio

import pytest
from tests.unit.client.network import HANG, answer, peer

from tollkeeper.client.connection import Connection, Origin, parse_origin
from tollkeeper.client.errors import (
    AnswerMalformed,
    AnswerTimeout,
    ConnectionLost,
    ServiceUnreachable,
)
from tollkeeper.kernel.errors import ConfigurationError

OK = answer(200, {"fine": True}, (("X-Note", "first"),))


async def test_requests_share_one_connection() -> None:
    async with peer([OK, OK]) as other:
        connection = Connection(parse_origin(other.url), headers=(("X-Fixed", "1"),))

        first = await connection.request("GET", "/a")
        second = await connection.request("POST", "/b", (("X-Own", "2"),), b'{"n":1}')

        assert (first.status, first.body, first.header("x-note")) == (
            200,
            b'{"fine":true}',
            "first",
        )
        assert second.status == 200
        assert other.connections == 1
        get, post = other.requests
        assert get.startswith(b"GET /a HTTP/1.1\r\nHost: 127.0.0.1:")
        assert b"X-Fixed: 1\r\n" in get
        assert b"Content-Length" not in get
        assert post.endswith(b'X-Own: 2\r\nContent-Length: 7\r\n\r\n{"n":1}')
        connection.abort()


async def test_a_connection_closed_while_idle_is_opened_again_before_anything_is_sent() -> None:
    async with peer([OK, OK], cuts=[0]) as other:
        connection = Connection(parse_origin(other.url))
        await connection.request("GET", "/")
        await other.closed.wait()
        while connection.is_open():
            await asyncio.sleep(0)

        await connection.request("GET", "/")

        assert other.connections == 2
        assert len(other.requests) == 2
        connection.abort()


async def test_connection_close_is_honoured() -> None:
    closing = answer(200, None, (("Connection", "close"),))
    async with peer([closing, OK]) as other:
        connection = Connection(parse_origin(other.url))
        await connection.request("GET", "/")

        assert not connection.is_open()
        assert (await connection.request("GET", "/")).status == 200
        connection.abort()


@pytest.mark.parametrize("cut", [b"", OK[:5], OK[:-3]], ids=["at once", "in head", "in body"])
async def test_a_cut_answer_is_lost_and_not_asked_for_again(cut: bytes) -> None:
    async with peer([cut, OK], cuts=[0]) as other:
        connection = Connection(parse_origin(other.url))

        with pytest.raises(ConnectionLost):
            await connection.request("POST", "/", body=b"{}")

        assert len(other.requests) == 1
        assert (await connection.request("GET", "/")).status == 200
        connection.abort()


@pytest.mark.parametrize(
    "garbage",
    [b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 abc OK\r\n\r\n", b"\xff" * 40 + b"\r\n\r\n"],
)
async def test_garbage_is_malformed(garbage: bytes) -> None:
    async with peer([garbage]) as other:
        connection = Connection(parse_origin(other.url))

        with pytest.raises(AnswerMalformed):
            await connection.request("GET", "/")

        assert not connection.is_open()


async def test_a_silent_peer_ends_by_the_deadline_and_the_connection_is_not_used_again() -> None:
    async with peer([OK, HANG, OK]) as other:
        connection = Connection(parse_origin(other.url), timeout_s=0.05)
        await connection.request("GET", "/")

        with pytest.raises(AnswerTimeout):
            await connection.request("GET", "/")

        assert (await connection.request("GET", "/", timeout_s=5.0)).status == 200
        assert other.connections == 2
        connection.abort()


async def test_an_abandoned_request_closes_the_connection() -> None:
    async with peer([HANG, OK]) as other:
        connection = Connection(parse_origin(other.url))
        task = asyncio.create_task(connection.request("GET", "/"))
        while not other.requests:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        assert not connection.is_open()
        assert (await connection.request("GET", "/")).status == 200
        connection.abort()


async def test_an_interim_answer_is_not_the_answer() -> None:
    async with peer([b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK]) as other:
        connection = Connection(parse_origin(other.url))
        response = await connection.request("GET", "/")

        assert response.status == 200
        assert response.header("link") is None
        connection.abort()


async def test_a_second_answer_that_nobody_asked_for_closes_the_connection() -> None:
    async with peer([OK + OK, OK]) as other:
        connection = Connection(parse_origin(other.url))
        await connection.request("GET", "/")

        assert not connection.is_open()
        assert (await connection.request("GET", "/")).status == 200
        assert other.connections == 2
        connection.abort()


async def test_a_closed_port_is_unreachable() -> None:
    async with peer([]) as other:
        url = other.url
    connection = Connection(parse_origin(url))

    with pytest.raises(ServiceUnreachable, match="refused"):
        await connection.request("GET", "/")


async def test_line_breaks_never_reach_the_wire() -> None:
    connection = Connection(Origin(host="127.0.0.1", port=1))

    with pytest.raises(ValueError, match="line break"):
        await connection.request("GET", "/", (("Idempotency-Key", "a\r\nX: y"),))
    with pytest.raises(ValueError, match="not encoded"):
        await connection.request("GET", "/a b")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://localhost:5004", "http://localhost:5004"),
        ("http://localhost:5004/", "http://localhost:5004"),
        ("https://ledger.example/api/", "https://ledger.example:443/api"),
        ("http://[::1]:80", "http://[::1]:80"),
    ],
)
def test_urls_are_taken_apart(url: str, shown: str) -> None:
    assert str(parse_origin(url)) == shown


@pytest.mark.parametrize(
    "url",
    ["", "localhost:5004", "ftp://x", "http://", "http://x:y", "http://u:p@x", "http://x/?a=1"],
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_origin(url)
