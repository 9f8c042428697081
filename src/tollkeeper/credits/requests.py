"""From a caller's words to operations: text rules, masking, canonical JSON, fingerprint, key hash.

Card numbers and what goes with them are masked here, before anything is made of a request: no
operation, fingerprint or hash has ever seen them. Pure.
"""

import hashlib
import re
import struct

import msgspec

from tollkeeper.credits.errors import FieldProblem, InvalidRequest
from tollkeeper.credits.masking import mask_document, mask_payment, mask_text, may_hold_payment
from tollkeeper.credits.model import Kind, Movement, OpenAccount
from tollkeeper.kernel.cards import holds_card
from tollkeeper.kernel.ids import AccountId, TenantId, shard_of, uuid7_milliseconds

ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._~:@!$&'()*+,;=|-]{0,127}(?![\s\S])"
"""Ids of accounts and tenants: they stand in a URL's path as they are. The end is written as a
lookahead because `$` would let a final newline pass."""

KEY_PATTERN = r"^[\x21-\x7e]{1,255}(?![\s\S])"
"""Idempotency keys: what an HTTP header can carry."""

DESCRIPTION_LIMIT = 500
"""Characters in a description."""

METADATA_LIMIT_BYTES = 4_096
"""Bytes of an operation's metadata, and of its payment, as canonical JSON."""

METADATA_DEPTH_LIMIT = 8
"""Levels of nesting in metadata and in a payment, the outermost object included."""

_ID = re.compile(ID_PATTERN)
_FINGERPRINT = struct.Struct(">BqII")
_LENGTH = struct.Struct(">I")
_ABSENT = 0xFFFFFFFF
_ENCODER = msgspec.json.Encoder(order="sorted")
_KIND_CODES = {Kind.TOPUP: 1, Kind.CONSUME: 2}


def account_id_of(text: str) -> AccountId:
    """Return the account id in a URL's path.

    Raises:
        InvalidRequest: it is not an id.
    """
    if _ID.match(text) is None:
        raise invalid("account_id", "1 to 128 letters, digits or ._~:@!$&'()*+,;=|- are allowed")
    _refuse_card("account_id", text)
    return AccountId(text)


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
    payment: dict[str, object] | None = None,
    place: str = "",
) -> Movement:
    """Return the operation a money write asks for; ids, key and amount match their rules.

    `place` goes before the field's name in errors (`operations[3].`).

    Raises:
        InvalidRequest: the account's id or the key is a card number; description, metadata or
            payment cannot be stored as they stand.
    """
    _refuse_card(f"{place}account_id", account_id)
    # A hash of a card number is no secret: there are few enough of them to try them all.
    _refuse_card(f"{place}idempotency_key" if place else "Idempotency-Key", key)
    described = None if description is None else _described(description, place)
    detailed = None if metadata is None else canonical_metadata(metadata, place)
    paid = None if payment is None else canonical_payment(payment, place)
    return Movement(
        kind=kind, account_id=AccountId(account_id), shard=shard_of(account_id),
        tenant_id=tenant_id, amount=amount, key_hash=hashlib.sha256(key.encode()).digest(),
        key_ms=uuid7_milliseconds(key), entropy=entropy,
        fingerprint=fingerprint(kind, amount, described, detailed, payment=paid),
        description=described, metadata=detailed, payment=paid,
    )  # fmt: skip


def fingerprint(
    kind: Kind,
    amount: int,
    description: str | None,
    metadata: str | None,
    *,
    payment: str | None = None,
) -> bytes:
    """Return SHA-256 of what a request asks of its account: equal requests, equal bytes.

    A payment comes last and with its length; without one the bytes end before it.
    """
    described = b"" if description is None else description.encode()
    detailed = b"" if metadata is None else metadata.encode()
    asked = _FINGERPRINT.pack(
        _KIND_CODES[kind],
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


def _described(description: str, place: str) -> str:
    """Return a description, masked. It keeps to the limits before, and again after."""
    _check_description(description, place)
    masked = mask_text(description)
    if masked != description:
        _check_description(masked, place)
    return masked


def _check_description(description: str, place: str) -> None:
    if not 1 <= len(description) <= DESCRIPTION_LIMIT:
        raise invalid(f"{place}description", f"1 to {DESCRIPTION_LIMIT} characters")
    if "\0" in description:
        raise invalid(f"{place}description", "must not contain NUL characters")
    try:
        description.encode()
    except UnicodeEncodeError as error:
        raise invalid(f"{place}description", "must not contain lone surrogates") from error


def _canonical(document: dict[str, object], field: str) -> str:
    if _depth_exceeds(document, METADATA_DEPTH_LIMIT):
        raise invalid(field, f"at most {METADATA_DEPTH_LIMIT} levels deep")
    try:
        encoded = _ENCODER.encode(document)
    except (OverflowError, ValueError, TypeError, UnicodeEncodeError) as error:
        raise invalid(field, "contains a value that JSON cannot keep") from error
    if len(encoded) > METADATA_LIMIT_BYTES:
        raise invalid(field, f"at most {METADATA_LIMIT_BYTES} bytes of JSON")
    if b"\\u0000" in encoded:
        raise invalid(field, "must not contain NUL characters")
    return encoded.decode()


def _depth_exceeds(value: object, levels: int) -> bool:
    if isinstance(value, dict):
        return levels == 0 or any(_depth_exceeds(inner, levels - 1) for inner in value.values())
    if isinstance(value, list):
        return levels == 0 or any(_depth_exceeds(inner, levels - 1) for inner in value)
    return False
