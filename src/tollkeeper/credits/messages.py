"""What goes over the wire: the bodies that the ledger takes, and its values as it shows them.

What a body must be is said once, here: the structs decode the bodies, and the OpenAPI document is
made from the same structs. Not the routes (`api.py`), nor rules that need an account
(`planner.py`). Pure.
"""

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from tollkeeper.credits import requests
from tollkeeper.credits.model import (
    BATCH_LIMIT,
    HOLD_DEFAULT_S,
    HOLD_MAX_S,
    Account,
    Fault,
    Hold,
    HoldState,
    Kind,
    Transaction,
)
from tollkeeper.kernel.amounts import MAX_AMOUNT_MINOR

_PLAIN_KINDS = (Kind.CONSUME, Kind.TOPUP, Kind.UNFREEZE)

AccountIdText = Annotated[
    str, Meta(pattern=requests.ID_PATTERN, description=requests.ID_RULE, examples=["acme-prod"])
]
TenantIdText = Annotated[
    str, Meta(pattern=requests.ID_PATTERN, description=requests.ID_RULE, examples=["acme"])
]
KeyText = Annotated[
    str,
    Meta(
        pattern=requests.KEY_PATTERN,
        description="1 to 255 visible ASCII characters; a UUIDv7 is best",
        examples=["order-2041"],
    ),
]
Amount = Annotated[int, Meta(ge=1, le=MAX_AMOUNT_MINOR, description="minor units", examples=[250])]
Description = Annotated[
    str | None,
    Meta(
        description=f"1 to {requests.DESCRIPTION_LIMIT} characters, kept for ever; "
        "card numbers in it are masked"
    ),
]
AnyValue = Annotated[object, Meta(extra_json_schema={"description": "any JSON value"})]
Metadata = Annotated[
    dict[str, AnyValue] | None,
    Meta(
        description=f"any JSON members; at most {requests.METADATA_LIMIT_BYTES:,} bytes and "
        f"{requests.METADATA_DEPTH_LIMIT} levels, kept for ever; payment data in it is masked"
    ),
]
Payment = Annotated[
    dict[str, AnyValue] | None,
    Meta(
        description="how it was paid: any JSON members, within the limits of `metadata`. Of a card "
        "number the last four digits are kept, of a holder's name two letters, of a CVV, a PIN or "
        "track data nothing"
    ),
]

UpTo = Annotated[bool, Meta(description="take what is available when it is less than the amount")]
ExpiresIn = Annotated[
    int, Meta(ge=1, le=HOLD_MAX_S, description="seconds from now until it expires", examples=[600])
]
Allowance = Annotated[
    int,
    Meta(ge=0, le=MAX_AMOUNT_MINOR, description="minor units that may be captured above the hold"),
]
Final = Annotated[bool, Meta(description="give back what is left after it")]
IdText = Annotated[
    str,
    Meta(
        pattern=requests.UUID7_PATTERN,
        description="UUIDv7, as the ledger gave it",
        examples=["01978a3c-5f00-7abc-8def-0123456789ab"],
    ),
]

MinorUnits = Annotated[int, Meta(description="minor units")]
Hash = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", description="SHA-256, hexadecimal")]
Moment = Annotated[
    str, Meta(description="UTC, RFC 3339", extra_json_schema={"format": "date-time"})
]
FrozenAt = Annotated[
    str | None,
    Meta(description="since when nothing moves: UTC, RFC 3339; null: the account is not frozen"),
]
TransactionIdText = Annotated[str, Meta(description="UUIDv7", extra_json_schema={"format": "uuid"})]
ProblemDocument = Annotated[
    dict[str, AnyValue],
    Meta(description="the problem document (RFC 9457) that it would have answered alone"),
]
ExactDescription = Annotated[str | None, Meta(description="as it came, masked; null if none did")]
ExactMetadata = Annotated[
    msgspec.Raw | None,
    Meta(
        description="as it came, masked, members sorted; null if none did",
        extra_json_schema={"anyOf": [{"type": "object"}, {"type": "null"}]},
    ),
]


class OpenAccountBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """An account to open, and the tenant it is for."""

    account_id: AccountIdText
    tenant_id: TenantIdText


class MovementBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """How much, and what for."""

    amount: Amount
    description: Description = None
    metadata: Metadata = None


class TopupBody(MovementBody, forbid_unknown_fields=True, omit_defaults=True):
    """How much, what for, and how it was paid."""

    payment: Payment = None


class ConsumptionBody(MovementBody, forbid_unknown_fields=True, omit_defaults=True):
    """How much, what for, and whether less will do."""

    up_to: UpTo = False


class HoldBody(MovementBody, forbid_unknown_fields=True, omit_defaults=True):
    """How much to hold, how long, and how much may be captured above it."""

    expires_in_s: ExpiresIn = HOLD_DEFAULT_S
    allowance: Allowance = 0


class CaptureBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """How much to take of a hold; without an amount all that is left."""

    amount: Amount | None = None
    final: Final = False
    description: Description = None
    metadata: Metadata = None


class ReleaseBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Give back what is left of a hold."""

    description: Description = None
    metadata: Metadata = None


class ExtendBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Hold more, or longer, or both."""

    amount: Amount | None = None
    expires_in_s: ExpiresIn | None = None
    description: Description = None
    metadata: Metadata = None


class RefundBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """How much to give back; without an amount all that was not given back yet."""

    amount: Amount | None = None
    description: Description = None
    metadata: Metadata = None


class OpenItem(
    msgspec.Struct, forbid_unknown_fields=True, tag_field="op", tag="open", omit_defaults=True
):
    """An operation of a batch: open an account."""

    account_id: AccountIdText
    tenant_id: TenantIdText


class _MovementItem(msgspec.Struct, forbid_unknown_fields=True, tag_field="op", omit_defaults=True):
    account_id: AccountIdText
    idempotency_key: KeyText
    amount: Amount
    description: Description = None
    metadata: Metadata = None


class TopupItem(_MovementItem, tag="topup"):
    """An operation of a batch: top up."""

    payment: Payment = None


class ConsumeItem(_MovementItem, tag="consume"):
    """An operation of a batch: consume."""

    up_to: UpTo = False


class HoldItem(_MovementItem, tag="hold"):
    """An operation of a batch: hold."""

    expires_in_s: ExpiresIn = HOLD_DEFAULT_S
    allowance: Allowance = 0


class _WriteItem(
    msgspec.Struct, forbid_unknown_fields=True, tag_field="op", kw_only=True, omit_defaults=True
):
    account_id: AccountIdText
    idempotency_key: KeyText
    description: Description = None
    metadata: Metadata = None


class CaptureItem(_WriteItem, tag="capture", kw_only=True):
    """An operation of a batch: capture."""

    hold_id: IdText
    amount: Amount | None = None
    final: Final = False


class ReleaseItem(_WriteItem, tag="release", kw_only=True):
    """An operation of a batch: release."""

    hold_id: IdText


class ExtendItem(_WriteItem, tag="extend", kw_only=True):
    """An operation of a batch: extend."""

    hold_id: IdText
    amount: Amount | None = None
    expires_in_s: ExpiresIn | None = None


class RefundItem(_WriteItem, tag="refund", kw_only=True):
    """An operation of a batch: refund."""

    transaction_id: IdText
    amount: Amount | None = None


HoldishItem = HoldItem | CaptureItem | ReleaseItem | ExtendItem | RefundItem
Item = OpenItem | TopupItem | ConsumeItem | HoldishItem


class BatchBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Independent operations, decided in this order."""

    operations: Annotated[list[Item], Meta(min_length=1, max_length=BATCH_LIMIT)]


class VerifyBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Verify one account, or a slice of all behind the cursor `after`."""

    account_id: AccountIdText | None = None
    after: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(description="`next` of the slice before; null: from the start"),
    ] = None


class AccountView(msgspec.Struct):
    """An account as it stands."""

    account_id: str
    tenant_id: str
    balance: Annotated[int, Meta(description="all its credits, in minor units")]
    reserved: Annotated[int, Meta(description="promised and not yet spent, in minor units")]
    available: Annotated[int, Meta(description="what may be spent: `balance - reserved`")]
    version: Annotated[int, Meta(description="`sequence` of its last transaction, 0 before any")]
    head_hash: Annotated[Hash, Meta(description="`hash` of its last transaction")]
    created_at: Moment
    frozen_at: FrozenAt


class TransactionView(msgspec.Struct):
    """A transaction; `balance`, `reserved`, `available` are the state after it."""

    transaction_id: TransactionIdText
    account_id: str
    kind: Kind
    amount: MinorUnits
    balance: MinorUnits
    reserved: MinorUnits
    available: MinorUnits
    sequence: Annotated[int, Meta(description="its number in the account: 1, 2, 3 ...")]
    hash: Annotated[Hash, Meta(description="SHA-256 over this transaction and the hash before it")]
    created_at: Moment
    description: ExactDescription
    metadata: ExactMetadata
    payment: ExactMetadata


class TermsView(TransactionView):
    """A transaction with what holds and refunds say beyond their amount."""

    hold_id: Annotated[str | None, Meta(description="the hold it made or changed")]
    refund_of: Annotated[str | None, Meta(description="the transaction it refunds")]
    freed: Annotated[int | None, Meta(description="how much less is reserved since")]
    expires_at: Annotated[str | None, Meta(description="until when the hold lasts: UTC, RFC 3339")]


