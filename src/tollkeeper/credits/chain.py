"""The hash chain: canonical bytes of a transaction, its link to the one before, and verification.

One chain per account; its first link hangs on the account's genesis, which binds account and
tenant. A hash is SHA-256 over the version byte, the previous hash, and the length-prefixed fields,
so no two different rows have the same bytes. Pure: anyone with the rows can recompute it.
"""

import hashlib
import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from tollkeeper.credits.model import Account, Fault, FaultKind, Kind, Point, Transaction
from tollkeeper.kernel.ids import AccountId, TenantId, shard_of

CHAIN_VERSION = 1
"""First byte of everything hashed; a new way to hash gets a new number."""

HASH_BYTES = 32

FIELD_NAMES = (
    "transaction_id", "amount", "balance", "reserved", "sequence", "created_at_us", "fingerprint",
    "account_id", "kind", "description", "metadata_sha256",
)  # fmt: skip
"""What is hashed of a transaction, in order, after version byte and previous hash."""

TERM_NAMES = ("reference_id", "freed", "expires_at_us", "allowance", "payment_sha256")
"""What follows when the transaction says more than its amount."""

MISSING = -(2**63)
"""What stands for a number that an account's row does not have; a text is empty then."""

_RESERVING = frozenset((Kind.HOLD, Kind.EXTEND))
_NO_HASH = bytes(HASH_BYTES)
_VERSION_BYTE = bytes((CHAIN_VERSION,))
_ABSENT = b"\xff\xff\xff\xff"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_LENGTH = struct.Struct(">I")
_NUMBER = struct.Struct(">Iq")
_GENESIS = struct.Struct(">BII")

# version byte, previous hash, then (length, value) of: id, amount, balance, reserved, sequence,
# created_at in µs, request fingerprint.
_FIXED = struct.Struct(">B32s I16s Iq Iq Iq Iq Iq I32s")


