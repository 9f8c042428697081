"""The reconciler's rows: runs the blocks of `reconciliation.sql` on a given connection.

Decides nothing. Acts as the owner of the schema, where a method writes.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import msgspec

from tollkeeper.credits.model import Account, Fault, Freeze, Point
from tollkeeper.credits.store import account_of
from tollkeeper.database.driver import Connection, Row
from tollkeeper.database.queries import load_queries
from tollkeeper.kernel.ids import AccountId, TenantId

SESSION_SETTINGS: Final[Mapping[str, str]] = {
    "application_name": "tollkeeper reconciliation",
    # All accounts are compared with where they were reconciled: one core at most, and the memory
    # that the hashes of 300,000 accounts take.
    # Hashes read both tables from end to end; else each account is fetched by its index. Lookups
    # by key are laterals, which these do not touch.
    "enable_mergejoin": "off",
    "enable_nestloop": "off",
    "max_parallel_workers_per_gather": "0",
    "work_mem": "64MB",
    "jit": "off",
    "statement_timeout": "5min",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "60s",
}
"""What the reconciler's connection is opened with."""

SHARDS: Final = 256
"""One more than the last shard."""

Place = tuple[int, str]
"""Shard and account: where an account stands in the order of keys."""


@dataclass(frozen=True, slots=True)
class AccountBesidePoint:
    """An account, and where it was last reconciled; None: never."""

    account: Account
    point: Point | None


@dataclass(frozen=True, slots=True)
class Standing:
    """How many accounts are frozen, below zero, and gone although they were reconciled."""

    frozen: int
    negative: int
    vanished: int


@dataclass(frozen=True, slots=True)
class EvidenceNote:
    """The file that holds the evidence of a freeze, or why there is none."""

    name: str | None = None
    sha256: bytes | None = None
    problem: str | None = None


