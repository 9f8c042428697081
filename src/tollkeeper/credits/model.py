"""The ledger's values: accounts, operations, transactions, outcomes; amounts in minor units.

The values of the hot path are `msgspec.Struct`s and not frozen dataclasses: making one with 13
fields takes 0.19 µs against 2.06 µs (CPython 3.11), and two are made for every operation.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum

import msgspec

from tollkeeper.credits.alert_model import AlertChanges, Threshold
from tollkeeper.credits.errors import Refusal
from tollkeeper.kernel.ids import AccountId, TenantId, TransactionId

KEY_LIFETIME = timedelta(hours=24)
"""An idempotency key is honoured this long (SPEC C3)."""

KEY_RETENTION = timedelta(hours=25)
"""Keys are stored and looked up this long: lifetime plus an hour of clock difference."""

KEY_CLOCK_SKEW = timedelta(hours=1)
"""A UUIDv7 key may be dated this far in the future."""

HOLD_DEFAULT_S = 3_600
"""A hold that does not say otherwise expires after an hour."""

HOLD_MAX_S = 31 * 86_400
"""Longest time that a hold is asked for, from now."""

BATCH_LIMIT = 10_000
"""Most operations in one `/v1/batch` request (DESIGN section 3)."""


class Kind(StrEnum):
    """What a transaction did to its account."""

    TOPUP = "topup"
    CONSUME = "consume"
    HOLD = "hold"
    CAPTURE = "capture"
    RELEASE = "release"
    EXTEND = "extend"
    EXPIRE = "expire"
    REFUND = "refund"
    UNFREEZE = "unfreeze"


class Account(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An account as of its transaction `version`; `head_hash` is that transaction's hash.

    No open hold expires before `next_expiry`; None: there is no open hold. Nothing moves since
    `frozen_at`; None: it is not frozen. No alert fires or re-arms while `alert_at` is available;
    None: there is none. `alert_revision` counts how often its thresholds were changed.
    """

    account_id: AccountId
    tenant_id: TenantId
    shard: int
    balance: int
    reserved: int
    version: int
    head_hash: bytes
    created_at: datetime
    next_expiry: datetime | None = None
    frozen_at: datetime | None = None
    alert_at: int | None = None
    alert_revision: int | None = None

    @property
    def available(self) -> int:
        """What may be spent, in minor units."""
        return self.balance - self.reserved


