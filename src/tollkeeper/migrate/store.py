"""What the runner reads and writes in a database: its log, its locks, and what others see of them.

Every lock belongs to a session: it ends with the connection, so a killed runner leaves none.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tollkeeper.database.driver import Connection, Row
from tollkeeper.database.queries import load_queries
from tollkeeper.migrate.history import GENESIS, Entry, Happening, LogRow, linked
from tollkeeper.migrate.model import AppliedMigration

_TABLE, _VIEW = "r", "v"

_STRENGTH: Final = (
    "AccessShareLock",
    "RowShareLock",
    "RowExclusiveLock",
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
)
"""Table-level locks, the weakest first (PostgreSQL, chapter "Explicit Locking")."""


@dataclass(frozen=True, slots=True)
class Relation:
    """What holds rows: its name, kind, the file it is kept in, and about how many rows it has."""

    name: str
    kind: str
    file: int
    rows: int


@dataclass(frozen=True, slots=True)
class LockWait:
    """For which lock a session waits, since when, and for whom."""

    waited_s: float
    mode: str
    relation: str | None
    blockers: str | None


class MigrationStore:
    """The log and the locks of one database, over one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._queries = load_queries("tollkeeper.migrate")

    async def read_records(self) -> tuple[AppliedMigration, ...]:
        """Return what has been applied, in order; nothing for a database never migrated."""
        kind = await self._connection.fetchval(self._queries["records_kind"])
        if kind is None:
            return ()
        if kind == _TABLE:
            rows = await self._connection.fetch(self._queries["read_old_records"])
        else:
            rows = await self._connection.fetch(self._queries["read_records"])
        return tuple(AppliedMigration(**row) for row in map(dict, rows))

    async def has_log(self) -> bool:
        """Tell whether this database has the log, rather than nothing or the table before it."""
        return bool(await self._connection.fetchval(self._queries["records_kind"]) == _VIEW)

    async def create_log(self, records: Sequence[Entry], lock_timeout_ms: int) -> None:
        """Make the log, in a unit of work of its own, with what an older program has kept.

        Services ask the table that it replaces: they queue behind us while we wait for it.
        """
        async with self._connection.transaction():
            await self.limit_lock_wait(lock_timeout_ms)
            await self._connection.execute(self._queries["create_log"])
            for record in records:
                await self.append(record)

    async def read_log(self) -> tuple[LogRow, ...]:
        """Return the log in order; nothing for a database that has none."""
        if not await self.has_log():
            return ()
        rows = await self._connection.fetch(self._queries["read_log"])
        return tuple(map(_log_row, rows))

    async def append(self, entry: Entry) -> None:
        """Add a row to the log; only the one runner does, so that nobody comes in between."""
        last = await self._connection.fetchrow(self._queries["last_log_row"])
        number, previous = (1, GENESIS) if last is None else (last["number"] + 1, last["hash"])
        row = linked(entry, number, previous)
        await self._connection.execute(
            self._queries["add_log_row"],
            row.number, entry.at, entry.run_id, entry.happening.value, entry.version, entry.name,
            entry.checksum, entry.digest, entry.source, entry.duration_ms, entry.details,
            row.previous_hash, row.hash,
        )  # fmt: skip

    async def try_lock(self) -> bool:
        """Take the runner's lock if it is free."""
        return bool(await self._connection.fetchval(self._queries["try_lock"]))

    async def unlock(self) -> bool:
        """Give the lock back; False if it was not ours."""
        return bool(await self._connection.fetchval(self._queries["unlock"]))

    async def try_work_lock(self) -> bool:
        """Take the lock of the session that changes the schema, if it is free."""
        return bool(await self._connection.fetchval(self._queries["try_work_lock"]))

    async def unlock_work(self) -> bool:
        """Give that lock back; False if it was not ours."""
        return bool(await self._connection.fetchval(self._queries["unlock_work"]))

    async def holds_lock(self) -> bool:
        """Tell whether this session still has the runner's lock."""
        return bool(await self._connection.fetchval(self._queries["holds_lock"]))

    async def find_lock_holder(self) -> str | None:
        """Describe the session that holds the lock."""
        return _session(await self._connection.fetchrow(self._queries["find_lock_holder"]))

    async def find_dump(self) -> str | None:
        """Describe a dump or restore of this database that somebody runs."""
        return _session(await self._connection.fetchrow(self._queries["find_dump"]))

    async def is_standby(self) -> bool:
        """Tell whether this server takes no writes."""
        return bool(await self._connection.fetchval(self._queries["is_standby"]))

    async def is_pooled(self) -> bool:
        """Tell whether a pooler answers instead of the server: its greeting names no backend."""
        told = self._connection.get_server_pid()
        found = {await self._connection.fetchval(self._queries["backend_pid"]) for _ in range(3)}
        return {told} != found

    async def be_patient(self) -> None:
        """Free this session of the limits that role or database have as their defaults."""
        await self._connection.execute(self._queries["be_patient"])

    async def notice_dead_client(self) -> None:
        """Have the server end our statement within a second when our process is gone."""
        await self._connection.execute(self._queries["notice_dead_client"])

    async def note_quickly(self) -> None:
        """Let what this session commits reach the disk with what is committed after it."""
        await self._connection.execute(self._queries["note_quickly"])

    async def limit_lock_wait(self, timeout_ms: int) -> None:
        """Let every statement of this unit of work wait so long for a lock, and no longer."""
        await self._connection.execute(self._queries["limit_lock_wait"], f"{timeout_ms}ms")

    async def limit_nothing(self) -> None:
        """Let the statements of this session take as long as they need."""
        await self._connection.execute(self._queries["limit_nothing"])

    async def lock_wait(self, pid: int) -> LockWait | None:
        """Return what another session of ours waits for at this moment."""
        row = await self._connection.fetchrow(self._queries["lock_wait"], pid)
        return None if row is None else LockWait(**dict(row))

    async def relations(self) -> Mapping[int, Relation]:
        """Return every relation that holds rows, by its oid."""
        rows = await self._connection.fetch(self._queries["relations"])
        return {
            row["oid"]: Relation(
                row["name"], row["relkind"], row["relfilenode"], max(0, round(row["reltuples"]))
            )
            for row in rows
        }

    async def columns(self) -> Mapping[tuple[int, int], str]:
        """Return the name of every column of every table, by oid and number."""
        rows = await self._connection.fetch(self._queries["columns"])
        return {(row["oid"], row["attnum"]): row["name"] for row in rows}

    async def count(self, oid: int, column: str | None = None) -> int:
        """Count a table's rows, or those in which one of its columns says something."""
        statement = await self._connection.fetchval(self._queries["counting_rows"], oid, column)
        return int(await self._connection.fetchval(statement))

    async def lock_writers_out(self, oid: int) -> None:
        """Let nobody but readers have a table until this unit of work is over."""
        statement = await self._connection.fetchval(self._queries["locking_writers_out"], oid)
        await self._connection.execute(statement)

    async def deleted(self) -> Mapping[int, int]:
        """Return how many rows of each table this unit of work has deleted, by oid."""
        rows = await self._connection.fetch(self._queries["deleted_rows"])
        return {row["oid"]: row["rows"] for row in rows}

    async def locks_taken(self, oids: Collection[int]) -> Mapping[str, str]:
        """Return this unit of work's strongest lock on each of these relations, by its name."""
        rows = await self._connection.fetch(self._queries["locks_taken"], list(oids))
        strongest: dict[str, str] = {}
        for row in rows:
            known = strongest.get(row["relation"])
            if known is None or _STRENGTH.index(row["mode"]) > _STRENGTH.index(known):
                strongest[row["relation"]] = row["mode"]
        return strongest

    async def drop_invalid_index(self, name: str) -> bool:
        """Drop what a cut CREATE INDEX CONCURRENTLY has left; tell whether there was anything."""
        statement = await self._connection.fetchval(self._queries["invalid_index"], name)
        if statement is None:
            return False
        await self._connection.execute(statement)
        return True


def _log_row(row: Row) -> LogRow:
    return LogRow(
        number=row["number"],
        entry=Entry(
            at=row["at"], run_id=row["run_id"], happening=Happening(row["happening"]),
            version=row["version"], name=row["name"], checksum=row["checksum"],
            digest=row["digest"], source=row["source"], duration_ms=row["duration_ms"],
            details=row["details"],
        ),
        previous_hash=row["previous_hash"],
        hash=row["hash"],
    )  # fmt: skip


def _session(row: Row | None) -> str | None:
    if row is None:
        return None
    place = row["client_addr"] or "this machine"
    since = row["backend_start"].isoformat(timespec="seconds")
    return f"{row['application_name']!r} from {place}, backend {row['pid']}, since {since}"
