"""The ledger's rules, once: which operations of a batch are accepted, and what they write.

`plan` is pure and total: it never raises for a business reason, it returns a refusal. Operations
are decided in arrival order, each on the state the ones before it left. What a plan writes never
breaks a constraint of the schema (tests/integration/credits/test_schema_agrees.py).
"""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import assert_never

import msgspec

from tollkeeper.credits import alerts, chain, holds
from tollkeeper.credits.errors import (
    AccountFrozen,
    AccountNotFound,
    AccountTaken,
    BalanceTooLarge,
    HoldNotFound,
    InsufficientCredits,
    KeyExpired,
    KeyReused,
    NotFrozen,
    NotRefundable,
    RefundTooLarge,
    Refusal,
    TransactionNotFound,
    TransactionVanished,
    UnfreezeUnsafe,
)
from tollkeeper.credits.model import (
    KEY_CLOCK_SKEW,
    KEY_LIFETIME,
    Account,
    Capture,
    Extend,
    Fault,
    Hold,
    HoldOperation,
    HoldState,
    KeyedTransaction,
    Kind,
    Lifting,
    Loaded,
    Movement,
    OpenAccount,
    Opened,
    Operation,
    Outcome,
    Plan,
    Point,
    Posted,
    Refund,
    Refundable,
    Release,
    Reserve,
    Sweep,
    Swept,
    Tail,
    Transaction,
    Unfreeze,
    Write,
)
from tollkeeper.credits.running import Running
from tollkeeper.kernel.amounts import MAX_AMOUNT_MINOR
from tollkeeper.kernel.ids import (
    ENTROPY_BITS,
    AccountId,
    TransactionId,
    compose_id,
    entropy_of,
    milliseconds_since_epoch,
)

FAULTS_SHOWN = 3
"""Faults named in the refusal of an operation; `verify` lists all."""

_ENTROPY_MASK = (1 << ENTROPY_BITS) - 1
_REFUNDABLE = (Kind.CONSUME, Kind.CAPTURE)
_LIFETIME_MS = KEY_LIFETIME.total_seconds() * 1000
_SKEW_MS = KEY_CLOCK_SKEW.total_seconds() * 1000


def plan(loaded: Loaded, operations: Sequence[Operation]) -> Plan:
    """Decide `operations` in order on the state in `loaded`.

    `loaded.accounts` has every account of the batch that exists, `loaded.kept` the transactions of
    those idempotency keys of the batch that are known.
    """
    return _Planner(loaded).run(operations)


