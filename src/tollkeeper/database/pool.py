"""The connection pool: first come, first served, with a deadline on every acquire.

Not a policy: it neither retries nor tunes its own size, and it does not know what a connection is
used for. Connections carry no session state, so giving one back costs no round trip; one that is
not clean (inside a database transaction, cancelled in mid-query, closed) is retired instead.

Every change of state is synchronous and ends in `_settle`, which restores the invariants:
- nobody waits while a connection is idle; who came first is served first;
- idle + held + opening + closing connections never exceed the size, except after it was reduced,
  when the surplus is retired as it becomes idle;
- who waits can be served by a connection that is held, being opened, or opened after a rest; when
  an open fails and no other connection existed beside it, everyone who waits is refused.
There is no lock. Opening and closing happen in tasks of their own, so that a caller who is
cancelled leaks no connection and strands nobody.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tollkeeper.database.connect import close_gently, is_connection_lost, is_schema_missing
from tollkeeper.database.driver import Connection
from tollkeeper.database.errors import (
    DatabaseError,
    DatabaseUnavailable,
    PoolClosed,
    PoolTimeout,
    SchemaMissing,
)
from tollkeeper.kernel.clock import Clock

ACQUIRE_TIMEOUT_S = 5.0
"""How long an acquire waits unless it says otherwise."""

CLOSE_TIMEOUT_S = 2.0
"""A retired connection occupies its place at most so long while it says goodbye."""

OPEN_PAUSE_S = 0.25
"""After a failed open, while there are other connections, opening rests: no reconnect storm."""

Waiter = asyncio.Future[Connection]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolCounters:
    """The state of a pool; fields that end in `_total` only grow."""

    size: int
    open: int
    idle: int
    in_use: int
    waiting: int
    acquired_total: int
    waited_total: int
    timeouts_total: int
    opened_total: int
    discarded_total: int
    wait_seconds_total: float


class Pool:
    """At most `size` connections, opened when needed and shared in the order of asking."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        *,
        size: int,
        clock: Clock,
        acquire_timeout_s: float = ACQUIRE_TIMEOUT_S,
    ) -> None:
        if size < 1:
            raise ValueError("a pool needs at least one connection")
        self._connect = connect
        self._size = size
        self._clock = clock
        self._acquire_timeout_s = acquire_timeout_s
        self._is_open = True
        self._waiters: OrderedDict[Waiter, None] = OrderedDict()  # removal anywhere is O(1)
        self._idle: deque[Connection] = deque()  # the most recently used at the right end
        self._held: set[Connection] = set()
        # Each attempt, and whether there were other connections when it began.
        self._opening: dict[asyncio.Future[Connection], bool] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._all_returned = asyncio.Event()
        self._all_returned.set()
        self._acquired_total = 0
        self._waited_total = 0
        self._timeouts_total = 0
        self._opened_total = 0
        self._discarded_total = 0
        self._wait_seconds_total = 0.0

    async def acquire(self, timeout_s: float | None = None) -> Connection:
        """Return a connection, to be given back with `release`; waits `timeout_s` at most.

        Raises:
            PoolTimeout: none became free in time; opening one counts as waiting.
            PoolClosed: the pool is draining or closed.
            DatabaseUnavailable: none is open and none can be opened.
            SchemaMissing: none can be opened, because the role is not there.
        """
        if not self._is_open:
            raise PoolClosed
        waiter: Waiter = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        self._settle()
        connection = waiter.result() if waiter.done() else await self._wait(waiter, timeout_s)
        self._acquired_total += 1
        return connection

    async def release(self, connection: Connection, *, discard: bool = False) -> None:
        """Give a connection back; `discard` it when its state is in doubt. Never waits."""
        self._take_back(connection, discard=discard)

    @asynccontextmanager
    async def connection(self, timeout_s: float | None = None) -> AsyncIterator[Connection]:
        """Hold a connection for a block; one whose state may be in doubt is not used again.

        Cancellation and timeouts leave a statement running, a lost connection leaves nothing.

        Raises:
            DatabaseUnavailable: the connection was lost inside the block (and as `acquire` does).
            SchemaMissing: a statement named what is not there (and as `acquire` does).
        """
        connection = await self.acquire(timeout_s)
        is_doubtful = True
        try:
            yield connection
            is_doubtful = False
        except Exception as error:
            is_lost = is_connection_lost(error)
            is_doubtful = is_lost or isinstance(error, TimeoutError)
            if is_lost and not isinstance(error, DatabaseUnavailable):
                raise DatabaseUnavailable(reason=str(error) or type(error).__name__) from error
            if is_schema_missing(error):
                raise SchemaMissing(reason=str(error)) from error
            raise
        finally:
            self._take_back(connection, discard=is_doubtful)

    def resize(self, size: int) -> None:
        """Change the size: growth serves who waits, surplus is retired as it becomes idle."""
        if size < 1:
            raise ValueError("a pool needs at least one connection")
        self._size = size
        self._settle()

    async def drain(self, timeout_s: float) -> bool:
        """Hand out nothing more, wait for what is held, then close; True if all came back."""
        self._shut()
        try:
            async with asyncio.timeout(timeout_s):
                await self._all_returned.wait()
        except TimeoutError:
            pass
        has_all = not self._held
        await asyncio.gather(*(close_gently(held, CLOSE_TIMEOUT_S) for held in self._held))
        await self._finish()
        return has_all

    async def close(self) -> None:
        """Hand out nothing more and hang up on every connection, held ones too."""
        for connection in (*self._idle, *self._held):
            connection.terminate()
        self._shut()
        await self._finish()

    def counters(self) -> PoolCounters:
        """Return the state and the totals."""
        return PoolCounters(
            size=self._size,
            open=len(self._idle) + len(self._held) + len(self._closing),
            idle=len(self._idle),
            in_use=len(self._held),
            waiting=len(self._waiters),
            acquired_total=self._acquired_total,
            waited_total=self._waited_total,
            timeouts_total=self._timeouts_total,
            opened_total=self._opened_total,
            discarded_total=self._discarded_total,
            wait_seconds_total=self._wait_seconds_total,
        )

    # Waiting -------------------------------------------------------------------------------------

    async def _wait(self, waiter: Waiter, timeout_s: float | None) -> Connection:
        limit_s = self._acquire_timeout_s if timeout_s is None else timeout_s
        loop = asyncio.get_running_loop()
        expiry = loop.call_later(limit_s, self._expire, waiter, limit_s)
        started_s = self._clock.monotonic_s()
        self._waited_total += 1
        try:
            return await waiter
        except asyncio.CancelledError:
            self._abandon(waiter)
            raise
        finally:
            expiry.cancel()
            self._wait_seconds_total += self._clock.monotonic_s() - started_s

    def _expire(self, waiter: Waiter, waited_s: float) -> None:
        if waiter in self._waiters:
            del self._waiters[waiter]
            self._timeouts_total += 1
            waiter.set_exception(PoolTimeout(waited_s=waited_s, size=self._size))

    def _abandon(self, waiter: Waiter) -> None:
        """Forget a cancelled caller; what it was already given goes to the next."""
        self._waiters.pop(waiter, None)
        if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            self._take_back(waiter.result(), discard=False)

    def _take_back(self, connection: Connection, *, discard: bool) -> None:
        assert connection in self._held, "released twice, or not of this pool"
        self._held.remove(connection)
        if not self._held:
            self._all_returned.set()
        if discard or not self._is_open or not _is_clean(connection):
            self._retire(connection)
        else:
            self._idle.append(connection)
        self._settle()

    def _settle(self) -> None:
        """Restore the invariants: retire the surplus, serve who waits, open what is missing."""
        while self._idle and self._kept() > self._size:
            self._retire(self._idle.popleft())
        while self._waiters and self._idle:
            self._hand_out(self._idle.pop())
        while self._may_open():
            task = asyncio.ensure_future(self._connect())
            self._opening[task] = bool(self._held or self._closing)
            task.add_done_callback(self._opened)

    def _hand_out(self, connection: Connection) -> None:
        if not _is_clean(connection):  # the server closed it while it was idle
            self._retire(connection)
            return
        waiter, _ = self._waiters.popitem(last=False)
        if waiter.done():  # cancelled, and its task has not run yet to say so
            self._idle.append(connection)
            return
        self._held.add(connection)
        self._all_returned.clear()
        waiter.set_result(connection)

    # Opening and closing -------------------------------------------------------------------------

    def _kept(self) -> int:
        return len(self._idle) + len(self._held) + len(self._opening)

    def _may_open(self) -> bool:
        is_wanted = len(self._waiters) > len(self._opening)
        is_resting = self._pause is not None
        return is_wanted and not is_resting and self._kept() + len(self._closing) < self._size

    def _opened(self, task: asyncio.Future[Connection]) -> None:
        had_company = self._opening.pop(task)
        failure = asyncio.CancelledError() if task.cancelled() else task.exception()
        if failure is None:
            self._opened_total += 1
            self._idle.append(task.result())
            if not self._is_open:
                self._retire(self._idle.pop())
        elif self._held or self._opening or self._closing or had_company:
            # One of these may serve who waits, or make room at the server, or has just made it:
            # only an open that was refused while it was alone is the last word.
            self._rest()
        else:
            self._refuse_all(failure)
        self._settle()

    def _refuse_all(self, failure: BaseException) -> None:
        """Tell everyone who waits why: there is nothing that could serve them."""
        reason = f"{type(failure).__name__}: {failure}"
        if isinstance(failure, DatabaseUnavailable):
            reason = failure.reason
        for waiter in self._take_waiters():
            refusal: DatabaseError = DatabaseUnavailable(reason=reason)
            if isinstance(failure, SchemaMissing):
                refusal = SchemaMissing(reason=failure.reason)
            refusal.__cause__ = failure
            waiter.set_exception(refusal)

    def _take_waiters(self) -> Iterable[Waiter]:
        waiters = [waiter for waiter in self._waiters if not waiter.done()]
        self._waiters.clear()
        return waiters

    def _rest(self) -> None:
        if self._pause is None and self._is_open:
            loop = asyncio.get_running_loop()
            self._pause = loop.call_later(OPEN_PAUSE_S, self._end_rest)

    def _end_rest(self) -> None:
        self._pause = None
        self._settle()

    def _retire(self, connection: Connection) -> None:
        self._discarded_total += 1
        if connection.is_closed():
            return
        task = asyncio.ensure_future(close_gently(connection, CLOSE_TIMEOUT_S))
        self._closing.add(task)
        task.add_done_callback(self._closed)

    def _closed(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        self._settle()

    def _shut(self) -> None:
        self._is_open = False
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        for waiter in self._take_waiters():
            waiter.set_exception(PoolClosed())
        for task in self._opening:
            task.cancel()
        while self._idle:
            self._retire(self._idle.popleft())

    async def _finish(self) -> None:
        while self._opening or self._closing:
            await asyncio.wait(self._opening or self._closing)


def _is_clean(connection: Connection) -> bool:
    return not connection.is_closed() and not connection.is_in_transaction()
