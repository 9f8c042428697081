"""Opens connections in the background: how fast, and when again after a failure.

Not the pool's policy: the pool says how many it wants, this says when. Invariants:
- all pools of a database share one `ConnectLimiter`, so that a server that comes back is not met by
  everyone at once;
- after a failure nothing is opened for a pause that grows and is never the same for two processes
  (decorrelated backoff); a success, or a breaker that closes, ends it;
- while the breaker is not closed nothing is opened: the probe of the health monitor comes first.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from tollkeeper.database.driver import Connection, LoggedQuery
from tollkeeper.database.errors import (
    DatabaseMisconfigured,
    DatabaseUnavailable,
    SchemaMissing,
    TooManyConnections,
)
from tollkeeper.database.slot import Slot
from tollkeeper.kernel.breaker import Permit
from tollkeeper.kernel.clock import Clock

CONNECTS_PER_S = 10.0
"""Connections a process opens to one database in a second, once the burst is used up."""

CONNECT_BURST = 10
"""Connections a process opens to one database at once."""

PAUSE_FIRST_S = 0.1
"""Shortest pause after a failed open."""

PAUSE_CEILING_S = 2.0
"""Longest pause: a server that is back is found within it, breaker or not."""


SAYS_WHY = TooManyConnections, DatabaseMisconfigured, SchemaMissing
"""Failures of connecting that come from a server that is there: it is not lost."""


class Guard(Protocol):
    """What a pool asks before it serves or opens, and whom it tells what it learned."""

    def refusal(self) -> DatabaseUnavailable | None:
        """Return why nobody is served now; None when the breaker is closed. Must be fast."""
        ...

    def permit(self) -> Permit | None:
        """Return the permit to open a connection; None while the breaker is not closed."""
        ...

    def opened(self, permit: Permit, /) -> None:
        """Tell that a connection was opened."""
        ...

    def failed(self, permit: Permit, error: BaseException, /) -> None:
        """Tell why none was opened; the guard judges whether it is the server's loss."""
        ...

    def lost(self, error: BaseException | None, /) -> None:
        """Tell that a connection was lost, or its server is not what it was; None: while idle."""
        ...

    def stalled(self) -> None:
        """Tell that a statement or an acquire took until its deadline."""
        ...


