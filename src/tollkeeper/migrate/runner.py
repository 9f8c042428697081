"""Brings one database to a version, up or down: one runner at a time, file by file.

It does not decide what to apply (`plan.py`) nor how (`applying.py`). What is planned is read under
the lock: what another runner did while we waited is then not planned again.
"""

import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from uuid import UUID

import asyncpg

from tollkeeper.migrate.applying import Applying, Undo
from tollkeeper.migrate.errors import (
    HistoryBroken,
    MigrationBlocked,
    MigrationError,
    MigrationFailed,
    RunnerLockLost,
)
from tollkeeper.migrate.history import Cut, Entry, Happening, faults, last_cut, text_of
from tollkeeper.migrate.model import AppliedMigration, Migration
from tollkeeper.migrate.plan import plan, plan_down
from tollkeeper.migrate.report import FileReport
from tollkeeper.migrate.session import RunnerSession

LOCK_STATES = frozenset({"55P03", "40P01"})
"""Lock not available, deadlock: the same file may pass when tried again."""

Before = Callable[
    [RunnerSession, Sequence[AppliedMigration], Sequence[Migration]],
    Awaitable[Mapping[str, object]],
]
"""Done under the lock before the first file: taking a backup. Returns what to write down."""


class Runner:
    """Migrates the database of one session."""

    def __init__(
        self,
        session: RunnerSession,
        *,
        run_id: UUID,
        jitter: Callable[[], float],
        before: Before | None = None,
    ) -> None:
        self._session = session
        self._run_id = run_id
        self._jitter = jitter
        self._before = before

    async def up(
        self,
        available: Sequence[Migration],
        *,
        to: int | None,
        done: Callable[[FileReport], None],
    ) -> tuple[FileReport, ...]:
        """Apply what is missing, up to a version; `done` hears of each file.

        Raises:
            MigrationError: nothing of the file that failed remains; those before it do.
        """
        session = self._session
        await session.begin()
        records = await session.store.read_records()
        steps = plan(session.database, records, available, to=to)
        cut = await self._look_back()
        reports = []
        await self._prepare(records, steps)
        applying = Applying(session=session, run_id=self._run_id)
        for migration in steps:
            was_begun = cut is not None and cut.version == migration.version
            report = await self._apply(applying, migration, was_begun=was_begun)
            done(report)
            reports.append(report)
        await session.end()
        return tuple(reports)

    async def down(
        self, available: Sequence[Migration], *, to: int, accepted_rows: int
    ) -> tuple[FileReport, ...]:
        """Take back what is above a version, each file by its own SQL.

        Raises:
            MigrationError: nothing of the file that failed was taken back; those after it were.
        """
        session = self._session
        await session.begin()
        records = await session.store.read_records()
        steps = plan_down(session.database, records, available, to=to)
        await self._look_back()
        reports = []
        await self._prepare(records, steps)
        for migration in steps:
            applying = Applying(session=session, run_id=self._run_id, accepted_rows=accepted_rows)
            report = await self._patiently(migration, applying.take_back)
            accepted_rows -= sum(report.lost.values())
            reports.append(report)
        await session.end()
        return tuple(reports)

    async def dry_up(
        self, available: Sequence[Migration], *, to: int | None = None
    ) -> tuple[FileReport, ...]:
        """Apply what is missing in one unit of work that is then undone; nothing stays.

        Files that are not transactional are left out, and reported as not rehearsed.

        Raises:
            MigrationError: what `up` would have met.
        """
        session = self._session
        await session.begin()
        steps = plan(session.database, await session.store.read_records(), available, to=to)
        applying = Applying(session=session, run_id=self._run_id, is_logged=False)
        reports: list[FileReport] = []
        try:
            with contextlib.suppress(Undo):
                async with session.work.transaction():
                    reports += [await applying.try_here(migration) for migration in steps]
                    raise Undo
        except MigrationFailed as error:
            if error.sqlstate in LOCK_STATES:
                raise MigrationBlocked(file=error.file, attempts=1, reason=error.reason) from error
            raise
        await session.end()
        return tuple(reports)

    async def note(self, happening: Happening, details: Mapping[str, object]) -> None:
        """Add a row to the log that belongs to no file."""
        await self._session.begin()
        if await self._session.store.has_log():
            await self._write(happening, details)
        await self._session.end()

    async def _write(self, happening: Happening, details: Mapping[str, object]) -> None:
        await self._session.store.append(
            Entry(
                at=self._session.clock.now(),
                run_id=self._run_id,
                happening=happening,
                details=text_of(details),
            )
        )

    async def _look_back(self) -> Cut | None:
        """Read the log: refuse one that was changed, tell of a run that was cut."""
        session = self._session
        rows = await session.store.read_log()
        wrong = faults(rows)
        if wrong:
            raise HistoryBroken(database=session.database, faults=wrong)
        cut = last_cut(rows)
        if cut is not None:
            session.tell(
                {
                    "event": "migrate.was_cut", "database": session.database,
                    "version": cut.version, "at": cut.at.isoformat(),
                    "statement": cut.statement, "of": cut.of, "is_down": cut.is_down,
                }
            )  # fmt: skip
        return cut

    async def _prepare(
        self, records: Sequence[AppliedMigration], steps: Sequence[Migration]
    ) -> None:
        session = self._session
        done = None
        if self._before is not None and records and steps:
            done = await self._before(session, records, steps)
        if (records or steps) and not await session.store.has_log():
            await self._make_log([self._adopted(record) for record in records])
        if done is not None:
            await self._write(Happening.BACKED_UP, done)

    async def _make_log(self, adopted: Sequence[Entry]) -> None:
        """Make the log, again after a wait where somebody reads what it replaces."""
        session, attempt = self._session, 0
        patience = session.patience
        while True:
            try:
                return await session.store.create_log(adopted, patience.lock_timeout_ms)
            except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
                if attempt == patience.backoff.retries:
                    raise MigrationBlocked(
                        file="the log of migrations", attempts=attempt + 1, reason=str(error)
                    ) from error
            await session.clock.sleep(patience.backoff.wait_ms(attempt, self._jitter()) / 1_000)
            attempt += 1

    def _adopted(self, record: AppliedMigration) -> Entry:
        return Entry(
            at=record.applied_at,
            run_id=self._run_id,
            happening=Happening.ADOPTED,
            version=record.version,
            name=record.name,
            checksum=record.checksum,
            duration_ms=record.duration_ms,
        )

    async def _apply(
        self, applying: Applying, migration: Migration, *, was_begun: bool
    ) -> FileReport:
        if migration.is_transactional:
            return await self._patiently(migration, applying.apply)

        async def alone(_: Migration) -> FileReport:
            return await applying.apply_alone(migration, was_begun=was_begun)

        return await self._patiently(migration, alone)

    async def _patiently(
        self,
        migration: Migration,
        work: Callable[[Migration], Awaitable[FileReport]],
    ) -> FileReport:
        """Do a file's work, again after a wait where a lock was in the way."""
        session, backoff = self._session, self._session.patience.backoff
        attempt = 0
        while True:
            try:
                report = await work(migration)
            except MigrationFailed as error:
                if error.sqlstate not in LOCK_STATES:
                    await self._failed(migration, error)
                    raise
                if attempt == backoff.retries:
                    blocked = MigrationBlocked(
                        file=migration.file, attempts=attempt + 1, reason=error.reason
                    )
                    await self._failed(migration, blocked)
                    raise blocked from error
                wait_ms = backoff.wait_ms(attempt, self._jitter())
                session.tell(
                    {
                        "event": "migrate.again", "file": migration.file, "reason": error.reason,
                        "attempt": attempt + 1, "wait_ms": round(wait_ms, 1),
                    }
                )  # fmt: skip
                await session.clock.sleep(wait_ms / 1_000)
                attempt += 1
            except RunnerLockLost:
                raise  # the log is another runner's to write now, or nobody hears us
            except MigrationError as error:
                await self._failed(migration, error)
                raise
            else:
                event = "migrate.taken_back" if report.is_down else "migrate.applied"
                session.tell({"event": event, **report.as_data(), "attempts": attempt + 1})
                return report

    async def _failed(self, migration: Migration, error: MigrationError) -> None:
        """Write down that a file was refused, so that it does not count as cut."""
        await self._session.watcher.append(
            Entry(
                at=self._session.clock.now(),
                run_id=self._run_id,
                happening=Happening.FAILED,
                version=migration.version,
                name=migration.name,
                details=text_of({"error": type(error).__name__, "reason": str(error)}),
            )
        )