def _sha256(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()


def microseconds_since_epoch(moment: datetime) -> int:
    """Return whole microseconds since 1970, PostgreSQL's resolution."""
    return (moment - _EPOCH) // _MICROSECOND


def genesis(account_id: AccountId, tenant_id: TenantId) -> bytes:
    """Return the hash an account's chain begins with."""
    account, tenant = account_id.encode(), tenant_id.encode()
    head = _GENESIS.pack(CHAIN_VERSION, len(account), len(tenant))
    return hashlib.sha256(head + account + tenant).digest()


def link(  # noqa: PLR0913, PLR0917  # the hot path: one flat call with the fields in chain order
    previous: bytes,
    transaction_id: bytes,
    amount: int,
    balance: int,
    reserved: int,
    sequence: int,
    created_us: int,
    fingerprint: bytes,
    account_id: AccountId,
    kind: Kind,
    description: str | None,
    metadata: str | None,
    terms: bytes = b"",
    digest: Callable[[bytes], bytes] = _sha256,
) -> bytes:
    """Return the hash of a transaction from its fields and the hash before it.

    Shapes: `previous` and `fingerprint` 32 bytes, `transaction_id` 16; `created_us` is µs since
    1970; `terms` from `terms_of`. With `bytes` as the `digest`: what is hashed.
    """
    fixed = _FIXED.pack(
        CHAIN_VERSION, previous, 16, transaction_id, 8, amount, 8, balance, 8, reserved,
        8, sequence, 8, created_us, 32, fingerprint,
    )  # fmt: skip
    account, kind_bytes = account_id.encode(), kind.encode()
    tail = (
        _LENGTH.pack(len(account)) + account + _LENGTH.pack(len(kind_bytes)) + kind_bytes
        + (_ABSENT if description is None else _prefixed(description.encode()))
        + (_ABSENT if metadata is None else _prefixed(hashlib.sha256(metadata.encode()).digest()))
        + terms
    )  # fmt: skip
    return digest(fixed + tail)


def terms_of(  # noqa: PLR0917  # the hot path: one flat call
    reference_id: bytes | None,
    freed: int | None,
    expires_at: datetime | None,
    allowance: int | None,
    payment: str | None,
) -> bytes:
    """Return the bytes of what a transaction says beyond its amount; none when it says nothing.

    All five are there or none, each with its length, so no two different rows have equal bytes.
    """
    if (
        reference_id is None
        and freed is None
        and expires_at is None
        and allowance is None
        and payment is None
    ):
        return b""
    return (
        (_ABSENT if reference_id is None else _prefixed(reference_id))
        + (_ABSENT if freed is None else _NUMBER.pack(8, freed))
        + (_ABSENT if expires_at is None else _NUMBER.pack(8, microseconds_since_epoch(expires_at)))
        + (_ABSENT if allowance is None else _NUMBER.pack(8, allowance))
        + (_ABSENT if payment is None else _prefixed(hashlib.sha256(payment.encode()).digest()))
    )


def link_of(
    previous: bytes, transaction: Transaction, digest: Callable[[bytes], bytes] = _sha256
) -> bytes:
    """Return the hash `transaction` must have when it follows `previous`."""
    return link(
        previous,
        transaction.transaction_id.bytes,
        transaction.amount,
        transaction.balance,
        transaction.reserved,
        transaction.sequence,
        microseconds_since_epoch(transaction.created_at),
        transaction.fingerprint,
        transaction.account_id,
        transaction.kind,
        transaction.description,
        transaction.metadata,
        terms_of(
            None if transaction.reference_id is None else transaction.reference_id.bytes,
            transaction.freed,
            transaction.expires_at,
            transaction.allowance,
            transaction.payment,
        ),
        digest,
    )


def unlinked(transaction: Transaction) -> bytes:
    """Return what is hashed of a transaction, without the hash before it: version byte, fields."""
    hashed = link_of(_NO_HASH, transaction, bytes)
    return hashed[:1] + hashed[1 + HASH_BYTES :]


def fields_of(unlinked_transaction: bytes) -> tuple[tuple[str, bytes | None], ...]:
    """Return the canonical fields of what `unlinked` returned, by name; None: absent."""
    values: list[bytes | None] = []
    place = 1
    while place < len(unlinked_transaction):
        start = place + _LENGTH.size
        if unlinked_transaction[place:start] == _ABSENT:
            values.append(None)
            place = start
            continue
        place = start + _LENGTH.unpack(unlinked_transaction[place:start])[0]
        values.append(unlinked_transaction[start:place])
    # Terms are all there or none.
    names = (*FIELD_NAMES, *TERM_NAMES) if len(values) > len(FIELD_NAMES) else FIELD_NAMES
    return tuple(zip(names, values, strict=True))


def row_faults(account: Account) -> list[Fault]:
    """Return what is wrong with an account's own row, whatever its chain says."""
    found = []
    if account.shard != shard_of(account.account_id):
        found.append(f"the account is in shard {account.shard}, where nothing looks for it")
    numbers = (account.balance, account.reserved, account.version)
    if not account.tenant_id or not account.head_hash or MISSING in numbers:
        found.append("a value of the account is missing")
    # Infinity, and what no calendar has, comes without a time zone.
    moments = (account.created_at, account.next_expiry, account.frozen_at)
    if any(moment is not None and moment.tzinfo is None for moment in moments):
        found.append("a time of the account is none")
    return [
        Fault(account_id=account.account_id, sequence=0, fault=FaultKind.ACCOUNT, detail=detail)
        for detail in found
    ]


class AccountVerifier:
    """Checks one account: feed its transactions in order of sequence, then `finish`.

    With a `start`, which was found right before, only the transactions behind it are fed.

    Every fault names the row where it was found. After a broken hash the check goes on from the
    hash that is stored, so one edited row is one fault and not a thousand. `consumed` is what was
    taken by consumptions and captures, less what was refunded; `has_side_rows` says that there were
    transactions that holds or refunds must agree with.
    """

    __slots__ = (
        "_account", "_balance", "_head", "_reserved", "_sequence", "consumed", "faults",
        "has_side_rows", "topped_up",
    )  # fmt: skip

    def __init__(self, account: Account, start: Point | None = None) -> None:
        self._account = account
        self._head = genesis(account.account_id, account.tenant_id)
        self._sequence = 0
        self._balance = 0
        self._reserved = 0
        if start is not None:
            self._head, self._sequence = start.head_hash, start.sequence
            self._balance, self._reserved = start.balance, start.reserved
        self.topped_up = 0
        self.consumed = 0
        self.has_side_rows = False
        self.faults: list[Fault] = []

    def feed(self, transaction: Transaction) -> None:
        """Check the next transaction against the ones before it."""
        self.check(
            transaction.hash, transaction.sequence, transaction.kind, transaction.amount,
            transaction.balance, transaction.reserved, transaction.freed or 0,
            unlinked(transaction)[1:],
        )  # fmt: skip

    def check(  # noqa: PLR0917  # one flat call for every row of a ledger
        self,
        stored: bytes,
        sequence: int,
        kind: Kind | None,
        amount: int,
        balance: int,
        reserved: int,
        freed: int,
        fields: bytes,
    ) -> None:
        """Check the next row: its stored hash, what it says, and its canonical fields in order.

        `kind` None: it says none that the ledger has.
        """
        if sequence != self._sequence + 1:
            self._report(
                sequence, FaultKind.SEQUENCE,
                f"expected sequence {self._sequence + 1}: rows are missing, doubled or moved",
            )  # fmt: skip
        if kind is Kind.CONSUME:
            self.consumed += amount
            expected, expected_reserved = self._balance - amount, self._reserved
        elif kind is Kind.TOPUP:
            self.topped_up += amount
            expected, expected_reserved = self._balance + amount, self._reserved
        elif kind is Kind.UNFREEZE:
            expected, expected_reserved = self._balance, self._reserved
        else:
            expected, expected_reserved = self._after(kind, amount, freed)
        if (
            balance != expected
            or reserved != expected_reserved
            or not 0 <= reserved <= balance
            or amount < 0
            or freed < 0
            or kind is None
        ):
            self._report(
                sequence, FaultKind.BALANCE,
                f"balance {balance}, reserved {reserved}, not {expected}, {expected_reserved}",
            )  # fmt: skip
        if hashlib.sha256(_VERSION_BYTE + self._head + fields).digest() != stored:
            self._report(
                sequence, FaultKind.HASH,
                "the row does not have the hash it was written with, or the row before it changed",
            )  # fmt: skip
        self._sequence = sequence
        self._balance = balance
        self._reserved = reserved
        self._head = stored

    def _after(self, kind: Kind | None, amount: int, freed: int) -> tuple[int, int]:
        """Return what a transaction of the rarer kinds leaves: balance, reserved."""
        balance, reserved = self._balance, self._reserved
        self.has_side_rows = True
        if kind is Kind.CAPTURE:
            self.consumed += amount
            balance -= amount
        elif kind is Kind.REFUND:
            self.consumed -= amount
            balance += amount
        elif kind in _RESERVING:
            reserved += amount
        return balance, reserved - freed

    @property
    def point(self) -> Point:
        """Where the transactions fed so far end, as it is stored."""
        return Point(self._sequence, self._balance, self._reserved, self._head)

    def finish(self) -> None:
        """Check the account row against its last transaction."""
        account = self._account
        if account.version != self._sequence:
            self._report(
                0, FaultKind.SEQUENCE,
                f"the account is at {account.version}, its last transaction is {self._sequence}",
            )  # fmt: skip
        if account.balance != self._balance or account.reserved != self._reserved:
            self._report(
                0, FaultKind.BALANCE,
                f"the account has {account.balance}, reserved {account.reserved}; its transactions "
                f"end at {self._balance}, reserved {self._reserved}",
            )  # fmt: skip
        if account.head_hash != self._head:
            self._report(
                0, FaultKind.HEAD, "the account's head is not the hash of its last transaction"
            )
        self.faults += row_faults(account)

    def _report(self, sequence: int, fault: FaultKind, detail: str) -> None:
        self.faults.append(
            Fault(
                account_id=self._account.account_id, sequence=sequence, fault=fault, detail=detail
            )
        )


def _prefixed(value: bytes) -> bytes:
    return _LENGTH.pack(len(value)) + value
