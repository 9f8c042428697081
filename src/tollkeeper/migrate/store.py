"""What the runner reads and writes in a database: its records and its lock.

The lock belongs to the session: it ends with the connection, so a killed runner leaves none.
"""

from tollkeeper.database.driver import Connection
from tollkeeper.database.queries import load_queries
from tollkeeper.migrate.model import AppliedMigration


class MigrationStore:
    """The records and the lock of one database, over one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._queries = load_queries("tollkeeper.migrate")

    async def read_records(self) -> tuple[AppliedMigration, ...]:
        """Return what has been applied, in order; nothing for a database never migrated."""
        if not await self._connection.fetchval(self._queries["has_records"]):
            return ()
        rows = await self._connection.fetch(self._queries["read_records"])
        return tuple(
            AppliedMigration(
                version=row["version"],
                name=row["name"],
                checksum=row["checksum"],
                applied_at=row["applied_at"],
                duration_ms=row["duration_ms"],
            )
            for row in rows
        )

    async def create_records(self) -> None:
        """Make the table of records unless it is there; only under the lock."""
        await self._connection.execute(self._queries["create_records"])

    async def add_record(self, record: AppliedMigration) -> None:
        """Remember a migration, in the unit of work that applies it."""
        await self._connection.execute(
            self._queries["add_record"],
            record.version,
            record.name,
            record.checksum,
            record.applied_at,
            record.duration_ms,
        )

    async def try_lock(self) -> bool:
        """Take the runner's lock if it is free."""
        return bool(await self._connection.fetchval(self._queries["try_lock"]))

    async def unlock(self) -> bool:
        """Give the lock back; False if it was not ours."""
        return bool(await self._connection.fetchval(self._queries["unlock"]))

    async def find_lock_holder(self) -> str | None:
        """Describe the session that holds the lock."""
        row = await self._connection.fetchrow(self._queries["find_lock_holder"])
        if row is None:
            return None
        place = row["client_addr"] or "this machine"
        since = row["backend_start"].isoformat(timespec="seconds")
        return f"{row['application_name']!r} from {place}, backend {row['pid']}, since {since}"

    async def notice_dead_client(self) -> None:
        """Have the server end our statement within a second when our process is gone."""
        await self._connection.execute(self._queries["notice_dead_client"])

    async def limit_lock_wait(self, timeout_ms: int) -> None:
        """Let every statement of this unit of work wait so long for a lock, and no longer."""
        await self._connection.execute(self._queries["limit_lock_wait"], f"{timeout_ms}ms")
