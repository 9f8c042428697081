"""What the service says and is told, as msgspec structs: the client's half of the contract.

Not rules: nothing is checked here that the service decides. Unknown members are ignored, so that an
older client understands a newer service.
"""

from datetime import datetime
from typing import Literal

import msgspec


class Account(msgspec.Struct, frozen=True, gc=False):
    """An account; `available` is `balance - reserved`, all in minor units."""

    account_id: str
    tenant_id: str
    balance: int
    reserved: int
    available: int
    version: int
    head_hash: str
    created_at: datetime
    frozen_at: datetime | None = None


class Transaction(msgspec.Struct, frozen=True):
    """One immutable row of the ledger, with the balances after it."""

    transaction_id: str
    account_id: str
    kind: str
    amount: int
    balance: int
    reserved: int
    available: int
    sequence: int
    hash: str
    created_at: datetime
    description: str | None = None
    metadata: dict[str, object] | None = None
    hold_id: str | None = None
    refund_of: str | None = None
    freed: int | None = None
    expires_at: datetime | None = None
    payment: dict[str, object] | None = None


class Hold(msgspec.Struct, frozen=True):
    """Credits promised; `remaining` of `amount` is still reserved."""

    hold_id: str
    account_id: str
    state: str
    amount: int
    captured: int
    released: int
    remaining: int
    allowance: int
    overrun: int
    expires_at: datetime
    created_at: datetime


class HoldsPage(msgspec.Struct, frozen=True):
    """A page of open holds, oldest first; `next` is the cursor of the page after it."""

    items: tuple[Hold, ...]
    next: str | None = None


class Receipt(msgspec.Struct, frozen=True):
    """A money write's answer; `replayed` when the key had already had its effect."""

    transaction: Transaction
    replayed: bool


class Lifted(Transaction, frozen=True, kw_only=True):
    """The transaction that lifted a freeze, and the first of what still does not hold.

    Without faults, nobody looked: a verification was running.
    """

    faults: tuple["Fault", ...] | None = None


class LiftedReceipt(msgspec.Struct, frozen=True):
    """A lifting's answer, as `Receipt`."""

    transaction: Lifted
    replayed: bool


class Page(msgspec.Struct, frozen=True):
    """A page of the history, oldest first; `next` is the cursor of the page after it."""

    items: tuple[Transaction, ...]
    next: str | None = None


class Operation(msgspec.Struct, frozen=True, omit_defaults=True):
    """One operation of a batch."""

    op: Literal["open", "topup", "consume", "hold", "capture", "release", "extend", "refund"]
    account_id: str
    tenant_id: str | None = None
    idempotency_key: str | None = None
    amount: int | None = None
    description: str | None = None
    metadata: dict[str, object] | None = None
    payment: dict[str, object] | None = None
    up_to: bool | None = None
    expires_in_s: int | None = None
    allowance: int | None = None
    hold_id: str | None = None
    final: bool | None = None
    transaction_id: str | None = None


class Problem(msgspec.Struct, frozen=True):
    """The part of a problem document (RFC 9457) that a batch's caller decides by."""

    type: str
    title: str
    status: int
    detail: str = ""

    @property
    def name(self) -> str:
        """Return the short name: the last part of the type URI."""
        return self.type.rpartition(":")[2]


class BatchResult(msgspec.Struct, frozen=True):
    """What became of one operation of a batch."""

    status: int
    replayed: bool = False
    transaction: Transaction | None = None
    account: Account | None = None
    problem: Problem | None = None


class BatchAnswer(msgspec.Struct, frozen=True):
    """The results of a batch, in the order of its operations."""

    results: tuple[BatchResult, ...]


class Fault(msgspec.Struct, frozen=True):
    """One place where the ledger is not what it must be; without an account: as a whole.

    `about` is the hold, or the transaction that was refunded, where it is one of these.
    """

    account_id: str | None
    sequence: int
    fault: str
    detail: str
    about: str | None = None


class FrozenAccount(msgspec.Struct, frozen=True):
    """An account that takes no money operation, and what was found wrong with it.

    Without a tenant its row is gone.
    """

    account_id: str
    tenant_id: str | None
    frozen_at: datetime
    version: int
    faults: tuple[Fault, ...]
    evidence: str | None = None
    evidence_sha256: str | None = None
    evidence_problem: str | None = None


class FrozenPage(msgspec.Struct, frozen=True):
    """A page of frozen accounts, the longest frozen first; `next` is the page after it."""

    items: tuple[FrozenAccount, ...]
    next: str | None = None


class Verification(msgspec.Struct, frozen=True):
    """What `verify` looked at and found; `more_faults` when it stopped listing them.

    Sums are minor units over the accounts checked. `next` is where the following slice begins.
    """

    accounts: int
    transactions: int
    topped_up: int
    consumed: int
    balance: int
    faults: tuple[Fault, ...] = ()
    more_faults: bool = False
    next: str | None = None


class Key(msgspec.Struct, frozen=True):
    """An API key as it may be shown; `state` is active, grace, expired or revoked."""

    key_id: str
    name: str
    scopes: tuple[str, ...]
    state: str
    created_at: datetime
    tenant_id: str | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    replaced_by: str | None = None
    last_used_at: datetime | None = None


class IssuedKey(Key, frozen=True, kw_only=True):
    """A new key with its token, which is shown this once."""

    token: str

    def __repr__(self) -> str:
        return f"IssuedKey(key_id={self.key_id!r}, name={self.name!r})"


class KeyPage(msgspec.Struct, frozen=True):
    """A page of keys, oldest first; `next` is the cursor of the page after it."""

    items: tuple[Key, ...]
    next: str | None = None


class KeyEvent(msgspec.Struct, frozen=True):
    """Something that was done to a key, and the key after it; `actor` is a key's id or owner."""

    sequence: int
    created_at: datetime
    kind: str
    actor: str
    key_id: str
    name: str
    scopes: tuple[str, ...]
    tenant_id: str | None = None
    expires_at: datetime | None = None
    replaced_by: str | None = None


class KeyEventPage(msgspec.Struct, frozen=True):
    """A page of events, oldest first; `next` is the cursor of the page after it."""

    items: tuple[KeyEvent, ...]
    next: str | None = None
