"""Transactions as PostgreSQL's binary COPY of the query `chains` sends them, written out."""

import hashlib
import struct
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import strategies as st
from tests.operations import texts

from tollkeeper.credits.chain import microseconds_since_epoch
from tollkeeper.credits.model import Kind, Transaction
from tollkeeper.kernel.amounts import MAX_AMOUNT_MINOR
from tollkeeper.kernel.ids import AccountId, TransactionId

_amounts = st.integers(0, MAX_AMOUNT_MINOR)
_moments = st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=2_900_000)).map(
    lambda since: datetime(1970, 1, 1, tzinfo=UTC) + since
)
_ids = st.integers(0, 2**128 - 1).map(lambda number: TransactionId(UUID(int=number)))
_digests = st.binary(min_size=32, max_size=32)

transactions: st.SearchStrategy[Transaction] = st.builds(
    Transaction, transaction_id=_ids, account_id=texts.map(AccountId), shard=st.integers(0, 255),
    kind=st.sampled_from(Kind), amount=_amounts, balance=_amounts, reserved=_amounts,
    sequence=_amounts, fingerprint=_digests, hash=_digests, created_at=_moments,
    description=st.none() | texts, metadata=st.none() | texts, reference_id=st.none() | _ids,
    freed=st.none() | _amounts, expires_at=st.none() | _moments, allowance=st.none() | _amounts,
    payment=st.none() | texts,
)  # fmt: skip
"""Transactions with anything in any column, also what no ledger would write."""


def copied_row(fields: Iterable[bytes | None]) -> bytes:
    """Return a row of these fields."""
    values = list(fields)
    return struct.pack(">h", len(values)) + b"".join(
        b"\xff\xff\xff\xff" if value is None else struct.pack(">i", len(value)) + value
        for value in values
    )


def fields_of(row: Transaction) -> list[bytes | None]:
    """Return what the query `chains` selects of a transaction."""
    return [
        row.hash, struct.pack(">h", row.shard), row.transaction_id.bytes, _number(row.amount),
        _number(row.balance), _number(row.reserved), _number(row.sequence),
        _number(microseconds_since_epoch(row.created_at)), row.fingerprint,
        row.account_id.encode(), row.kind.encode(),
        None if row.description is None else row.description.encode(), _digest(row.metadata),
        None if row.reference_id is None else row.reference_id.bytes, _number(row.freed),
        None if row.expires_at is None else _number(microseconds_since_epoch(row.expires_at)),
        _number(row.allowance), _digest(row.payment),
    ]  # fmt: skip


def stream_of(rows: Iterable[bytes]) -> bytes:
    """Return a whole stream of rows."""
    return b"PGCOPY\n\xff\r\n\0" + bytes(8) + b"".join(rows) + b"\xff\xff"


def copied_stream(rows: Iterable[Transaction]) -> bytes:
    """Return a whole stream of transactions."""
    return stream_of(copied_row(fields_of(row)) for row in rows)


def _number(value: int | None) -> bytes | None:
    return None if value is None else struct.pack(">q", value)


def _digest(value: str | None) -> bytes | None:
    return None if value is None else hashlib.sha256(value.encode()).digest()