class ReconciliationStore:
    """Reads and writes of reconciliation; every method is one statement."""

    def __init__(self) -> None:
        self._sql = load_queries("tollkeeper.credits")

    @asynccontextmanager
    async def reconciler_lock(self, connection: Connection) -> AsyncIterator[bool]:
        """Hold the right to reconcile; yields False when another session has it."""
        held: bool = await connection.fetchval(self._sql["take_reconciliation_lock"])
        try:
            yield held
        finally:
            if held and not connection.is_closed():
                await connection.fetchval(self._sql["release_reconciliation_lock"])

    async def standing(self, connection: Connection) -> Standing:
        """Count what stands badly, in one snapshot."""
        row = await connection.fetchrow(self._sql["standing"])
        assert row is not None
        return Standing(row["frozen"], row["negative"], row["vanished"])

    async def count_frozen(self, connection: Connection) -> int:
        """Return how many freezes are not lifted."""
        count: int = await connection.fetchval(self._sql["count_frozen"])
        return count

    async def changed(self, connection: Connection, after: Place, limit: int) -> list[Place]:
        """Return up to `limit` accounts behind a place that are not as they were reconciled."""
        rows = await connection.fetch(self._sql["changed_accounts"], *after, limit)
        return [(row["shard"], row["account_id"]) for row in rows]

    async def beside_points(
        self, connection: Connection, places: Sequence[Place]
    ) -> list[AccountBesidePoint]:
        """Return accounts in key order, each with where it was last reconciled."""
        rows = await connection.fetch(self._sql["accounts_beside_reconciled"], places)
        return [AccountBesidePoint(account_of(row), _point_of(row)) for row in rows]

    async def rows_behind(
        self,
        connection: Connection,
        wanted: Sequence[tuple[Account, int, int]],
        take: Callable[[bytes], None],
    ) -> None:
        """Hand transactions of accounts behind a sequence each, at most so many of each, to `take`.

        They come in the order of the accounts, in the form of `chain_rows.py`.
        """
        points = [(a.shard, a.account_id, sequence, most) for a, sequence, most in wanted]

        async def sink(piece: bytes) -> None:
            take(piece)

        await connection.copy_from_query(
            self._sql["rows_behind"].removesuffix(";"), points, output=sink, format="binary"
        )

    async def mark(self, connection: Connection, points: Sequence[tuple[Account, Point]]) -> None:
        """Remember up to where accounts agree with their transactions."""
        await connection.execute(
            self._sql["mark_reconciled"],
            [
                (a.shard, a.account_id, p.sequence, p.balance, p.reserved, p.head_hash)
                for a, p in points
            ],
        )

    async def lifted(
        self, connection: Connection, place: Place
    ) -> list[tuple[int, tuple[Fault, ...]]]:
        """Return up to which sequence liftings accepted an account's rows, and what was known."""
        rows = await connection.fetch(self._sql["lifted_freezes"], *place)
        return [(row["lifted_sequence"], _faults_of(row)) for row in rows]

    async def freeze(self, connection: Connection, place: Place) -> Account | None:
        """Freeze an account and return it; None: it is frozen already, or gone."""
        row = await connection.fetchrow(self._sql["freeze_account"], *place)
        return None if row is None else account_of(row)

    async def add_freeze(
        self, connection: Connection, frozen: Account, faults: Sequence[Fault], note: EvidenceNote
    ) -> None:
        """Write down a freeze, in the unit of work that froze the account."""
        await connection.execute(
            self._sql["add_freeze"],
            frozen.shard,
            frozen.account_id,
            frozen.frozen_at,
            frozen.version,
            msgspec.json.encode(faults).decode(),
            note.name,
            note.sha256,
            note.problem,
        )

    async def rows_at(
        self, connection: Connection, place: Place, sequences: Sequence[int]
    ) -> list[dict[str, object]]:
        """Return an account's rows at some sequences and its last one, column by column."""
        rows = await connection.fetch(self._sql["rows_at"], *place, sequences)
        return [msgspec.json.decode(row["stored"]) for row in rows]

    async def open_freezes(
        self, connection: Connection, tenant_id: TenantId | None, *, after: int, limit: int
    ) -> tuple[Freeze, ...]:
        """Return up to `limit` frozen accounts behind a number, the longest frozen first."""
        rows = await connection.fetch(self._sql["open_freezes"], after, tenant_id, limit)
        return tuple(
            Freeze(
                number=row["number"],
                account_id=AccountId(row["account_id"]),
                tenant_id=TenantId(row["tenant_id"]),
                frozen_at=row["frozen_at"],
                version=row["version"],
                faults=_faults_of(row),
                evidence=row["evidence"],
                evidence_sha256=row["evidence_sha256"],
                evidence_problem=row["evidence_problem"],
            )
            for row in rows
        )

    async def accounts_between(
        self, connection: Connection, after: Place | None, upto: Place | None
    ) -> list[str]:
        """Return accounts in key order; None: from the first, to the last."""
        rows = await connection.fetch(
            self._sql["accounts_between"],
            *(after or (-1, "")),
            *(upto or (SHARDS, "")),
        )
        return [row["account_id"] for row in rows]

    async def progress(self, connection: Connection) -> str | None:
        """Return the account behind which the pass over all chains goes on, None: it begins."""
        after: str | None = await connection.fetchval(self._sql["progress"])
        return after

    async def advance(self, connection: Connection, after: str | None) -> None:
        """Remember how far the pass has come; None: to its end."""
        await connection.execute(self._sql["advance"], after, after is None)


def _point_of(row: Row) -> Point | None:
    if row["reconciled_sequence"] is None:
        return None
    return Point(
        row["reconciled_sequence"],
        row["reconciled_balance"],
        row["reconciled_reserved"],
        row["reconciled_hash"],
    )


def _faults_of(row: Row) -> tuple[Fault, ...]:
    return msgspec.json.decode(row["faults"], type=tuple[Fault, ...])
