"""What tests of the ledger share: operations in one word, a running engine, a reference ledger."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID

from prometheus_client import CollectorRegistry

from tollkeeper.credits import errors, requests
from tollkeeper.credits.alert_service import AlertService
from tollkeeper.credits.alert_store import AlertStore
from tollkeeper.credits.engine import Engine, Result
from tollkeeper.credits.metrics import CreditsMetrics
from tollkeeper.credits.model import (
    Kind,
    Movement,
    OpenAccount,
    Opened,
    Operation,
    Posted,
    Swept,
)
from tollkeeper.credits.service import CreditsService
from tollkeeper.credits.store import SESSION_SETTINGS, LedgerStore
from tollkeeper.database.connect import connector
from tollkeeper.database.group_commit import EngineLimits
from tollkeeper.database.limits import PoolLimits
from tollkeeper.database.pool import Pool
from tollkeeper.database.pooler import Pooler
from tollkeeper.kernel.amounts import MAX_AMOUNT_MINOR
from tollkeeper.kernel.backoff import Backoff
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.kernel.ids import AccountId, TenantId, TransactionId, system_entropy
from tollkeeper.wiring import CREDITS_ROLE

TENANT = "acme"


def opening(account_id: str, tenant_id: str = TENANT) -> OpenAccount:
    return requests.open_account(account_id, tenant_id)


def topup(account_id: str, amount: int, key: str | None = None, **more: object) -> Movement:
    return movement(Kind.TOPUP, account_id, amount, key, **more)


def consume(account_id: str, amount: int, key: str | None = None, **more: object) -> Movement:
    return movement(Kind.CONSUME, account_id, amount, key, **more)


def movement(
    kind: Kind, account_id: str, amount: int, key: str | None = None, **more: object
) -> Movement:
    """Build a movement; without a key it gets one that nobody else has."""
    entropy = system_entropy()
    fields: dict[str, object] = {
        "entropy": entropy,
        "key": key or f"key-{UUID(int=entropy)}",
        **more,
    }
    return requests.movement(kind=kind, account_id=account_id, amount=amount, **fields)  # type: ignore[arg-type]  # the callers pass the fields of `requests.movement`


def words(account_id: str, key: str | None = None) -> requests.WriteWords:
    """Return what a write says beside its own terms, with a key that nobody else has."""
    entropy = system_entropy()
    return requests.WriteWords(
        account_id=account_id, key=key or f"key-{UUID(int=entropy)}", entropy=entropy
    )


def held_by(result: Result) -> TransactionId:
    """Return the hold that a reservation made."""
    assert isinstance(result, Posted), result
    return result.transaction.transaction_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """A running engine and everything around it."""

    engine: Engine
    service: CreditsService
    alerts: AlertService
    pool: Pool
    store: LedgerStore
    registry: CollectorRegistry

    async def execute(self, *operations: Operation) -> list[Result]:
        return await self.engine.execute(operations)

    async def open_with(self, amount: int, *account_ids: str) -> None:
        """Open accounts with a balance each."""
        operations: list[Operation] = []
        for account_id in account_ids:
            operations += [opening(account_id), topup(account_id, amount, "first")]
        results = await self.engine.execute(operations)
        assert {"opened", "posted"} == set(words_of(results))

    async def balance(self, account_id: str) -> int:
        return (await self.service.account(AccountId(account_id), None)).balance

    async def assert_sound(self) -> None:
        """Verify every account: no fault, and what was topped up is spent or still there."""
        after: str | None = None
        while True:
            found = await self.service.verify(None, None, after=after)

            assert () == found.faults
            assert found.topped_up == found.consumed + found.balance
            after = found.next
            if after is None:
                return

    def retries(self, reason: str) -> float:
        value = self.registry.get_sample_value("credits_retries_total", {"reason": reason})
        assert value is not None
        return value


@asynccontextmanager
async def running_ledger(
    dsn: str,
    *,
    store: LedgerStore | None = None,
    lanes: int = 2,
    queue: int = 32_768,
    batch: int = 2_000,
    backoff: Backoff | None = None,
    acquire_timeout_s: float = 5.0,
    pooler: Pooler = Pooler.NONE,
) -> AsyncIterator[Ledger]:
    """Run an engine as the service does; afterwards it is drained and closed."""
    clock, store, registry = SystemClock(), store or LedgerStore(), CollectorRegistry()
    connect = connector(dsn, role=CREDITS_ROLE, settings=SESSION_SETTINGS, pooler=pooler)
    # One connection more than lanes: reads of a test must not wait for a lane that waits.
    pool = Pool(
        connect, size=lanes + 1, clock=clock, limits=PoolLimits(acquire_timeout_s=acquire_timeout_s)
    )
    metrics = CreditsMetrics(registry)
    engine = Engine(
        pool,
        store,
        clock=clock,
        jitter=random.Random(0).random,
        metrics=metrics,
        limits=EngineLimits(lanes=lanes, queue=queue, batch=batch, backoff=backoff or Backoff()),
    )
    engine.start()
    try:
        service = CreditsService(engine, pool, store)
        alerts = AlertService(AlertStore(), writes=pool, reads=pool, metrics=metrics)
        yield Ledger(
            engine=engine, service=service, alerts=alerts, pool=pool, store=store,
            registry=registry,
        )  # fmt: skip
        await engine.drain()
    finally:
        await engine.close()
        await pool.close()


@dataclass(slots=True)
class ReferenceLedger:
    """What a ledger is, in ten lines: one operation after the other, in memory."""

    tenants: dict[AccountId, TenantId] = field(default_factory=dict)
    balances: dict[AccountId, int] = field(default_factory=dict)
    kept: dict[tuple[AccountId, bytes], bytes] = field(default_factory=dict)

    def decide(self, operation: Operation) -> str:
        assert isinstance(operation, OpenAccount | Movement)
        account_id, tenant_id = operation.account_id, operation.tenant_id
        if isinstance(operation, OpenAccount):
            is_new = account_id not in self.tenants
            is_ours = self.tenants.setdefault(account_id, operation.tenant_id) == tenant_id
            return "account_taken" if not is_ours else "opened" if is_new else "reopened"
        if account_id not in self.tenants or tenant_id not in {None, self.tenants[account_id]}:
            return "account_not_found"
        if earlier := self.kept.get((account_id, operation.key_hash)):
            return "replayed" if earlier == operation.fingerprint else "key_reused"
        sign = 1 if operation.kind is Kind.TOPUP else -1
        balance = self.balances.get(account_id, 0) + sign * operation.amount
        if not 0 <= balance <= MAX_AMOUNT_MINOR:
            return "insufficient_credits" if sign < 0 else "balance_too_large"
        self.balances[account_id] = balance
        self.kept[account_id, operation.key_hash] = operation.fingerprint
        return "posted"


_REFUSALS = {
    errors.AccountTaken: "account_taken",
    errors.AccountNotFound: "account_not_found",
    errors.KeyReused: "key_reused",
    errors.TransactionVanished: "transaction_vanished",
    errors.HoldNotFound: "hold_not_found",
    errors.HoldClosed: "hold_closed",
    errors.CaptureTooLarge: "capture_too_large",
    errors.TransactionNotFound: "transaction_not_found",
    errors.NotRefundable: "not_refundable",
    errors.RefundTooLarge: "refund_too_large",
    errors.InsufficientCredits: "insufficient_credits",
    errors.BalanceTooLarge: "balance_too_large",
    errors.KeyExpired: "key_expired",
    errors.LedgerUnavailable: "unavailable",
    errors.OperationFailed: "failed",
}


def words_of(results: Sequence[Result]) -> list[str]:
    """Say in the reference ledger's words what became of operations."""
    return [_word_of(result) for result in results]


def _word_of(result: Result) -> str:
    if isinstance(result, Posted):
        return "replayed" if result.replayed else "posted"
    if isinstance(result, Opened):
        return "opened" if result.created else "reopened"
    if isinstance(result, Swept):
        return "swept"
    return _REFUSALS[type(result)]