class _Planner:
    def __init__(self, loaded: Loaded) -> None:
        self._now = loaded.now
        self._now_ms = milliseconds_since_epoch(loaded.now)
        self._now_us = chain.microseconds_since_epoch(loaded.now)
        self._kept = dict(loaded.kept)
        self._holds = dict(loaded.holds)
        self._expiries = dict(loaded.expiries)
        self._refundables = dict(loaded.refundables)
        self._findings = loaded.findings
        self._tails = loaded.tails
        self._thresholds = loaded.thresholds
        self._lifted: list[Lifting] = []
        self._written: list[KeyedTransaction] = []
        self._written_holds: dict[TransactionId, Hold] = {}
        self._written_refunds: dict[TransactionId, Refundable] = {}
        self._running: dict[AccountId, Running] = {
            account_id: Running(account, expected=account.version, watch=self._watch(account))
            for account_id, account in loaded.accounts.items()
        }

    def run(self, operations: Sequence[Operation]) -> Plan:
        outcomes = [self._outcome(operation) for operation in operations]
        changed = [r for r in self._running.values() if r.has_changed]
        changed.sort(key=lambda r: (r.account.shard, r.account.account_id))
        moved = [r for r in changed if r.expected is not None]
        return Plan(
            self._now,
            outcomes,
            [r.current() for r in changed if r.expected is None],
            [r.current() for r in moved],
            [r.expected for r in moved if r.expected is not None],
            self._written,
            tuple(self._written_holds.values()),
            tuple(self._written_refunds.values()),
            self._lifted,
            *alerts.joined([r.watch for r in changed if r.watch is not None]),
        )

    def _watch(self, account: Account) -> alerts.Watch | None:
        if account.alert_at is None:
            return None
        return alerts.Watch(account, self._thresholds.get(account.account_id), self._now_ms)

    def _outcome(self, operation: Operation) -> Outcome:
        if isinstance(operation, Write):
            return self._decide(operation)
        if isinstance(operation, OpenAccount):
            return self._open(operation)
        return self._sweep(operation)

    def _open(self, operation: OpenAccount) -> Opened | Refusal:
        running = self._running.get(operation.account_id)
        if running is not None:
            if running.account.tenant_id != operation.tenant_id:
                return AccountTaken(account_id=operation.account_id)
            return Opened(running.current(), created=False)
        account = new_account(operation, self._now)
        self._running[operation.account_id] = Running(account, expected=None)
        return Opened(account, created=True)

    def _sweep(self, operation: Sweep) -> Swept | Refusal:
        running = self._running.get(operation.account_id)
        if running is None:
            return AccountNotFound(account_id=operation.account_id)
        if running.frozen_at is not None:
            return self._frozen(running, running.frozen_at)
        return Swept(self._book_expiries(running))

    def _decide(self, write: Write) -> Posted | Refusal:
        account_id = write.account_id
        running = self._running.get(account_id)
        if running is None or (
            write.tenant_id is not None and write.tenant_id != running.account.tenant_id
        ):
            return _not_found(write)
        named = (account_id, write.key_hash)
        # Where a row is gone from a frozen account, the freeze is the answer.
        if named in self._kept and (running.frozen_at is None or self._kept[named] is not None):
            return _answer_again(write, self._kept[named])
        if write.key_ms is not None:
            age_ms = self._now_ms - write.key_ms
            if not -_SKEW_MS <= age_ms < _LIFETIME_MS:
                return KeyExpired(age_s=age_ms / 1000, lifetime_s=_LIFETIME_MS / 1000)
        if type(write) is Unfreeze:
            return self._unfreeze(running, write)
        if running.frozen_at is not None:
            return self._frozen(running, running.frozen_at)
        if self._expiries:
            self._book_expiries(running)
        return self._apply(running, write)

    def _apply(self, running: Running, write: Write) -> Posted | Refusal:
        match write:
            case Movement():
                return self._move(running, write)
            case Reserve():
                return self._reserve(running, write)
            case Capture() | Release() | Extend():
                return self._change_hold(running, write)
            case Refund():
                return self._refund(running, write)
            case _:
                raise AssertionError(f"not an operation: {type(write)}")

    def _move(self, running: Running, movement: Movement) -> Posted | Refusal:
        amount, account_id = movement.amount, movement.account_id
        if movement.kind is Kind.TOPUP:
            if running.balance + amount > MAX_AMOUNT_MINOR:
                return BalanceTooLarge(
                    account_id=account_id, balance=running.balance, amount=amount
                )
            running.balance += amount
            return self._write(running, movement, Kind.TOPUP, amount, payment=movement.payment)
        available = running.available
        if movement.up_to and 0 < available < amount:
            amount = available
        if amount > available:
            return InsufficientCredits(
                account_id=account_id,
                available=available,
                required=1 if movement.up_to else amount,
            )
        running.balance -= amount
        return self._write(running, movement, Kind.CONSUME, amount)

    # Holds and refunds ---------------------------------------------------------------------------

    def _reserve(self, running: Running, reserve: Reserve) -> Posted | Refusal:
        amount, available = reserve.amount, running.available
        if amount > available:
            return InsufficientCredits(
                account_id=reserve.account_id, available=available, required=amount
            )
        expires_at = self._now + reserve.expires_in
        running.reserved += amount
        running.expect_expiry(expires_at)
        posted = self._write(
            running, reserve, Kind.HOLD, amount, expires_at=expires_at, allowance=reserve.allowance
        )
        self._keep_hold(
            Hold(
                hold_id=posted.transaction.transaction_id, account_id=reserve.account_id,
                shard=reserve.shard, amount=amount, captured=0, released=0,
                allowance=reserve.allowance, overrun=0, state=HoldState.OPEN,
                expires_at=expires_at, created_at=self._now,
            )
        )  # fmt: skip
        return posted

    def _change_hold(self, running: Running, write: HoldOperation) -> Posted | Refusal:
        hold = self._holds.get(write.hold_id)
        if hold is None or hold.account_id != write.account_id:
            return HoldNotFound(hold_id=write.hold_id)
        match write:
            case Capture():
                settlement = holds.capture(hold, write, running.available)
                kind = Kind.CAPTURE
            case Release():
                settlement = holds.release(hold)
                kind = Kind.RELEASE
            case Extend():
                return self._extend(running, hold, write)
            case _:
                assert_never(write)
        if isinstance(settlement, Refusal):
            return settlement
        return self._settle(running, write, kind, settlement)

    def _settle(
        self, running: Running, write: Write, kind: Kind, settlement: holds.Settlement
    ) -> Posted:
        running.balance -= settlement.taken
        running.reserved -= settlement.freed
        self._keep_hold(settlement.hold)
        amount = settlement.taken if kind is Kind.CAPTURE else settlement.freed
        return self._write(
            running, write, kind, amount,
            reference_id=settlement.hold.hold_id, freed=settlement.freed,
        )  # fmt: skip

    def _extend(self, running: Running, hold: Hold, extend: Extend) -> Posted | Refusal:
        extended = holds.extend(hold, extend, available=running.available, now=self._now)
        if isinstance(extended, Refusal):
            return extended
        running.reserved += extend.amount
        running.expect_expiry(extended.expires_at)
        self._keep_hold(extended)
        return self._write(
            running, extend, Kind.EXTEND, extend.amount,
            reference_id=hold.hold_id, expires_at=extended.expires_at,
        )  # fmt: skip

    def _refund(self, running: Running, refund: Refund) -> Posted | Refusal:
        refunded_id = refund.refunded_id
        found = self._refundables.get(refunded_id)
        if found is None or found.account_id != refund.account_id:
            return TransactionNotFound(transaction_id=refunded_id)
        if found.kind not in _REFUNDABLE:
            return NotRefundable(transaction_id=refunded_id, kind=found.kind)
        refundable = found.taken - found.refunded
        amount = refundable if refund.amount is None else refund.amount
        if amount > refundable or refundable == 0:
            return RefundTooLarge(transaction_id=refunded_id, refundable=refundable, amount=amount)
        if running.balance + amount > MAX_AMOUNT_MINOR:
            return BalanceTooLarge(
                account_id=refund.account_id, balance=running.balance, amount=amount
            )
        running.balance += amount
        given_back = msgspec.structs.replace(found, refunded=found.refunded + amount)
        self._refundables[refunded_id] = self._written_refunds[refunded_id] = given_back
        return self._write(running, refund, Kind.REFUND, amount, reference_id=refunded_id)

    # Freezes -------------------------------------------------------------------------------------

    def _frozen(self, running: Running, frozen_at: datetime) -> AccountFrozen:
        account_id = running.account.account_id
        found = self._findings.get(account_id, ())
        return AccountFrozen(
            account_id=account_id,
            frozen_at=frozen_at,
            faults=tuple(_named(fault) for fault in found[:FAULTS_SHOWN]),
        )

    def _unfreeze(self, running: Running, unfreeze: Unfreeze) -> Posted | Refusal:
        """Restate the account from the end of its chain, and write there why.

        The account's row may be what was tampered with; its chain is what was signed.
        """
        account = running.account
        if running.frozen_at is None:
            return NotFrozen(account_id=account.account_id)
        tail = self._tails[account.account_id]
        problem = _unsafe(tail)
        if problem is not None:
            return UnfreezeUnsafe(account_id=account.account_id, problem=problem)
        restated = tail.last or Point(0, 0, 0, chain.genesis(account.account_id, account.tenant_id))
        running.balance, running.reserved = restated.balance, restated.reserved
        running.version, running.head = restated.sequence, restated.head_hash
        running.frozen_at, running.next_expiry = None, self._next_expiry(account.account_id)
        if running.watch is not None:
            running.watch.forget_before()
        posted = self._write(running, unfreeze, Kind.UNFREEZE, 0)
        # It comes with a statement of its own, before what the batch does to the account then.
        keyed = self._written.pop()
        self._lifted.append(Lifting(keyed, running.next_expiry, unfreeze.actor))
        running.expected = running.version
        return posted

    def _next_expiry(self, account_id: AccountId) -> datetime | None:
        expiries = self._expiries[account_id]
        return expiries.due[0].expires_at if expiries.due else expiries.following

    def _book_expiries(self, running: Running) -> int:
        """Write down the expiries that are due, once a batch, before the account's next decision.

        Nobody asked for them: they have no key, and their ids follow from the holds'.
        """
        account = running.account
        expiries = self._expiries.pop(account.account_id, None)
        if expiries is None:
            return 0
        running.next_expiry = expiries.following
        for hold in expiries.due:
            digest = hashlib.sha256(b"expire" + hold.hold_id.bytes).digest()
            booking = Write(
                account_id=account.account_id, shard=account.shard, tenant_id=None,
                key_hash=b"", key_ms=None, fingerprint=digest,
                entropy=int.from_bytes(digest, "big") & _ENTROPY_MASK,
                description=None, metadata=None,
            )  # fmt: skip
            self._settle(running, booking, Kind.EXPIRE, holds.expire(hold))
        return len(expiries.due)

    def _keep_hold(self, hold: Hold) -> None:
        self._holds[hold.hold_id] = self._written_holds[hold.hold_id] = hold

    def _write(  # noqa: PLR0913  # keyword-only: what a row says beyond its amount
        self,
        running: Running,
        write: Write,
        kind: Kind,
        amount: int,
        *,
        reference_id: TransactionId | None = None,
        freed: int | None = None,
        expires_at: datetime | None = None,
        allowance: int | None = None,
        payment: str | None = None,
    ) -> Posted:
        """Write the transaction that left the account as `running` says."""
        sequence = running.version + 1
        transaction_id = TransactionId(compose_id(self._now_ms, write.entropy, write.shard))
        terms = b""
        if kind is not Kind.CONSUME:  # which says no more than its amount
            reference = None if reference_id is None else reference_id.bytes
            terms = chain.terms_of(reference, freed, expires_at, allowance, payment)
        digest = chain.link(
            running.head, transaction_id.bytes, amount, running.balance, running.reserved,
            sequence, self._now_us, write.fingerprint, write.account_id, kind,
            write.description, write.metadata, terms,
        )  # fmt: skip
        transaction = Transaction(
            transaction_id=transaction_id, account_id=write.account_id, shard=write.shard,
            kind=kind, amount=amount, balance=running.balance, reserved=running.reserved,
            sequence=sequence, fingerprint=write.fingerprint, hash=digest, created_at=self._now,
            description=write.description, metadata=write.metadata,
            reference_id=reference_id, freed=freed, expires_at=expires_at, allowance=allowance,
            payment=payment,
        )  # fmt: skip
        running.version, running.head = sequence, digest
        if running.watch is not None:
            running.watch.see(transaction)
        if kind is not Kind.EXPIRE:
            self._kept[write.account_id, write.key_hash] = transaction
        self._written.append(KeyedTransaction(write.key_hash, transaction))
        return Posted(transaction, replayed=False)


