"""Restores a backup into a database that is made for it, and demands that it is what was backed up.

Never into one that is there, and never over live data: a scratch database is filled, checked, and
then renamed or dropped. Invariant: a database has its name only when it is whole.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import replace

import asyncpg

from tollkeeper.database.driver import Connection
from tollkeeper.database.libpq import with_database
from tollkeeper.migrate.backup_errors import (
    BackupInconsistent,
    BackupMissing,
    DiskFull,
    ProgramFailed,
    RolesMissing,
    ServerOlder,
    TargetExists,
)
from tollkeeper.migrate.backup_model import (
    Backup,
    DatabaseProperties,
    backup_id,
    differences,
    tag_of,
)
from tollkeeper.migrate.backup_store import SWAP, BackupStore
from tollkeeper.migrate.dump import programs_for
from tollkeeper.migrate.equipment import Equipment
from tollkeeper.migrate.note import scratch_name, scratch_prefix
from tollkeeper.migrate.reading import checked_pieces
from tollkeeper.migrate.server import Server, explained, find_server
from tollkeeper.migrate.shielding import shielded
from tollkeeper.migrate.space import check_space, restore_bytes

_DISK_FULL = "No space left on device"


class Desk:
    """A connection to the server's maintenance database, from which databases are made and named.

    Whoever has one, but for looking, has it under the lock of `desk_of`.
    """

    def __init__(
        self, server: Server, connection: Connection, equipment: Equipment, *, service: str
    ) -> None:
        self.server = server
        self.service = service
        self.connection = connection
        self.store = BackupStore(connection)
        self.equipment = equipment

    def tag(self) -> str:
        """Return a part of a name that nobody has used."""
        now, entropy = self.equipment.clock.now(), self.equipment.entropy()
        return tag_of(backup_id("name", now, entropy))

    async def drop_leftovers(self) -> None:
        """Drop the scratch databases that a killed run has left; only under the lock."""
        prefix = scratch_prefix(self.server.database)
        for name in await self.store.databases():
            if name.startswith(prefix):
                await self.store.drop(name)
                self.log("restore.leftover_dropped", name=name)

    def log(self, event: str, **fields: object) -> None:
        """Tell of something that was done to the database."""
        self.equipment.log({"event": event, "database": self.server.database, **fields})

    @asynccontextmanager
    async def beside(self, backup: Backup) -> AsyncIterator[str]:
        """Lend a scratch database with a backup in it, and the live one's settings and grants.

        It is dropped afterwards, unless it has another name by then.

        Raises:
            BackupError: it cannot be restored here, or not to its end.
        """
        await self._refuse(backup)
        name = scratch_name(self.server.database, self.tag())
        started_s = self.equipment.clock.monotonic_s()
        self.log("restore.started", backup=backup.id, scratch=name)
        try:
            live = await self.store.properties(self.server.database)
            await self.store.create(name, _like(backup.properties, live))
            await self._fill(name, backup)
            # Before it is looked at: where the tables are found may be a setting of the database.
            await self.store.furnish(name, backup.properties if live is None else live)
            duration_s = round(self.equipment.clock.monotonic_s() - started_s, 3)
            self.log("restore.filled", backup=backup.id, scratch=name, duration_s=duration_s)
            yield name
        except asyncpg.DiskFullError as error:
            raise DiskFull(where=str(self.server.host), written_bytes=0) from error
        finally:
            await shielded(self._drop(name))

    async def check(self, name: str, backup: Backup) -> None:
        """Demand that a restored database is what was backed up, and sound.

        Raises:
            BackupInconsistent: with what is wrong.
        """
        faults = await self._faults(name, backup)
        if faults:
            raise BackupInconsistent(backup_id=backup.id, faults=tuple(faults))

    async def finish(self, name: str) -> None:
        """Give the planner its statistics, which are not in the dump."""
        async with self.server.connected(name) as connection:
            await BackupStore(connection).analyze()

    async def _refuse(self, backup: Backup) -> None:
        if self.server.major < backup.server_major:
            raise ServerOlder(
                backup_id=backup.id,
                backup_major=backup.server_major,
                server_major=self.server.major,
            )
        missing = await self.store.missing_roles(backup.roles)
        if missing:
            file = backup.globals.name if backup.globals is not None else None
            raise RolesMissing(backup_id=backup.id, roles=missing, globals_file=file)
        free_bytes = await self.store.free_bytes() if self.server.is_local else None
        if free_bytes is None:
            self.log("restore.space_unknown", backup=backup.id, needed=backup.database_bytes)
            return
        check_space(
            restore_bytes(backup.database_bytes),
            free_bytes,
            what=f"restoring {backup.id}",
            where="the server's data directory",
        )

    async def _fill(self, name: str, backup: Backup) -> None:
        equipment = self.equipment
        programs = await programs_for(self.server.major, equipment.binaries)
        path = equipment.catalogue.folder / backup.dump.name
        with closing(checked_pieces(backup, path, backup.dump, equipment.progress)) as pieces:
            try:
                await programs.restore(self.server.environment(name), pieces=pieces)
            except ProgramFailed as error:
                if _DISK_FULL in error.reason:
                    raise DiskFull(where=str(self.server.host), written_bytes=0) from error
                raise

    async def _faults(self, name: str, backup: Backup) -> Sequence[str]:
        inspector = self.equipment.inspector(backup.service)
        async with self.server.connected(name) as connection:
            store = BackupStore(connection)
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                snapshot = await store.snapshot(inspector, self.equipment.progress)
                behind = await store.sequences_behind()
        faults = [
            *differences(backup.snapshot, snapshot),
            *(f"sequence {each} is behind its column" for each in behind),
        ]
        if not faults and inspector is not None and backup.snapshot.versions:
            faults += await inspector.faults(lambda: self.server.connect(name))
        return faults

    async def _drop(self, name: str) -> None:
        """Drop a scratch database, also after our own connection was cut."""
        if not self.connection.is_closed():
            await self.store.drop(name)
            return
        async with self.server.standing_beside() as connection:
            await BackupStore(connection).drop(name)


def _like(backed_up: DatabaseProperties, live: DatabaseProperties | None) -> DatabaseProperties:
    """Return how a restored database is made: as it was encoded then, and owned now."""
    if live is None:
        return backed_up
    return replace(backed_up, owner=live.owner, tablespace=live.tablespace)


@asynccontextmanager
async def desk_of(server: Server, equipment: Equipment, service: str) -> AsyncIterator[Desk]:
    """Lend a desk under the lock of the server's database.

    Raises:
        DatabaseInUse: somebody restores it or rolls it back.
    """
    async with (
        explained("work with databases"),
        server.standing_beside() as connection,
    ):
        desk = Desk(server, connection, equipment, service=service)
        async with desk.store.locked(server.database, SWAP, equipment.clock):
            await desk.drop_leftovers()
            yield desk


async def restore_backup(dsn: str, identifier: str, to: str, equipment: Equipment) -> Backup:
    """Restore a backup into a new database called `to`, on the server of the DSN.

    Raises:
        TargetExists: there is one of this name.
        BackupError: it cannot be restored, or is not sound; there is no new database then.
    """
    backup = equipment.catalogue.read(identifier).backup
    server = await find_server(dsn)
    async with desk_of(server, equipment, backup.service) as desk:
        if await desk.store.exists(to):
            raise TargetExists(database=to)
        async with desk.beside(backup) as name:
            await desk.check(name, backup)
            await desk.finish(name)
            try:
                await desk.store.rename(name, to)
            except asyncpg.DuplicateDatabaseError as error:
                raise TargetExists(database=to) from error
            desk.log("restore.done", backup=identifier, to=to)
    return backup


@asynccontextmanager
async def restored_beside(dsn: str, identifier: str, equipment: Equipment) -> AsyncIterator[str]:
    """Lend the DSN of a scratch database with a backup in it, to try something out there.

    It is checked no further than that it could be restored, and dropped afterwards.
    """
    backup = equipment.catalogue.read(identifier).backup
    server = await find_server(dsn)
    async with desk_of(server, equipment, backup.service) as desk, desk.beside(backup) as name:
        yield with_database(server.dsn, name)


def require_service(backup: Backup, service: str) -> None:
    """Refuse the backup of another of Tollkeeper's databases.

    Raises:
        BackupMissing: this one has no such backup.
    """
    if backup.service != service:
        raise BackupMissing(
            backup_id=backup.id, file=f"a backup of {service} (it is of {backup.service})"
        )
