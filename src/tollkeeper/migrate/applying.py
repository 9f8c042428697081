"""Applies one file, or takes it back: statement by statement, reported, and remembered with it.

Invariants: a file and its row of the log commit together or not at all; no statement of a unit of
work waits longer than `lock_timeout_ms` for a lock, because everyone else would queue behind it;
SQL is sent as it stands. A statement outside of a unit of work is judged by its file's checks.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

import asyncpg

from tollkeeper.database.connect import is_connection_lost
from tollkeeper.database.errors import DatabaseUnavailable
from tollkeeper.database.statements import normalised
from tollkeeper.kernel.errors import TollkeeperError
from tollkeeper.migrate.errors import (
    DownLosesRows,
    MigrationFailed,
    NotOneUnitOfWork,
    OutcomeUnknown,
    VerifyFailed,
)
from tollkeeper.migrate.history import Entry, Happening, text_of
from tollkeeper.migrate.model import Migration, Statement
from tollkeeper.migrate.report import FileReport, StatementReport
from tollkeeper.migrate.script import index_of
from tollkeeper.migrate.session import RunnerSession
from tollkeeper.migrate.store import LockWait, Relation


class Undo(Exception):
    """Ends a unit of work that shall leave nothing behind; never leaves this slice."""


@dataclass(kw_only=True)
class Applying:
    """One run's way of applying files to one database."""

    session: RunnerSession
    run_id: UUID
    is_logged: bool = True
    accepted_rows: int = 0
    _before: Mapping[int, Relation] = field(default_factory=dict)

    async def apply(self, migration: Migration) -> FileReport:
        """Apply a file in a unit of work of its own.

        Raises:
            MigrationError, DatabaseUnavailable: nothing of it remains.
        """
        await self._begun(migration, is_down=False)
        async with self.session.work.transaction():
            report = await self.apply_here(migration)
            await self._remember(report, Happening.APPLIED)
            await self.session.check_lock()
        return report

    async def apply_here(self, migration: Migration) -> FileReport:
        """Apply a file in the unit of work that is open."""
        started_s = self.session.clock.monotonic_s()
        before, held = await self._open()
        statements = [
            await self._execute(migration, each, number, len(migration.up))
            for number, each in enumerate(migration.up, start=1)
        ]
        await self._check(migration, is_undone=True)
        return FileReport(
            migration=migration,
            duration_ms=self._since_ms(started_s),
            statements=tuple(statements),
            locks=await self._locks(before, held),
            rewritten=await self._rewritten(before),
        )

    async def try_here(self, migration: Migration) -> FileReport:
        """Apply a file in the unit of work that is open, if it can be in one."""
        if migration.is_transactional:
            return await self.apply_here(migration)
        return FileReport(migration=migration, is_rehearsed=False)

    async def take_back(self, migration: Migration) -> FileReport:
        """Take a file back by its own SQL, in a unit of work of its own.

        Raises:
            DownLosesRows: it would lose more rows than was accepted; nothing was changed.
            MigrationError, DatabaseUnavailable: nothing was changed.
        """
        await self._begun(migration, is_down=True)
        async with self.session.work.transaction():
            report = await self.take_back_here(migration)
            await self._remember(report, Happening.TAKEN_BACK)
            await self.session.check_lock()
        return report

    async def take_back_here(self, migration: Migration) -> FileReport:
        """Take a file back in the unit of work that is open."""
        assert migration.down is not None
        started_s = self.session.clock.monotonic_s()
        before, held = await self._open()
        lost = await self._rows_lost(migration, before)
        self._judge(migration, lost)
        deleted = await self.session.store.deleted()
        statements = [
            await self._execute(migration, each, number, len(migration.down))
            for number, each in enumerate(migration.down, start=1)
        ]
        for oid, rows in (await self.session.store.deleted()).items():
            name = before[oid].name if oid in before else None
            if name is not None and name not in migration.derived and rows > deleted.get(oid, 0):
                lost[name] = lost.get(name, 0) + rows - deleted.get(oid, 0)
        self._judge(migration, lost)
        return FileReport(
            migration=migration,
            is_down=True,
            duration_ms=self._since_ms(started_s),
            statements=tuple(statements),
            locks=await self._locks(before, held),
            rewritten=await self._rewritten(before),
            lost=lost,
        )

    def _judge(self, migration: Migration, lost: Mapping[str, int]) -> None:
        if sum(lost.values()) > self.accepted_rows:
            raise DownLosesRows(
                database=migration.database,
                rows=sum(lost.values()),
                accepted=self.accepted_rows,
                places=tuple(f"{place}: {rows}" for place, rows in lost.items()),
            )

    async def apply_alone(self, migration: Migration, *, was_begun: bool) -> FileReport:
        """Apply the one statement of a file that cannot be in a unit of work.

        With `was_begun`, an earlier run was cut: its checks tell whether it was done.

        Raises:
            OutcomeUnknown: it cannot be told, and doing it again is not safe.
            VerifyFailed: it was done and does not hold.
        """
        [statement] = migration.up
        started_s = self.session.clock.monotonic_s()
        index = index_of(statement)
        await self._begun(migration, is_down=False)
        await self.session.store.limit_nothing()
        if index is not None:
            await self.session.store.drop_invalid_index(index)
        statements: tuple[StatementReport, ...] = ()
        if not (was_begun and await self._holds(migration)):
            statements = (await self._execute_alone(migration, statement, was_begun=was_begun),)
        await self._check(migration, is_undone=False)
        report = FileReport(
            migration=migration, duration_ms=self._since_ms(started_s), statements=statements
        )
        await self.session.check_lock()
        await self._remember(report, Happening.APPLIED)
        return report

    async def _execute_alone(
        self, migration: Migration, statement: Statement, *, was_begun: bool
    ) -> StatementReport:
        try:
            return await self._execute(migration, statement, 1, 1)
        except MigrationFailed as error:
            if not was_begun:
                raise
            raise OutcomeUnknown(file=migration.file, reason=error.reason) from error

    async def _open(self) -> tuple[Mapping[int, Relation], Mapping[str, str]]:
        """Limit what waits; return what is there before, and what this unit of work has locked."""
        await self.session.store.limit_lock_wait(self.session.patience.lock_timeout_ms)
        before = await self.session.store.relations()
        return before, await self.session.store.locks_taken(before)

    async def _locks(
        self, before: Mapping[int, Relation], held: Mapping[str, str]
    ) -> Mapping[str, str]:
        now = await self.session.store.locks_taken(before)
        return {name: mode for name, mode in now.items() if held.get(name) != mode}

    async def _execute(
        self, migration: Migration, statement: Statement, number: int, of: int
    ) -> StatementReport:
        clock, shown = self.session.clock, normalised(statement.text)
        place = {"file": migration.file, "line": statement.line, "statement": number, "of": of}
        await self._log(
            Happening.STATEMENT, migration, {"line": statement.line, "statement": number}
        )
        self.session.tell({"event": "migrate.statement_begins", **place, "shown": shown})

        def waits(wait: LockWait) -> None:
            self.session.tell(
                {
                    "event": "migrate.waits_for_lock", **place, "mode": wait.mode,
                    "relation": wait.relation, "blockers": wait.blockers,
                }
            )  # fmt: skip

        started_s = clock.monotonic_s()
        async with self.session.watching(waits) as waited_ms:
            try:
                await self.session.work.execute(statement.text)
            except asyncpg.PostgresError as error:
                raise _explained(migration, statement, error) from error
            finally:
                duration_ms = round((clock.monotonic_s() - started_s) * 1_000, 1)
        if migration.is_transactional and not self.session.work.is_in_transaction():
            raise NotOneUnitOfWork(file=migration.file)
        report = StatementReport(
            line=statement.line, shown=shown, duration_ms=duration_ms, lock_wait_ms=waited_ms()
        )
        self.session.tell({"event": "migrate.statement", **place, **report.as_data()})
        return report

    async def _check(self, migration: Migration, *, is_undone: bool) -> None:
        for check in migration.checks:
            if not await self._is_true(migration, check):
                raise VerifyFailed(file=migration.file, line=check.line, is_undone=is_undone)

    async def _holds(self, migration: Migration) -> bool:
        for check in migration.checks:
            if not await self._is_true(migration, check):
                return False
        return True

    async def _is_true(self, migration: Migration, check: Statement) -> bool:
        try:
            rows = await self.session.work.fetch(check.text)
        except asyncpg.PostgresError as error:
            raise _explained(migration, check, error) from error
        return bool(rows) and all(row[0] is True for row in rows)

    async def _rewritten(self, before: Mapping[int, Relation]) -> Mapping[str, int]:
        now = await self.session.store.relations()
        return {
            now[oid].name: known.rows
            for oid, known in before.items()
            if oid in now and known.kind in {"r", "m"} and now[oid].file != known.file
        }

    async def _rows_lost(
        self, migration: Migration, before: Mapping[int, Relation]
    ) -> dict[str, int]:
        """Return how many rows or values taking a file back loses: by doing it, and not.

        Rows that it deletes are counted when it is done. With the savepoint go its locks: what was
        found is locked against writers before it is counted, so that nobody adds to it.
        """
        store, columns = self.session.store, await self.session.store.columns()
        gone: list[tuple[int, str | None, int]] = []
        with contextlib.suppress(Undo):
            async with self.session.work.transaction():  # a savepoint
                await self._execute_silently(migration)
                after, left = await store.relations(), await store.columns()
                for oid, known in before.items():
                    if known.kind == "r" and oid not in after:
                        gone.append((oid, None, 0))
                    elif known.kind == "r" and after[oid].file != known.file:
                        gone.append((oid, None, await store.count(oid)))  # perhaps emptied
                gone += [
                    (oid, name, 0)
                    for (oid, number), name in columns.items()
                    if oid in after and (oid, number) not in left
                ]
                raise Undo
        lost = {}
        for oid, column, left_rows in gone:
            name = before[oid].name
            if name in migration.derived:
                continue
            await self._lock_writers_out(migration, oid)
            rows = await store.count(oid, column) - left_rows
            if rows > 0:
                lost[f"{name}.{column}" if column else name] = rows
        return lost

    async def _lock_writers_out(self, migration: Migration, oid: int) -> None:
        try:
            await self.session.store.lock_writers_out(oid)
        except asyncpg.PostgresError as error:
            assert migration.down is not None
            raise _explained(migration, migration.down[0], error) from error

    async def _execute_silently(self, migration: Migration) -> None:
        assert migration.down is not None
        for statement in migration.down:
            try:
                await self.session.work.execute(statement.text)
            except asyncpg.PostgresError as error:
                raise _explained(migration, statement, error) from error

    async def _begun(self, migration: Migration, *, is_down: bool) -> None:
        steps = migration.down if is_down else migration.up
        assert steps is not None
        await self._log(Happening.BEGUN, migration, {"is_down": is_down, "statements": len(steps)})

    async def _log(
        self, happening: Happening, migration: Migration, details: Mapping[str, object]
    ) -> None:
        """Write a row beside the unit of work, so that it stays whatever becomes of that."""
        if not self.is_logged:
            return
        await self.session.watcher.append(
            Entry(
                at=self.session.clock.now(),
                run_id=self.run_id,
                happening=happening,
                version=migration.version,
                name=migration.name,
                details=text_of(details),
            )
        )

    async def _remember(self, report: FileReport, happening: Happening) -> None:
        """Write the row that says what was done, in the unit of work that did it."""
        migration = report.migration
        details = report.as_data()
        for repeated in ("file", "version", "name", "checksum", "digest", "is_rehearsed"):
            del details[repeated]
        await self.session.store.append(
            Entry(
                at=self.session.clock.now(),
                run_id=self.run_id,
                happening=happening,
                version=migration.version,
                name=migration.name,
                checksum=migration.checksum,
                digest=migration.digest,
                source=migration.source,
                duration_ms=report.duration_ms,
                details=text_of(details),
            )
        )

    def _since_ms(self, started_s: float) -> int:
        return round((self.session.clock.monotonic_s() - started_s) * 1_000)


def _explained(
    migration: Migration, statement: Statement, error: asyncpg.PostgresError
) -> TollkeeperError:
    if is_connection_lost(error):
        return DatabaseUnavailable(reason=str(error))
    line = statement.line if error.position is None else statement.line_at(int(error.position))
    return MigrationFailed(
        file=migration.file, line=line, sqlstate=error.sqlstate or "", reason=str(error)
    )
