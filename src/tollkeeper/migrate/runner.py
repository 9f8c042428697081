"""Applies migrations to one database: one runner at a time, one unit of work per file.

It does not decide what to apply (`plan.py`). Invariants: a file and its record commit together or
not at all; no statement waits longer than `lock_timeout_ms` for a lock, because everyone else would
queue behind it; SQL is sent as it stands.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import asyncpg

from tollkeeper.database.connect import is_connection_lost
from tollkeeper.database.driver import Connection
from tollkeeper.database.errors import DatabaseUnavailable
from tollkeeper.kernel.backoff import Backoff
from tollkeeper.kernel.clock import Clock
from tollkeeper.kernel.errors import TollkeeperError
from tollkeeper.migrate.errors import (
    MigrationBlocked,
    MigrationFailed,
    NotOneUnitOfWork,
    RunnerBusy,
    RunnerLockLost,
)
from tollkeeper.migrate.model import AppliedMigration, Migration
from tollkeeper.migrate.plan import plan
from tollkeeper.migrate.store import MigrationStore

Say = Callable[[str], None]

LOCK_STATES = frozenset({"55P03", "40P01"})
"""Lock not available, deadlock: the same file may pass when tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a runner waits: for another runner, for a lock, and before it tries again.

    By default a file is tried six times for two seconds each, about 15 s together.
    """

    runner_wait_s: float = 60.0
    poll_interval_s: float = 0.1
    lock_timeout_ms: int = 2_000
    backoff: Backoff = field(default_factory=lambda: Backoff(first_ms=100.0))


class Runner:
    """Migrates the database behind one connection, which must be direct: no pooler in between."""

    def __init__(
        self, connection: Connection, *, clock: Clock, say: Say, patience: Patience
    ) -> None:
        self._connection = connection
        self._store = MigrationStore(connection)
        self._clock = clock
        self._say = say
        self._patience = patience

    async def run(self, database: str, available: Sequence[Migration]) -> tuple[Migration, ...]:
        """Apply what is missing and return it.

        Raises:
            MigrationError: nothing of the file that failed remains; those before it do.
            DatabaseUnavailable: the server went away; the same holds.
        """
        try:
            return await self._run(database, available)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            if is_connection_lost(error):
                raise DatabaseUnavailable(reason=str(error)) from error
            raise

    async def _run(self, database: str, available: Sequence[Migration]) -> tuple[Migration, ...]:
        await self._store.notice_dead_client()
        await self._lock(database)
        # Read under the lock: what another runner did while we waited is then not planned again.
        steps = plan(database, await self._store.read_records(), available)
        if steps:
            await self._store.create_records()
        for migration in steps:
            await self._apply_patiently(migration)
        # On any error the lock ends with the connection.
        if not await self._store.unlock():
            raise RunnerLockLost(database=database)
        return steps

    async def _lock(self, database: str) -> None:
        limit_s = self._clock.monotonic_s() + self._patience.runner_wait_s
        has_said = False
        while not await self._store.try_lock():
            holder = await self._store.find_lock_holder()
            if self._clock.monotonic_s() >= limit_s:
                raise RunnerBusy(
                    database=database,
                    holder=holder or "it ended just now, run again",
                    waited_s=self._patience.runner_wait_s,
                )
            if holder is not None and not has_said:
                self._say(f"{database}: waiting for another runner: {holder}")
                has_said = True
            await self._clock.sleep(self._patience.poll_interval_s)

    async def _apply_patiently(self, migration: Migration) -> None:
        backoff = self._patience.backoff
        for attempt in range(backoff.retries + 1):
            try:
                await self._apply(migration)
            except asyncpg.PostgresError as error:
                if error.sqlstate not in LOCK_STATES:
                    raise _explain(migration, error) from error
                if attempt == backoff.retries:
                    raise MigrationBlocked(
                        file=migration.file, attempts=attempt + 1, reason=str(error)
                    ) from error
                # No jitter: the lock keeps every other runner away.
                wait_ms = backoff.wait_ms(attempt, 0.0)
                self._say(f"{migration.file}: {error}; again in {wait_ms:g} ms")
                await self._clock.sleep(wait_ms / 1000)
            else:
                return

    async def _apply(self, migration: Migration) -> None:
        started_s = self._clock.monotonic_s()
        async with self._connection.transaction():
            await self._store.limit_lock_wait(self._patience.lock_timeout_ms)
            await self._connection.execute(migration.sql)
            if not self._connection.is_in_transaction():
                raise NotOneUnitOfWork(file=migration.file)
            duration_ms = round((self._clock.monotonic_s() - started_s) * 1000)
            await self._store.add_record(
                AppliedMigration(
                    version=migration.version,
                    name=migration.name,
                    checksum=migration.checksum,
                    applied_at=self._clock.now(),
                    duration_ms=duration_ms,
                )
            )
        self._say(f"{migration.file}: applied in {duration_ms} ms")


def _explain(migration: Migration, error: asyncpg.PostgresError) -> TollkeeperError:
    if is_connection_lost(error):
        return DatabaseUnavailable(reason=str(error))
    line = None if error.position is None else migration.line_at(int(error.position))
    return MigrationFailed(
        file=migration.file, line=line, sqlstate=error.sqlstate, reason=str(error)
    )
