"""The transaction engine: what the ledger makes of a batch of operations.

How callers that wait together form a batch, and what is put back, is the database layer's
(`group_commit.py`). A batch loads its accounts and keys in one snapshot, lets the planner decide,
and commits in one statement that compares and swaps every account's version.

An account that moved meanwhile (another process committed first) is lost to this batch, and locked
from then on. What an operation's fate is after a lost connection is never guessed: it is loaded
again, and its idempotency key tells.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Final

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
from tollkeeper.database.connect import is_partition_missing
from tollkeeper.database.driver import Connection
from tollkeeper.database.group_commit import EngineLimits, GroupCommit
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.clock import Clock
from tollkeeper.kernel.ids import AccountId

CONTENDED_FOR_S = 1.0
"""An account that lost a race is locked before it is read for this long (DESIGN section 2)."""

QUARTERS_AHEAD = 4
"""Quarters of transactions and holds for which partitions are made ahead."""

KEY_DAYS_AHEAD = 1
"""Days of idempotency keys for which partitions are made ahead: every key is looked for in them."""

ALERTS_TOLD = 20
"""Alerts of one commit that have a line in the log; all are counted, and kept."""

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

_NOTHING_LOST: Final[frozenset[AccountId]] = frozenset()

_log = structlog.get_logger(__name__)


class Engine(GroupCommit[Operation, Result]):
    """Takes operations, answers with outcomes."""

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
        work = LedgerWork(pool, store, clock=clock, metrics=metrics)
        super().__init__(pool, work, clock=clock, jitter=jitter, metrics=metrics, limits=limits)


class LedgerWork:
    """Decides batches of operations; a key of the group commit is an account."""

    name: Final = "credits"
    lost_reason: Final = "another process kept changing the account"

    def __init__(
        self, pool: Pool, store: LedgerStore, *, clock: Clock, metrics: CreditsMetrics
    ) -> None:
        self._pool = pool
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._contended: dict[AccountId, float] = {}
        self.log = _log
        self.key_of = attrgetter("account_id")
        self.kind_of = kind_of

    async def decide(
        self, connection: Connection, operations: Sequence[Operation], *, is_retry: bool
    ) -> tuple[Sequence[Result], frozenset[AccountId]]:
        """Load, plan and commit; return the outcomes and the accounts that moved meanwhile."""
        if is_retry or self._must_lock(operations):
            async with connection.transaction():
                await self._store.lock_accounts(connection, accounts_of(operations))
                # A statement of its own: what the lock waited for is visible to the next snapshot
                # only.
                plan, landed = await self._load_plan_commit(connection, operations, locked=True)
        else:
            plan, landed = await self._load_plan_commit(connection, operations)
        if plan.alerts.fired:
            self._tell_fired(plan, landed)
        lost = {account.account_id for account in (*plan.moved, *plan.opened)} - landed
        if not lost:
            return plan.outcomes, _NOTHING_LOST
        self._note_contention(lost)
        return plan.outcomes, frozenset(lost)

    async def mend(self, error: Exception) -> str | None:
        """Make missing partitions: a ledger whose worker stood still for a week goes on."""
        if is_partition_missing(error) and await self._ensured_partitions():
            return "a partition may have been missing"
        return None

    def note_decided(self, operations: Sequence[Operation], results: Sequence[Result]) -> None:
        """Count outcomes."""
        counts = Counter(zip(map(kind_of, operations), map(result_of, results), strict=True))
        self._metrics.batch_decided(counts)

    def draining(self) -> Draining:
        """Return what refuses callers once nothing new is accepted."""
        return Draining()

    def queue_full(self, *, waiting: int, limit: int) -> QueueFull:
        """Return what refuses callers while too many wait."""
        return QueueFull(waiting=waiting, limit=limit)

    def unavailable(self, *, attempts: int, reason: str) -> LedgerUnavailable:
        """Return the result of an operation that was given up."""
        return LedgerUnavailable(attempts=attempts, reason=reason)

    def failed(self, operation: Operation, error: Exception) -> OperationFailed:
        """Return the result of an operation that the database will not take."""
        failed = OperationFailed(account_id=operation.account_id)
        failed.__cause__ = error
        return failed

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

    def _must_lock(self, operations: Iterable[Operation]) -> bool:
        """Lock first to lift a freeze, and while one is contended."""
        if Unfreeze in map(type, operations):
            return True
        contended = self._contended
        if not contended:
            return False
        now = self._clock.monotonic_s()
        for account_id in [name for name, until in contended.items() if until <= now]:
            del contended[account_id]
        return any(operation.account_id in contended for operation in operations)

    def _note_contention(self, accounts: Iterable[AccountId]) -> None:
        until = self._clock.monotonic_s() + CONTENDED_FOR_S
        for account_id in accounts:
            self._contended[account_id] = until

    def _tell_fired(self, plan: Plan, landed: frozenset[AccountId]) -> None:
        fired = [each for each in plan.alerts.fired if each.account_id in landed]
        self._metrics.alerts_fired(len(fired))
        for each in fired[:ALERTS_TOLD]:
            _log.info(
                "credits.alert_fired", account=each.account_id, tenant=each.tenant_id,
                threshold=each.threshold, available=each.available, sequence=each.sequence,
            )  # fmt: skip

    async def _ensured_partitions(self) -> bool:
        """Return whether none is missing now: another lane or process may have been faster."""
        try:
            async with self._pool.connection() as connection:
                await self._store.create_partitions(
                    connection, quarters_ahead=QUARTERS_AHEAD, days_ahead=KEY_DAYS_AHEAD
                )
        except Exception as error:  # noqa: BLE001  # the batch's own error is the one that matters
            _log.warning("credits.partitions_not_made", error=repr(error))
            return False
        return True


def kind_of(operation: Operation) -> str:
    """Return the `kind` label of an operation."""
    if type(operation) is Movement:
        return "topup" if operation.kind is Kind.TOPUP else "consume"
    return _KIND_LABELS[type(operation)]
