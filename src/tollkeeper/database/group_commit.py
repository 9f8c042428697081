"""Group commit: callers that wait together are decided and committed together.

Items are hashed to lanes by their `shard`; two lanes never share a key. A lane is one task on one
connection at a time: it takes what is queued and lets a slice's `Work` decide and commit it. There
is no timer: the batch is 1 when idle and grows with load.

A key that was lost to another process is put back with the specified backoff. What an item's fate
is after a lost connection is never guessed: it is decided again, and what the slice keeps of it
(an idempotency key) tells.

What is decided, how it is committed, and what answers a fault are the slice's.

A lane outlives every error: a bug of ours fails the items it concerns, and is logged.

Invariants: a key's items are decided in the order they were accepted; a key being put back holds
its later items behind it; whoever stops waiting changes nothing about what was accepted.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

from structlog.typing import FilteringBoundLogger

from tollkeeper.database.connect import is_retryable
from tollkeeper.database.driver import Connection
from tollkeeper.database.pool import Pool
from tollkeeper.database.ticket import Pending, Ticket
from tollkeeper.kernel.backoff import Backoff
from tollkeeper.kernel.clock import Clock
from tollkeeper.telemetry.request import ids_of

STOPPED = "the service stopped before it was decided"

_attempt_of = attrgetter("attempt")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """Bounds of a group commit: lanes, items waiting in all, items in one commit."""

    lanes: int = 2
    queue: int = 32_768
    batch: int = 2_000
    backoff: Backoff = field(default_factory=Backoff)


class Sharded(Protocol):
    """What can be put into a lane."""

    @property
    def shard(self) -> int:
        """Items of one key have one shard."""
        ...


ItemT = TypeVar("ItemT", bound=Sharded)
ResultT = TypeVar("ResultT")
ItemT_contra = TypeVar("ItemT_contra", contravariant=True)


class GroupMetrics(Protocol):
    """What a group commit reports."""

    def watch_queue(self, depth: Callable[[], int]) -> None:
        """Read the queue's depth from `depth`."""
        ...

    def batch_taken(self, size: int) -> None:
        """Record how many items are committed together."""
        ...

    def answered(self, kind: str, duration_s: float) -> None:
        """Record how long a caller waited; kind `batch` is more than one item."""
        ...

    def retried(self, reason: str, count: int) -> None:
        """Count items put back for `contention` or `database`."""
        ...

    def rejected(self, reason: str, count: int) -> None:
        """Count items not accepted: `queue_full`, `draining` or `database_down`."""
        ...


class Work(Protocol[ItemT_contra, ResultT]):
    """What a slice makes of a batch, and how it says that something went wrong."""

    @property
    def name(self) -> str:
        """First part of the events' names."""
        ...

    @property
    def log(self) -> FilteringBoundLogger:
        """Where they are logged."""
        ...

    @property
    def lost_reason(self) -> str:
        """Why an item found no way past others, in words."""
        ...

    def key_of(self, item: ItemT_contra, /) -> Hashable:
        """Return what is parked as a whole; asked only where something was lost or is parked."""
        ...

    def kind_of(self, item: ItemT_contra, /) -> str:
        """Return the `kind` label of an item's latency."""
        ...

    async def decide(
        self, connection: Connection, items: Sequence[ItemT_contra], *, is_retry: bool
    ) -> tuple[Sequence[ResultT], AbstractSet[Hashable]]:
        """Decide and commit; return a result for each item, and the keys that were lost.

        What belongs to a lost key has left no trace, and is put back; `is_retry` says that some of
        the items were before.
        """
        ...

    async def mend(self, error: Exception) -> str | None:
        """Do something about an error that no retry helps against; say why it may help, if so."""
        ...

    def note_decided(self, items: Sequence[ItemT_contra], results: Sequence[ResultT]) -> None:
        """Count results that are given to callers."""
        ...

    def draining(self) -> Exception:
        """Return what refuses callers once nothing new is accepted."""
        ...

    def queue_full(self, *, waiting: int, limit: int) -> Exception:
        """Return what refuses callers while too many wait."""
        ...

    def unavailable(self, *, attempts: int, reason: str) -> ResultT:
        """Return the result of an item that was given up."""
        ...

    def failed(self, item: ItemT_contra, error: Exception) -> ResultT:
        """Return the result of an item that the database will not take."""
        ...


