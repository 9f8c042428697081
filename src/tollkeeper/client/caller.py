"""Calls of a Tollkeeper service over keep-alive connections, retried where that is right.

What the clients of all slices share; which routes there are, and what they answer, they know.
"""

import asyncio
from types import TracebackType
from typing import Literal, Self, TypeVar

import msgspec

from tollkeeper.client.connection import Connection, Headers, Response, parse_origin
from tollkeeper.client.errors import (
    REFUSAL_STATUSES,
    AnswerMalformed,
    AnswerMissing,
    CallFailed,
    CallMalformed,
    CallRefused,
    ClientError,
    ServiceUnreachable,
)
from tollkeeper.kernel.backoff import Backoff
from tollkeeper.kernel.clock import Clock, SystemClock
from tollkeeper.kernel.ids import ENTROPY_BITS, EntropySource, system_entropy

PATIENT = Backoff(first_ms=50.0, ceiling_ms=2_000.0, retries=7)
"""About five seconds in all: long enough for a service that restarts."""

IMPATIENT = Backoff(first_ms=50.0, ceiling_ms=500.0, retries=3)
"""About a third of a second in all: for somebody who waits at a terminal."""

RETRY_AFTER_LIMIT_S = 30.0
"""Longest wait taken from a `Retry-After` header."""

JSON: Headers = (("Content-Type", "application/json"),)

NOT_MODIFIED = 304
"""An answer to `If-None-Match`: what the caller has is what there is."""

_RETRIED_STATUSES = frozenset({429, 502, 503, 504})
_Decoded = TypeVar("_Decoded")


class Caller:
    """The service at `url`, over up to `connections` keep-alive connections.

    More callers than connections wait their turn. Use it as an async context manager.
    Clock and randomness are this machine's unless others are given.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        clock: Clock | None = None,
        entropy: EntropySource = system_entropy,
        connections: int = 4,
        timeout_s: float = 30.0,
        backoff: Backoff = PATIENT,
    ) -> None:
        if connections < 1:
            raise ValueError("a client needs at least one connection")
        self._url = url
        self._clock = clock or SystemClock()
        self._entropy = entropy
        self._backoff = backoff
        check_header("api_key", api_key)
        headers: Headers = (("Authorization", f"Bearer {api_key}"),)
        origin = parse_origin(url)
        self._connections = tuple(
            Connection(origin, headers=headers, timeout_s=timeout_s) for _ in range(connections)
        )
        # Last in, first out: a client that needs few connections keeps few open.
        self._idle: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
        for connection in self._connections:
            self._idle.put_nowait(connection)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        for connection in self._connections:
            connection.abort()

    async def _call(
        self,
        method: Literal["GET", "POST", "PUT", "PATCH"],
        path: str,
        headers: Headers = (),
        body: bytes = b"",
        *,
        timeout_s: float | None = None,
        is_repeatable: bool = True,
    ) -> Response:
        """Call until there is an answer that is final, or the backoff is used up.

        Most calls may be sent again: reads change nothing, opening an account twice opens it once,
        and money writes carry a key. One that is not `is_repeatable` is sent again only while it
        is certain that it had no effect: nothing was sent, or it was refused for now (429).
        """
        attempt = 0
        while True:
            failure: ClientError
            connection = await self._idle.get()
            try:
                response = await connection.request(
                    method, path, headers, body, timeout_s=timeout_s
                )
                if response.status < 300 or response.status == NOT_MODIFIED:
                    return response
                failure = self._failure_of(response)
            except (ServiceUnreachable, AnswerMissing) as error:
                failure = error
            finally:
                self._idle.put_nowait(connection)
            may_pass = _may_pass(failure) and (is_repeatable or _had_no_effect(failure))
            if attempt == self._backoff.retries or not may_pass:
                raise failure
            await self._clock.sleep(self._wait_s(attempt, failure))
            attempt += 1

    def _wait_s(self, attempt: int, failure: ClientError) -> float:
        jitter = self._entropy() / 2.0**ENTROPY_BITS
        asked_s = failure.retry_after_s if isinstance(failure, CallFailed) else None
        return max(self._backoff.wait_ms(attempt, jitter) / 1_000.0, asked_s or 0.0)

    def _failure_of(self, response: Response) -> CallFailed:
        try:
            facts = msgspec.json.decode(response.body, type=dict[str, object])
        except msgspec.DecodeError:
            facts = {}
        kind = str(facts.pop("type", "about:blank"))
        refused = response.status in REFUSAL_STATUSES and kind != "about:blank"
        facts.pop("status", None)
        return (CallRefused if refused else CallFailed)(
            status=response.status,
            type=kind,
            title=str(facts.pop("title", f"{self._url} answered {response.status}")),
            detail=str(facts.pop("detail", "")),
            facts=facts,
            retry_after_s=_retry_after_s(response.header("retry-after")),
        )

    def _decode(self, response: Response, kind: type[_Decoded]) -> _Decoded:
        try:
            return msgspec.json.decode(response.body, type=kind)
        except msgspec.DecodeError as error:
            raise AnswerMalformed(url=self._url, reason=str(error)) from error


def _may_pass(failure: ClientError) -> bool:
    if isinstance(failure, CallFailed):
        return failure.status in _RETRIED_STATUSES
    return not isinstance(failure, AnswerMalformed)


def _had_no_effect(failure: ClientError) -> bool:
    if isinstance(failure, CallFailed):
        return failure.status == 429
    return isinstance(failure, ServiceUnreachable)


def _retry_after_s(text: str | None) -> float | None:
    # Only the form in seconds: the service sends no other.
    if text is None or not text.isascii() or not text.isdigit():
        return None
    return min(float(text), RETRY_AFTER_LIMIT_S)


def check_header(field: str, value: str) -> None:
    """Refuse what a header cannot carry, without showing it.

    Raises:
        CallMalformed: `field` is not made of visible ASCII characters.
    """
    if not value.isascii() or not value.isprintable():
        raise CallMalformed(field=field, fault="must be visible ASCII characters")