def new_account(operation: OpenAccount, now: datetime) -> Account:
    """Return an account as it is opened: empty, its chain at the genesis."""
    return Account(
        account_id=operation.account_id, tenant_id=operation.tenant_id, shard=operation.shard,
        balance=0, reserved=0, version=0,
        head_hash=chain.genesis(operation.account_id, operation.tenant_id), created_at=now,
    )  # fmt: skip


def _named(fault: Fault) -> str:
    place = f"transaction {fault.sequence}" if fault.sequence else "the account"
    return f"{fault.fault} of {place}"


def _unsafe(tail: Tail) -> str | None:
    """Say why an account cannot stand where its chain ends; None: it can."""
    balance, reserved = (tail.last.balance, tail.last.reserved) if tail.last else (0, 0)
    if not 0 <= reserved <= balance:
        return f"its last transaction leaves a balance of {balance} with {reserved} reserved"
    if reserved != tail.held:
        return (
            f"its last transaction leaves {reserved} reserved, and its open holds reserve "
            f"{tail.held}"
        )
    return None


def _not_found(write: Write) -> Refusal:
    """Say that the object a caller named is not there, in the words in which it was named."""
    match write:
        case Capture() | Release() | Extend():
            return HoldNotFound(hold_id=write.hold_id)
        case Refund():
            return TransactionNotFound(transaction_id=write.refunded_id)
        case _:
            return AccountNotFound(account_id=write.account_id)


def _answer_again(write: Write, kept: Transaction | None) -> Posted | Refusal:
    if kept is None:
        return TransactionVanished(account_id=write.account_id)
    if kept.fingerprint != write.fingerprint:
        return KeyReused(account_id=write.account_id)
    # Its own id: this very request was committed and the answer of the database was lost.
    return Posted(kept, replayed=entropy_of(kept.transaction_id) != write.entropy)
