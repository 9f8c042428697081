"""What backup, restore and rollback read of a server and change in it.

Statements with names in them are written by the server (`format` with %I) and sent as it wrote
them. Nothing here decides anything.
"""

import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from tollkeeper.database.driver import Connection
from tollkeeper.database.locks import session_lock
from tollkeeper.database.queries import load_queries
from tollkeeper.kernel.clock import Clock
from tollkeeper.migrate.backup_errors import DatabaseInUse
from tollkeeper.migrate.backup_model import (
    AppliedVersion,
    DatabaseProperties,
    Snapshot,
    TableFacts,
)
from tollkeeper.migrate.inspection import Inspector
from tollkeeper.migrate.progress import Progress
from tollkeeper.migrate.store import MigrationStore

DIGEST_LIMIT_BYTES: Final = 1024**3
"""Tables up to this size have a digest of their contents taken; bigger ones are counted alone."""

PATIENCE_S: Final = 5.0
"""How long the sessions of a killed run, and its dump, may take to end."""

POLL_S: Final = 0.1

BACKUP, SWAP = "backup", "rollback"
"""What a database is locked for: one backup at a time, and one restore or rollback."""


class BackupStore:
    """Reads and writes over one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sql = load_queries("tollkeeper.migrate")

    @asynccontextmanager
    async def locked(self, database: str, work: str, clock: Clock) -> AsyncIterator[None]:
        """Be the only one at such work with a database.

        Raises:
            DatabaseInUse: somebody else is at it, and no killed run.
        """
        take, release = self._sql["take_database_lock"], self._sql["release_database_lock"]
        limit_s = clock.monotonic_s() + PATIENCE_S
        while True:
            async with session_lock(self._connection, take, release, database, work) as is_ours:
                if is_ours:
                    yield
                    return
            if clock.monotonic_s() >= limit_s:
                raise DatabaseInUse(database=database, holder=f"another {work}")
            await clock.sleep(POLL_S)

    async def refuse_foreign_dumps(self, database: str, clock: Clock) -> None:
        """Refuse to begin while somebody else dumps a database.

        Raises:
            DatabaseInUse: with who it is.
        """
        limit_s = clock.monotonic_s() + PATIENCE_S
        while rows := await self._connection.fetch(self._sql["foreign_dumps"], database):
            if clock.monotonic_s() >= limit_s:
                raise DatabaseInUse(database=database, holder=rows[0]["holder"])
            await clock.sleep(POLL_S)

    async def export_snapshot(self) -> str:
        """Return the name under which others may see what this unit of work sees."""
        name: str = await self._connection.fetchval(self._sql["export_snapshot"])
        return name

    async def identity(self) -> tuple[int, int, str]:
        """Return oid, size in bytes and log position of the connection's database."""
        row = await self._connection.fetchrow(self._sql["look_at_database"])
        assert row is not None
        return row["oid"], row["size_bytes"], row["lsn"]

    async def system_identifier(self) -> str | None:
        """Return which cluster it is; None where the role may not ask."""
        try:
            found: str = await self._connection.fetchval(self._sql["system_identifier"])
        except asyncpg.InsufficientPrivilegeError:
            return None
        return found

    async def properties(self, database: str) -> DatabaseProperties | None:
        """Return what a database has beside its contents; None: there is none."""
        row = await self._connection.fetchrow(self._sql["properties"], database)
        if row is None:
            return None
        return DatabaseProperties(
            name=row["name"],
            owner=row["owner"],
            encoding=row["encoding"],
            collate=row["collate"],
            ctype=row["ctype"],
            provider=row["provider"],
            locale=row["locale"],
            tablespace=row["tablespace"],
            connection_limit=row["connection_limit"],
            comment=row["comment"],
            acl=None if row["acl"] is None else tuple(row["acl"]),
            settings=tuple((role, pair) for role, pair in row["settings"]),
        )

    async def dependent_roles(self) -> tuple[str, ...]:
        """Return the roles that the connection's database cannot be restored without."""
        rows = await self._connection.fetch(self._sql["dependent_roles"])
        return tuple(row["role"] for row in rows)

    async def missing_roles(self, roles: Sequence[str]) -> tuple[str, ...]:
        """Return those of some roles that the server does not have."""
        rows = await self._connection.fetch(self._sql["missing_roles"], list(roles))
        return tuple(row["role"] for row in rows)

    async def tables(self, progress: Progress) -> Mapping[str, TableFacts]:
        """Count every table of the connection's database in the caller's snapshot."""
        rows = await self._connection.fetch(self._sql["counting_statements"], DIGEST_LIMIT_BYTES)
        progress.begin("counting", sum(row["size_bytes"] for row in rows))
        found = {}
        try:
            for row in rows:
                counted = await self._connection.fetchrow(row["statement"])
                assert counted is not None
                found[row["name"]] = TableFacts(
                    rows=counted["rows"], size_bytes=row["size_bytes"], digest=counted["digest"]
                )
                progress.advance(row["size_bytes"])
        finally:
            progress.end()
        return found

    async def flaws(self) -> tuple[str, ...]:
        """Return constraints never validated, invalid indexes, views that were never filled."""
        rows = await self._connection.fetch(self._sql["flaws"])
        return tuple(row["flaw"] for row in rows)

    async def sequences_behind(self) -> tuple[str, ...]:
        """Return the sequences whose next number is taken already."""
        rows = await self._connection.fetch(self._sql["sequence_statements"])
        return tuple(
            [row["name"] for row in rows if await self._connection.fetchval(row["statement"])]
        )

    async def snapshot(self, inspector: Inspector | None, progress: Progress) -> Snapshot:
        """Return all that is compared of a database, in the caller's unit of work."""
        _, _, lsn = await self.identity()
        applied = await MigrationStore(self._connection).read_records()
        return Snapshot(
            lsn=lsn,
            versions=tuple(
                AppliedVersion(version=each.version, name=each.name, checksum=each.checksum)
                for each in applied
            ),
            tables=await self.tables(progress),
            # Of a database that was never migrated nobody knows what it means.
            facts={}
            if inspector is None or not applied
            else (await inspector.facts(self._connection)),
            flaws=await self.flaws(),
        )

    async def exists(self, database: str) -> bool:
        """Say whether the server has a database."""
        return bool(await self._connection.fetchval(self._sql["database_exists"], database))

    async def databases(self) -> Sequence[str]:
        """Return the names of all databases."""
        rows = await self._connection.fetch(self._sql["databases"])
        return [row["name"] for row in rows]

    async def free_bytes(self) -> int | None:
        """Return the room where the server's files are; None where that cannot be seen from here.

        Only for a server of this machine: elsewhere the same path would be another place.
        """
        folder = await self._connection.fetchval(self._sql["data_directory"])
        try:
            return None if folder is None else shutil.disk_usage(folder).free
        except OSError:
            return None

    async def create(self, database: str, like: DatabaseProperties) -> None:
        """Make an empty database like another."""
        await self._written(
            self._sql["creation_statement"], database, like.owner, like.encoding, like.collate,
            like.ctype, like.tablespace, like.provider, like.locale,
        )  # fmt: skip

    async def furnish(self, database: str, like: DatabaseProperties) -> None:
        """Give a database the limit, the grants and the settings of another."""
        rows = await self._connection.fetch(
            self._sql["setting_statements"],
            database,
            like.connection_limit,
            None if like.acl is None else list(like.acl),
            [role for role, _ in like.settings],
            [pair for _, pair in like.settings],
        )
        for row in rows:
            await self._connection.execute(row["statement"])

    async def comment(self, database: str, comment: str | None) -> None:
        """Say something about a database, or nothing."""
        await self._written(self._sql["comment_statement"], database, comment)

    async def allow_connections(self, database: str, is_open: bool) -> None:
        """Open or close a database."""
        await self._written(self._sql["connections_statement"], database, is_open)

    async def rename(self, database: str, name: str) -> None:
        """Call a database by another name; nobody may be in it."""
        await self._written(self._sql["rename_statement"], database, name)

    async def drop(self, database: str) -> None:
        """Remove a database and end whoever is in it; does nothing where there is none."""
        try:
            await self._written(self._sql["drop_statement"], database, True)
        except asyncpg.InsufficientPrivilegeError:
            # Only a superuser may end autovacuum; without being told to, it makes room for us.
            await self._written(self._sql["drop_statement"], database, False)

    async def analyze(self) -> None:
        """Give the planner its statistics: a dump has none."""
        await self._connection.execute(self._sql["analyze"])

    async def marked(self) -> Sequence[tuple[str, bool, str]]:
        """Return name, openness and note of the databases that carry a note of ours."""
        rows = await self._connection.fetch(self._sql["marked_databases"])
        return [(row["name"], row["is_open"], row["note"]) for row in rows]

    async def hindrances(self, database: str) -> tuple[str, ...]:
        """Return why a database cannot be swapped."""
        rows = await self._connection.fetch(self._sql["hindrances"], database)
        return tuple(row["hindrance"] for row in rows)

    async def terminate_others(self, database: str, ours: Sequence[int]) -> None:
        """End every session in a database but ours."""
        await self._connection.fetchval(self._sql["terminate_others"], database, list(ours))

    async def others(self, database: str, ours: Sequence[int]) -> int:
        """Return how many sessions are in a database, or about to be, beside ours.

        Two statements, in this order: who is about to enter holds a lock until it can be seen.
        """
        arriving = await self._connection.fetchval(self._sql["arriving"], database, list(ours))
        present = await self._connection.fetchval(self._sql["present"], database, list(ours))
        return int(arriving) + int(present)

    async def _written(self, writer: str, *arguments: object) -> None:
        """Have the server write a statement, and send it."""
        statement = await self._connection.fetchval(writer, *arguments)
        await self._connection.execute(statement)
