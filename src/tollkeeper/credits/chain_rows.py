"""Rows of chains as PostgreSQL's binary COPY sends them, cut from the stream without decoding them.

COPY precedes every field with its length in four bytes, all ones for null: the canonical form of a
transaction (`chain.py`). With the columns in the chain's order, what is hashed of a row is a slice
of what the server sent, and no object is made of it. The queries are `chains` of
`sql/verification.sql` and `rows_behind` of `sql/reconciliation.sql`; the format: PostgreSQL's
manual, COPY, "Binary Format".
"""

import struct
from collections.abc import Iterator
from typing import Final

HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
"""What a stream begins with: signature, no flags, no extension."""

FIELDS: Final = 18
"""Columns of a row: hash, shard, then the canonical fields with the terms."""

_TRAILER = b"\xff\xff"
# Count of fields, then (length, value): hash, shard, id, amount, balance, reserved, sequence,
# created_at, fingerprint; then the length of the account's id.
_FIXED = struct.Struct(">hi32sihi16siqiqiqiqiqi32si")
_USUAL_LENGTHS = (FIELDS, 32, 2, 16, 8, 8, 8, 8, 8, 32)
_COUNT = struct.Struct(">h")
_LENGTH = struct.Struct(">i")
_FREED = struct.Struct(">iq")
_SETTLED = struct.Struct(">i16siqiii")  # terms of what settles a hold: reference, freed, no more
_CANONICAL_AT = 2 + (4 + 32) + (4 + 2)
_NO_TERMS = b"\xff\xff\xff\xff" * 5
_ZERO = bytes(8)
_AMOUNT, _BALANCE, _RESERVED, _SEQUENCE, _ACCOUNT, _KIND, _FREED_AT = 3, 4, 5, 6, 9, 10, 14


ChainRow = tuple[int, bytes, bytes, int, bytes, int, int, int, int, bytes]
"""What verification needs of a row: shard, account id, stored hash, sequence, kind, amount,
balance, reserved, freed, and the canonical fields, hashed after the hash before them.

A number that is null or no number is -1, a text or hash that is null is empty: wrong in any ledger,
and not what was hashed.
"""


class ChainRows:
    """Cuts a stream that arrives in pieces into rows; keeps no more than a piece and a row."""

    def __init__(self) -> None:
        self._rest = b""
        self._has_begun = False

    def feed(self, piece: bytes | bytearray) -> Iterator[ChainRow]:
        """Yield the rows that `piece` completes.

        Raises:
            ValueError: this is not the stream that the query gives.
        """
        buffer = self._rest + piece
        place = 0
        if not self._has_begun:
            if len(buffer) < len(HEADER):
                self._rest = buffer
                return
            if not buffer.startswith(HEADER):
                raise ValueError("not a binary COPY")
            place, self._has_begun = len(HEADER), True
        while (cut := _cut(buffer, place)) is not None:
            row, place = cut
            yield row
        self._rest = buffer[place:]

    def finish(self) -> None:
        """Demand that the stream has come to its end.

        Raises:
            ValueError: it has not.
        """
        if self._rest != _TRAILER:
            raise ValueError("the stream of rows was cut")


def _cut(buffer: bytes, place: int) -> tuple[ChainRow, int] | None:
    """Return the row at `place` and the place behind it; None when it is not all there."""
    tail = place + _FIXED.size
    if tail > len(buffer):
        return None
    (
        count, hash_length, stored, shard_length, shard, id_length, _, amount_length, amount,
        balance_length, balance, reserved_length, reserved, sequence_length, sequence,
        created_length, _, fingerprint_length, _, account_length,
    ) = _FIXED.unpack_from(buffer, place)  # fmt: skip
    lengths = (
        count, hash_length, shard_length, id_length, amount_length, balance_length,
        reserved_length, sequence_length, created_length, fingerprint_length,
    )  # fmt: skip
    if lengths != _USUAL_LENGTHS or account_length < 0:
        return _cut_odd(buffer, place)
    try:
        at = tail + account_length
        kind_at = at + 4
        end = kind_at + max(0, _LENGTH.unpack_from(buffer, at)[0])
        kind = buffer[kind_at:end]
        for _ in range(2):  # description, digest of the metadata
            end += 4 + max(0, _LENGTH.unpack_from(buffer, end)[0])
        fields_end, freed = end, 0
        end += len(_NO_TERMS)
        if buffer[fields_end:end] != _NO_TERMS:
            freed, fields_end = _cut_terms(buffer, fields_end)
            end = fields_end
    except struct.error:
        return None
    if end > len(buffer):
        return None
    row = (
        shard, buffer[tail:at], stored, sequence, kind, amount, balance, reserved, freed,
        buffer[place + _CANONICAL_AT : fields_end],
    )  # fmt: skip
    return row, end


def _cut_terms(buffer: bytes, at: int) -> tuple[int, int]:
    """Return what the terms at `at` say of credits freed, and the place behind them."""
    if len(buffer) - at >= _SETTLED.size:
        reference_length, _, freed_length, freed, *others = _SETTLED.unpack_from(buffer, at)
        if reference_length == 16 and freed_length == 8 and others == [-1, -1, -1]:
            return freed, at + _SETTLED.size
    at += 4 + max(0, _LENGTH.unpack_from(buffer, at)[0])
    freed_length, freed = _FREED.unpack_from(buffer, at)
    for _ in range(4):  # freed, expires_at, allowance, digest of the payment
        at += 4 + max(0, _LENGTH.unpack_from(buffer, at)[0])
    return freed if freed_length == 8 else 0, at


def _cut_odd(buffer: bytes, place: int) -> tuple[ChainRow, int] | None:
    """As `_cut`, for a row with a null or a length that no row of a sound ledger has.

    Raises:
        ValueError: not even the number of fields is right.
    """
    count = _COUNT.unpack_from(buffer, place)[0]
    if count != FIELDS:
        raise ValueError(f"a row of {count} fields instead of {FIELDS}")
    values: list[bytes] = []
    at = place + _COUNT.size
    for _ in range(FIELDS):
        if at + _LENGTH.size > len(buffer):
            return None
        length = max(0, _LENGTH.unpack_from(buffer, at)[0])
        at += _LENGTH.size + length
        values.append(buffer[at - length : at])
    if at > len(buffer):
        return None
    first = place + _COUNT.size + 2 * _LENGTH.size + len(values[0]) + len(values[1])
    row = (
        int.from_bytes(values[1], "big", signed=True), values[_ACCOUNT], values[0],
        _number(values[_SEQUENCE]), values[_KIND], _number(values[_AMOUNT]),
        _number(values[_BALANCE]), _number(values[_RESERVED]), _number(values[_FREED_AT] or _ZERO),
        buffer[first:at].removesuffix(_NO_TERMS),
    )  # fmt: skip
    return row, at


def _number(value: bytes) -> int:
    return int.from_bytes(value, "big", signed=True) if len(value) == len(_ZERO) else -1
