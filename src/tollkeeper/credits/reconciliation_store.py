"""The reconciler's rows: runs the blocks of `reconciliation.sql` on a given connection.

Decides nothing. Acts as the owner of the schema, where a method writes.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec

from tollkeeper.credits.model import Account, Fault, Freeze, Point
from tollkeeper.credits.store import account_of, faults_of
from tollkeeper.credits.verification_store import Place
from tollkeeper.database.copying import copy_rows
from tollkeeper.database.driver import Connection, Row
from tollkeeper.database.locks import session_lock
from tollkeeper.database.queries import load_queries
from tollkeeper.database.timeouts import Timeouts
from tollkeeper.kernel.ids import AccountId, TenantId

TIMEOUTS: Final = Timeouts(statement_s=300, lock_s=5, idle_in_transaction_s=60)

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
    **TIMEOUTS.settings(),
}
"""What the reconciler's connection is opened with."""


@dataclass(frozen=True, slots=True)
class AccountBesidePoint:
    """An account, and where it was last reconciled; None: never."""

    account: Account
    point: Point | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenRow:
    """An account that was frozen just now, without having been read: its row as JSON."""

    tenant_id: str
    version: int
    frozen_at: datetime
    stored: dict[str, object]


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
    """Reads and writes of reconciliation; a method is one statement, or two together."""

    def __init__(self) -> None:
        self._sql = load_queries("tollkeeper.credits")

    def reconciler_lock(self, connection: Connection) -> AbstractAsyncContextManager[bool]:
        """Hold the right to reconcile; yields False when another session has it."""
        return session_lock(
            connection,
            self._sql["take_reconciliation_lock"],
            self._sql["release_reconciliation_lock"],
        )

    async def standing(self, connection: Connection) -> Standing:
        """Count what stands badly, in one snapshot."""
        row = await connection.fetchrow(self._sql["standing"])
        assert row is not None
        return Standing(row["frozen"], row["negative"], row["vanished"])

    async def count_frozen(self, connection: Connection) -> int:
        """Return how many accounts are frozen."""
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
        await copy_rows(connection, self._sql["rows_behind"], points, take=take)

    async def mark(self, connection: Connection, points: Sequence[tuple[Account, Point]]) -> None:
        """Remember up to where accounts agree with their transactions."""
        await connection.execute(
            self._sql["mark_reconciled"],
            [
                (a.shard, a.account_id, p.sequence, p.balance, p.reserved, p.head_hash)
                for a, p in points
            ],
        )

    async def drop_point(self, connection: Connection, place: Place) -> None:
        """Forget where an account was reconciled: it is reconciled from its first row."""
        await connection.execute(self._sql["drop_point"], *place)

    async def row_at(self, connection: Connection, place: Place, sequence: int) -> Point | None:
        """Return what an account's chain says at a sequence; None: it has no row there."""
        row = await connection.fetchrow(self._sql["row_at_point"], *place, sequence)
        if row is None:
            return None
        return Point(sequence, row["balance"], row["reserved"], row["hash"])

    async def remember_vanished(self, connection: Connection, place: Place) -> None:
        """Remember an account that is gone, if there are transactions of it."""
        await connection.execute(self._sql["remember_vanished"], *place)

    async def values_found(
        self,
        connection: Connection,
        place: Place,
        sequences: Sequence[int],
        row_ids: Sequence[UUID],
    ) -> dict[int | UUID, bytes]:
        """Return digests of what stands at sequences, and in the holds and refunds with ids."""
        rows = await connection.fetch(self._sql["values_found"], *place, sequences, row_ids)
        return {
            row["sequence"] if row["row_id"] is None else UUID(bytes=row["row_id"].bytes): row[
                "digest"
            ]
            for row in rows
            if row["digest"] is not None
        }

    async def accepted(self, connection: Connection, place: Place) -> frozenset[bytes]:
        """Return the digests of what was accepted by lifting freezes of an account."""
        rows = await connection.fetch(self._sql["accepted"], *place)
        return frozenset(row["digest"] for row in rows if row["digest"] is not None)

    async def freeze(self, connection: Connection, place: Place) -> FrozenRow | None:
        """Freeze an account and return its row; None: it is frozen already, or gone."""
        row = await connection.fetchrow(self._sql["freeze_account"], *place)
        if row is None:
            return None
        return FrozenRow(
            tenant_id=row["tenant_id"],
            version=row["version"],
            frozen_at=row["frozen_at"],
            stored=msgspec.json.decode(row["stored"]),
        )

    async def add_freeze(
        self,
        connection: Connection,
        place: Place,
        frozen: FrozenRow,
        *,
        faults: Sequence[Fault],
        found: Sequence[bytes],
        note: EvidenceNote,
    ) -> None:
        """Write down a freeze, in the unit of work that froze the account.

        One that is open was thawed past its lifting: it is closed.
        """
        await connection.execute(self._sql["close_freeze"], *place)
        await connection.execute(
            self._sql["add_freeze"],
            *place,
            frozen.frozen_at,
            frozen.version,
            msgspec.json.encode(faults).decode(),
            found,
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
                tenant_id=None if row["tenant_id"] is None else TenantId(row["tenant_id"]),
                frozen_at=row["frozen_at"],
                version=row["version"],
                faults=faults_of(row["faults"]),
                evidence=row["evidence"],
                evidence_sha256=row["evidence_sha256"],
                evidence_problem=row["evidence_problem"],
            )
            for row in rows
        )

    async def tidy_freezes(self, connection: Connection) -> None:
        """Make the list of freezes agree with the accounts that are frozen."""
        await connection.execute(self._sql["close_thawed"])
        await connection.execute(self._sql["adopt_frozen"])

    async def accounts_between(
        self, connection: Connection, after: Place, upto: Place, limit: int | None
    ) -> list[Place]:
        """Return accounts behind `after` up to `upto` in key order; None: all of them."""
        rows = await connection.fetch(self._sql["accounts_between"], *after, *upto, limit)
        return [(row["shard"], row["account_id"]) for row in rows]

    async def places_of(self, connection: Connection, names: Sequence[str]) -> list[Place]:
        """Return where accounts of these names are, whether they belong there or not."""
        rows = await connection.fetch(self._sql["places_of"], names)
        return [(row["shard"], row["account_id"]) for row in rows]

    async def progress(self, connection: Connection) -> str | None:
        """Return the account behind which the pass over all chains goes on, None: it begins."""
        after: str | None = await connection.fetchval(self._sql["progress"])
        return after

    async def advance(self, connection: Connection, after: str | None) -> None:
        """Remember how far the pass has come; None: to its end."""
        await connection.execute(self._sql["advance"], after, after is None)


def _point_of(row: Row) -> Point | None:
    sequence, balance = row["reconciled_sequence"], row["reconciled_balance"]
    reserved, head_hash = row["reconciled_reserved"], row["reconciled_hash"]
    if sequence is None or balance is None or reserved is None or head_hash is None:
        return None
    return Point(sequence, balance, reserved, head_hash)
