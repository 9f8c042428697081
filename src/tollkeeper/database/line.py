"""Who waits for a connection of a pool, in the order of coming.

Knows deadlines and how fast the line moves, not where connections come from. Invariants: who came
first is served first; whoever is refused, cancelled or out of time has left the line; what a
cancelled caller was already given is given back.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable

from tollkeeper.database.deadline import remaining_s
from tollkeeper.database.errors import DatabaseError, PoolFull, PoolTimeout
from tollkeeper.database.histogram import Histogram
from tollkeeper.database.slot import Slot
from tollkeeper.kernel.clock import Clock

EVIDENCE = 8
"""Returns in a row to somebody who waited, before they tell how long the next will wait."""

Waiter = asyncio.Future[Slot]


class Line:
    """The callers of one pool that wait; `len` is how many."""

    def __init__(
        self,
        *,
        clock: Clock,
        timeout_s: float,
        max_waiting: int,
        give_back: Callable[[Slot], None],
        timed_out: Callable[[float], PoolTimeout],
    ) -> None:
        self._clock = clock
        self._timeout_s = timeout_s
        self._give_back = give_back
        self._timed_out = timed_out
        self._waiters: OrderedDict[Waiter, None] = OrderedDict()  # removal anywhere is O(1)
        # When connections came back while somebody waited: that rate is what the line moves at.
        self._returns: deque[float] = deque(maxlen=4 * EVIDENCE)
        self.max_waiting = max_waiting
        self.wait_times = Histogram()
        self.waited_total = 0
        self.timeouts_total = 0
        self.refused_total = 0

    def __len__(self) -> int:
        return len(self._waiters)

    def limit_s(self, timeout_s: float | None) -> float:
        """Return how long a caller may wait: as it says, or as usual; its request may say less."""
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        request_s = remaining_s(self._clock)
        return limit_s if request_s is None else min(limit_s, request_s)

    def join(self, limit_s: float) -> Waiter:
        """Join the line at its end.

        Raises:
            PoolFull: who would be refused after waiting is refused now.
        """
        if not self._waiters:
            self._returns.clear()  # of another line
        waiting, expected_s = len(self._waiters), self._expected_s()
        if waiting >= self.max_waiting or (expected_s or 0.0) > limit_s:
            self.refused_total += 1
            raise PoolFull(waiting=waiting, limit=self.max_waiting, expected_s=expected_s)
        waiter: Waiter = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        return waiter

    async def wait(self, waiter: Waiter, limit_s: float) -> Slot:
        """Return what the waiter is given.

        Raises:
            PoolTimeout: nothing within `limit_s`.
            DatabaseError: everyone was refused.
        """
        if waiter.done():
            self.wait_times.observe(0.0)
            return waiter.result()
        expiry = asyncio.get_running_loop().call_later(limit_s, self._expire, waiter, limit_s)
        started_s = self._clock.monotonic_s()
        self.waited_total += 1
        try:
            slot = await waiter
        except asyncio.CancelledError:
            self._abandon(waiter)
            raise
        finally:
            expiry.cancel()
            waited_s = self._clock.monotonic_s() - started_s
            self.wait_times.observe(waited_s)
        slot.wait_s = waited_s
        return slot

    def serve(self, slot: Slot) -> bool:
        """Give a connection to who came first; False when that one was cancelled just now."""
        waiter, _ = self._waiters.popitem(last=False)
        if waiter.done():  # its task has not run yet to say so
            return False
        waiter.set_result(slot)
        return True

    def refuse_all(self, refusal: Callable[[], DatabaseError]) -> None:
        """Give everyone who waits an error of their own."""
        waiters = [waiter for waiter in self._waiters if not waiter.done()]
        self._waiters.clear()
        for waiter in waiters:
            waiter.set_exception(refusal())

    def note_return(self, now_s: float) -> None:
        """Learn how fast the line moves, if there is one."""
        if self._waiters:
            self._returns.append(now_s)
        else:
            self._returns.clear()

    def _expected_s(self) -> float | None:
        """Return how long the next to join would wait; None when nothing tells.

        Only what came back while somebody waited tells: returns on a quiet day show how much is
        asked for, not how much can be served.
        """
        if not self._waiters or len(self._returns) < EVIDENCE:
            return None
        passed_s = self._clock.monotonic_s() - self._returns[0]
        return (len(self._waiters) + 1) * passed_s / len(self._returns)

    def _expire(self, waiter: Waiter, waited_s: float) -> None:
        if waiter in self._waiters and not waiter.done():  # else cancelled in this very moment
            del self._waiters[waiter]
            self.timeouts_total += 1
            waiter.set_exception(self._timed_out(waited_s))

    def _abandon(self, waiter: Waiter) -> None:
        """Forget a cancelled caller; what it was already given goes to the next."""
        self._waiters.pop(waiter, None)
        if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            self._give_back(waiter.result())
