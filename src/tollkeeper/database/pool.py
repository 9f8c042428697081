"""The connection pool: first come, first served, with a deadline on every acquire.

Not a policy: it neither retries nor tunes its own size, and it does not know what a connection is
used for. Connections carry no session state, so giving one back costs no round trip; one that is
not clean (inside a database transaction, cancelled in mid-query, closed) is retired instead.

Every change of state is synchronous and ends in `_settle`, which restores the invariants:
- nobody waits while a connection is idle; who came first is served first;
- idle + held + opening + closing connections never exceed the size, except after it was reduced,
  when the surplus is retired as it becomes idle;
- who waits can be served by a connection that is held, being opened, or opened after a rest; when
  an open fails and no other connection existed beside it, everyone who waits is refused;
- no connection of an expired generation is handed out.
There is no lock. Opening and closing happen in tasks of their own (`opening.py`), so that a caller
who is cancelled leaks no connection and strands nobody.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

from tollkeeper.database.connect import (
    close_gently,
    is_connection_lost,
    is_generation_over,
    is_read_only,
    translated,
)
from tollkeeper.database.driver import Connection
from tollkeeper.database.errors import (
    DatabaseError,
    DatabaseUnavailable,
    NestedAcquire,
    PoolClosed,
    PoolTimeout,
    SchemaMissing,
)
from tollkeeper.database.histogram import Histogram
from tollkeeper.database.lease import Lease
from tollkeeper.database.limits import PoolLimits, check_size
from tollkeeper.database.line import Line
from tollkeeper.database.opening import Opener, Ties
from tollkeeper.database.slot import Holders, Slot
from tollkeeper.database.status import Access, PoolStatus
from tollkeeper.kernel.clock import Clock

CLOSE_TIMEOUT_S = 2.0
"""A retired connection occupies its place at most so long while it says goodbye."""

LIFETIME_JITTER = 0.2
"""Share of the lifetime that is taken off at random: connections do not all end together."""


class Pool:
    """At most `size` connections, opened when needed and shared in the order of asking."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        *,
        size: int,
        clock: Clock,
        minimum: int = 0,
        name: str = "pool",
        access: Access = Access.WRITE,
        limits: PoolLimits | None = None,
        ties: Ties | None = None,
    ) -> None:
        check_size(size, minimum)
        self.name = name
        self.access = access
        self.use_times, self.create_times = Histogram(), Histogram()
        self._size, self._minimum = size, minimum
        self._clock = clock
        self._limits = limits or PoolLimits()
        ties = ties or Ties()
        self._guard = ties.guard
        self._jitter = ties.jitter
        self._observe = ties.observe
        self._is_open = True
        self._generation = 1
        self._line = Line(
            clock=clock,
            timeout_s=self._limits.acquire_timeout_s,
            max_waiting=self._limits.max_waiting,
            give_back=lambda slot: self._take_back(slot, discard=False),
            timed_out=self._timed_out,
        )
        self.wait_times = self._line.wait_times
        self._idle: deque[Slot] = deque()  # the most recently used at the right end
        self._held: dict[Connection, Slot] = {}
        self._holders = Holders(name)
        self._closing: set[asyncio.Task[None]] = set()
        self._opener = Opener(connect, ties=ties, clock=clock)
        self._opener.opened, self._opener.failed = self._opened, self._open_failed
        self._opener.rested = self._settle
        self._tick: asyncio.TimerHandle | None = None
        self._all_returned = asyncio.Event()
        self._all_returned.set()
        self._acquired_total = self._opened_total = self._failed_opens_total = 0
        self._lost_total = self._retired_total = 0

    def warm(self) -> None:
        """Begin to open the minimum; needs a running loop."""
        self._settle()

    async def acquire(self, timeout_s: float | None = None) -> Connection:
        """Return a connection, to be given back with `release`; waits `timeout_s` at most.

        Raises:
            PoolTimeout: none became free in time; opening one counts as waiting.
            PoolFull: too many wait already, or it would take longer than the deadline.
            PoolClosed: the pool is draining or closed.
            DatabaseDown: the breaker is open.
            DatabaseUnavailable: none is open and none can be opened.
            SchemaMissing: none can be opened, because the role is not there.
            NestedAcquire: the task holds one, and would wait for others that may wait for it.
        """
        if not self._is_open:
            raise PoolClosed
        if (refusal := self.refusal()) is not None:
            raise refusal
        task = asyncio.current_task()
        if task in self._holders:
            self._check_nested(task)
        if self._idle and not self._line and (slot := self._take_idle()) is not None:
            self._line.wait_times.observe(0.0)
        else:
            limit_s = self._line.limit_s(timeout_s)
            waiter = self._line.join(limit_s)
            self._settle()
            slot = await self._line.wait(waiter, limit_s)
        self._holders.add(slot, task)
        self._acquired_total += 1
        return slot.connection

    def refusal(self) -> DatabaseUnavailable | None:
        """Return why nobody is served now; None while the breaker is closed."""
        return None if self._guard is None else self._guard.refusal()

    async def release(self, connection: Connection, *, discard: bool = False) -> None:
        """Give a connection back; `discard` it when its state is in doubt. Never waits."""
        self._take_back(self._slot_of(connection), discard=discard)

    def connection(self, timeout_s: float | None = None) -> Lease:
        """Hold a connection for a block; one whose state may be in doubt is not used again.

        Cancellation and timeouts leave a statement running, a lost connection leaves nothing.

        Raises:
            DatabaseUnavailable: the connection was lost inside the block (and as `acquire` does).
            ReadOnlyServer: the server no longer takes writes.
            SchemaMissing: a statement named what is not there (and as `acquire` does).
            DatabaseBusy: a statement took too long, or met others that were faster.
        """
        return Lease(self.acquire, timeout_s, self._end_lease)

    def resize(self, size: int, minimum: int | None = None) -> None:
        """Change the bounds: growth serves who waits, surplus is retired as it becomes idle."""
        minimum = min(size, self._minimum) if minimum is None else minimum
        check_size(size, minimum)
        self._size, self._minimum = size, minimum
        self._settle()

    def expire(self, generation: int | None = None) -> bool:
        """Retire every connection: idle ones now, held ones when they come back.

        With a `generation`, only if it is the present one, and say whether it was: a hundred
        statements that fail of one restart expire one generation.
        """
        if generation is not None and generation != self._generation:
            return False
        self._begin_generation()
        while self._idle:
            self._retire(self._idle.popleft())
        self._settle()
        return True

    def hang_up(self) -> None:
        """End every connection at once, held ones too: their server does not answer.

        Holders learn of it as of any lost connection, and their outcomes are as open.
        """
        self._begin_generation()
        self._lost_total += self._terminate_all()
        self._idle.clear()
        self._settle()

    def _begin_generation(self) -> None:
        """Let nothing that is on its way count as new: it may lead to where we just were."""
        self._generation += 1
        self._opener.abandon()

    def refuse_waiting(self, refusal: Callable[[], DatabaseError]) -> None:
        """Give everyone who waits an error of their own: the breaker has opened."""
        self._line.refuse_all(refusal)

    @property
    def has_failed(self) -> bool:
        """Whether the last attempt to open failed, for a reason that may be over."""
        return self._opener.has_failed

    def wake(self) -> None:
        """Open again without waiting for the pause to end: the breaker has closed."""
        self._opener.wake()
        self._settle()

    async def drain(self, timeout_s: float) -> bool:
        """Hand out nothing more, wait for what is held, then close; True if all came back."""
        self._shut()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._all_returned.wait()
        has_all = not self._held
        await asyncio.gather(*(close_gently(held, CLOSE_TIMEOUT_S) for held in self._held))
        await self._finish()
        return has_all

    async def close(self) -> None:
        """Hand out nothing more and hang up on every connection, held ones too."""
        self._terminate_all()
        self._shut()
        await self._finish()

    def is_stalled(self, since_s: float) -> bool:
        """Say whether somebody has held a connection since before `since_s`."""
        return any(slot.since_s < since_s for slot in self._held.values())

    def status(self) -> PoolStatus:
        """Return the state and the totals."""
        return PoolStatus(
            name=self.name,
            access=self.access,
            size=self._size,
            minimum=self._minimum,
            open=len(self._idle) + len(self._held) + len(self._closing),
            idle=len(self._idle),
            in_use=len(self._held),
            opening=len(self._opener),
            waiting=len(self._line),
            max_waiting=self._line.max_waiting,
            generation=self._generation,
            acquired_total=self._acquired_total,
            waited_total=self._line.waited_total,
            timeouts_total=self._line.timeouts_total,
            refused_total=self._line.refused_total,
            opened_total=self._opened_total,
            failed_opens_total=self._failed_opens_total,
            lost_total=self._lost_total,
            retired_total=self._retired_total,
            nested_total=self._holders.nested_total,
            held_long_total=self._holders.held_long_total,
        )

    def _check_nested(self, task: asyncio.Task[object] | None) -> None:
        """Refuse a task a second connection if it would wait for it.

        A pool whose holders all wait for one more never serves anybody again (HikariCP #442).
        """
        would_wait = not self._idle and self._kept() >= self._size
        self._holders.note_nested(task, is_refused=would_wait)
        if would_wait:
            raise NestedAcquire(pool=self.name)

    def _timed_out(self, waited_s: float) -> PoolTimeout:
        if self._guard is not None:
            self._guard.stalled()
        failure = self._opener.failure
        reason = None if failure is None else str(failure)
        return PoolTimeout(waited_s=waited_s, size=self._size, reason=reason)

    # Handing out and taking back -----------------------------------------------------------------

    def _slot_of(self, connection: Connection) -> Slot:
        slot = self._held.get(connection)
        assert slot is not None, "released twice, or not of this pool"
        return slot

    def _end_lease(
        self, connection: Connection, error: BaseException | None
    ) -> DatabaseError | None:
        """Take a connection back; return our error for one that callers need to tell apart."""
        slot = self._slot_of(connection)
        is_doubtful = error is not None
        try:
            if not isinstance(error, Exception):  # none, or a cancellation
                return None
            is_lost = is_connection_lost(error)
            is_doubtful = is_lost or isinstance(error, TimeoutError)
            self._judge(slot, error, is_lost=is_lost)
            return translated(error)
        finally:
            self._take_back(slot, discard=is_doubtful)

    def _take_idle(self) -> Slot | None:
        """Hold the idle connection that was used last, if it is still good."""
        slot = self._idle.pop()
        if not slot.is_clean:
            self._forget_lost(slot)
            return None
        self._hold(slot)
        return slot

    def _hold(self, slot: Slot) -> None:
        self._held[slot.connection] = slot
        self._all_returned.clear()
        slot.begin_hold(self._clock.monotonic_s())

    def _unhold(self, slot: Slot) -> None:
        del self._held[slot.connection]
        if not self._held:
            self._all_returned.set()

    def _take_back(self, slot: Slot, *, discard: bool) -> None:
        now = self._clock.monotonic_s()
        self._unhold(slot)
        self._holders.remove(slot)
        self.use_times.observe(now - slot.since_s)
        slot.since_s = now
        self._line.note_return(now)
        is_over = slot.generation != self._generation or slot.expires_s <= now
        if slot.is_retired:
            pass  # hung up on, and counted then
        elif slot.connection.is_closed():
            self._forget_lost(slot)
        elif discard or is_over or not self._is_open or not slot.is_clean:
            self._retire(slot)
        else:
            self._idle.append(slot)
        self._settle()

    def _judge(self, slot: Slot, error: Exception, *, is_lost: bool) -> None:
        """Draw from an error what it means for the other connections."""
        is_over = is_generation_over(error)
        if is_over and self.access is Access.READ and is_read_only(error):
            return  # whoever writes over a pool for reads is told; the server is as it was
        if is_over and not self.expire(slot.generation):
            return  # one event, seen by many
        if self._guard is None:
            return
        if is_over or is_lost:
            self._guard.lost(error)
        elif isinstance(error, TimeoutError):
            self._guard.stalled()

    def _settle(self) -> None:
        """Restore the invariants: retire the surplus, serve who waits, open what is missing."""
        while self._idle and self._kept() > self._size:
            self._retire(self._idle.popleft())
        while self._line and self._idle:
            self._hand_out()
        while self._may_open():
            has_company = bool(self._held or self._closing)
            if not self._opener.open(generation=self._generation, has_company=has_company):
                break
        if self._line and self._opener.is_hopeless and not (self._held or self._closing):
            assert self._opener.failure is not None
            self._refuse_all(self._opener.failure)
        if self._tick is None and self._is_open and self._kept():
            loop = asyncio.get_running_loop()
            self._tick = loop.call_later(self._limits.tick_s, self._look_at_ages)

    def _hand_out(self) -> None:
        slot = self._take_idle()
        if slot is None:
            return
        if not self._line.serve(slot):
            self._unhold(slot)
            self._idle.append(slot)

    # Opening and closing -------------------------------------------------------------------------

    def _kept(self) -> int:
        return len(self._idle) + len(self._held) + len(self._opener)

    def _may_open(self) -> bool:
        kept, opening = self._kept(), len(self._opener)
        is_wanted = len(self._line) > opening or kept < self._minimum
        return self._is_open and is_wanted and kept + len(self._closing) < self._size

    def _opened(self, connection: Connection, took_s: float, generation: int) -> None:
        self._opened_total += 1
        self.create_times.observe(took_s)
        now = self._clock.monotonic_s()
        lifetime_s = self._limits.lifetime_s * (1.0 - LIFETIME_JITTER * self._jitter())
        slot = Slot(connection, generation=generation, expires_s=now + lifetime_s)
        slot.since_s = now
        connection.add_termination_listener(lambda _: self._terminated(slot))
        if self._observe is not None:
            observe = self._observe
            connection.add_query_logger(lambda query: observe(slot, query))
        if self._is_open and generation == self._generation:
            self._idle.append(slot)
        else:
            self._retire(slot)
        self._settle()

    def _open_failed(self, failure: BaseException, had_company: bool) -> None:
        if isinstance(failure, asyncio.CancelledError):
            self._settle()  # given up with its generation: whoever waits is served by another
            return
        self._failed_opens_total += 1
        # Company may serve who waits, or make room at the server, or has just made it: only an
        # open that was refused while it was alone is the last word.
        if not (self._held or self._opener or self._closing or had_company):
            self._refuse_all(failure)
        self._settle()

    def _refuse_all(self, failure: BaseException) -> None:
        """Tell everyone who waits why: there is nothing that could serve them."""

        def refusal() -> DatabaseError:
            error: DatabaseError
            if isinstance(failure, SchemaMissing | DatabaseUnavailable):
                error = replace(failure)
            else:
                error = DatabaseUnavailable(reason=f"{type(failure).__name__}: {failure}")
            error.__cause__ = failure
            return error

        self._line.refuse_all(refusal)

    def _terminated(self, slot: Slot) -> None:
        """The driver says that a connection has ended: by us, while held, or while idle."""
        if slot.is_retired or slot not in self._idle:
            return  # a holder finds out by itself
        self._idle.remove(slot)
        self._forget_lost(slot)
        if self._guard is not None:
            self._guard.lost(None)
        self._settle()

    def _forget_lost(self, slot: Slot) -> None:
        if slot.connection.is_closed():
            slot.is_retired = True
            self._lost_total += 1
        else:
            self._retire(slot)

    def _retire(self, slot: Slot) -> None:
        self._retired_total += 1
        slot.is_retired = True
        if slot.connection.is_closed():
            return
        task = asyncio.ensure_future(close_gently(slot.connection, CLOSE_TIMEOUT_S))
        self._closing.add(task)
        task.add_done_callback(self._closed)

    def _terminate_all(self) -> int:
        """Hang up on every connection; return how many there were."""
        slots = [*self._idle, *self._held.values()]
        for slot in slots:
            slot.is_retired = True
            slot.connection.terminate()
        return len(slots)

    def _closed(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        self._settle()

    def _look_at_ages(self) -> None:
        """Retire what is old or was idle for long, and report who holds a connection for long."""
        self._tick = None
        now = self._clock.monotonic_s()
        for slot in [each for each in self._idle if each.expires_s <= now]:
            self._idle.remove(slot)
            self._retire(slot)
        oldest_s = now - self._limits.idle_s
        while self._idle and self._idle[0].since_s <= oldest_s and self._kept() > self._minimum:
            self._retire(self._idle.popleft())
        limit_s = self._limits.report_held_s
        self._holders.report(self._held.values(), now_s=now, limit_s=limit_s)
        for slot in self._holders.overdue(
            self._held.values(), now_s=now, limit_s=self._limits.cut_held_s
        ):
            self._lost_total += 1
            slot.is_retired = True
            slot.connection.terminate()
        self._settle()

    def _shut(self) -> None:
        self._is_open = False
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        self._line.refuse_all(PoolClosed)
        self._opener.shut()
        while self._idle:
            self._retire(self._idle.popleft())

    async def _finish(self) -> None:
        await self._opener.ended()
        while self._closing:
            await asyncio.wait(self._closing)
