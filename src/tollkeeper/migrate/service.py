"""What others call: migrate a database, rehearse it, go back, or ask what it lacks.

It connects by itself: a migration needs direct connections and the owner's role, which the
services' pools do not have.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from uuid import UUID

from tollkeeper.database.driver import Connection
from tollkeeper.kernel.clock import Clock
from tollkeeper.kernel.ids import (
    EntropySource,
    compose_id,
    milliseconds_since_epoch,
    system_entropy,
)
from tollkeeper.migrate.errors import UnknownDatabase
from tollkeeper.migrate.history import Happening, LogRow, faults, last_cut
from tollkeeper.migrate.model import DATABASES, Migration
from tollkeeper.migrate.plan import in_order, missing, plan, reworded
from tollkeeper.migrate.report import FileReport, Status, Tell, silence
from tollkeeper.migrate.runner import Before, Runner
from tollkeeper.migrate.script import migration_from
from tollkeeper.migrate.session import Patience, connected, runner_session
from tollkeeper.migrate.store import MigrationStore

_FRACTION = 1 << 16


def jitter_of(entropy: EntropySource) -> Callable[[], float]:
    """Return a source of numbers in [0, 1)."""
    return lambda: (entropy() % _FRACTION) / _FRACTION


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a run on one database works with."""

    dsn: str
    database: str
    available: Sequence[Migration]
    clock: Clock
    run_id: UUID
    entropy: EntropySource = system_entropy
    tell: Tell = silence
    patience: Patience = field(default_factory=Patience)
    before: Before | None = None
    stand_in: str | None = None
    """A database on the same server that is migrated instead, as a rehearsal."""


def ignore(_: FileReport) -> None:
    """Do nothing about it."""


def new_run_id(clock: Clock, entropy: EntropySource = system_entropy) -> UUID:
    """Return the id of a run: a UUIDv7, so that runs are in the order of their beginnings."""
    return compose_id(milliseconds_since_epoch(clock.now()), entropy(), 0)


async def migrate(
    dsn: str, database: str, *, clock: Clock, tell: Tell = silence, before: Before | None = None
) -> tuple[FileReport, ...]:
    """Bring a database to the version of this program; return what was applied now.

    `before` is done before the first file of a database that had others: a backup.

    Raises:
        MigrationError: see `errors.py`; nothing of the file that failed remains.
        DatabaseUnavailable: the server cannot be reached, or went away.
    """
    available = shipped_migrations(database)
    run = Run(
        dsn=dsn, database=database, available=available, clock=clock,
        run_id=new_run_id(clock), tell=tell, before=before,
    )  # fmt: skip
    return await up(run)


async def up(
    run: Run, *, to: int | None = None, done: Callable[[FileReport], None] = ignore
) -> tuple[FileReport, ...]:
    """Bring a database to the last of the run's files, or to a version; `done` hears of each.

    Raises:
        MigrationError: nothing of the file that failed remains; those before it do.
        DatabaseUnavailable: the server cannot be reached, or went away; the same holds.
    """
    async with _runner(run) as runner:
        return await runner.up(run.available, to=to, done=done)


async def down(run: Run, *, to: int, accepted_rows: int = 0) -> tuple[FileReport, ...]:
    """Take back what is above a version by the files' own SQL.

    Raises:
        MigrationError: nothing of the file that failed was taken back; those after it were.
        DatabaseUnavailable: the same holds.
    """
    async with _runner(run) as runner:
        return await runner.down(run.available, to=to, accepted_rows=accepted_rows)


async def dry_up(run: Run, *, to: int | None = None) -> tuple[FileReport, ...]:
    """Apply what is missing in one unit of work and undo it; change nothing.

    Raises:
        MigrationError, DatabaseUnavailable: what `up` would have met.
    """
    async with _runner(run) as runner:
        return await runner.dry_up(run.available, to=to)


async def planned(
    dsn: str, database: str, available: Sequence[Migration], *, to: int | None = None
) -> tuple[Migration, ...]:
    """Return what `up` would apply, or raise what it would find wrong; run nothing."""
    async with connected(dsn, database) as (connection, _):
        return plan(database, await MigrationStore(connection).read_records(), available, to=to)


async def status(dsn: str, database: str, available: Sequence[Migration]) -> Status:
    """Return where a database stands, also where that is wrong."""
    async with connected(dsn, database) as (connection, _):
        store = MigrationStore(connection)
        applied, log = await store.read_records(), await store.read_log()
    return Status(
        database=database,
        applied=applied,
        pending=missing(applied, available),
        reworded=reworded(applied, available),
        log_faults=faults(log),
        cut=last_cut(log),
    )


async def history(dsn: str, database: str) -> tuple[LogRow, ...]:
    """Return the log of a database, in order."""
    async with connected(dsn, database) as (connection, _):
        return await MigrationStore(connection).read_log()


async def remember_restored(
    run: Run, *, backup: str, kept: str, lost: int, lost_detail: str
) -> None:
    """Write into a restored database's log that it is one, and what that has cost.

    Raises:
        MigrationError: another runner is at work; nothing was written.
    """
    details = {"backup": backup, "kept": kept, "lost": lost, "detail": lost_detail}
    async with _runner(run) as runner:
        await runner.note(Happening.RESTORED, details)


async def pending(connection: Connection, database: str) -> tuple[Migration, ...]:
    """Return what a database lacks for this program; a newer database lacks nothing.

    A service stays ready on a newer schema: changes before a deployment keep the old program
    working.
    """
    applied = await MigrationStore(connection).read_records()
    return missing(applied, shipped_migrations(database))


@lru_cache(maxsize=len(DATABASES))
def shipped_migrations(database: str) -> Sequence[Migration]:
    """Return the migrations inside the package, in order."""
    folder = files("tollkeeper.migrations").joinpath(database)
    if not database.isidentifier() or not folder.is_dir():
        raise UnknownDatabase(database=database)
    return read_migrations(folder)


def read_migrations(folder: Traversable) -> Sequence[Migration]:
    """Return the migrations of a folder, which is called like their database, in order.

    Raises:
        MigrationError: a bad name or file, or numbers that are not 1, 2, 3, ...
    """
    found = [
        # Bytes, because reading as text would change the newlines: SQL is sent as it stands.
        migration_from(folder.name, file.name, file.read_bytes().decode())
        for file in folder.iterdir()
        if file.name.endswith(".sql")
    ]
    return tuple(in_order(folder.name, found))


@asynccontextmanager
async def _runner(run: Run) -> AsyncIterator[Runner]:
    async with runner_session(
        run.dsn,
        run.database,
        clock=run.clock,
        patience=run.patience,
        tell=run.tell,
        stand_in=run.stand_in,
    ) as session:
        yield Runner(session, run_id=run.run_id, jitter=jitter_of(run.entropy), before=run.before)
