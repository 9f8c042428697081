"""Takes a database back to a backup: verified, restored beside, checked, and then swapped in.

The live database is touched last and by names alone; it is kept, closed, as the undo. What would be
lost is told before anything is closed, and counted once more when nobody can write. Several
databases are taken back one by one.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from tollkeeper.database.driver import Connection
from tollkeeper.migrate.backup_errors import (
    DatabaseInUse,
    LossNotAccepted,
    NothingToUndo,
    RollbackRefused,
)
from tollkeeper.migrate.backup_model import Backup, Level, rows_lost
from tollkeeper.migrate.backup_store import BackupStore
from tollkeeper.migrate.equipment import Equipment
from tollkeeper.migrate.inspection import Inspector, Lost
from tollkeeper.migrate.note import Note, State, understood
from tollkeeper.migrate.progress import Silent
from tollkeeper.migrate.restore import Desk, desk_of, require_service
from tollkeeper.migrate.server import explained, find_server
from tollkeeper.migrate.store import MigrationStore
from tollkeeper.migrate.swap import Change, recover, swap
from tollkeeper.migrate.verify import verify_backup


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback:
    """What a rollback, or its undo, has done."""

    database: str
    backup: str
    kept: str
    """The database that was live before: closed, and as it was."""
    lost: int
    lost_detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Aside:
    """A database that a rollback or an undo has put aside."""

    name: str
    state: State
    backup: str
    at: datetime


async def roll_back(
    dsn: str, service: str, identifier: str, *, accept_loss: int, equipment: Equipment
) -> Rollback:
    """Put the content of a backup in the place of a live database.

    Raises:
        LossNotAccepted: more would be lost than `accept_loss` transactions (or rows).
        RollbackRefused: the database cannot be swapped as it stands.
        BackupError: the backup is not good enough, or cannot be restored.
    """
    backup = equipment.catalogue.read(identifier).backup
    require_service(backup, service)
    await verify_backup(identifier, Level.READ, equipment)
    server = await find_server(dsn)
    inspector = equipment.inspector(service)
    async with desk_of(server, equipment, service) as desk:
        await recover(desk)
        await _refuse_hindrances(desk)
        measure = _Measure(desk, inspector, accept_loss)
        await measure.estimate(backup)
        async with desk.beside(backup) as scratch:
            await desk.check(scratch, backup)
            await desk.finish(scratch)
            change = Change(replacement=scratch, backup=identifier, state=State.KEPT, word="before")
            return await measure.swap(change)


async def undo_rollback(
    dsn: str, service: str, *, accept_loss: int, equipment: Equipment
) -> Rollback:
    """Put back the database that the last rollback has kept.

    Raises:
        NothingToUndo: there is none.
        LossNotAccepted: more was written since the rollback than may be lost.
        RollbackRefused: the database cannot be swapped as it stands.
    """
    server = await find_server(dsn)
    async with desk_of(server, equipment, service) as desk:
        await recover(desk)
        kept = [each for each in await _asides(desk) if each.state is State.KEPT]
        if not kept:
            raise NothingToUndo(database=server.database)
        last = max(kept, key=lambda each: each.at)
        await _refuse_hindrances(desk)
        measure = _Measure(desk, equipment.inspector(service), accept_loss)
        change = Change(
            replacement=last.name, backup=last.backup, state=State.UNDONE, word="undone"
        )
        async with _opened(desk, last.name):
            return await measure.swap(change)


async def reopen_database(dsn: str, service: str, equipment: Equipment) -> bool:
    """Open a database that a killed rollback has left closed; return whether there was one."""
    server = await find_server(dsn)
    async with desk_of(server, equipment, service) as desk:
        return await recover(desk)


async def list_asides(dsn: str, service: str, equipment: Equipment) -> tuple[Aside, ...]:
    """Return the databases that rollbacks have put aside, the oldest first."""
    server = await find_server(dsn)
    async with (
        explained("looking at databases"),
        server.standing_beside() as connection,
    ):
        return tuple(await _asides(Desk(server, connection, equipment, service=service)))


class _Measure:
    """Says what would be lost, and refuses more than was accepted."""

    def __init__(self, desk: Desk, inspector: Inspector | None, accept_loss: int) -> None:
        self._desk = desk
        self._inspector = inspector
        self._accepted = accept_loss

    async def estimate(self, backup: Backup) -> None:
        """Refuse early what an estimate shows to be too much: restoring takes its time."""
        async with self._desk.server.connected() as live:
            if self._inspector is None:
                tables = await BackupStore(live).tables(self._desk.equipment.progress)
                lost: Lost = rows_lost(backup.snapshot.tables, tables)
            else:
                with _countable(self._desk.server.database):
                    lost = await self._inspector.estimate(live, backup.snapshot.facts)
        self._tell("rollback.estimated", backup.id, lost)
        self._judge(lost)

    async def swap(self, change: Change) -> Rollback:
        """Count while the database is open, so that most refusals close nothing; then swap."""
        server = self._desk.server
        found: Lost | None = None
        async with server.connected(change.replacement) as other, server.connected() as live:
            self._judge(await self._count(live, other))

        async def judge(live: Connection) -> None:
            nonlocal found
            async with server.connected(change.replacement) as other:
                found = await self._count(live, other)
            self._tell("rollback.counted", change.backup, found)
            self._judge(found)

        kept = await swap(self._desk, change, judge)
        assert found is not None
        return Rollback(
            database=server.database,
            backup=change.backup,
            kept=kept,
            lost=found.count,
            lost_detail=found.detail,
        )

    async def _count(self, live: Connection, other: Connection) -> Lost:
        if self._inspector is not None:
            with _countable(self._desk.server.database):
                return await self._inspector.loss(live, other)
        now = await BackupStore(live).tables(Silent())
        return rows_lost(await BackupStore(other).tables(Silent()), now)

    def _tell(self, event: str, backup: str, lost: Lost) -> None:
        self._desk.log(event, backup=backup, lost=lost.count, detail=lost.detail)

    def _judge(self, lost: Lost) -> None:
        if lost.count > self._accepted:
            raise LossNotAccepted(
                database=self._desk.server.database,
                accepted=self._accepted,
                count=lost.count,
                detail=lost.detail,
            )


class _countable:  # noqa: N801  # reads as a state
    """Explain that a loss cannot be counted where the live tables are not what they were."""

    def __init__(self, database: str) -> None:
        self._database = database

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, asyncpg.UndefinedTableError | asyncpg.UndefinedColumnError):
            reason = (
                f"what would be lost cannot be counted ({error}); restore the backup under "
                "another name and look"
            )
            raise RollbackRefused(database=self._database, reason=reason) from error


@asynccontextmanager
async def _opened(desk: Desk, name: str) -> AsyncIterator[None]:
    """Let us into a kept database during the block; closed again unless it has become live."""
    await desk.store.allow_connections(name, True)
    try:
        yield
    finally:
        if not desk.connection.is_closed() and await desk.store.exists(name):
            await desk.store.allow_connections(name, False)


async def _refuse_hindrances(desk: Desk) -> None:
    database = desk.server.database
    if not await desk.store.exists(database):
        raise RollbackRefused(
            database=database, reason="there is no such database: restore the backup instead"
        )
    await desk.store.refuse_foreign_dumps(database, desk.equipment.clock)
    async with desk.server.connected() as live:
        runner = await MigrationStore(live).find_lock_holder()
    if runner is not None:
        raise DatabaseInUse(database=database, holder=f"a run of migrations ({runner})")
    for reason in await desk.store.hindrances(database):
        raise RollbackRefused(database=database, reason=reason)


async def _asides(desk: Desk) -> list[Aside]:
    found: list[tuple[str, Note]] = []
    for name, _, comment in await desk.store.marked():
        note = understood(comment)
        if note is None or note.database != desk.server.database or note.state is State.CLOSING:
            continue
        found.append((name, note))
    asides = [
        Aside(name=name, state=note.state, backup=note.backup, at=note.at) for name, note in found
    ]
    return sorted(asides, key=lambda each: each.at)
