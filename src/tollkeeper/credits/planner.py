"""The ledger's rules, once: which operations of a batch are accepted, and what they write.

`plan` is pure and total: it never raises for a business reason, it returns a refusal. Operations
are decided in arrival order, each on the state the ones before it left. What a plan writes never
breaks a constraint of the schema (tests/integration/credits/test_schema_agrees.py).
"""

from collections.abc import Sequence
from datetime import datetime
from typing import assert_never

from tollkeeper.credits import chain
from tollkeeper.credits.errors import (
    AccountNotFound,
    AccountTaken,
    BalanceTooLarge,
    InsufficientCredits,
    KeyExpired,
    KeyReused,
    Refusal,
)
from tollkeeper.credits.model import (
    KEY_CLOCK_SKEW,
    KEY_LIFETIME,
    Account,
    KeyedTransaction,
    Kind,
    Loaded,
    Movement,
    OpenAccount,
    Opened,
    Operation,
    Outcome,
    Plan,
    Posted,
    Transaction,
)
from tollkeeper.kernel.amounts import MAX_AMOUNT_MINOR
from tollkeeper.kernel.ids import (
    AccountId,
    TransactionId,
    compose_id,
    entropy_of,
    milliseconds_since_epoch,
)

_LIFETIME_MS = KEY_LIFETIME.total_seconds() * 1000
_SKEW_MS = KEY_CLOCK_SKEW.total_seconds() * 1000


def plan(loaded: Loaded, operations: Sequence[Operation]) -> Plan:
    """Decide `operations` in order on the state in `loaded`.

    `loaded.accounts` has every account of the batch that exists, `loaded.kept` the transactions of
    those idempotency keys of the batch that are known.
    """
    return _Planner(loaded).run(operations)


class _Running:
    """An account while a batch is decided: the state after the operations so far."""

    __slots__ = ("account", "balance", "expected", "head", "reserved", "version")

    def __init__(self, account: Account, *, expected: int | None) -> None:
        self.account = account
        self.balance = account.balance
        self.reserved = account.reserved
        self.version = account.version
        self.head = account.head_hash
        self.expected = expected  # None: opened by this batch

    def current(self) -> Account:
        account = self.account
        return Account(
            account_id=account.account_id, tenant_id=account.tenant_id, shard=account.shard,
            balance=self.balance, reserved=self.reserved, version=self.version,
            head_hash=self.head, created_at=account.created_at,
        )  # fmt: skip


class _Planner:
    def __init__(self, loaded: Loaded) -> None:
        self._now = loaded.now
        self._now_ms = milliseconds_since_epoch(loaded.now)
        self._now_us = chain.microseconds_since_epoch(loaded.now)
        self._kept = dict(loaded.kept)
        self._written: list[KeyedTransaction] = []
        self._running: dict[AccountId, _Running] = {
            account_id: _Running(account, expected=account.version)
            for account_id, account in loaded.accounts.items()
        }

    def run(self, operations: Sequence[Operation]) -> Plan:
        outcomes: list[Outcome] = []
        for operation in operations:
            match operation:
                case Movement():
                    outcomes.append(self._decide(operation))
                case OpenAccount():
                    outcomes.append(self._open(operation))
                case _:
                    assert_never(operation)
        changed = [r for r in self._running.values() if r.version != r.expected]
        changed.sort(key=lambda r: (r.account.shard, r.account.account_id))
        moved = [r for r in changed if r.expected is not None]
        return Plan(
            self._now,
            outcomes,
            [r.current() for r in changed if r.expected is None],
            [r.current() for r in moved],
            [r.expected for r in moved if r.expected is not None],
            self._written,
        )

    def _open(self, operation: OpenAccount) -> Opened | Refusal:
        running = self._running.get(operation.account_id)
        if running is not None:
            if running.account.tenant_id != operation.tenant_id:
                return AccountTaken(account_id=operation.account_id)
            return Opened(running.current(), created=False)
        account = new_account(operation, self._now)
        self._running[operation.account_id] = _Running(account, expected=None)
        return Opened(account, created=True)

    def _decide(self, movement: Movement) -> Posted | Refusal:
        account_id = movement.account_id
        running = self._running.get(account_id)
        if running is None or (
            movement.tenant_id is not None and movement.tenant_id != running.account.tenant_id
        ):
            return AccountNotFound(account_id=account_id)
        kept = self._kept.get((account_id, movement.key_hash))
        if kept is not None:
            return _answer_again(movement, kept)
        if movement.key_ms is not None:
            age_ms = self._now_ms - movement.key_ms
            if not -_SKEW_MS <= age_ms < _LIFETIME_MS:
                return KeyExpired(age_s=age_ms / 1000, lifetime_s=_LIFETIME_MS / 1000)
        amount = movement.amount
        if movement.kind is Kind.TOPUP:
            if running.balance + amount > MAX_AMOUNT_MINOR:
                return BalanceTooLarge(
                    account_id=account_id, balance=running.balance, amount=amount
                )
            balance = running.balance + amount
        elif movement.kind is Kind.CONSUME:
            available = running.balance - running.reserved
            if amount > available:
                return InsufficientCredits(
                    account_id=account_id, available=available, required=amount
                )
            balance = running.balance - amount
        else:
            assert_never(movement.kind)
        return self._write(running, movement, balance)

    def _write(self, running: _Running, movement: Movement, balance: int) -> Posted:
        sequence = running.version + 1
        transaction_id = TransactionId(compose_id(self._now_ms, movement.entropy, movement.shard))
        digest = chain.link(
            running.head, transaction_id.bytes, movement.amount, balance, running.reserved,
            sequence, self._now_us, movement.fingerprint, movement.account_id, movement.kind,
            movement.description, movement.metadata,
        )  # fmt: skip
        transaction = Transaction(
            transaction_id=transaction_id, account_id=movement.account_id, shard=movement.shard,
            kind=movement.kind, amount=movement.amount, balance=balance, reserved=running.reserved,
            sequence=sequence, fingerprint=movement.fingerprint, hash=digest, created_at=self._now,
            description=movement.description, metadata=movement.metadata,
        )  # fmt: skip
        running.balance, running.version, running.head = balance, sequence, digest
        self._kept[movement.account_id, movement.key_hash] = transaction
        self._written.append(KeyedTransaction(movement.key_hash, transaction))
        return Posted(transaction, replayed=False)


def new_account(operation: OpenAccount, now: datetime) -> Account:
    """Return an account as it is opened: empty, its chain at the genesis."""
    return Account(
        account_id=operation.account_id, tenant_id=operation.tenant_id, shard=operation.shard,
        balance=0, reserved=0, version=0,
        head_hash=chain.genesis(operation.account_id, operation.tenant_id), created_at=now,
    )  # fmt: skip


def _answer_again(movement: Movement, kept: Transaction) -> Posted | Refusal:
    if kept.fingerprint != movement.fingerprint:
        return KeyReused(account_id=movement.account_id)
    # Its own id: this very request was committed and the answer of the database was lost.
    return Posted(kept, replayed=entropy_of(kept.transaction_id) != movement.entropy)
