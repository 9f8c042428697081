"""The checkpoints' rows: runs their blocks of `queries.sql` on a given connection.

Decides nothing.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from tollkeeper.credits.checkpoint import Checkpoint, Leaf
from tollkeeper.database.driver import Connection, Row
from tollkeeper.database.locks import session_lock
from tollkeeper.database.queries import load_queries
from tollkeeper.kernel.ids import AccountId

LEAVES_PREFETCH: Final = 1_000
"""Leaves fetched at a time while a tree is hashed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptCheckpoint:
    """A checkpoint as it is kept and published."""

    number: int
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafBesideLedger:
    """A leaf, and what the ledger says today of its account and of the transaction it names."""

    position: int
    leaf: Leaf
    account_version: int | None
    account_tenant: str | None
    transaction_hash: bytes | None
    transaction_balance: int | None
    transaction_reserved: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CoveringLeaf:
    """The first leaf that covers a transaction, and its checkpoint."""

    leaf: Leaf
    position: int
    checkpoint: KeptCheckpoint


class CheckpointStore:
    """Reads and writes of checkpoints; every method is one statement."""

    def __init__(self) -> None:
        self._sql = load_queries("tollkeeper.credits")

    def maker_lock(self, connection: Connection) -> AbstractAsyncContextManager[bool]:
        """Hold the right to make checkpoints; yields False when another session has it."""
        return session_lock(
            connection, self._sql["take_checkpoint_lock"], self._sql["release_checkpoint_lock"]
        )

    def publication_lock(
        self, connection: Connection, target: bytes
    ) -> AbstractAsyncContextManager[bool]:
        """Hold the right to publish to a target; yields False when another session has it."""
        return session_lock(
            connection,
            self._sql["take_publication_lock"],
            self._sql["release_publication_lock"],
            target,
        )

    async def last(self, connection: Connection) -> tuple[datetime, KeptCheckpoint | None]:
        """Return the database's time of this unit of work, and the newest checkpoint."""
        row = await connection.fetchrow(self._sql["last_checkpoint"])
        assert row is not None
        return row["now"], None if row["number"] is None else _kept(row)

    async def unexplained_leaves(self, connection: Connection, number: int) -> int:
        """Return how many leaves there are from a checkpoint on that is not made yet."""
        count: int = await connection.fetchval(self._sql["unexplained_leaves"], number)
        return count

    async def add_leaves(self, connection: Connection, number: int) -> int:
        """Write a leaf for every account that changed since it was covered; return how many."""
        status = await connection.execute(self._sql["add_leaves"], number)
        return int(status.rpartition(" ")[2])

    async def leaves(self, connection: Connection, number: int) -> AsyncIterator[Leaf]:
        """Stream a checkpoint's leaves in order, inside the caller's unit of work."""
        rows = connection.cursor(self._sql["leaves"], number, prefetch=LEAVES_PREFETCH)
        async for row in rows:
            yield _leaf(row)

    async def mark_accounts(self, connection: Connection, number: int) -> None:
        """Remember at which versions a checkpoint covers its accounts."""
        await connection.execute(self._sql["mark_accounts"], number)

    async def add(self, connection: Connection, checkpoint: Checkpoint, note: str) -> None:
        """Write a checkpoint, in the unit of work that wrote its leaves."""
        await connection.execute(
            self._sql["add_checkpoint"],
            checkpoint.number,
            checkpoint.made_at,
            checkpoint.leaves,
            checkpoint.root,
            note,
        )

    async def after(
        self, connection: Connection, number: int, limit: int
    ) -> tuple[KeptCheckpoint, ...]:
        """Return up to `limit` checkpoints behind a number, oldest first."""
        rows = await connection.fetch(self._sql["checkpoints_after"], number, limit)
        return tuple(_kept(row) for row in rows)

    async def checkpoint(self, connection: Connection, number: int) -> KeptCheckpoint | None:
        """Return one checkpoint, None when there is none of this number."""
        row = await connection.fetchrow(self._sql["checkpoint"], number)
        return None if row is None else _kept(row)

    async def published_up_to(self, connection: Connection, target: bytes) -> int:
        """Return the last number that an HTTP target has taken, 0 before any."""
        number: int | None = await connection.fetchval(self._sql["published_up_to"], target)
        return number or 0

    async def published(self, connection: Connection, target: bytes, number: int) -> None:
        """Remember that an HTTP target has taken a checkpoint."""
        await connection.execute(self._sql["published"], target, number)

    async def leaves_beside_ledger(
        self, connection: Connection, number: int, *, start: int, limit: int
    ) -> tuple[LeafBesideLedger, ...]:
        """Return up to `limit` leaves of a checkpoint from a position on, beside the ledger."""
        rows = await connection.fetch(self._sql["leaves_beside_ledger"], number, start, limit)
        return tuple(
            LeafBesideLedger(
                position=row["position"],
                leaf=_leaf(row),
                account_version=row["account_version"],
                account_tenant=row["account_tenant"],
                transaction_hash=row["transaction_hash"],
                transaction_balance=row["transaction_balance"],
                transaction_reserved=row["transaction_reserved"],
            )
            for row in rows
        )

    async def hash_at(
        self, connection: Connection, account_id: AccountId, shard: int, sequence: int
    ) -> bytes | None:
        """Return the hash of one transaction of an account."""
        found: bytes | None = await connection.fetchval(
            self._sql["hash_at"], shard, account_id, sequence
        )
        return found

    async def covering(
        self, connection: Connection, account_id: AccountId, shard: int, sequence: int
    ) -> CoveringLeaf | None:
        """Return the first leaf of an account at or behind a sequence, None while there is none."""
        row = await connection.fetchrow(self._sql["covering_leaf"], shard, account_id, sequence)
        if row is None:
            return None
        return CoveringLeaf(
            leaf=_leaf(row),
            position=row["position"],
            checkpoint=KeptCheckpoint(number=row["checkpoint"], note=row["note"]),
        )


def _kept(row: Row) -> KeptCheckpoint:
    return KeptCheckpoint(number=row["number"], note=row["note"])


def _leaf(row: Row) -> Leaf:
    return Leaf(
        tenant_id=row["tenant_id"], account_id=row["account_id"], sequence=row["sequence"],
        head_hash=row["head_hash"], balance=row["balance"], reserved=row["reserved"],
    )  # fmt: skip
