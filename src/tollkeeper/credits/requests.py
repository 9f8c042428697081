"""From a caller's words to operations: text rules, canonical metadata, fingerprint, key hash.

Pure.
"""

import hashlib
import re
import struct

import msgspec

from tollkeeper.credits.errors import FieldProblem, InvalidRequest
from tollkeeper.credits.model import Kind, Movement, OpenAccount
from tollkeeper.kernel.ids import AccountId, TenantId, shard_of, uuid7_milliseconds

ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._~:@!$&'()*+,;=|-]{0,127}(?![\s\S])"
"""Ids of accounts and tenants: they stand in a URL's path as they are. The end is written as a
lookahead because `$` would let a final newline pass."""

KEY_PATTERN = r"^[\x21-\x7e]{1,255}(?![\s\S])"
"""Idempotency keys: what an HTTP header can carry."""

DESCRIPTION_LIMIT = 500
"""Characters in a description."""

METADATA_LIMIT_BYTES = 4_096
"""Bytes of an operation's metadata as canonical JSON."""

METADATA_DEPTH_LIMIT = 8
"""Levels of nesting in metadata, the outermost object included."""

_ID = re.compile(ID_PATTERN)
_FINGERPRINT = struct.Struct(">BqII")
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
    return AccountId(text)


def whole_number(field: str, text: str, least: int, most: int) -> int:
    """Return the number that a query parameter is.

    Raises:
        InvalidRequest: it is none, or outside the bounds.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and least <= int(text) <= most):
        raise invalid(field, f"must be a whole number from {least} to {most}")
    return int(text)


def open_account(account_id: str, tenant_id: str) -> OpenAccount:
    """Return the operation that opens an account; both ids match `ID_PATTERN`."""
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
    place: str = "",
) -> Movement:
    """Return the operation a money write asks for; ids, key and amount match their rules.

    `place` goes before the field's name in errors (`operations[3].`).

    Raises:
        InvalidRequest: description or metadata cannot be stored as they stand.
    """
    text = None
    if description is not None:
        _check_description(description, place)
    if metadata is not None:
        text = canonical_metadata(metadata, place)
    return Movement(
        kind=kind, account_id=AccountId(account_id), shard=shard_of(account_id),
        tenant_id=tenant_id, amount=amount, key_hash=hashlib.sha256(key.encode()).digest(),
        key_ms=uuid7_milliseconds(key), fingerprint=fingerprint(kind, amount, description, text),
        entropy=entropy, description=description, metadata=text,
    )  # fmt: skip


def fingerprint(kind: Kind, amount: int, description: str | None, metadata: str | None) -> bytes:
    """Return SHA-256 of what a request asks of its account: equal requests, equal bytes."""
    if description is None and metadata is None:
        head = _FINGERPRINT.pack(_KIND_CODES[kind], amount, _ABSENT, _ABSENT)
        return hashlib.sha256(head).digest()
    described = b"" if description is None else description.encode()
    detailed = b"" if metadata is None else metadata.encode()
    head = _FINGERPRINT.pack(
        _KIND_CODES[kind],
        amount,
        _ABSENT if description is None else len(described),
        _ABSENT if metadata is None else len(detailed),
    )
    return hashlib.sha256(head + described + detailed).digest()


def canonical_metadata(metadata: dict[str, object], place: str = "") -> str:
    """Return metadata as JSON with sorted keys and no white space.

    Raises:
        InvalidRequest: too large, too deep, a NUL character, or a number JSON cannot keep.
    """
    if _depth_exceeds(metadata, METADATA_DEPTH_LIMIT):
        raise invalid(f"{place}metadata", f"at most {METADATA_DEPTH_LIMIT} levels deep")
    try:
        encoded = _ENCODER.encode(metadata)
    except (OverflowError, ValueError, TypeError, UnicodeEncodeError) as error:
        raise invalid(f"{place}metadata", "contains a value that JSON cannot keep") from error
    if len(encoded) > METADATA_LIMIT_BYTES:
        raise invalid(f"{place}metadata", f"at most {METADATA_LIMIT_BYTES} bytes of JSON")
    if b"\\u0000" in encoded:
        raise invalid(f"{place}metadata", "must not contain NUL characters")
    return encoded.decode()


def invalid(field: str, detail: str) -> InvalidRequest:
    """Return the error that names one field."""
    return InvalidRequest(errors=(FieldProblem(field=field, detail=detail),))


def _check_description(description: str, place: str) -> None:
    if not 1 <= len(description) <= DESCRIPTION_LIMIT:
        raise invalid(f"{place}description", f"1 to {DESCRIPTION_LIMIT} characters")
    if "\0" in description:
        raise invalid(f"{place}description", "must not contain NUL characters")
    try:
        description.encode()
    except UnicodeEncodeError as error:
        raise invalid(f"{place}description", "must not contain lone surrogates") from error


def _depth_exceeds(value: object, levels: int) -> bool:
    if isinstance(value, dict):
        return levels == 0 or any(_depth_exceeds(inner, levels - 1) for inner in value.values())
    if isinstance(value, list):
        return levels == 0 or any(_depth_exceeds(inner, levels - 1) for inner in value)
    return False
