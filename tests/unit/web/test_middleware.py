from collections.abc import Callable, Coroutine

import httpx
import msgspec

LIMIT_BYTES = 1_000
"""As in conftest.py."""

Exchange = Callable[..., Coroutine[None, None, list[tuple[int, bytes]]]]

HEAD = b"POST /echo HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer good\r\n"


def announced(body: bytes) -> bytes:
    return HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunked(*parts: bytes) -> bytes:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


async def test_body_at_the_limit_is_taken(exchange: Exchange) -> None:
    full = b"x" * LIMIT_BYTES
    answers = await exchange(announced(full), chunked(full[:300], full[300:]))

    assert [(200, b"1000"), (200, b"1000")] == answers


async def test_announced_body_over_the_limit_is_413_and_the_connection_goes_on(
    exchange: Exchange,
) -> None:
    refused, served = await exchange(announced(b"x" * (LIMIT_BYTES + 1)), announced(b"abc"))

    assert 413 == refused[0]
    document = msgspec.json.decode(refused[1])
    assert "urn:tollkeeper:problem:body-too-large" == document["type"]
    assert LIMIT_BYTES == document["limit_bytes"]
    assert (200, b"3") == served


async def test_streamed_body_over_the_limit_is_413_and_the_connection_goes_on(
    exchange: Exchange,
) -> None:
    refused, served = await exchange(chunked(*[b"x" * 400] * 3), announced(b"abc"))

    assert 413 == refused[0]
    assert "urn:tollkeeper:problem:body-too-large" == msgspec.json.decode(refused[1])["type"]
    assert (200, b"3") == served


async def test_much_too_large_body_is_refused_while_it_arrives(exchange: Exchange) -> None:
    refused, served = await exchange(announced(b"x" * 5_000_000), announced(b"abc"))

    assert 413 == refused[0]
    assert (200, b"3") == served


async def test_refusal_does_not_wait_for_the_body(exchange: Exchange) -> None:
    (refused,) = await exchange(HEAD + b"Expect: 100-continue\r\nContent-Length: 9999999\r\n\r\n")

    assert 413 == refused[0]


async def test_body_is_json_whatever_the_content_type_says(client: httpx.AsyncClient) -> None:
    answer = await client.post(
        "/payments",
        content=b'{"amount": 2}',
        headers={
            "Content-Type": "application/x-www-form-urlencoded",
            "Idempotency-Key": "k",
        },
    )

    assert 201 == answer.status_code
    assert 2 == answer.json()["amount"]
