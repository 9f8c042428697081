"""One HTTP/1.1 keep-alive connection: a request goes out, its answer comes back, in order.

Not an HTTP client for the world: no redirects, cookies, proxies or compression, one request at a
time. It exists because a general client costs about a millisecond of CPU per request, which is more
than the service needs to answer it.

Invariants: a request is written at most once, so nothing is ever sent twice from here; every
request ends by its deadline; a connection whose request was abandoned is closed, so that an answer
never meets another request's caller.
"""

import asyncio
import os
import ssl
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httptools

from tollkeeper.client.errors import (
    AnswerMalformed,
    AnswerMissing,
    AnswerTimeout,
    ConnectionLost,
    ServiceUnreachable,
)
from tollkeeper.kernel.errors import ConfigurationError

ANSWER_LIMIT_BYTES = 64 * 1024 * 1024
"""Largest body taken; a batch of 10,000 results is about 5 MB."""

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a service listens; `prefix` is a path before every request's path."""

    host: str
    port: int
    encrypted: bool = False
    prefix: str = ""

    def __str__(self) -> str:
        return f"{'https' if self.encrypted else 'http'}://{self.authority}{self.prefix}"

    @property
    def authority(self) -> str:
        """Return host and port as the `Host` header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_origin(url: str) -> Origin:
    """Take a service's URL apart.

    Raises:
        ConfigurationError: it is not `http(s)://host[:port][/prefix]`.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigurationError(problem=f"{url!r} is not a URL: {error}.") from error
    plain = parts.scheme in ("http", "https") and parts.hostname is not None
    extra = parts.query or parts.fragment or parts.username or parts.password
    if not plain or extra or not url.isascii() or any(mark.isspace() for mark in url):
        raise ConfigurationError(problem=f"{url!r} is not a service's URL (http://host:port).")
    return Origin(
        host=str(parts.hostname),
        port=port or (443 if parts.scheme == "https" else 80),
        encrypted=parts.scheme == "https",
        prefix=parts.path.rstrip("/"),
    )


class Response:
    """One answer: status, raw headers, body."""

    __slots__ = ("body", "raw_headers", "status")

    def __init__(self, status: int, raw_headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        self.status = status
        self.raw_headers = raw_headers
        self.body = body

    def header(self, name: str) -> str | None:
        """Return the first header of that name in lower case, or None."""
        wanted = name.encode("ascii")
        for key, value in self.raw_headers:
            if key.lower() == wanted:
                return value.decode("latin-1")
        return None


class Connection:
    """A keep-alive connection to one origin, opened when first needed and again when it was closed.

    `headers` go out with every request. Not for two requests at once: that is a bug of the caller.
    """

    def __init__(self, origin: Origin, *, headers: Headers = (), timeout_s: float = 30.0) -> None:
        self._origin = origin
        self._url = str(origin)
        self._timeout_s = timeout_s
        self._fixed = _render_headers((("Host", origin.authority), *headers))
        self._wire: _Wire | None = None

    async def request(
        self,
        method: str,
        path: str,
        headers: Headers = (),
        body: bytes = b"",
        *,
        timeout_s: float | None = None,
    ) -> Response:
        """Send one request and return its answer, whatever its status.

        Raises:
            ServiceUnreachable: nothing was sent.
            AnswerMissing: it was sent, or may have been, and no whole answer came back.
        """
        message = self._render(method, path, headers, body)
        wire = self._wire
        if wire is None or not wire.is_open():
            wire = await self._open()
        try:
            return await wire.exchange(message, timeout_s or self._timeout_s)
        except (AnswerMissing, asyncio.CancelledError):
            self.abort()
            raise

    def is_open(self) -> bool:
        """Tell whether the next request can go out without opening a connection."""
        return self._wire is not None and self._wire.is_open()

    def abort(self) -> None:
        """Close at once; the next request opens a new connection."""
        if self._wire is not None:
            self._wire.abort()
            self._wire = None

    def _render(self, method: str, path: str, headers: Headers, body: bytes) -> bytes:
        if not path.isascii() or any(mark in path for mark in " \r\n"):
            raise ValueError(f"the path {path!r} is not encoded")
        length = f"Content-Length: {len(body)}\r\n" if body or method != "GET" else ""
        head = f"{method} {self._origin.prefix}{path} HTTP/1.1\r\n{self._fixed}"
        return f"{head}{_render_headers(headers)}{length}\r\n".encode("latin-1") + body

    async def _open(self) -> "_Wire":
        self.abort()
        origin = self._origin
        context = ssl.create_default_context() if origin.encrypted else None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout_s):
                _, wire = await loop.create_connection(
                    lambda: _Wire(self._url), origin.host, origin.port, ssl=context
                )
        except TimeoutError as error:
            reason = f"no connection within {self._timeout_s:g} s"
            raise ServiceUnreachable(url=self._url, reason=reason) from error
        except (OSError, UnicodeError) as error:
            raise ServiceUnreachable(url=self._url, reason=_reason_of(error)) from error
        self._wire = wire
        return wire


