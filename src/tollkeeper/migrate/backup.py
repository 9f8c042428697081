"""Takes a backup: metadata, dump and roles, all of one snapshot, all on disk before it exists.

It does not verify what it wrote (`verify.py`). Invariant: whatever goes wrong, no half of a backup
is left, and none that was there is touched.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tollkeeper import __version__
from tollkeeper.migrate.backup_errors import ProgramFailed
from tollkeeper.migrate.backup_model import (
    Backup,
    DatabaseProperties,
    FileFacts,
    Snapshot,
    TableFacts,
    backup_id,
)
from tollkeeper.migrate.backup_store import BACKUP, BackupStore
from tollkeeper.migrate.catalogue import DUMP, GLOBALS, PartialFile
from tollkeeper.migrate.dump import Programs, programs_for
from tollkeeper.migrate.equipment import Equipment
from tollkeeper.migrate.progress import Progress
from tollkeeper.migrate.server import Server, explained, find_server
from tollkeeper.migrate.space import check_space, dump_bytes

_DUMPING = 'dumping contents of table "'


@dataclass(frozen=True, slots=True, kw_only=True)
class Occasion:
    """Which of Tollkeeper's databases is backed up, in which run, and why."""

    service: str
    reason: str
    run_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Described:
    """What is known of a database before it is dumped."""

    oid: int
    size_bytes: int
    properties: DatabaseProperties
    system_identifier: str | None
    roles: tuple[str, ...]


async def take_backup(dsn: str, occasion: Occasion, equipment: Equipment) -> Backup:
    """Back a database up and return the backup, which is not verified yet.

    Raises:
        BackupError: see `backup_errors.py`; nothing is left of the attempt.
        DatabaseError: the server cannot be reached.
    """
    server = await find_server(dsn)
    programs = await programs_for(server.major, equipment.binaries)
    async with explained("the backup"), server.connected() as connection:
        store = BackupStore(connection)
        async with store.locked(server.database, BACKUP, equipment.clock):
            await store.refuse_foreign_dumps(server.database, equipment.clock)
            described = await _describe(server, store)
            _check_room(occasion.service, described, equipment)
            # The dump sees what this unit of work sees: it has to be open until the dump has ended.
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                name = await store.export_snapshot()
                snapshot = await store.snapshot(
                    equipment.inspector(occasion.service), equipment.progress
                )
                writer = _Writer(server, programs, equipment)
                return await writer.write(occasion, described, snapshot, name=name)


async def _describe(server: Server, store: BackupStore) -> _Described:
    oid, size_bytes, _ = await store.identity()
    properties = await store.properties(server.database)
    assert properties is not None
    return _Described(
        oid=oid,
        size_bytes=size_bytes,
        properties=properties,
        system_identifier=await store.system_identifier(),
        roles=await store.dependent_roles(),
    )


def _check_room(service: str, described: _Described, equipment: Equipment) -> None:
    catalogue = equipment.catalogue
    catalogue.open()
    earlier = catalogue.list(service)
    ratio = earlier[-1].backup.ratio if earlier else None
    check_space(
        dump_bytes(described.size_bytes, ratio),
        catalogue.free_bytes(),
        what=f"a backup of {service}",
        where=str(catalogue.folder),
    )


class _Writer:
    """Writes the files of one backup."""

    def __init__(self, server: Server, programs: Programs, equipment: Equipment) -> None:
        self._server = server
        self._programs = programs
        self._equipment = equipment

    async def write(
        self, occasion: Occasion, described: _Described, snapshot: Snapshot, *, name: str
    ) -> Backup:
        """Dump the exported snapshot `name`, then say in the metadata that there is a backup."""
        catalogue, clock = self._equipment.catalogue, self._equipment.clock
        started_at, started_s = clock.now(), clock.monotonic_s()
        identifier = backup_id(occasion.service, started_at, self._equipment.entropy())
        self._log("backup.started", identifier, service=occasion.service, reason=occasion.reason)
        try:
            dump = await self._dump(identifier, snapshot, name)
            roles, note = await self._globals(identifier)
            backup = Backup(
                id=identifier, run_id=occasion.run_id, reason=occasion.reason,
                service=occasion.service, tollkeeper=__version__,
                server_version=self._server.version, server_major=self._server.major,
                dump_version=self._programs.installation.version, database_oid=described.oid,
                system_identifier=described.system_identifier,
                database_bytes=described.size_bytes, properties=described.properties,
                snapshot=snapshot, started_at=started_at,
                duration_s=round(clock.monotonic_s() - started_s, 3),
                compression=self._programs.compression, dump=dump, roles=described.roles,
                globals=roles, globals_note=note,
            )  # fmt: skip
            catalogue.add(backup)
        except BaseException as error:
            catalogue.delete(identifier)
            self._log("backup.failed", identifier, error=type(error).__name__, reason=str(error))
            raise
        self._log(
            "backup.taken", identifier, bytes=dump.size_bytes, rows=snapshot.rows,
            sha256=dump.sha256, ratio=round(backup.ratio, 4), duration_s=backup.duration_s,
        )  # fmt: skip
        return backup

    async def _dump(self, identifier: str, snapshot: Snapshot, name: str) -> FileFacts:
        progress = self._equipment.progress
        hear = _TableProgress(snapshot, progress)
        progress.begin("dumping", hear.total_bytes)
        try:
            with PartialFile(self._equipment.catalogue.path(identifier, DUMP)) as file:
                await self._programs.dump(
                    self._server.environment(), snapshot=name, take=file.write, hear=hear
                )
                return file.finish()
        finally:
            progress.end()

    async def _globals(self, identifier: str) -> tuple[FileFacts | None, str | None]:
        """Write the roles down; a role that may not read them is no reason to have no backup."""
        try:
            with PartialFile(self._equipment.catalogue.path(identifier, GLOBALS)) as file:
                await self._programs.dump_globals(self._server.environment(), take=file.write)
                return file.finish(), None
        except ProgramFailed as error:
            return None, str(error)

    def _log(self, event: str, identifier: str, **fields: object) -> None:
        self._equipment.log({"event": event, "backup": identifier, **fields})


class _TableProgress:
    """Hears from pg_dump which table it has come to, and knows how big those before it were."""

    def __init__(self, snapshot: Snapshot, progress: Progress) -> None:
        self._tables: dict[str, TableFacts] = {
            name.replace('"', ""): table for name, table in snapshot.tables.items()
        }
        self._advance: Callable[[int], None] = progress.advance
        self._under_way = 0

    @property
    def total_bytes(self) -> int:
        """The size of all tables."""
        return sum(table.size_bytes for table in self._tables.values())

    def __call__(self, line: str) -> None:
        """Take a line that pg_dump wrote."""
        if _DUMPING not in line:
            return
        self._advance(self._under_way)
        table = self._tables.get(line.partition(_DUMPING)[2].rstrip('"'))
        self._under_way = table.size_bytes if table is not None else 0
