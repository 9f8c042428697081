"""The archive's rows and statements: runs their blocks of `life.sql` on a given connection.

Acts as the owner of the schema. Decides nothing.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from tollkeeper.credits.seal import Seal, Sum
from tollkeeper.database.driver import Connection
from tollkeeper.database.locks import session_lock
from tollkeeper.database.queries import load_queries
from tollkeeper.database.timeouts import Timeouts

DIGESTS_PREFETCH: Final = 5_000
"""Rows fetched at a time while a partition is hashed: 15 ms of work, and what else the process does
goes on between."""

TIMEOUTS: Final = Timeouts(statement_s=86_400, lock_s=0.2, idle_in_transaction_s=600)
"""A quarter may take hours to read; no lock is waited for longer than a caller would notice."""

SESSION_SETTINGS: Final[Mapping[str, str]] = {
    "application_name": "tollkeeper archive",
    # Reading a quarter in the order of its chains: one core at most.
    "max_parallel_workers_per_gather": "0",
    "work_mem": "64MB",
    "jit": "off",
    # Bounds of partitions are read as the server writes them: abbreviations of zones are ambiguous.
    "datestyle": "ISO",
    "timezone": "UTC",
    **TIMEOUTS.settings(),
}
"""What the archivist's connection is opened with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Archivable:
    """A partition that is old enough, and what is still to be done before it can be moved."""

    partition: str
    bound: str | None
    validate: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Archived:
    """A partition of the archive; without a note it has no seal. One that is lost is not there."""

    partition: str
    from_time: datetime
    to_time: datetime
    is_there: bool
    note: str | None
    transactions: int | None
    root: bytes | None
    is_due: bool
    problem: str | None


class ArchiveStore:
    """Reads and writes of the archive; every method is one statement."""

    def __init__(self) -> None:
        self._sql = load_queries("tollkeeper.credits")

    def archivist_lock(self, connection: Connection) -> AbstractAsyncContextManager[bool]:
        """Hold the right to archive; yields False when another session has it."""
        return session_lock(
            connection, self._sql["take_archive_lock"], self._sql["release_archive_lock"]
        )

    async def archivable(
        self, connection: Connection, quarters: int, now: datetime
    ) -> list[Archivable]:
        """Return the live partitions that ended so many quarters ago, oldest first.

        Both by `now` and by the database's clock.
        """
        rows = await connection.fetch(self._sql["archivable_partitions"], quarters, now)
        return [
            Archivable(partition=row["partition"], bound=row["bound"], validate=row["validate"])
            for row in rows
        ]

    async def prepare(self, connection: Connection, statement: str) -> None:
        """Run a statement of an `Archivable`."""
        await connection.execute(statement)

    async def archive(self, connection: Connection, partition: str) -> None:
        """Take a partition whose bounds are validated from the live table to the archive."""
        await connection.execute(self._sql["archive_partition"], partition)

    async def archived(self, connection: Connection, check_after: timedelta) -> list[Archived]:
        """Return the archive's partitions and seals; due are those not checked for so long."""
        rows = await connection.fetch(self._sql["archived_partitions"], check_after)
        return [
            Archived(
                partition=row["partition"], from_time=row["from_time"], to_time=row["to_time"],
                is_there=row["is_there"], note=row["note"], transactions=row["transactions"],
                root=row["root"], is_due=bool(row["is_due"]), problem=row["problem"],
            )
            for row in rows
        ]  # fmt: skip

    async def digests(self, connection: Connection, partition: Archived) -> AsyncIterator[bytes]:
        """Stream what the rows of a partition hold, inside the caller's unit of work."""
        rows = connection.cursor(
            self._sql["archived_digests"], partition.from_time, partition.to_time,
            prefetch=DIGESTS_PREFETCH,
        )  # fmt: skip
        async for row in rows:
            yield row["digest"]

    async def sums(self, connection: Connection, partition: Archived) -> list[Sum]:
        """Return the sums of a partition by kind."""
        rows = await connection.fetch(
            self._sql["archived_sums"], partition.from_time, partition.to_time
        )
        return [
            Sum(kind=row["kind"], transactions=row["transactions"], amount=int(row["amount"]))
            for row in rows
        ]

    async def add_seal(
        self, connection: Connection, seal: Seal, note: str, sealed_at: datetime
    ) -> None:
        """Write down a seal."""
        await connection.execute(
            self._sql["add_seal"], seal.partition, seal.from_time, seal.to_time, sealed_at,
            seal.tree.size, seal.tree.root, note,
        )  # fmt: skip

    async def mark_seal(self, connection: Connection, partition: str, problem: str | None) -> None:
        """Remember how a seal compared with its partition."""
        await connection.execute(self._sql["mark_seal"], partition, problem)
