"""The transaction engine: callers that wait together are decided and committed together.

Accounts are hashed to lanes; two lanes never share one. A lane is one task on one connection at a
time: it takes what is queued, loads the accounts and keys in one snapshot, lets the planner decide,
and commits in one statement that compares and swaps every account's version. There is no timer: the
batch is 1 when idle and grows with load.

An account that moved meanwhile (another process committed first) is put back with the specified
backoff and locked from then on. What an operation's fate is after a lost connection is never
guessed: it is loaded again, and its idempotency key tells.

Invariants: an account's operations are decided in the order they were accepted; an account being
put back holds its later operations behind it; whoever stops waiting changes nothing about what was
accepted.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import structlog

from tollkeeper.credits import planner
from tollkeeper.credits.errors import Draining, LedgerUnavailable, OperationFailed, QueueFull
from tollkeeper.credits.metrics import CreditsMetrics, result_of
from tollkeeper.credits.model import (
    Capture,
    Extend,
    Kind,
    Movement,
    OpenAccount,
    Operation,
    Outcome,
    Plan,
    Refund,
    Release,
    Reserve,
    Sweep,
    Unfreeze,
)
from tollkeeper.credits.store import LedgerStore, accounts_of
from tollkeeper.database.connect import is_partition_missing, is_retryable
from tollkeeper.database.driver import Connection
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.backoff import Backoff
from tollkeeper.kernel.clock import Clock
from tollkeeper.kernel.ids import AccountId
from tollkeeper.telemetry.request import current_request, ids_of

CONTENDED_FOR_S = 1.0
"""An account that lost a race is locked before it is read for this long (DESIGN section 2)."""

QUARTERS_AHEAD = 4
"""Quarters of transactions and holds for which partitions are made ahead."""

KEY_DAYS_AHEAD = 1
"""Days of idempotency keys for which partitions are made ahead: every key is looked for in them."""

ALERTS_TOLD = 20
"""Alerts of one commit that have a line in the log; all are counted, and kept."""

STOPPED = "the service stopped before it was decided"

Result = Outcome | LedgerUnavailable | OperationFailed

_KIND_LABELS: Mapping[type[Operation], str] = {
    OpenAccount: "open",
    Reserve: "hold",
    Capture: "capture",
    Release: "release",
    Extend: "extend",
    Refund: "refund",
    Unfreeze: "unfreeze",
    Sweep: "expire",
}

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """Bounds of the engine: lanes, operations waiting in all, operations in one commit."""

    lanes: int = 2
    queue: int = 32_768
    batch: int = 2_000
    backoff: Backoff = field(default_factory=Backoff)


class _Ticket:
    """What one caller waits for: the results of its operations, in its order."""

    __slots__ = ("future", "missing", "request", "results")

    def __init__(self, count: int, future: asyncio.Future[list[Result]]) -> None:
        self.results: list[Result | None] = [None] * count
        self.missing = count
        self.future = future
        self.request = current_request.get()

    def deliver(self, index: int, result: Result) -> None:
        self.results[index] = result
        self.missing -= 1
        if self.missing == 0 and not self.future.done():
            self.future.set_result(cast("list[Result]", self.results))


class _Pending:
    """An accepted operation on its way."""

    __slots__ = ("attempt", "index", "operation", "ticket")

    def __init__(self, operation: Operation, ticket: _Ticket, index: int) -> None:
        self.operation = operation
        self.ticket = ticket
        self.index = index
        self.attempt = 0


class Engine:
    """Takes operations, answers with outcomes; owns the lanes."""

    def __init__(
        self,
        pool: Pool,
        store: LedgerStore,
        *,
        clock: Clock,
        jitter: Callable[[], float],
        metrics: CreditsMetrics,
        limits: EngineLimits,
    ) -> None:
        self._pool = pool
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self._draining = False
        self._waiting = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._lanes = [
            _Lane(self, pool, store, clock=clock, jitter=jitter, metrics=metrics, limits=limits)
            for _ in range(limits.lanes)
        ]
        self._tasks: list[asyncio.Task[None]] = []
        # Asking for the running loop is a system call in CPython 3.11: not for each operation.
        self._future = asyncio.get_running_loop().create_future
        metrics.watch_queue(lambda: self._waiting)

    @property
    def waiting(self) -> int:
        """Operations accepted and not yet decided."""
        return self._waiting

    def start(self) -> None:
        """Start the lanes."""
        self._tasks = [
            asyncio.create_task(lane.run(), name=f"credits-lane-{number}")
            for number, lane in enumerate(self._lanes)
        ]

    async def execute(self, operations: Sequence[Operation]) -> list[Result]:
        """Decide operations and return one result for each, in order.

        All are accepted or none. Cancelling the call does not take back what was accepted.

        Raises:
            QueueFull: more would wait than the bound allows.
            Draining: the engine accepts nothing new.
            DatabaseDown: nothing can be written now, which is known without trying.
        """
        count = len(operations)
        if count == 0:
            return []
        self._admit(count)
        began = self._clock.monotonic_s()
        ticket = _Ticket(count, self._future())
        lanes = self._lanes
        for index, operation in enumerate(operations):
            lanes[operation.shard % len(lanes)].put(_Pending(operation, ticket, index))
        results = await ticket.future
        self._metrics.answered(
            kind_of(operations[0]) if count == 1 else "batch", self._clock.monotonic_s() - began
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
        """Called by a lane: `count` operations have their result."""
        self._waiting -= count
        if self._waiting == 0:
            self._idle.set()

    def _admit(self, count: int) -> None:
        if self._draining:
            self._metrics.rejected("draining", count)
            raise Draining
        if self._waiting + count > self._limits.queue:
            self._metrics.rejected("queue_full", count)
            raise QueueFull(waiting=self._waiting, limit=self._limits.queue)
        if (refusal := self._pool.refusal()) is not None:
            self._metrics.rejected("database_down", count)
            raise refusal
        self._waiting += count
        self._idle.clear()


class _Lane:
    """One task that decides the operations of its share of the accounts."""

    def __init__(
        self,
        engine: Engine,
        pool: Pool,
        store: LedgerStore,
        *,
        clock: Clock,
        jitter: Callable[[], float],
        metrics: CreditsMetrics,
        limits: EngineLimits,
    ) -> None:
        self._engine = engine
        self._pool = pool
        self._store = store
        self._clock = clock
        self._jitter = jitter
        self._metrics = metrics
        self._limits = limits
        self._queue: deque[_Pending] = deque()
        self._wake = asyncio.Event()
        self._parked: dict[AccountId, list[_Pending]] = {}
        self._contended: dict[AccountId, float] = {}
        self._timers: set[asyncio.TimerHandle] = set()

    def put(self, pending: _Pending) -> None:
        self._queue.append(pending)
        self._wake.set()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                batch = self._take()
                if batch:
                    self._metrics.batch_taken(len(batch))
                    await self._process(batch)

    def abandon(self) -> None:
        """Refuse everyone who still waits; only after the task has ended."""
        for timer in self._timers:
            timer.cancel()
        left = [*self._queue, *(p for parked in self._parked.values() for p in parked)]
        self._queue.clear()
        self._parked.clear()
        for pending in left:
            self._deliver(pending, LedgerUnavailable(attempts=pending.attempt + 1, reason=STOPPED))

    def _take(self) -> list[_Pending]:
        """Take the next batch; operations of a parked account queue up behind it."""
        queue = self._queue
        count = min(len(queue), self._limits.batch)
        return self._without_parked([queue.popleft() for _ in range(count)])

    def _without_parked(self, batch: list[_Pending]) -> list[_Pending]:
        """Return the operations that may be decided now; the others join their parked account."""
        parked = self._parked
        if not parked:
            return batch
        ready: list[_Pending] = []
        for pending in batch:
            behind = parked.get(pending.operation.account_id)
            (ready if behind is None else behind).append(pending)
        return ready

    async def _process(self, batch: list[_Pending]) -> None:
        """Decide a batch; every operation is answered, put back, or failed alone."""
        operations = [pending.operation for pending in batch]
        try:
            async with self._pool.connection() as connection:
                plan, landed = await self._decide(connection, batch, operations)
        except asyncio.CancelledError:
            self._queue.extendleft(reversed(batch))
            raise
        except Exception as error:  # noqa: BLE001  # the lane's edge: nobody else can answer the callers
            await self._recover(batch, error)
            return
        lost = {account.account_id for account in (*plan.moved, *plan.opened)} - landed
        if lost:
            again = [p for p in batch if p.operation.account_id in lost]
            self._metrics.retried("contention", len(again))
            self._note_contention(lost)
            _log.debug("credits.race_lost", operations=len(again), request_ids=_request_ids(again))
            self._put_back(again, "another process kept changing the account")
        if plan.alerts.fired:
            self._tell_fired(plan, landed)
        self._answer(batch, plan.outcomes, lost)

    def _tell_fired(self, plan: Plan, landed: frozenset[AccountId]) -> None:
        fired = [each for each in plan.alerts.fired if each.account_id in landed]
        self._metrics.alerts_fired(len(fired))
        for each in fired[:ALERTS_TOLD]:
            _log.info(
                "credits.alert_fired", account=each.account_id, tenant=each.tenant_id,
                threshold=each.threshold, available=each.available, sequence=each.sequence,
            )  # fmt: skip

    async def _decide(
        self, connection: Connection, batch: Iterable[_Pending], operations: Sequence[Operation]
    ) -> tuple[Plan, frozenset[AccountId]]:
        if not self._must_lock(batch):
            return await self._load_plan_commit(connection, operations)
        async with connection.transaction():
            await self._store.lock_accounts(connection, accounts_of(operations))
            # A statement of its own: what the lock waited for is visible to the next snapshot only.
            return await self._load_plan_commit(connection, operations, locked=True)

    async def _load_plan_commit(
        self, connection: Connection, operations: Sequence[Operation], *, locked: bool = False
    ) -> tuple[Plan, frozenset[AccountId]]:
        loaded = await self._store.load(connection, operations, locked=locked)
        plan = planner.plan(loaded, operations)
        if plan.unread:
            loaded = await self._store.add_thresholds(connection, loaded, plan.unread)
            plan = planner.plan(loaded, operations)
        if plan.lifted:
            await self._store.lift(connection, plan)
        if not plan.moved and not plan.opened:
            return plan, frozenset()
        return plan, await self._store.commit(connection, plan)

    def _must_lock(self, batch: Iterable[_Pending]) -> bool:
        """Lock first to lift a freeze, from the first retry on, and while one is contended."""
        contended = self._contended
        if contended:
            now = self._clock.monotonic_s()
            for account_id in [name for name, until in contended.items() if until <= now]:
                del contended[account_id]
        return any(
            p.attempt or p.operation.account_id in contended or type(p.operation) is Unfreeze
            for p in batch
        )

    def _note_contention(self, accounts: Iterable[AccountId]) -> None:
        until = self._clock.monotonic_s() + CONTENDED_FOR_S
        for account_id in accounts:
            self._contended[account_id] = until

    async def _recover(self, batch: list[_Pending], error: Exception) -> None:
        """Put a batch back after a fault of the database; single out what a healthy one refuses."""
        if is_retryable(error):
            self._metrics.retried("database", len(batch))
            _log.warning(
                "credits.batch_retried",
                operations=len(batch),
                error=repr(error),
                request_ids=_request_ids(batch),
            )
            self._put_back(batch, str(error) or type(error).__name__)
        elif is_partition_missing(error) and await self._ensured_partitions():
            self._put_back(batch, "a partition may have been missing")
        elif len(batch) > 1:
            # One operation the database will not take must not fail its neighbours.
            middle = len(batch) // 2
            for half in (batch[:middle], batch[middle:]):
                ready = self._without_parked(half)
                if ready:
                    await self._process(ready)
        else:
            _log.error("credits.operation_failed", request_ids=_request_ids(batch), exc_info=error)
            failed = OperationFailed(account_id=batch[0].operation.account_id)
            failed.__cause__ = error
            self._deliver(batch[0], failed)

    async def _ensured_partitions(self) -> bool:
        """Make missing partitions: a ledger whose worker stood still for a week goes on.

        True also when none is missing now: another lane or process may have been faster.
        """
        try:
            async with self._pool.connection() as connection:
                await self._store.create_partitions(
                    connection, quarters_ahead=QUARTERS_AHEAD, days_ahead=KEY_DAYS_AHEAD
                )
        except Exception as error:  # noqa: BLE001  # the batch's own error is the one that matters
            _log.warning("credits.partitions_not_made", error=repr(error))
            return False
        return True

    def _put_back(self, batch: Iterable[_Pending], reason: str) -> None:
        """Park the batch's accounts for the backoff, or give up on what has no retry left."""
        by_account: dict[AccountId, list[_Pending]] = {}
        spent: list[_Pending] = []
        for pending in batch:
            if pending.attempt >= self._limits.backoff.retries:
                attempts = pending.attempt + 1
                spent.append(pending)
                self._deliver(pending, LedgerUnavailable(attempts=attempts, reason=reason))
            else:
                pending.attempt += 1
                by_account.setdefault(pending.operation.account_id, []).append(pending)
        if spent:
            _log.warning(
                "credits.operations_given_up",
                operations=len(spent),
                reason=reason,
                request_ids=_request_ids(spent),
            )
        if not by_account:
            return
        attempt = max(pending.attempt for group in by_account.values() for pending in group)
        self._parked.update(by_account)
        wait_ms = self._limits.backoff.wait_ms(attempt - 1, self._jitter())
        self._call_later(wait_ms / 1000, tuple(by_account))

    def _call_later(self, delay_s: float, accounts: tuple[AccountId, ...]) -> None:
        def unpark() -> None:
            self._timers.discard(timer)
            self._unpark(accounts)

        timer = asyncio.get_running_loop().call_later(delay_s, unpark)
        self._timers.add(timer)

    def _unpark(self, accounts: Iterable[AccountId]) -> None:
        for account_id in accounts:
            self._queue.extendleft(reversed(self._parked.pop(account_id)))
        self._wake.set()

    def _answer(
        self, batch: Sequence[_Pending], outcomes: Sequence[Outcome], lost: set[AccountId]
    ) -> None:
        counts: dict[tuple[str, str], int] = {}
        decided = 0
        for pending, outcome in zip(batch, outcomes, strict=True):
            operation = pending.operation
            if lost and operation.account_id in lost:
                continue
            labels = (kind_of(operation), result_of(outcome))
            counts[labels] = counts.get(labels, 0) + 1
            pending.ticket.deliver(pending.index, outcome)
            decided += 1
        self._metrics.batch_decided(counts)
        self._engine.decided(decided)

    def _deliver(self, pending: _Pending, result: Result) -> None:
        self._metrics.batch_decided({(kind_of(pending.operation), result_of(result)): 1})
        pending.ticket.deliver(pending.index, result)
        self._engine.decided(1)


def _request_ids(batch: Iterable[_Pending]) -> tuple[str, ...]:
    return ids_of(pending.ticket.request for pending in batch)


def kind_of(operation: Operation) -> str:
    """Return the `kind` label of an operation."""
    if type(operation) is Movement:
        return "topup" if operation.kind is Kind.TOPUP else "consume"
    return _KIND_LABELS[type(operation)]
