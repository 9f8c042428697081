"""What goes over the wire: the bodies that the ledger takes, and its values as it shows them.

What a body must be is said once, here: the structs decode the bodies, and the OpenAPI document is
made from the same structs. Not the routes (`api.py`), nor rules that need an account
(`planner.py`). Pure.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from tollkeeper.credits import requests
from tollkeeper.credits.model import BATCH_LIMIT, Account, Fault, Kind, Transaction
from tollkeeper.kernel.amounts import MAX_AMOUNT_MINOR

ID_RULE = "1 to 128 letters, digits or `._~:@!$&'()*+,;=|-`; a letter or digit first"

AccountIdText = Annotated[
    str, Meta(pattern=requests.ID_PATTERN, description=ID_RULE, examples=["acme-prod"])
]
TenantIdText = Annotated[
    str, Meta(pattern=requests.ID_PATTERN, description=ID_RULE, examples=["acme"])
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

MinorUnits = Annotated[int, Meta(description="minor units")]
Hash = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", description="SHA-256, hexadecimal")]
Moment = Annotated[
    str, Meta(description="UTC, RFC 3339", extra_json_schema={"format": "date-time"})
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


class OpenAccountBody(msgspec.Struct, forbid_unknown_fields=True):
    """An account to open, and the tenant it is for."""

    account_id: AccountIdText
    tenant_id: TenantIdText


class MovementBody(msgspec.Struct, forbid_unknown_fields=True):
    """How much, and what for."""

    amount: Amount
    description: Description = None
    metadata: Metadata = None


class TopupBody(MovementBody, forbid_unknown_fields=True):
    """How much, what for, and how it was paid."""

    payment: Payment = None


class OpenItem(msgspec.Struct, forbid_unknown_fields=True, tag_field="op", tag="open"):
    """An operation of a batch: open an account."""

    account_id: AccountIdText
    tenant_id: TenantIdText


class _MovementItem(msgspec.Struct, forbid_unknown_fields=True, tag_field="op"):
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


class BatchBody(msgspec.Struct, forbid_unknown_fields=True):
    """Independent operations, decided in this order."""

    operations: Annotated[
        list[OpenItem | TopupItem | ConsumeItem], Meta(min_length=1, max_length=BATCH_LIMIT)
    ]


class VerifyBody(msgspec.Struct, forbid_unknown_fields=True):
    """Verify one account, or a slice of all behind the cursor `after`."""

    account_id: AccountIdText | None = None
    after: Annotated[
        AccountIdText | None, Meta(description="`next` of the slice before; null: from the start")
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


class HistoryItem(TransactionView):
    """A transaction as a history shows it."""

    description: ExactDescription
    metadata: ExactMetadata


class HistoryPage(msgspec.Struct):
    """Transactions, oldest first; `next` is null on the last page."""

    items: list[HistoryItem]
    next: Annotated[str | None, Meta(description="send it as `after` for the next page")]


class BatchResult(msgspec.Struct, omit_defaults=True):
    """What became of one operation; of the last three members it has exactly one."""

    status: Annotated[int, Meta(description="what the operation would have answered alone")]
    replayed: Annotated[bool, Meta(description="true: answered as the first time")] = False
    transaction: TransactionView | msgspec.UnsetType = msgspec.UNSET
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
        head_hash=account.head_hash.hex(), created_at=_iso(account),
    )  # fmt: skip


def transaction_view(transaction: Transaction) -> TransactionView:
    """Return a transaction as the answer to a money write shows it."""
    return TransactionView(
        transaction_id=str(transaction.transaction_id), account_id=transaction.account_id,
        kind=transaction.kind, amount=transaction.amount, balance=transaction.balance,
        reserved=transaction.reserved, available=transaction.balance - transaction.reserved,
        sequence=transaction.sequence, hash=transaction.hash.hex(), created_at=_iso(transaction),
    )  # fmt: skip


def history_item(transaction: Transaction) -> HistoryItem:
    """Return a transaction as a history shows it."""
    view = transaction_view(transaction)
    metadata = transaction.metadata
    return HistoryItem(
        **{name: getattr(view, name) for name in TransactionView.__struct_fields__},
        description=transaction.description,
        metadata=None if metadata is None else msgspec.Raw(metadata.encode()),
    )


def _iso(value: Account | Transaction) -> str:
    return value.created_at.isoformat(timespec="microseconds").replace("+00:00", "Z")
