"""From a caller's words to operations: text rules, masking, canonical JSON, fingerprint, key hash.

Card numbers and what goes with them are masked here, before anything is made of a request: no
operation, fingerprint or hash has ever seen them. Pure.
"""

import hashlib
import re
import struct
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypedDict
from uuid import UUID

import msgspec

from tollkeeper.credits.errors import FieldProblem, InvalidRequest
from tollkeeper.credits.masking import mask_document, mask_payment, mask_text, may_hold_payment
from tollkeeper.credits.model import (
    HOLD_DEFAULT_S,
    Capture,
    Extend,
    Kind,
    Movement,
    OpenAccount,
    Refund,
    Release,
    Reserve,
    Unfreeze,
)
from tollkeeper.kernel.ids import AccountId, TenantId, TransactionId, shard_of, uuid7_milliseconds
from tollkeeper.telemetry.cards import holds_card

ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._~:@!$&'()*+,;=|-]{0,127}(?![\s\S])"
"""Ids of accounts and tenants: they stand in a URL's path as they are. The end is written as a
lookahead because `$` would let a final newline pass."""

ID_RULE = "1 to 128 letters, digits or `._~:@!$&'()*+,;=|-`; a letter or digit first"

KEY_PATTERN = r"^[\x21-\x7e]{1,255}(?![\s\S])"
"""Idempotency keys: what an HTTP header can carry."""

_HEX = "[0-9a-fA-F]"
UUID7_PATTERN = rf"^{_HEX}{{8}}-{_HEX}{{4}}-7{_HEX}{{3}}-[89abAB]{_HEX}{{3}}-{_HEX}{{12}}(?![\s\S])"
"""Ids of transactions and holds, as the ledger writes them."""

DESCRIPTION_LIMIT = 500
"""Characters in a description."""

METADATA_LIMIT_BYTES = 4_096
"""Bytes of an operation's metadata, and of its payment, as canonical JSON."""

METADATA_DEPTH_LIMIT = 8
"""Levels of nesting in metadata and in a payment, the outermost object included."""

_ID = re.compile(ID_PATTERN)
_ESCAPED_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")  # not the text of a backslash and u0000
_FINGERPRINT = struct.Struct(">BqII")
_LENGTH = struct.Struct(">I")
_ABSENT = 0xFFFFFFFF
_ENCODER = msgspec.json.Encoder(order="sorted")
_KIND_CODES = {
    Kind.TOPUP: 1, Kind.CONSUME: 2, Kind.HOLD: 3, Kind.CAPTURE: 4, Kind.RELEASE: 5, Kind.EXTEND: 6,
    Kind.REFUND: 7, Kind.UNFREEZE: 9,
}  # fmt: skip
_UP_TO_CODE = 8


def account_id_of(text: str) -> AccountId:
    """Return the account id in a URL's path.

    Raises:
        InvalidRequest: it is not an id.
    """
    if _ID.match(text) is None:
        raise invalid("account_id", f"must be {ID_RULE}")
    _refuse_card("account_id", text)
    return AccountId(text)


def tenant_id_of(text: str) -> TenantId:
    """Return the tenant id in a URL.

    Raises:
        InvalidRequest: it is not an id.
    """
    if _ID.match(text) is None:
        raise invalid("tenant_id", f"must be {ID_RULE}")
    _refuse_card("tenant_id", text)
    return TenantId(text)


def open_account(account_id: str, tenant_id: str, place: str = "") -> OpenAccount:
    """Return the operation that opens an account; both ids match `ID_PATTERN`.

    Raises:
        InvalidRequest: an id is a card number.
    """
    _refuse_card(f"{place}account_id", account_id)
    _refuse_card(f"{place}tenant_id", tenant_id)
    return OpenAccount(
        account_id=AccountId(account_id), shard=shard_of(account_id), tenant_id=TenantId(tenant_id)
    )