class ConnectLimiter:
    """A bucket of permissions to connect, filled at a steady rate."""

    def __init__(
        self, clock: Clock, *, per_s: float = CONNECTS_PER_S, burst: int = CONNECT_BURST
    ) -> None:
        if per_s <= 0 or burst < 1:
            raise ValueError("a limit needs per_s > 0 and burst >= 1")
        self._clock = clock
        self._per_s = per_s
        self._burst = float(burst)
        self._tokens = float(burst)
        self._filled_s = clock.monotonic_s()

    def wait_s(self) -> float:
        """Take a permission and return 0, or return in how many seconds there may be one."""
        now = self._clock.monotonic_s()
        self._tokens = min(self._burst, self._tokens + (now - self._filled_s) * self._per_s)
        self._filled_s = now
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / self._per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Ties:
    """What a pool shares with the others of its database; none of it is needed."""

    guard: Guard | None = None
    limiter: ConnectLimiter | None = None
    jitter: Callable[[], float] = lambda: 0.5
    """Draws from [0, 1)."""
    observe: Callable[[Slot, LoggedQuery], None] | None = None
    """Told of each statement that has ended."""


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One connection on its way."""

    generation: int
    has_company: bool
    """Whether there were other connections when it began."""
    began_s: float
    permit: Permit | None


class Opener:
    """The attempts of one pool to open connections; tells the pool how each ended."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        *,
        ties: Ties,
        clock: Clock,
    ) -> None:
        self._connect = connect
        self._jitter = ties.jitter
        self._guard = ties.guard
        self._limiter = ties.limiter
        self._clock = clock
        self._attempts: dict[asyncio.Future[Connection], _Attempt] = {}
        self._pause: asyncio.TimerHandle | None = None
        self._pause_s = PAUSE_FIRST_S
        self.failure: BaseException | None = None
        """Why the last attempt failed; None when it did not."""
        self._is_last_word = False
        self.opened: Callable[[Connection, float, int], None] = _unheard
        """Told of each connection, how many seconds it took, and of which generation it is."""
        self.failed: Callable[[BaseException, bool], None] = _unheard
        """Told of each failure, and whether there was another connection when it began."""
        self.rested: Callable[[], None] = _unheard
        """Told when opening may go on."""

    def __len__(self) -> int:
        return len(self._attempts)

    @property
    def has_failed(self) -> bool:
        """Whether the last attempt failed, for a reason that another pool's success may end."""
        lasting = (TooManyConnections, DatabaseMisconfigured)
        return self.failure is not None and not isinstance(self.failure, lasting)

    @property
    def is_hopeless(self) -> bool:
        """Whether the server said why it opens nothing, when nothing else was open, just now."""
        return self._is_last_word and self._pause is not None and not self._attempts

    def open(self, *, generation: int, has_company: bool) -> bool:
        """Begin to open a connection; False when it is not the time, and `rested` will tell."""
        if self._pause is not None:
            return False
        permit = None
        if self._guard is not None and (permit := self._guard.permit()) is None:
            return False  # the guard's owner calls `wake` when the breaker closes
        delay_s = 0.0 if self._limiter is None else self._limiter.wait_s()
        if delay_s:
            self._rest(delay_s)
            return False
        attempt = asyncio.ensure_future(self._connect())
        self._attempts[attempt] = _Attempt(
            generation, has_company, self._clock.monotonic_s(), permit
        )
        attempt.add_done_callback(self._ended)
        return True

    def wake(self) -> None:
        """End the pause: there is reason to think that opening works."""
        self._pause_s = PAUSE_FIRST_S
        if self._pause is not None:
            self._pause.cancel()
            self._end_rest()

    def abandon(self) -> None:
        """Give up on all attempts; each still ends by itself."""
        for attempt in self._attempts:
            attempt.cancel()

    def shut(self) -> None:
        """Give up on all attempts, and begin none after a pause."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self.abandon()

    async def ended(self) -> None:
        """Return when no attempt is under way."""
        while self._attempts:
            await asyncio.wait(self._attempts)

    def _ended(self, attempt: asyncio.Future[Connection]) -> None:
        was = self._attempts.pop(attempt)
        permit = was.permit
        failure = asyncio.CancelledError() if attempt.cancelled() else attempt.exception()
        if failure is None:
            self._pause_s, self.failure, self._is_last_word = PAUSE_FIRST_S, None, False
            if self._guard is not None and permit is not None:
                self._guard.opened(permit)
            took_s = self._clock.monotonic_s() - was.began_s
            self.opened(attempt.result(), took_s, was.generation)
            return
        if not isinstance(failure, asyncio.CancelledError):
            self.failure = failure
            self._is_last_word = isinstance(failure, SAYS_WHY) and not was.has_company
            self._rest(self._next_pause_s())
        if self._guard is not None and permit is not None:
            self._guard.failed(permit, failure)
        self.failed(failure, was.has_company)

    def _next_pause_s(self) -> float:
        """Return the next pause: anything from the first to three times the last, decorrelated."""
        most_s = min(PAUSE_CEILING_S, 3.0 * self._pause_s)
        self._pause_s = PAUSE_FIRST_S + self._jitter() * (most_s - PAUSE_FIRST_S)
        return self._pause_s

    def _rest(self, pause_s: float) -> None:
        if self._pause is None:
            self._pause = asyncio.get_running_loop().call_later(pause_s, self._end_rest)

    def _end_rest(self) -> None:
        self._pause = None
        self.rested()


def _unheard(*_: object) -> None:
    raise AssertionError("an opener without its pool")
