"""The ledger's values: accounts, operations, transactions, outcomes; amounts in minor units.

The values of the hot path are `msgspec.Struct`s and not frozen dataclasses: making one with 13
fields takes 0.19 µs against 2.06 µs (CPython 3.11), and two are made for every operation.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum

import msgspec

from tollkeeper.credits.errors import Refusal
from tollkeeper.kernel.ids import AccountId, TenantId, TransactionId

KEY_LIFETIME = timedelta(hours=24)
"""An idempotency key is honoured this long (SPEC C3)."""

KEY_RETENTION = timedelta(hours=25)
"""Keys are stored and looked up this long: lifetime plus an hour of clock difference."""

KEY_CLOCK_SKEW = timedelta(hours=1)
"""A UUIDv7 key may be dated this far in the future."""

BATCH_LIMIT = 10_000
"""Most operations in one `/v1/batch` request (DESIGN section 3)."""


class Kind(StrEnum):
    """What a transaction did to its account."""

    TOPUP = "topup"
    CONSUME = "consume"


class Account(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An account as of its transaction `version`; `head_hash` is that transaction's hash."""

    account_id: AccountId
    tenant_id: TenantId
    shard: int
    balance: int
    reserved: int
    version: int
    head_hash: bytes
    created_at: datetime

    @property
    def available(self) -> int:
        """What may be spent, in minor units."""
        return self.balance - self.reserved


class Transaction(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One immutable row of the ledger; `balance` and `reserved` are the state after it."""

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


class OpenAccount(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Open an account. Opening it again for the same tenant changes nothing."""

    account_id: AccountId
    shard: int
    tenant_id: TenantId


class Movement(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Top up or consume `amount` minor units, once per idempotency key.

    `key_hash` is SHA-256 of the key, `key_ms` the time inside a UUIDv7 key, `fingerprint` SHA-256
    of the request, `entropy` the random bits of the id its transaction will have. `tenant_id` is
    the tenant the caller is bound to, if any. `metadata` and `payment` are canonical JSON; they and
    the description are masked already.
    """

    kind: Kind
    account_id: AccountId
    shard: int
    tenant_id: TenantId | None
    amount: int
    key_hash: bytes
    key_ms: int | None
    fingerprint: bytes
    entropy: int
    description: str | None
    metadata: str | None
    payment: str | None = None


Operation = OpenAccount | Movement


class Opened(msgspec.Struct, frozen=True, gc=False):
    """The account is open; `created` when this operation opened it."""

    account: Account
    created: bool


class Posted(msgspec.Struct, frozen=True, gc=False):
    """The transaction stands in the ledger; `replayed` when an earlier request made it."""

    transaction: Transaction
    replayed: bool


Outcome = Opened | Posted | Refusal


class KeyedTransaction(msgspec.Struct, frozen=True, gc=False):
    """A transaction with the hash of the idempotency key that made it."""

    key_hash: bytes
    transaction: Transaction


class Loaded(msgspec.Struct, frozen=True, gc=False):
    """What one snapshot of the database says about a batch, and the database's clock."""

    now: datetime
    accounts: dict[AccountId, Account]
    kept: dict[tuple[AccountId, bytes], Transaction]


class Plan(msgspec.Struct, frozen=True, gc=False):
    """What a batch does: one outcome per operation, in order, and the rows that make it true.

    `moved` holds the new state of each changed account, `expected` its version before, `opened` the
    new accounts in their final state.
    """

    now: datetime
    outcomes: Sequence[Outcome]
    opened: Sequence[Account]
    moved: Sequence[Account]
    expected: Sequence[int]
    transactions: Sequence[KeyedTransaction]


class FaultKind(StrEnum):
    """What verification can find wrong with an account."""

    HASH = "hash"
    SEQUENCE = "sequence"
    BALANCE = "balance"
    HEAD = "head"


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One place where the ledger does not hold together; `sequence` 0 is the account row itself."""

    account_id: AccountId
    sequence: int
    fault: FaultKind
    detail: str


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
