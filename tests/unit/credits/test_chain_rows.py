"""Rows that no sound ledger has are cut all the same; what is no stream of rows is refused."""

from datetime import UTC, datetime
from uuid import UUID

import pytest
from tests.copied import copied_row, copied_stream, fields_of, stream_of

from tollkeeper.credits.chain_rows import FIELDS, HEADER, ChainRow, ChainRows
from tollkeeper.credits.model import Kind, Transaction
from tollkeeper.kernel.ids import AccountId, TransactionId

ROW = Transaction(
    transaction_id=TransactionId(UUID("01a20bde-8028-76e8-8fa8-1bc6b37ddf49")),
    account_id=AccountId("ann"), shard=73, kind=Kind.CAPTURE, amount=5, balance=495, reserved=0,
    sequence=2, fingerprint=bytes(range(32)), hash=bytes(32), freed=5,
    created_at=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC), description="Grüße",
    metadata='{"order":7}', reference_id=TransactionId(UUID(int=7)),
)  # fmt: skip
SHARD, ACCOUNT, STORED, SEQUENCE, KIND, AMOUNT, BALANCE, RESERVED, FREED = range(9)


def rows_of(stream: bytes) -> list[ChainRow]:
    reader = ChainRows()
    rows = list(reader.feed(stream))
    reader.finish()
    return rows


@pytest.mark.parametrize(
    ("field", "value", "place", "expected"),
    [
        (0, None, STORED, b""),
        (0, b"short", STORED, b"short"),
        (1, b"\0\0\0\7", SHARD, 7),
        (3, None, AMOUNT, -1),
        (4, b"\0\1", BALANCE, -1),
        (5, None, RESERVED, -1),
        (6, None, SEQUENCE, -1),
        (8, None, STORED, ROW.hash),
        (9, None, ACCOUNT, b""),
        (10, None, KIND, b""),
        (14, None, FREED, 0),
        (14, b"\0\1", FREED, 0),
    ],
)
def test_a_field_that_is_null_or_of_another_length_is_none_that_was_hashed(
    field: int, value: bytes | None, place: int, expected: object
) -> None:
    fields = fields_of(ROW)
    fields[field] = value
    sound = copied_row(fields_of(ROW))
    before, broken, behind = rows_of(stream_of([sound, copied_row(fields), sound]))

    assert expected == broken[place]
    assert before == behind
    assert (broken[:3], broken[-1]) != (before[:3], before[-1])


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        HEADER,
        HEADER[:-1],
        b"something else entirely",
        copied_stream([ROW])[:-2],
        copied_stream([ROW]) + b"\xff\xff",
        stream_of([copied_row([*fields_of(ROW), None])]),
        stream_of([copied_row(fields_of(ROW)[: FIELDS - 1])]),
    ],
)
def test_what_is_no_stream_of_rows_is_refused(stream: bytes) -> None:
    with pytest.raises(ValueError, match=r"COPY|cut|fields"):
        rows_of(stream)