class Transaction(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One immutable row of the ledger; `balance` and `reserved` are the state after it.

    `reference_id` is the hold that is captured, released, extended or expired, or the transaction
    that is refunded; `freed` how much less is reserved since; `payment` is masked JSON.
    """

    transaction_id: TransactionId
    account_id: AccountId
    shard: int
    kind: Kind
    amount: int
    balance: int
    reserved: int
    sequence: int
    fingerprint: bytes
    hash: bytes
    created_at: datetime
    description: str | None
    metadata: str | None
    reference_id: TransactionId | None = None
    freed: int | None = None
    expires_at: datetime | None = None
    allowance: int | None = None
    payment: str | None = None


class OpenAccount(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Open an account. Opening it again for the same tenant changes nothing."""

    account_id: AccountId
    shard: int
    tenant_id: TenantId


class Write(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What every money write has: an account, an idempotency key, and what is kept with it.

    `key_hash` is SHA-256 of the key, `key_ms` the time inside a UUIDv7 key, `fingerprint` SHA-256
    of the request, `entropy` the random bits of the id its transaction will have. `tenant_id` is
    the tenant the caller is bound to, if any. `metadata` and `payment` are canonical JSON; they and
    the description are masked already.
    """

    account_id: AccountId
    shard: int
    tenant_id: TenantId | None
    key_hash: bytes
    key_ms: int | None
    fingerprint: bytes
    entropy: int
    description: str | None
    metadata: str | None
    payment: str | None = None


class Movement(Write, frozen=True, kw_only=True, gc=False):
    """Top up or consume `amount` minor units; `up_to` takes what is there when it is less."""

    kind: Kind
    amount: int
    up_to: bool = False
    payment: str | None = None


class Reserve(Write, frozen=True, kw_only=True, gc=False):
    """Hold `amount` for `expires_in` from now; `allowance` may be captured above it."""

    amount: int
    expires_in: timedelta
    allowance: int


class Capture(Write, frozen=True, kw_only=True, gc=False):
    """Take `amount` of a hold, None: all that is left; `final` gives back what is left after it."""

    hold_id: TransactionId
    amount: int | None
    final: bool


class Release(Write, frozen=True, kw_only=True, gc=False):
    """Give back what is left of a hold."""

    hold_id: TransactionId


class Extend(Write, frozen=True, kw_only=True, gc=False):
    """Let a hold expire `expires_in` from now (None: as before), and hold `amount` more."""

    hold_id: TransactionId
    amount: int
    expires_in: timedelta | None


class Refund(Write, frozen=True, kw_only=True, gc=False):
    """Give back `amount` of a consumption or capture, None: all that was not given back yet."""

    refunded_id: TransactionId
    amount: int | None


class Unfreeze(Write, frozen=True, kw_only=True, gc=False):
    """Lift the freeze of an account, which then stands at the last row of its chain.

    The description is the reason, `actor` the id of the API key.
    """

    actor: str


class Sweep(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Book the expiry of an account's expired holds; changes nothing where there is none."""

    account_id: AccountId
    shard: int


HoldOperation = Capture | Release | Extend
Operation = (
    OpenAccount | Movement | Reserve | Capture | Release | Extend | Refund | Unfreeze | Sweep
)


class HoldState(StrEnum):
    """Whether anything can be done with a hold."""

    OPEN = "open"
    SETTLED = "settled"
    EXPIRED = "expired"


class Hold(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Credits promised; its id is that of the transaction that made it.

    `amount` was reserved, extensions included; of it `captured` was taken and `released` given
    back. `overrun` was taken above it, within `allowance`. All in minor units.
    """

    hold_id: TransactionId
    account_id: AccountId
    shard: int
    amount: int
    captured: int
    released: int
    allowance: int
    overrun: int
    state: HoldState
    expires_at: datetime
    created_at: datetime

    @property
    def remaining(self) -> int:
        """What is still reserved by it."""
        return self.amount - self.captured - self.released


class Refundable(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A transaction that may be refunded: what it took, and what was given back of that."""

    transaction_id: TransactionId
    account_id: AccountId
    shard: int
    kind: Kind
    taken: int
    refunded: int


class Opened(msgspec.Struct, frozen=True, gc=False):
    """The account is open; `created` when this operation opened it."""

    account: Account
    created: bool


class Posted(msgspec.Struct, frozen=True, gc=False):
    """The transaction stands in the ledger; `replayed` when an earlier request made it."""

    transaction: Transaction
    replayed: bool


class Swept(msgspec.Struct, frozen=True, gc=False):
    """So many holds of the account were booked as expired."""

    expired: int


Outcome = Opened | Posted | Swept | Refusal


class KeyedTransaction(msgspec.Struct, frozen=True, gc=False):
    """A transaction with the hash of the idempotency key that made it.

    The hash is empty for an expiry, which nobody asked for.
    """

    key_hash: bytes
    transaction: Transaction


class Expiries(msgspec.Struct, frozen=True, gc=False):
    """The open holds of an account that are past their time, and when the next one will be."""

    due: Sequence[Hold]
    following: datetime | None


class Point(msgspec.Struct, frozen=True, gc=False):
    """A place in an account's chain: the state and the hash after so many transactions."""

    sequence: int
    balance: int
    reserved: int
    head_hash: bytes


class Tail(msgspec.Struct, frozen=True, gc=False):
    """Where an account's chain ends, None: it has no row; and what its open holds reserve."""

    last: Point | None
    held: int


class Loaded(msgspec.Struct, frozen=True, gc=False):
    """What one snapshot of the database says about a batch, and the database's clock.

    `kept` has the known keys of the batch with what they made; None: somebody took it away.
    `holds` and `refundables` are those that the batch names, `expiries` has every account whose
    `next_expiry` has come, `findings` what the frozen accounts were frozen for, `tails` the
    accounts whose freeze is to be lifted; these are in `expiries` too. `thresholds` has those of
    accounts that may have an alert to fire or to re-arm.
    """

    now: datetime
    accounts: dict[AccountId, Account]
    kept: Mapping[tuple[AccountId, bytes], Transaction | None]
    holds: dict[TransactionId, Hold] = {}
    expiries: dict[AccountId, Expiries] = {}
    refundables: dict[TransactionId, Refundable] = {}
    findings: dict[AccountId, tuple["Fault", ...]] = {}
    tails: dict[AccountId, Tail] = {}
    thresholds: dict[AccountId, tuple[Threshold, ...]] = {}


class Lifting(msgspec.Struct, frozen=True, gc=False):
    """A transaction that lifts a freeze, and what else that changes."""

    keyed: KeyedTransaction
    next_expiry: datetime | None
    actor: str


NO_ALERTS = AlertChanges()


class Plan(msgspec.Struct, frozen=True, gc=False):
    """What a batch does: one outcome per operation, in order, and the rows that make it true.

    `moved` holds the new state of each changed account, `expected` its version before, `opened` the
    new accounts, `holds` and `refunds` those that are new or changed; all in their final state.
    What is `lifted` comes before all else: `moved` says where its accounts stand after that.
    A plan with `unread` accounts must not be committed: it came near thresholds that were not read.
    """

    now: datetime
    outcomes: Sequence[Outcome]
    opened: Sequence[Account]
    moved: Sequence[Account]
    expected: Sequence[int]
    transactions: Sequence[KeyedTransaction]
    holds: Sequence[Hold] = ()
    refunds: Sequence[Refundable] = ()
    lifted: Sequence[Lifting] = ()
    alerts: AlertChanges = NO_ALERTS
    unread: Sequence[AccountId] = ()


class FaultKind(StrEnum):
    """What verification can find wrong with an account."""

    HASH = "hash"
    SEQUENCE = "sequence"
    BALANCE = "balance"
    HEAD = "head"
    HOLD = "hold"
    REFUND = "refund"
    ACCOUNT = "account"
    PARTITION = "partition"


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One place where the ledger does not hold together; `sequence` 0 is the account row itself.

    Without an account it is the ledger as a whole. `about` is the hold, or the transaction that was
    refunded, where it is one of these.
    """

    account_id: AccountId | None
    sequence: int
    fault: FaultKind
    detail: str
    about: TransactionId | None = None


class Freeze(msgspec.Struct, frozen=True, kw_only=True):
    """An account that is frozen, and why; `evidence` is a file, or there is a problem with it.

    Without a tenant the account is gone.
    """

    number: int
    account_id: AccountId
    tenant_id: TenantId | None
    frozen_at: datetime
    version: int
    faults: tuple[Fault, ...]
    evidence: str | None
    evidence_sha256: bytes | None
    evidence_problem: str | None


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """What was checked and found; sums are minor units over the accounts checked.

    `next` continues where this verification stopped, None at the end.
    """

    accounts: int
    transactions: int
    topped_up: int
    consumed: int
    balance: int
    faults: tuple[Fault, ...]
    more_faults: bool
    next: str | None
