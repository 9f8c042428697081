"""The schema runner against a real server: races, kills, locks, wrong files."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from tests.migrations import CLOCK, DEADLINE_S, HASTY, applied_to, eventually, is_waiting_for, steps

from tollkeeper.database.connect import close_gently, connector
from tollkeeper.database.driver import Connection
from tollkeeper.database.errors import DatabaseUnavailable
from tollkeeper.kernel.backoff import Backoff
from tollkeeper.migrate.errors import (
    DatabaseNewer,
    MigrationChanged,
    MigrationFailed,
    NotOneUnitOfWork,
    RunnerBusy,
    RunnerLockLost,
    RunnerRefused,
    UnknownDatabase,
)
from tollkeeper.migrate.model import DATABASES
from tollkeeper.migrate.service import (
    history,
    migrate,
    pending,
    planned,
    read_migrations,
    shipped_migrations,
)
from tollkeeper.migrate.session import Patience


@pytest.fixture
async def observer(empty_dsn: str) -> AsyncIterator[Connection]:
    """A connection of its own, to look and to be in the way."""
    connection = await connector(empty_dsn)()
    yield connection
    await close_gently(connection, 5)


async def table_exists(observer: Connection, name: str) -> bool:
    return bool(await observer.fetchval("SELECT to_regclass($1) IS NOT NULL", name))


# What runs ---------------------------------------------------------------------------------------


async def test_applies_once_and_remembers(empty_dsn: str, observer: Connection) -> None:
    migrations = steps("CREATE TABLE one ();", "CREATE TABLE two ();\nCREATE TABLE three ();")
    said: list[str] = []

    first = await applied_to(empty_dsn, migrations[:1])
    second = await applied_to(empty_dsn, migrations, say=said.append)
    third = await applied_to(empty_dsn, migrations)

    assert [tuple(migrations[:1]), tuple(migrations[1:]), ()] == [first, second, third]
    assert await table_exists(observer, "three")
    rows = await observer.fetch(
        "SELECT version, name, checksum FROM tollkeeper_migrations ORDER BY version"
    )
    assert [(each.version, each.name, each.checksum) for each in migrations] == [
        tuple(row) for row in rows
    ]
    assert ["credits/0002_step.sql: applied"] == [line.rsplit(" in ", 1)[0] for line in said]


async def test_who_waits_too_long_learns_who_holds_the_lock(
    empty_dsn: str, observer: Connection
) -> None:
    await observer.execute("SELECT pg_advisory_lock(42)")
    migrations = steps("SELECT pg_advisory_xact_lock(42);")
    first = asyncio.create_task(applied_to(empty_dsn, migrations))
    await eventually(lambda: is_waiting_for(observer, "advisory"))

    with pytest.raises(RunnerBusy) as caught:
        await applied_to(empty_dsn, migrations, patience=HASTY)

    await observer.execute("SELECT pg_advisory_unlock(42)")
    await first
    assert "'tollkeeper migrate credits' from this machine, backend" in caught.value.holder


async def test_cancelled_runner_leaves_nothing_and_no_lock(
    empty_dsn: str, observer: Connection
) -> None:
    migrations = steps("CREATE TABLE half (); SELECT pg_sleep(600);")
    running = asyncio.create_task(applied_to(empty_dsn, migrations))
    await eventually(lambda: is_waiting_for(observer, "PgSleep"))

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    whole = steps("CREATE TABLE half ();")
    assert tuple(whole) == await applied_to(empty_dsn, whole)


async def test_killed_runner_leaves_nothing_half_done_and_the_next_runs_through(
    empty_dsn: str, observer: Connection, tmp_path: Path
) -> None:
    folder = tmp_path / "credits"
    folder.mkdir()
    (folder / "0001_start.sql").write_text(
        "-- up\nCREATE TABLE start (); CREATE TABLE slow AS SELECT 1;"
    )
    (folder / "0002_slow.sql").write_text(
        "-- up\nCREATE TABLE half ();\n"
        "SELECT pg_sleep(600) WHERE EXISTS (SELECT FROM slow);\n"
        "CREATE TABLE other_half ();"
    )
    program = (
        "import asyncio, pathlib, sys\n"
        "from tollkeeper.kernel.clock import SystemClock\n"
        "from tollkeeper.migrate.service import Run, new_run_id, read_migrations, up\n"
        "migrations = read_migrations(pathlib.Path(sys.argv[2]))\n"
        "clock = SystemClock()\n"
        "run = Run(dsn=sys.argv[1], database='credits', available=migrations, clock=clock,"
        " run_id=new_run_id(clock))\n"
        "asyncio.run(up(run))\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, empty_dsn, str(folder)
    )
    await eventually(lambda: is_waiting_for(observer, "PgSleep"))
    process.send_signal(signal.SIGKILL)
    await process.wait()

    # The dead runner's server process notices within a second; until then the lock is held.
    await observer.execute("DELETE FROM slow")
    migrations = read_migrations(folder)
    applied = await applied_to(empty_dsn, migrations)

    assert (migrations[1],) == applied
    assert await table_exists(observer, "other_half")


async def test_lost_server_process_is_unavailable_and_leaves_nothing(
    empty_dsn: str, observer: Connection
) -> None:
    migrations = steps("CREATE TABLE half (); SELECT pg_sleep(600);")
    running = asyncio.create_task(applied_to(empty_dsn, migrations))
    await eventually(lambda: is_waiting_for(observer, "PgSleep"))
    await observer.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE 'tollkeeper migrate %'"
    )

    with pytest.raises(DatabaseUnavailable):
        await running
    assert not await table_exists(observer, "half")


# What is refused ---------------------------------------------------------------------------------


async def test_changed_file_is_refused(empty_dsn: str, observer: Connection) -> None:
    await applied_to(empty_dsn, steps("CREATE TABLE one ();"))

    with pytest.raises(MigrationChanged):
        await applied_to(empty_dsn, steps("CREATE TABLE uno ();", "CREATE TABLE two ();"))

    assert not await table_exists(observer, "two")


async def test_newer_database_is_refused(empty_dsn: str) -> None:
    migrations = steps("CREATE TABLE one ();", "CREATE TABLE two ();")
    await applied_to(empty_dsn, migrations)

    with pytest.raises(DatabaseNewer):
        await applied_to(empty_dsn, migrations[:1])


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("SELECT 1;\r\n\r\nSELECT 1 FROM nowhere;", (4, "42P01")),
        ("CREATE TABLE half ();\n-- Prüfung\nSELEKT 1;", (4, "42601")),
        ("CREATE TABLE half ();\nSELECT 1 / 0;", (3, "22012")),
    ],
)
async def test_failing_file_is_named_with_its_line_and_leaves_nothing(
    empty_dsn: str, observer: Connection, text: str, place: tuple[int, str]
) -> None:
    migrations = steps("CREATE TABLE kept ();", text)

    with pytest.raises(MigrationFailed) as caught:
        await applied_to(empty_dsn, migrations)

    error = caught.value
    assert ("credits/0002_step.sql", *place) == (error.file, error.line, error.sqlstate)
    assert await table_exists(observer, "kept")
    assert not await table_exists(observer, "half")
    assert 1 == await observer.fetchval("SELECT max(version) FROM tollkeeper_migrations")


@pytest.mark.parametrize("ending", ["COMMIT;", "ROLLBACK;"])
async def test_file_that_commits_by_itself_is_refused(empty_dsn: str, ending: str) -> None:
    with pytest.raises(NotOneUnitOfWork):
        await applied_to(empty_dsn, steps(f"SELECT 1; {ending}"))


async def test_lock_lost_on_the_way_is_said(empty_dsn: str) -> None:
    """As a pooler loses it, that gives us another backend for each unit of work."""
    with pytest.raises(RunnerLockLost, match="without a pooler"):
        await applied_to(empty_dsn, steps("SELECT pg_advisory_unlock_all();"))


async def test_lost_lock_session_is_said_and_leaves_nothing(
    empty_dsn: str, observer: Connection
) -> None:
    """Its own session is ended by the file's last statement: only the lock's check can see it."""
    ending = """
        SELECT count(pg_terminate_backend(held.pid, 5000)) FROM pg_locks AS held
        WHERE held.locktype = 'advisory' AND held.objid = 1835624306
          AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database());
    """
    with pytest.raises(RunnerLockLost):
        await applied_to(empty_dsn, steps(f"CREATE TABLE half (); {ending}"))

    assert not await table_exists(observer, "half")


async def test_role_that_may_not_is_refused_in_a_sentence(
    empty_dsn: str, observer: Connection
) -> None:
    weak = empty_dsn.replace("tollkeeper@", "weak_runner@")
    await observer.execute("CREATE ROLE weak_runner LOGIN")
    try:
        with pytest.raises(RunnerRefused, match="permission denied"):
            await applied_to(weak, steps("SELECT 1;"))
        await applied_to(empty_dsn, steps("SELECT 1;"))
        with pytest.raises(RunnerRefused, match="as the owner"):
            await history(weak, "credits")
    finally:
        await observer.execute("DROP ROLE weak_runner")


async def test_unknown_database_is_refused(empty_dsn: str) -> None:
    for name in ("nothing", "..", "__pycache__x/../credits"):
        with pytest.raises(UnknownDatabase):
            await migrate(empty_dsn, name, clock=CLOCK)


# Locks -------------------------------------------------------------------------------------------


async def test_lock_timeout_is_set_while_a_file_runs(empty_dsn: str, observer: Connection) -> None:
    migrations = steps("CREATE TABLE seen AS SELECT current_setting('lock_timeout') AS value;")
    await applied_to(empty_dsn, migrations)

    assert "2s" == await observer.fetchval("SELECT value FROM seen")


async def test_defaults_of_the_database_do_not_reach_a_file(
    empty_dsn: str, observer: Connection
) -> None:
    """Ones that end a unit of work too soon, change its isolation, or read its strings anew."""
    database = await observer.fetchval("SELECT current_database()")
    defaults = {
        "default_transaction_isolation": "serializable",
        "standard_conforming_strings": "off",
    }
    if observer.get_server_version().major >= 17:  # which brought it
        defaults["transaction_timeout"] = "300ms"
    for name, value in defaults.items():
        await observer.execute(f"ALTER DATABASE {database} SET {name} = '{value}'")
    migrations = steps("CREATE TABLE a (); SELECT pg_sleep(0.4);", "SELECT '\\';")

    assert tuple(migrations) == await applied_to(empty_dsn, migrations)


async def test_change_behind_a_lock_passes_when_it_is_released(
    empty_dsn: str, observer: Connection
) -> None:
    await observer.execute("CREATE TABLE busy ()")
    await observer.execute("BEGIN; LOCK TABLE busy IN ACCESS SHARE MODE")
    migrations = steps("ALTER TABLE busy ADD COLUMN more integer;")
    refused = asyncio.Event()
    patience = Patience(
        lock_timeout_ms=50, backoff=Backoff(first_ms=1, ceiling_ms=20, retries=1_000)
    )

    running = asyncio.create_task(
        applied_to(
            empty_dsn,
            migrations,
            say=lambda _: refused.set(),
            patience=patience,
        )
    )
    async with asyncio.timeout(DEADLINE_S):
        await refused.wait()
    await observer.execute("COMMIT")

    assert tuple(migrations) == await running


# What ships --------------------------------------------------------------------------------------


SHIPPED = sorted(
    folder.name
    for folder in files("tollkeeper.migrations").iterdir()
    if folder.is_dir() and not folder.name.startswith("_")
)


def test_every_shipped_folder_is_a_known_database() -> None:
    assert set(SHIPPED) <= set(DATABASES)


async def schema(connection: Connection) -> list[tuple[object, ...]]:
    """Describe columns, constraints, indexes, triggers, functions and privileges.

    Partitions are left out: the calendar decides how many there are.
    """
    rows = await connection.fetch(
        """
        WITH relation AS (
            SELECT * FROM pg_class
            WHERE relnamespace = 'public'::regnamespace AND NOT relispartition
        )
        SELECT 'relation', relname::text, relkind::text, reloptions::text, relacl::text
        FROM relation
        UNION ALL
        SELECT 'column', relname, attname, format_type(atttypid, atttypmod) || attnotnull,
            pg_get_expr(adbin, adrelid)
        FROM relation JOIN pg_attribute AS a ON attrelid = relation.oid
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE attnum > 0 AND NOT attisdropped
        UNION ALL
        SELECT 'constraint', relname, conname, pg_get_constraintdef(c.oid), NULL
        FROM relation JOIN pg_constraint AS c ON conrelid = relation.oid
        UNION ALL
        SELECT 'index', relname, pg_get_indexdef(oid), NULL, NULL
        FROM relation WHERE relkind IN ('i', 'I')
        UNION ALL
        SELECT 'trigger', relname, tgname, pg_get_triggerdef(t.oid), NULL
        FROM relation JOIN pg_trigger AS t ON tgrelid = relation.oid AND NOT t.tgisinternal
        UNION ALL
        SELECT 'function', proname, pg_get_functiondef(oid), proacl::text, NULL
        FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        ORDER BY 1, 2, 3, 4, 5
        """
    )
    return [tuple(row) for row in rows]


@pytest.mark.parametrize("database", SHIPPED)
async def test_upgrade_step_by_step_gives_the_schema_of_a_fresh_database(
    databases: Any, database: str
) -> None:
    available = shipped_migrations(database)
    found = []
    for sizes in ([len(available)], range(1, len(available) + 1)):
        with databases.fresh() as dsn:
            for size in sizes:
                await applied_to(dsn, available[:size], database=database)
            connection = await connector(dsn)()
            found.append(await schema(connection))
            assert () == await pending(connection, database)
            await connection.close()

    fresh, upgraded = found
    assert fresh == upgraded
    assert fresh


async def test_service_role_may_ask_what_is_pending(empty_dsn: str) -> None:
    await migrate(empty_dsn, "credits", clock=CLOCK)
    connection = await connector(empty_dsn, role="tollkeeper_credits")()
    try:
        assert () == await pending(connection, "credits")
    finally:
        await connection.close()


async def test_everything_is_pending_on_an_empty_database(observer: Connection) -> None:
    assert tuple(shipped_migrations("credits")) == await pending(observer, "credits")


async def test_planning_touches_nothing(empty_dsn: str, observer: Connection) -> None:
    migrations = shipped_migrations("credits")

    assert tuple(migrations) == await planned(empty_dsn, "credits", migrations)
    assert not await table_exists(observer, "tollkeeper_migrations")