class _Wire(asyncio.Protocol):
    """One TCP connection and the parser of its answers; the `on_...` names are httptools'."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[Response] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deadline_s = 0.0
        self._timeout_s = 0.0
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._body_bytes = 0

    def is_open(self) -> bool:
        """Tell whether a request may be written: neither side has begun to close."""
        return self._transport is not None and not self._transport.is_closing()

    async def exchange(self, message: bytes, timeout_s: float) -> Response:
        """Write a request and wait for its answer."""
        assert self._transport is not None, "a wire is used once it is open"
        assert self._waiter is None, "one request at a time"
        self._waiter = self._loop.create_future()
        self._timeout_s = timeout_s
        self._deadline_s = self._loop.time() + timeout_s
        if self._timer is None:
            self._timer = self._loop.call_at(self._deadline_s, self._check_deadline)
        self._transport.write(message)
        try:
            return await self._waiter
        finally:
            self._waiter = None

    def abort(self) -> None:
        """Close at once."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()

    def _check_deadline(self) -> None:
        # One timer per connection, moved on when it fires early: cheaper than one per request.
        self._timer = None
        if self._waiter is None:
            return
        if self._loop.time() < self._deadline_s:
            self._timer = self._loop.call_at(self._deadline_s, self._check_deadline)
            return
        self._fail(AnswerTimeout(url=self._url, waited_s=self._timeout_s))

    def _fail(self, error: AnswerMissing) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
        self.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the methods of asyncio's without being of their class.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(ConnectionLost(url=self._url, reason=_reason_of(exc)))

    def data_received(self, data: bytes) -> None:
        if self._waiter is None or self._waiter.done():
            self.abort()  # an answer nobody asked for: what follows cannot be trusted
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(AnswerMalformed(url=self._url, reason=_reason_of(error)))

    def on_message_begin(self) -> None:
        if self._waiter is None or self._waiter.done():
            self.abort()  # it came along with the answer that was asked for

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_body(self, data: bytes) -> None:
        self._body.append(data)
        self._body_bytes += len(data)
        if self._body_bytes > ANSWER_LIMIT_BYTES:
            reason = f"the answer is larger than {ANSWER_LIMIT_BYTES} bytes"
            self._fail(AnswerMalformed(url=self._url, reason=reason))

    def on_message_complete(self) -> None:
        response = Response(self._parser.get_status_code(), self._headers, b"".join(self._body))
        self._headers, self._body, self._body_bytes = [], [], 0
        if response.status < 200:
            return  # 1xx: the answer proper follows
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(response)
        if not self._parser.should_keep_alive() and self._transport is not None:
            self._transport.close()


def _render_headers(headers: Headers) -> str:
    for name, value in headers:
        if any(mark in name or mark in value for mark in "\r\n\0"):
            raise ValueError(f"the header {name!r} holds a line break")
    return "".join(f"{name}: {value}\r\n" for name, value in headers)


def _reason_of(error: Exception | None) -> str:
    if error is None:
        return "the other side closed it"
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()  # event loops word it differently
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