def movement(  # noqa: PLR0913  # keyword-only: one call per request, each field is the request's own
    *,
    kind: Kind,
    account_id: str,
    amount: int,
    key: str,
    entropy: int,
    tenant_id: TenantId | None = None,
    description: str | None = None,
    metadata: dict[str, object] | None = None,
    up_to: bool = False,
    payment: dict[str, object] | None = None,
    place: str = "",
) -> Movement:
    """Return the operation a money write asks for; ids, key and amount match their rules.

    `place` goes before the field's name in errors (`operations[3].`).

    Raises:
        InvalidRequest: the account's id or the key is a card number; description, metadata or
            payment cannot be stored as they stand.
    """
    key_ms = uuid7_milliseconds(key)
    described, detailed = _kept_text(account_id, key, key_ms, description, metadata, place)
    paid = None if payment is None else canonical_payment(payment, place)
    code = _UP_TO_CODE if up_to else _KIND_CODES[kind]
    return Movement(
        kind=kind, account_id=AccountId(account_id), shard=shard_of(account_id),
        tenant_id=tenant_id, amount=amount, key_hash=hashlib.sha256(key.encode()).digest(),
        key_ms=key_ms, entropy=entropy,
        fingerprint=_fingerprint(code, amount, described, detailed, payment=paid),
        description=described, metadata=detailed, payment=paid, up_to=up_to,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteWords:
    """What every money write but a movement says, as it came; `place` as in `movement`."""

    account_id: str
    key: str
    entropy: int
    tenant_id: TenantId | None = None
    description: str | None = None
    metadata: dict[str, object] | None = None
    place: str = ""


def reserve(
    words: WriteWords, *, amount: int, expires_in_s: int = HOLD_DEFAULT_S, allowance: int = 0
) -> Reserve:
    """Return the operation that opens a hold."""
    terms = struct.pack(">qqq", amount, expires_in_s, allowance)
    return Reserve(
        **_common(words, Kind.HOLD, terms),
        amount=amount,
        expires_in=timedelta(seconds=expires_in_s),
        allowance=allowance,
    )


def capture(
    words: WriteWords, *, hold_id: TransactionId, amount: int | None = None, final: bool = False
) -> Capture:
    """Return the operation that takes from a hold; without an amount all that is left."""
    terms = struct.pack(">16sq?", hold_id.bytes, amount or 0, final)
    return Capture(
        **_common(words, Kind.CAPTURE, terms), hold_id=hold_id, amount=amount, final=final
    )


def release(words: WriteWords, *, hold_id: TransactionId) -> Release:
    """Return the operation that gives back what is left of a hold."""
    return Release(**_common(words, Kind.RELEASE, hold_id.bytes), hold_id=hold_id)


def extend(
    words: WriteWords,
    *,
    hold_id: TransactionId,
    amount: int | None = None,
    expires_in_s: int | None = None,
) -> Extend:
    """Return the operation that holds more, longer, or both.

    Raises:
        InvalidRequest: neither is asked for.
    """
    if amount is None and expires_in_s is None:
        raise invalid(f"{words.place}expires_in_s", "send expires_in_s, amount, or both")
    terms = struct.pack(">16sqq", hold_id.bytes, amount or 0, expires_in_s or 0)
    return Extend(
        **_common(words, Kind.EXTEND, terms),
        hold_id=hold_id,
        amount=amount or 0,
        expires_in=None if expires_in_s is None else timedelta(seconds=expires_in_s),
    )


def refund(
    words: WriteWords, *, transaction_id: TransactionId, amount: int | None = None
) -> Refund:
    """Return the operation that gives back a consumption or capture, or a part of it."""
    terms = struct.pack(">16sq", transaction_id.bytes, amount or 0)
    return Refund(**_common(words, Kind.REFUND, terms), refunded_id=transaction_id, amount=amount)


def unfreeze(words: WriteWords, *, actor: str) -> Unfreeze:
    """Return the operation that lifts a freeze; the description is the reason.

    Raises:
        InvalidRequest: there is no reason, or it cannot be stored.
    """
    if words.description is None or not words.description.strip():
        raise invalid("reason", "say why the freeze is lifted")
    try:
        common = _common(words, Kind.UNFREEZE, b"")
    except InvalidRequest as error:
        told = (replace(p, field="reason") if p.field == "description" else p for p in error.errors)
        raise InvalidRequest(errors=tuple(told)) from error
    # Who asks is no part of what is asked: a retry with another API key is the same request.
    return Unfreeze(**common, actor=actor)


def identifier(field: str, text: str) -> TransactionId:
    """Return the id of a transaction or a hold.

    Raises:
        InvalidRequest: it is not a UUIDv7 as the ledger writes them.
    """
    if uuid7_milliseconds(text) is None:
        raise invalid(field, "must be an id as the ledger gave it: a UUIDv7")
    return TransactionId(UUID(text))


class _Common(TypedDict):
    account_id: AccountId
    shard: int
    tenant_id: TenantId | None
    key_hash: bytes
    key_ms: int | None
    fingerprint: bytes
    entropy: int
    description: str | None
    metadata: str | None


def _common(words: WriteWords, kind: Kind, terms: bytes) -> _Common:
    key_ms = uuid7_milliseconds(words.key)
    described, detailed = _kept_text(
        words.account_id, words.key, key_ms, words.description, words.metadata, words.place
    )
    asked = hashlib.sha256(_KIND_CODES[kind].to_bytes(1, "big") + terms).digest()
    return {
        "account_id": AccountId(words.account_id),
        "shard": shard_of(words.account_id),
        "tenant_id": words.tenant_id,
        "key_hash": hashlib.sha256(words.key.encode()).digest(),
        "key_ms": key_ms,
        "fingerprint": hashlib.sha256(
            asked + _fingerprint(_KIND_CODES[kind], 0, described, detailed)
        ).digest(),
        "entropy": words.entropy,
        "description": described,
        "metadata": detailed,
    }


def _kept_text(  # noqa: PLR0917  # the hot path: one flat call
    account_id: str,
    key: str,
    key_ms: int | None,
    description: str | None,
    metadata: dict[str, object] | None,
    place: str,
) -> tuple[str | None, str | None]:
    """Return description and metadata as they are kept, masked; refuse card numbers in names."""
    _refuse_card(f"{place}account_id", account_id)
    if key_ms is None:  # a UUID is no card number
        # A hash of a card number is no secret: there are few enough of them to try them all.
        _refuse_card(f"{place}idempotency_key" if place else "Idempotency-Key", key)
    return (
        None if description is None else kept_text(f"{place}description", description),
        None if metadata is None else canonical_metadata(metadata, place),
    )


def fingerprint(
    kind: Kind,
    amount: int,
    description: str | None,
    metadata: str | None,
    *,
    payment: str | None = None,
) -> bytes:
    """Return SHA-256 of what a movement asks of its account: equal requests, equal bytes.

    A payment comes last and with its length; without one the bytes end before it.
    """
    return _fingerprint(_KIND_CODES[kind], amount, description, metadata, payment=payment)


def _fingerprint(
    code: int,
    amount: int,
    description: str | None,
    metadata: str | None,
    *,
    payment: str | None = None,
) -> bytes:
    described = b"" if description is None else description.encode()
    detailed = b"" if metadata is None else metadata.encode()
    asked = _FINGERPRINT.pack(
        code,
        amount,
        _ABSENT if description is None else len(described),
        _ABSENT if metadata is None else len(detailed),
    )
    if described or detailed:
        asked += described + detailed
    if payment is not None:
        paid = payment.encode()
        asked += _LENGTH.pack(len(paid)) + paid
    return hashlib.sha256(asked).digest()


def canonical_metadata(metadata: dict[str, object], place: str = "") -> str:
    """Return metadata, masked, as JSON with sorted keys and no white space.

    Raises:
        InvalidRequest: too large, too deep, a NUL character, or a number JSON cannot keep.
    """
    field = f"{place}metadata"
    text = _canonical(metadata, field)
    if not may_hold_payment(text):
        return text
    return _canonical(mask_document(msgspec.json.decode(text)), field)


def canonical_payment(payment: dict[str, object], place: str = "") -> str:
    """Return payment data, masked, as `canonical_metadata` does metadata.

    Raises:
        InvalidRequest: as there.
    """
    field = f"{place}payment"
    return _canonical(mask_payment(msgspec.json.decode(_canonical(payment, field))), field)


def invalid(field: str, detail: str) -> InvalidRequest:
    """Return the error that names one field."""
    return InvalidRequest(errors=(FieldProblem(field=field, detail=detail),))


def _refuse_card(field: str, text: str) -> None:
    """Refuse a name that is a card number, without repeating it: names are kept as they are."""
    if holds_card(text):
        raise invalid(field, "must not hold a card number")


def kept_text(field: str, text: str) -> str:
    """Return a description or a note, masked. It keeps to the limits before, and again after.

    Raises:
        InvalidRequest: it is empty or too long, or PostgreSQL cannot keep it.
    """
    _check_text(field, text)
    masked = mask_text(text)
    if masked != text:
        _check_text(field, masked)
    return masked


def _check_text(field: str, text: str) -> None:
    if not 1 <= len(text) <= DESCRIPTION_LIMIT:
        raise invalid(field, f"1 to {DESCRIPTION_LIMIT} characters")
    if "\0" in text:
        raise invalid(field, "must not contain NUL characters")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise invalid(field, "must not contain lone surrogates") from error


def _canonical(document: dict[str, object], field: str) -> str:
    try:
        encoded = _ENCODER.encode(document)
    except RecursionError as error:
        raise invalid(field, f"at most {METADATA_DEPTH_LIMIT} levels deep") from error
    except (OverflowError, ValueError, TypeError, UnicodeEncodeError) as error:
        raise invalid(field, "contains a value that JSON cannot keep") from error
    if len(encoded) > METADATA_LIMIT_BYTES:
        raise invalid(field, f"at most {METADATA_LIMIT_BYTES} bytes of JSON")
    # After the size: a walk over millions of values would hold up everyone.
    if _depth_exceeds(document, METADATA_DEPTH_LIMIT):
        raise invalid(field, f"at most {METADATA_DEPTH_LIMIT} levels deep")
    if _ESCAPED_NUL.search(encoded) is not None:
        raise invalid(field, "must not contain NUL characters")
    return encoded.decode()


def _depth_exceeds(value: object, levels: int) -> bool:
    if isinstance(value, dict):
        return levels == 0 or any(_depth_exceeds(inner, levels - 1) for inner in value.values())
    if isinstance(value, list):
        return levels == 0 or any(_depth_exceeds(inner, levels - 1) for inner in value)
    return False