class _Events:
    """Names of a slice's events: fixed once it is known whose they are."""

    __slots__ = ("batch_retried", "given_up", "lane_failed", "operation_failed", "race_lost")

    def __init__(self, name: str) -> None:
        self.lane_failed = f"{name}.lane_failed"
        self.race_lost = f"{name}.race_lost"
        self.batch_retried = f"{name}.batch_retried"
        self.operation_failed = f"{name}.operation_failed"
        self.given_up = f"{name}.operations_given_up"


class GroupCommit(Generic[ItemT, ResultT]):
    """Takes items, answers with results; owns the lanes."""

    def __init__(
        self,
        pool: Pool,
        work: Work[ItemT, ResultT],
        *,
        clock: Clock,
        jitter: Callable[[], float],
        metrics: GroupMetrics,
        limits: EngineLimits,
    ) -> None:
        self._pool = pool
        self._work = work
        self._kind_of = work.kind_of
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self._draining = False
        self._waiting = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._lanes = [
            _Lane(self, pool, work, jitter=jitter, metrics=metrics, limits=limits)
            for _ in range(limits.lanes)
        ]
        self._tasks: list[asyncio.Task[None]] = []
        # Asking for the running loop is a system call in CPython 3.11: not for each item.
        self._future = asyncio.get_running_loop().create_future
        metrics.watch_queue(lambda: self._waiting)

    @property
    def waiting(self) -> int:
        """Items accepted and not yet decided."""
        return self._waiting

    def start(self) -> None:
        """Start the lanes."""
        self._tasks = [
            asyncio.create_task(lane.run(), name=f"{self._work.name}-lane-{number}")
            for number, lane in enumerate(self._lanes)
        ]

    async def execute(self, items: Sequence[ItemT]) -> list[ResultT]:
        """Decide items and return one result for each, in order.

        All are accepted or none. Cancelling the call does not take back what was accepted.

        Raises the slice's errors for a full queue and for one that is drained, and `DatabaseDown`
        when nothing can be written now, which is known without trying.
        """
        count = len(items)
        if count == 0:
            return []
        self._admit(count)
        began = self._clock.monotonic_s()
        ticket: Ticket[ResultT] = Ticket(count, self._future())
        lanes = self._lanes
        for index, item in enumerate(items):
            lanes[item.shard % len(lanes)].put(Pending(item, ticket, index))
        results = await ticket.future
        self._metrics.answered(
            self._kind_of(items[0]) if count == 1 else "batch", self._clock.monotonic_s() - began
        )
        return results

    async def drain(self) -> None:
        """Accept nothing new and return when everything accepted is decided."""
        self._draining = True
        await self._idle.wait()

    async def close(self) -> None:
        """Stop the lanes; call `drain` first, or callers learn that the outcome is open."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for lane in self._lanes:
            lane.abandon()

    def decided(self, count: int) -> None:
        """Called by a lane: `count` items have their result."""
        self._waiting -= count
        if self._waiting == 0:
            self._idle.set()

    def _admit(self, count: int) -> None:
        if self._draining:
            self._metrics.rejected("draining", count)
            raise self._work.draining()
        if self._waiting + count > self._limits.queue:
            self._metrics.rejected("queue_full", count)
            raise self._work.queue_full(waiting=self._waiting, limit=self._limits.queue)
        if (refusal := self._pool.refusal()) is not None:
            self._metrics.rejected("database_down", count)
            raise refusal
        self._waiting += count
        self._idle.clear()


class _Lane(Generic[ItemT, ResultT]):
    """One task that decides the items of its share of the keys."""

    def __init__(
        self,
        group: GroupCommit[ItemT, ResultT],
        pool: Pool,
        work: Work[ItemT, ResultT],
        *,
        jitter: Callable[[], float],
        metrics: GroupMetrics,
        limits: EngineLimits,
    ) -> None:
        self._group = group
        self._pool = pool
        self._work = work
        self._key_of = work.key_of
        self._log = work.log
        self._events = _Events(work.name)
        self._jitter = jitter
        self._metrics = metrics
        self._limits = limits
        self._queue: deque[Pending[ItemT, ResultT]] = deque()
        self._wake = asyncio.Event()
        self._parked: dict[Hashable, list[Pending[ItemT, ResultT]]] = {}
        self._timers: set[asyncio.TimerHandle] = set()
        self._taken: list[Pending[ItemT, ResultT]] = []

    def put(self, pending: Pending[ItemT, ResultT]) -> None:
        self._queue.append(pending)
        self._wake.set()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                self._taken = batch = self._take()
                if batch:
                    try:
                        self._metrics.batch_taken(len(batch))
                        await self._process(batch)
                    except Exception as error:  # noqa: BLE001  # the lane's edge: without it all who come later wait for ever
                        self._fail(batch, error)
                self._taken = []

    def abandon(self) -> None:
        """Refuse everyone who still waits; only after the task has ended."""
        for timer in self._timers:
            timer.cancel()
        left = [*self._taken, *self._waiting()]
        self._taken = []
        self._queue.clear()
        self._parked.clear()
        for pending in left:
            if not pending.ticket.has(pending.index):
                self._give_up(pending, STOPPED)

    def _waiting(self) -> list[Pending[ItemT, ResultT]]:
        return [*self._queue, *(p for parked in self._parked.values() for p in parked)]

    def _fail(self, batch: list[Pending[ItemT, ResultT]], error: Exception) -> None:
        """Answer whom a bug of ours has left without an answer, and without a place to wait."""
        self._log.error(self._events.lane_failed, operations=len(batch), exc_info=error)
        waiting = set(map(id, self._waiting()))
        for pending in batch:
            if not pending.ticket.has(pending.index) and id(pending) not in waiting:
                self._deliver(pending, self._work.failed(pending.item, error))

    def _take(self) -> list[Pending[ItemT, ResultT]]:
        """Take the next batch; items of a parked key queue up behind it."""
        queue = self._queue
        count = min(len(queue), self._limits.batch)
        return self._without_parked([queue.popleft() for _ in range(count)])

    def _without_parked(
        self, batch: list[Pending[ItemT, ResultT]]
    ) -> list[Pending[ItemT, ResultT]]:
        """Return the items that may be decided now; the others join their parked key."""
        parked = self._parked
        if not parked:
            return batch
        ready: list[Pending[ItemT, ResultT]] = []
        for pending in batch:
            behind = parked.get(self._key_of(pending.item))
            (ready if behind is None else behind).append(pending)
        return ready

    async def _process(self, batch: list[Pending[ItemT, ResultT]]) -> None:
        """Decide a batch; every item is answered, put back, or failed alone."""
        items = [pending.item for pending in batch]
        is_retry = any(map(_attempt_of, batch))
        try:
            async with self._pool.connection() as connection:
                results, lost = await self._work.decide(connection, items, is_retry=is_retry)
        except asyncio.CancelledError:
            self._queue.extendleft(reversed(batch))
            raise
        except Exception as error:  # noqa: BLE001  # the lane's edge: nobody else can answer the callers
            await self._recover(batch, error)
            return
        if lost:
            self._answer_all_but(lost, batch, results)
        else:
            self._answer(batch, items, results)

    def _answer_all_but(
        self,
        lost: AbstractSet[Hashable],
        batch: list[Pending[ItemT, ResultT]],
        results: Sequence[ResultT],
    ) -> None:
        """Put back what was lost, and answer the rest."""
        again: list[Pending[ItemT, ResultT]] = []
        landed: list[Pending[ItemT, ResultT]] = []
        answers: list[ResultT] = []
        for pending, result in zip(batch, results, strict=True):
            if self._key_of(pending.item) in lost:
                again.append(pending)
            else:
                landed.append(pending)
                answers.append(result)
        self._metrics.retried("contention", len(again))
        self._log.debug(
            self._events.race_lost, operations=len(again), request_ids=_request_ids(again)
        )
        self._put_back(again, self._work.lost_reason)
        self._answer(landed, [pending.item for pending in landed], answers)

    async def _recover(self, batch: list[Pending[ItemT, ResultT]], error: Exception) -> None:
        """Put a batch back after a fault of the database; single out what a healthy one refuses."""
        if is_retryable(error):
            self._metrics.retried("database", len(batch))
            self._log.warning(
                self._events.batch_retried,
                operations=len(batch),
                error=repr(error),
                request_ids=_request_ids(batch),
            )
            self._put_back(batch, str(error) or type(error).__name__)
        elif (mended := await self._work.mend(error)) is not None:
            self._put_back(batch, mended)
        elif len(batch) > 1:
            # One item the database will not take must not fail its neighbours.
            middle = len(batch) // 2
            for half in (batch[:middle], batch[middle:]):
                ready = self._without_parked(half)
                if ready:
                    await self._process(ready)
        else:
            self._log.error(
                self._events.operation_failed, request_ids=_request_ids(batch), exc_info=error
            )
            self._deliver(batch[0], self._work.failed(batch[0].item, error))

    def _put_back(self, batch: Iterable[Pending[ItemT, ResultT]], reason: str) -> None:
        """Park the batch's keys for the backoff, or give up on what has no retry left."""
        by_key: dict[Hashable, list[Pending[ItemT, ResultT]]] = {}
        spent: list[Pending[ItemT, ResultT]] = []
        for pending in batch:
            if pending.attempt >= self._limits.backoff.retries:
                spent.append(pending)
                self._give_up(pending, reason)
            else:
                pending.attempt += 1
                by_key.setdefault(self._key_of(pending.item), []).append(pending)
        if spent:
            self._log.warning(
                self._events.given_up,
                operations=len(spent),
                reason=reason,
                request_ids=_request_ids(spent),
            )
        if not by_key:
            return
        attempt = max(pending.attempt for group in by_key.values() for pending in group)
        self._parked.update(by_key)
        wait_ms = self._limits.backoff.wait_ms(attempt - 1, self._jitter())
        self._call_later(wait_ms / 1000, tuple(by_key))

    def _call_later(self, delay_s: float, keys: tuple[Hashable, ...]) -> None:
        def unpark() -> None:
            self._timers.discard(timer)
            self._unpark(keys)

        timer = asyncio.get_running_loop().call_later(delay_s, unpark)
        self._timers.add(timer)

    def _unpark(self, keys: Iterable[Hashable]) -> None:
        for key in keys:
            self._queue.extendleft(reversed(self._parked.pop(key)))
        self._wake.set()

    def _answer(
        self,
        batch: Sequence[Pending[ItemT, ResultT]],
        items: Sequence[ItemT],
        results: Sequence[ResultT],
    ) -> None:
        assert len(batch) == len(results), "each item has a result"
        for pending, result in zip(batch, results, strict=True):
            pending.ticket.deliver(pending.index, result)
        self._group.decided(len(batch))
        self._note(items, results)

    def _give_up(self, pending: Pending[ItemT, ResultT], reason: str) -> None:
        result = self._work.unavailable(attempts=pending.attempt + 1, reason=reason)
        self._deliver(pending, result)

    def _deliver(self, pending: Pending[ItemT, ResultT], result: ResultT) -> None:
        pending.ticket.deliver(pending.index, result)
        self._group.decided(1)
        self._note((pending.item,), (result,))

    def _note(self, items: Sequence[ItemT], results: Sequence[ResultT]) -> None:
        try:
            self._work.note_decided(items, results)
        except Exception as error:  # noqa: BLE001  # a figure less is no reason to decide nothing more
            self._log.error(self._events.lane_failed, operations=len(items), exc_info=error)


def _request_ids(batch: Iterable[Pending[ItemT, ResultT]]) -> tuple[str, ...]:
    return ids_of(pending.ticket.request for pending in batch)
