"""Every request has an id, and a line in the log as far as the log is worth it.

The id is the caller's (`X-Request-Id`, or the trace id of a W3C `traceparent`) when it is sane,
otherwise ours. The answer says it, in a header and in problem documents; so does every line that is
logged on the way (`telemetry/request.py`).

A request ends in one event, `web.request`. What failed (5xx, or no answer) and what was slow is
written always, as a warning. All else is written as information, the first `lines_per_s` of each
second: beyond that they are counted only, so that load drowns neither the log nor the process.
Probes and scrapes are not written, whatever they are told. With the level `debug` everything is.

Plain ASGI, and the outermost layer: what the others refuse is logged, too.
"""

import logging
import re
from collections.abc import Awaitable, Iterable, Mapping
from itertools import count
from typing import Final

import structlog
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from tollkeeper.kernel.clock import Clock
from tollkeeper.kernel.ids import EntropySource, mint_key
from tollkeeper.telemetry.masking import masked_text
from tollkeeper.telemetry.request import CAUSE, PRINCIPAL, PROBLEM, REQUEST_ID, current_request
from tollkeeper.web.auth import is_open

FAILED: Final = 500
"""From this status on a request is written whatever the log's budget."""

UNAVAILABLE: Final = 503
"""What a probe is told while the service is not ready: `service.not_ready` says so once."""

UNANSWERED: Final = 0
"""Stands for the status of a request that ended without an answer."""

_HTTP = ScopeType.HTTP.value
_SANE_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_UUID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
"""W3C Trace Context, section 3.2: version, trace id, parent id, flags."""


class RequestTally:
    """How requests ended; plain numbers, because each request pays for counting."""

    __slots__ = ("by_class", "not_logged")

    def __init__(self) -> None:
        self.by_class = [0] * 6
        """By the first digit of the status; 0 when there was no answer."""
        self.not_logged = 0


class RequestLog:
    """Gives every request its id, and writes how it ended."""

    __slots__ = (
        "_app", "_clock", "_count", "_left_out", "_level", "_lines_per_s", "_log", "_prefix",
        "_second", "_slow_s", "_tally", "_written",
    )  # fmt: skip

    def __init__(
        self,
        app: ASGIApp,
        *,
        clock: Clock,
        entropy: EntropySource,
        tally: RequestTally,
        slow_s: float,
        lines_per_s: int,
    ) -> None:
        self._app = app
        self._clock = clock
        self._tally = tally
        self._slow_s = slow_s
        self._lines_per_s = lines_per_s
        # Ours are UUIDs of which only the last group differs: composing one anew took 3 % of a
        # request.
        self._prefix = mint_key(clock.now(), entropy())[:24]
        self._count = count(1)
        self._log = structlog.get_logger(__name__).bind()
        self._level = self._log.get_effective_level()
        self._second = 0
        self._written = 0
        self._left_out = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on under its id, and note how it ended."""
        if scope["type"] != _HTTP:
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(scope["headers"])
        if request_id is None:
            request_id = f"{self._prefix}{next(self._count):012x}"
        header = (b"x-request-id", request_id.encode())
        state = scope.setdefault("state", {})
        state[REQUEST_ID] = request_id
        token = current_request.set(state)
        status = UNANSWERED
        began_s = self._clock.monotonic_s()

        def answer(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], header]
            return send(message)  # a coroutine of our own would cost 1 % of a request

        try:
            await self._app(scope, receive, answer)
        finally:
            self._note(scope, status, began_s)
            current_request.reset(token)

    def _note(self, scope: Scope, status: int, began_s: float) -> None:
        now_s = self._clock.monotonic_s()
        duration_s = now_s - began_s
        self._tally.by_class[status // 100] += 1
        if UNANSWERED < status < FAILED and duration_s < self._slow_s:
            if self._level == logging.INFO:
                self._note_plain(scope, status, duration_s, int(now_s))
            elif self._level < logging.INFO:
                self._log.info("web.request", **_facts(scope, status, duration_s))
        elif status != UNAVAILABLE or not is_open(scope["path"]):
            self._log.warning("web.request", **_facts(scope, status, duration_s))

    def _note_plain(self, scope: Scope, status: int, duration_s: float, second: int) -> None:
        """Write what is neither failed nor slow, within the budget of this second."""
        if PRINCIPAL not in scope["state"] and is_open(scope["path"]):
            return
        if second != self._second:
            self._second, self._written = second, 0
            if self._left_out:
                self._log.info("web.requests_not_logged", requests=self._left_out)
                self._left_out = 0
        if self._written < self._lines_per_s:
            self._written += 1
            self._log.info("web.request", **_facts(scope, status, duration_s))
        else:
            self._left_out += 1
            self._tally.not_logged += 1


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the id that a request came with; None if it has none that is sane.

    Whatever the log would mask (a card number, an API key) is not sane: an id must be the same
    wherever it is written.
    """
    trace = None
    for name, value in headers:
        if name == b"x-request-id":
            if _UUID.fullmatch(value) is not None:  # which the log leaves as it is
                return value.decode("ascii")
            if _SANE_ID.fullmatch(value) is not None:
                return _unmasked(value)
        elif name == b"traceparent":
            found = _TRACEPARENT.fullmatch(value)
            trace = None if found is None else found[1]
    return None if trace is None else _unmasked(trace)


def _unmasked(value: bytes) -> str | None:
    text = value.decode("ascii")
    return text if masked_text(text) == text else None


def _facts(scope: Scope, status: int, duration_s: float) -> Mapping[str, object]:
    state: Mapping[str, object] = scope["state"]
    failure = {name: state[name] for name in (PROBLEM, CAUSE) if name in state}
    return {
        **failure,
        "method": scope.get("method"),
        # The template: a path would name accounts. Absent where no route was found.
        "route": scope.get("path_template"),
        "status": status or None,
        "duration_ms": round(duration_s * 1_000, 2),
    }
