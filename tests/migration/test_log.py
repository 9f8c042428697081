"""The log of migrations: only added to, in one chain, begun with what an older program has kept."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
from tests.conftest import Databases
from tests.migrations import HASTY, applied_to, run_of, steps

from tollkeeper.database.connect import close_gently, connector
from tollkeeper.database.driver import Connection
from tollkeeper.migrate.errors import (
    HistoryBroken,
    MigrationBlocked,
    MigrationChanged,
    MigrationFailed,
)
from tollkeeper.migrate.history import Happening, faults
from tollkeeper.migrate.service import history, pending, planned, status, up

ONE, TWO = "CREATE TABLE one ();", "CREATE TABLE two ();\nCREATE TABLE three ();"

OLD_RECORDS = """
    CREATE TABLE public.tollkeeper_migrations (
        version integer PRIMARY KEY,
        name text NOT NULL,
        checksum text NOT NULL,
        applied_at timestamptz NOT NULL,
        duration_ms integer NOT NULL,
        CONSTRAINT tollkeeper_migrations_version CHECK (version > 0),
        CONSTRAINT tollkeeper_migrations_checksum CHECK (checksum ~ '^[0-9a-f]{64}$')
    );
    GRANT SELECT ON public.tollkeeper_migrations TO PUBLIC;
"""
"""As every release before the log has made it."""


@pytest.fixture
async def observer(empty_dsn: str) -> AsyncIterator[Connection]:
    """A connection of its own."""
    connection = await connector(empty_dsn)()
    yield connection
    await close_gently(connection, 5)


async def happenings(dsn: str) -> list[tuple[str, int | None]]:
    rows = await history(dsn, "credits")
    return [(row.entry.happening.value, row.entry.version) for row in rows]


async def test_every_step_is_written_down_in_one_chain(empty_dsn: str) -> None:
    await applied_to(empty_dsn, steps(ONE))
    await applied_to(empty_dsn, steps(ONE, TWO))

    assert [
        ("begun", 1), ("statement", 1), ("applied", 1),
        ("begun", 2), ("statement", 2), ("statement", 2), ("applied", 2),
    ] == await happenings(empty_dsn)  # fmt: skip
    assert () == faults(await history(empty_dsn, "credits"))


async def test_refused_file_is_written_down_and_is_no_cut(empty_dsn: str) -> None:
    with pytest.raises(MigrationFailed):
        await applied_to(empty_dsn, steps("SELECT 1 / 0;"))

    assert [("begun", 1), ("statement", 1), ("failed", 1)] == await happenings(empty_dsn)
    assert (await status(empty_dsn, "credits", steps(ONE))).cut is None


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE tollkeeper_migration_log SET name = 'other'",
        "DELETE FROM tollkeeper_migration_log WHERE number = 2",
        "TRUNCATE tollkeeper_migration_log",
    ],
)
async def test_log_is_append_only(empty_dsn: str, observer: Connection, change: str) -> None:
    await applied_to(empty_dsn, steps(ONE))
    before = await history(empty_dsn, "credits")

    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
        await observer.execute(change)

    assert before == await history(empty_dsn, "credits")


@pytest.mark.parametrize(
    "forgery",
    [
        "UPDATE tollkeeper_migration_log SET name = 'other' WHERE number = 3",
        "UPDATE tollkeeper_migration_log SET at = at - interval '1 microsecond' WHERE number = 3",
        "UPDATE tollkeeper_migration_log SET source = '-- up' WHERE number = 3",
        "UPDATE tollkeeper_migration_log SET details = '{}' WHERE number = 3",
        "DELETE FROM tollkeeper_migration_log WHERE number = 2",
        "UPDATE tollkeeper_migration_log SET number = number + 1 WHERE number = 7",
    ],
)
async def test_forged_log_is_found_and_nothing_is_built_on_it(
    empty_dsn: str, observer: Connection, forgery: str
) -> None:
    await applied_to(empty_dsn, steps(ONE, TWO))
    await observer.execute("ALTER TABLE tollkeeper_migration_log DISABLE TRIGGER USER")
    await observer.execute(forgery)

    with pytest.raises(HistoryBroken):
        await applied_to(empty_dsn, steps(ONE, TWO, "CREATE TABLE four ();"))

    assert (await status(empty_dsn, "credits", steps(ONE, TWO))).log_faults


async def test_records_of_an_older_program_are_adopted(
    empty_dsn: str, observer: Connection
) -> None:
    files = steps(ONE, TWO)
    await observer.execute(OLD_RECORDS + ONE)
    await observer.execute(
        "INSERT INTO tollkeeper_migrations VALUES (1, 'step', $1, '2026-01-02 03:04:05Z', 7)",
        files[0].checksum,
    )
    before = await pending(observer, "credits")
    assert files[1:] == list(await planned(empty_dsn, "credits", files))

    await applied_to(empty_dsn, files)

    assert [("adopted", 1), ("begun", 2)] == (await happenings(empty_dsn))[:2]
    adopted = (await history(empty_dsn, "credits"))[0].entry
    assert (Happening.ADOPTED, files[0].checksum, 7) == (
        adopted.happening, adopted.checksum, adopted.duration_ms,
    )  # fmt: skip
    assert before  # what a service asks works on either
    rows = await observer.fetch(
        "SELECT version, name, checksum, applied_at, duration_ms FROM tollkeeper_migrations"
    )
    assert [(1, "step", files[0].checksum), (2, "step", files[1].checksum)] == [
        (row["version"], row["name"], row["checksum"]) for row in rows
    ]


async def test_log_behind_a_reader_of_the_older_records_gives_up(
    empty_dsn: str, observer: Connection
) -> None:
    """Services ask those records whether they are ready: they would all queue behind the runner."""
    await observer.execute(OLD_RECORDS)

    async with observer.transaction():
        await observer.execute("LOCK TABLE tollkeeper_migrations IN ACCESS SHARE MODE")
        async with asyncio.timeout(10):
            with pytest.raises(MigrationBlocked, match="the log of migrations"):
                await applied_to(empty_dsn, steps(ONE), patience=HASTY)

    assert tuple(steps(ONE)) == await applied_to(empty_dsn, steps(ONE))


async def test_record_of_an_older_program_is_held_to_the_letter(
    empty_dsn: str, observer: Connection
) -> None:
    await observer.execute(OLD_RECORDS)
    await observer.execute(
        "INSERT INTO tollkeeper_migrations VALUES (1, 'step', $1, now(), 7)",
        steps("CREATE TABLE  one ();")[0].checksum,
    )

    with pytest.raises(MigrationChanged):
        await applied_to(empty_dsn, steps(ONE, TWO))


async def test_runs_at_once_leave_one_chain(databases: Databases) -> None:
    with databases.fresh() as dsn:
        await asyncio.gather(*(up(run_of(dsn, steps(ONE, TWO))) for _ in range(4)))

        assert () == faults(await history(dsn, "credits"))