class HoldView(msgspec.Struct):
    """A hold as it stands; an open one whose time is over is shown as expired."""

    hold_id: TransactionIdText
    account_id: str
    state: HoldState
    amount: Annotated[int, Meta(description="what was reserved, extensions included")]
    captured: Annotated[int, Meta(description="taken of it")]
    released: Annotated[int, Meta(description="given back unused")]
    remaining: Annotated[int, Meta(description="still reserved")]
    allowance: Annotated[int, Meta(description="how much may be captured above it")]
    overrun: Annotated[int, Meta(description="taken above it")]
    expires_at: Moment
    created_at: Moment


class HoldsPage(msgspec.Struct):
    """Open holds, oldest first; `next` is null on the last page."""

    items: list[HoldView]
    next: Annotated[str | None, Meta(description="send it as `after` for the next page")]


class HistoryPage(msgspec.Struct):
    """Transactions, oldest first; `next` is null on the last page."""

    items: list[TermsView]
    next: Annotated[str | None, Meta(description="send it as `after` for the next page")]


class BatchResult(msgspec.Struct, omit_defaults=True):
    """What became of one operation; of the last three members it has exactly one."""

    status: Annotated[int, Meta(description="what the operation would have answered alone")]
    replayed: Annotated[bool, Meta(description="true: answered as the first time")] = False
    transaction: (
        Annotated[TransactionView, Meta(description="with the members that its own route adds")]
        | msgspec.UnsetType
    ) = msgspec.UNSET
    account: AccountView | msgspec.UnsetType = msgspec.UNSET
    problem: ProblemDocument | msgspec.UnsetType = msgspec.UNSET


class BatchAnswer(msgspec.Struct):
    """One result per operation, in order."""

    results: list[BatchResult]


class VerificationView(msgspec.Struct):
    """What was checked and found; no faults means that the ledger holds together."""

    accounts: int
    transactions: int
    topped_up: MinorUnits
    consumed: MinorUnits
    balance: MinorUnits
    faults: tuple[Fault, ...]
    more_faults: Annotated[bool, Meta(description="there are more than are listed")]
    next: Annotated[str | None, Meta(description="send it as `after` for the next slice")]


def account_view(account: Account) -> AccountView:
    """Return an account as the API shows it."""
    return AccountView(
        account_id=account.account_id, tenant_id=account.tenant_id, balance=account.balance,
        reserved=account.reserved, available=account.available, version=account.version,
        head_hash=account.head_hash.hex(), created_at=iso(account.created_at),
        frozen_at=None if account.frozen_at is None else iso(account.frozen_at),
    )  # fmt: skip


def transaction_view(transaction: Transaction) -> TransactionView:
    """Return a transaction as the answer to a plain money write shows it."""
    return TransactionView(
        transaction_id=str(transaction.transaction_id), account_id=transaction.account_id,
        kind=transaction.kind, amount=transaction.amount, balance=transaction.balance,
        reserved=transaction.reserved, available=transaction.balance - transaction.reserved,
        sequence=transaction.sequence, hash=transaction.hash.hex(),
        created_at=iso(transaction.created_at), description=transaction.description,
        metadata=_raw(transaction.metadata), payment=_raw(transaction.payment),
    )  # fmt: skip


def terms_view(transaction: Transaction) -> TermsView:
    """Return a transaction as a history shows it, and the answer to a hold or a refund."""
    view = transaction_view(transaction)
    reference, expires_at = transaction.reference_id, transaction.expires_at
    is_refund = transaction.kind is Kind.REFUND
    opened = transaction.transaction_id if transaction.kind is Kind.HOLD else None
    hold_id = opened if is_refund else reference or opened
    return TermsView(
        **{name: getattr(view, name) for name in TransactionView.__struct_fields__},
        hold_id=None if hold_id is None else str(hold_id),
        refund_of=str(reference) if is_refund else None,
        freed=transaction.freed,
        expires_at=None if expires_at is None else iso(expires_at),
    )


def answer_view(transaction: Transaction) -> TransactionView:
    """Return a transaction as the answer to the write that made it shows it."""
    if transaction.kind in _PLAIN_KINDS:
        return transaction_view(transaction)
    return terms_view(transaction)


def hold_view(hold: Hold, now: datetime) -> HoldView:
    """Return a hold as the API shows it at `now`."""
    is_over = hold.state is HoldState.OPEN and hold.expires_at <= now
    return HoldView(
        hold_id=str(hold.hold_id), account_id=hold.account_id,
        state=HoldState.EXPIRED if is_over else hold.state, amount=hold.amount,
        captured=hold.captured, released=hold.released + (hold.remaining if is_over else 0),
        remaining=0 if is_over else hold.remaining, allowance=hold.allowance,
        overrun=hold.overrun, expires_at=iso(hold.expires_at), created_at=iso(hold.created_at),
    )  # fmt: skip


def _raw(text: str | None) -> msgspec.Raw | None:
    return None if text is None else msgspec.Raw(text.encode())


def iso(moment: datetime) -> str:
    """Return a moment as RFC 3339 in UTC, to the microsecond."""
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
