"""Taking files back by their own SQL, trying them without a trace, and what is refused before."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from tests.conftest import Databases
from tests.migrations import (
    DEADLINE_S,
    HASTY,
    applied_to,
    dump_of,
    eventually,
    is_waiting_for,
    run_of,
    schema_of,
    step,
    steps,
)
from tests.pgbouncer import running_pgbouncer

from tollkeeper.database.connect import close_gently, connector
from tollkeeper.database.driver import Connection
from tollkeeper.migrate.errors import (
    DownLosesRows,
    MigrationBlocked,
    MigrationFailed,
    NotReversible,
    OtherWork,
    PoolerRefused,
    VerifyFailed,
)
from tollkeeper.migrate.model import DATABASES, Migration
from tollkeeper.migrate.script import migration_from
from tollkeeper.migrate.service import (
    down,
    dry_up,
    shipped_migrations,
    status,
    up,
)

BASE = step(1, "CREATE TABLE one (a integer); INSERT INTO one VALUES (1), (2);")
WIDER = step(
    2,
    "ALTER TABLE one ADD COLUMN b text;\nCREATE TABLE two (c integer);\n"
    "-- down\nDROP TABLE two;\nALTER TABLE one DROP COLUMN b;",
)
INDEX = migration_from(
    "credits",
    "0003_index.sql",
    "-- up transaction:false\nCREATE INDEX CONCURRENTLY one_a ON one (a);\n-- verify\n"
    "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('one_a');\n",
)


@pytest.fixture
def empty_dsn(other_databases: Databases) -> Iterator[str]:
    """A fresh empty database, on each PostgreSQL installed here."""
    with other_databases.fresh() as dsn:
        yield dsn


@pytest.fixture
async def observer(empty_dsn: str) -> AsyncIterator[Connection]:
    """A connection of its own, to look and to be in the way."""
    connection = await connector(empty_dsn)()
    yield connection
    await close_gently(connection, 5)


async def version_of(dsn: str) -> int:
    return max(each.version for each in (await status(dsn, "credits", [])).applied)


# Back --------------------------------------------------------------------------------------------


async def test_file_is_taken_back_and_can_be_applied_again(
    empty_dsn: str, observer: Connection
) -> None:
    await applied_to(empty_dsn, [BASE])
    before = await schema_of(observer)
    await applied_to(empty_dsn, [BASE, WIDER])
    after = await schema_of(observer)

    [report] = await down(run_of(empty_dsn, [BASE, WIDER]), to=1)

    assert (WIDER, True, {}) == (report.migration, report.is_down, dict(report.lost))
    assert before == await schema_of(observer)
    assert 1 == await version_of(empty_dsn)
    assert (WIDER,) == await applied_to(empty_dsn, [BASE, WIDER])
    assert after == await schema_of(observer)


async def test_rows_that_would_be_lost_are_counted_and_kept(
    empty_dsn: str, observer: Connection
) -> None:
    await applied_to(empty_dsn, [BASE, WIDER])
    await observer.execute(
        "INSERT INTO two VALUES (1), (2), (3); UPDATE one SET b = 'x' WHERE a = 1"
    )
    before = await schema_of(observer)

    with pytest.raises(DownLosesRows) as caught:
        await down(run_of(empty_dsn, [BASE, WIDER]), to=1, accepted_rows=3)

    assert (4, {"two: 3", "one.b: 1"}) == (caught.value.rows, set(caught.value.places))
    assert "--accept-loss 4" in str(caught.value)
    assert (before, 2) == (await schema_of(observer), await version_of(empty_dsn))
    [report] = await down(run_of(empty_dsn, [BASE, WIDER]), to=1, accepted_rows=4)
    assert {"two": 3, "one.b": 1} == dict(report.lost)


@pytest.mark.parametrize("emptying", ["DELETE FROM one WHERE a = 2", "TRUNCATE one"])
async def test_rows_that_are_deleted_are_lost_as_well(
    empty_dsn: str, observer: Connection, emptying: str
) -> None:
    files = [BASE, step(2, f"CREATE TABLE two ();\n-- down\nDROP TABLE two;\n{emptying};")]
    await applied_to(empty_dsn, files)

    with pytest.raises(DownLosesRows, match=r"one: \d"):
        await down(run_of(empty_dsn, files), to=1)

    assert 2 == await observer.fetchval("SELECT count(*) FROM one")
    [report] = await down(run_of(empty_dsn, files), to=1, accepted_rows=2)
    assert {"one": 2 - await observer.fetchval("SELECT count(*) FROM one")} == dict(report.lost)


async def test_row_that_comes_while_they_are_counted_is_not_lost(
    empty_dsn: str, observer: Connection
) -> None:
    """Its writer waits behind the trial of the way back, and is let in when that is undone."""
    files = [BASE, step(2, "CREATE TABLE two ();\n-- down\nDROP TABLE two; SELECT pg_sleep(0.3);")]
    await applied_to(empty_dsn, files)
    writer = await connector(empty_dsn)()
    going_back = asyncio.create_task(down(run_of(empty_dsn, files), to=1))
    await eventually(
        lambda: observer.fetchval(
            "SELECT count(*) FROM pg_locks WHERE granted AND mode = 'AccessExclusiveLock'"
            " AND relation = to_regclass('two')"
        )
    )
    await writer.execute("BEGIN; INSERT INTO two DEFAULT VALUES")
    await eventually(
        lambda: observer.fetchval(
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = to_regclass('two')"
        )
    )
    await writer.execute("COMMIT")

    with pytest.raises(DownLosesRows, match="two: 1"):
        await going_back
    await close_gently(writer, 5)


async def test_file_without_way_back_stops_it_before_anything(
    empty_dsn: str, observer: Connection
) -> None:
    await applied_to(empty_dsn, [BASE, WIDER])

    with pytest.raises(NotReversible, match="0001_step"):
        await down(run_of(empty_dsn, [BASE, WIDER]), to=0)

    assert 2 == await version_of(empty_dsn)


REVERSIBLE = [
    (name, each.version)
    for name in DATABASES
    for each in shipped_migrations(name)
    if each.down is not None
]


@pytest.mark.parametrize("database", sorted({name for name, _ in REVERSIBLE}))
async def test_what_ships_with_a_way_back_comes_up_the_same_again(
    databases: Databases, database: str
) -> None:
    highest = max(version for name, version in REVERSIBLE if name == database)
    available = shipped_migrations(database)[:highest]
    lowest = len(available)
    while lowest and available[lowest - 1].down is not None:
        lowest -= 1
    with databases.fresh() as dsn:
        run = run_of(dsn, available, database=database)
        await up(run)
        connection = await connector(dsn)()
        first = await dumped(connection)
        taken = await down(run, to=lowest)
        between = await dumped(connection)
        await up(run)
        again = await dumped(connection)
        await connection.close()

    assert len(available) - lowest == len(taken) > 0
    assert first == again != between


async def dumped(connection: Connection) -> object:
    """Describe schema, privileges and comments; order of columns and all."""
    return [
        tuple(row)
        for row in await connection.fetch(
            """
            SELECT c.relname::text AS one, a.attname::text AS two, a.attnum::text AS three,
                format_type(a.atttypid, a.atttypmod) || coalesce(c.relacl::text, '') AS four
            FROM pg_class AS c LEFT JOIN pg_attribute AS a
                ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
            WHERE c.relnamespace = 'public'::regnamespace
            UNION ALL
            SELECT p.proname, pg_get_functiondef(p.oid), p.proacl::text, ''
            FROM pg_proc AS p WHERE p.pronamespace = 'public'::regnamespace
            UNION ALL
            SELECT t.tgname, pg_get_triggerdef(t.oid), '', ''
            FROM pg_trigger AS t WHERE NOT t.tgisinternal
            UNION ALL
            SELECT k.conname, pg_get_constraintdef(k.oid), k.conrelid::regclass::text, ''
            FROM pg_constraint AS k WHERE k.connamespace = 'public'::regnamespace
            ORDER BY 1, 2, 3, 4
            """
        )
    ]


# Without a trace ---------------------------------------------------------------------------------


async def test_dry_run_does_everything_and_leaves_nothing(
    empty_dsn: str, observer: Connection
) -> None:
    await applied_to(empty_dsn, [BASE])
    before = await dump_of(empty_dsn)
    rewriting = step(4, "ALTER TABLE one ALTER COLUMN a TYPE bigint;")

    reports = await dry_up(run_of(empty_dsn, [BASE, WIDER, INDEX, rewriting]))

    assert [(2, True), (3, False), (4, True)] == [
        (each.migration.version, each.is_rehearsed) for each in reports
    ]
    assert [{"one": "AccessExclusiveLock"}, {}] == [dict(reports[n].locks) for n in (0, 2)]
    assert ["one"] == list(reports[2].rewritten)
    assert before == await dump_of(empty_dsn)


async def test_dry_run_meets_what_the_run_would_meet(empty_dsn: str, observer: Connection) -> None:
    await applied_to(empty_dsn, [BASE])
    wrong = step(2, "ALTER TABLE one ADD COLUMN b text;\nSELECT nothing;")

    with pytest.raises(MigrationFailed, match="line 3"):
        await dry_up(run_of(empty_dsn, [BASE, wrong]))
    async with observer.transaction():
        await observer.execute("LOCK TABLE one IN ACCESS SHARE MODE")
        with pytest.raises(MigrationBlocked):
            await dry_up(run_of(empty_dsn, [BASE, WIDER], patience=HASTY))

    assert {"one.a"} == {name for name in await schema_of(observer) if "one" in name}


# One at a time, and never for long --------------------------------------------------------------


async def test_runs_beside_each_other_apply_once(empty_dsn: str, observer: Connection) -> None:
    """The first runner is held inside its file until the second one has met its lock."""
    await observer.execute("SELECT pg_advisory_lock(42)")
    migrations = steps("SELECT pg_advisory_xact_lock(42); CREATE TABLE once ();")
    waiting = asyncio.Event()
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        waiting.set()

    first = asyncio.create_task(applied_to(empty_dsn, migrations))
    await eventually(lambda: is_waiting_for(observer, "advisory"))
    second = asyncio.create_task(applied_to(empty_dsn, migrations, say=say))
    async with asyncio.timeout(DEADLINE_S):
        await waiting.wait()
    await observer.execute("SELECT pg_advisory_unlock(42)")

    assert tuple(migrations) == await first
    assert () == await second
    assert "credits: waiting for another runner: 'tollkeeper migrate credits' from" in said[0]


async def test_eight_runners_at_once_apply_once(empty_dsn: str) -> None:
    migrations = steps("CREATE TABLE one ();", "CREATE TABLE two ();")
    start = asyncio.Barrier(8)

    async def run() -> tuple[Migration, ...]:
        await start.wait()
        return await applied_to(empty_dsn, migrations)

    results = await asyncio.gather(*(run() for _ in range(8)))

    assert [tuple(migrations)] == [result for result in results if result]


async def test_change_behind_a_held_lock_gives_up_and_says_so(
    empty_dsn: str, observer: Connection
) -> None:
    await observer.execute("CREATE TABLE busy ()")
    migrations = steps("ALTER TABLE busy ADD COLUMN more integer;")
    said: list[str] = []

    async with observer.transaction():
        await observer.execute("LOCK TABLE busy IN ACCESS SHARE MODE")
        with pytest.raises(MigrationBlocked) as caught:
            await applied_to(empty_dsn, migrations, say=said.append, patience=HASTY)

    assert 3 == caught.value.attempts
    assert 2 == sum("again in" in line for line in said)
    assert any("waits for AccessExclusiveLock on busy, held by" in line for line in said)
    assert tuple(migrations) == await applied_to(empty_dsn, migrations)


# Refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "check", ["SELECT false", "SELECT NULL::boolean", "SELECT true WHERE false"]
)
async def test_check_that_does_not_hold_undoes_its_file(
    empty_dsn: str, observer: Connection, check: str
) -> None:
    unfit = step(1, f"CREATE TABLE one ();\n-- verify\nSELECT true;\n{check};")

    with pytest.raises(VerifyFailed, match="line 5: this check does not hold; nothing"):
        await applied_to(empty_dsn, [unfit])

    assert "one" not in await schema_of(observer)


async def test_pooler_is_refused(empty_dsn: str) -> None:
    with running_pgbouncer(empty_dsn, server_connections=2) as pooled:
        for work in (up, dry_up):
            with pytest.raises(PoolerRefused):
                await work(run_of(pooled, [BASE]))


async def test_nothing_is_changed_while_somebody_dumps_the_database(
    empty_dsn: str, observer: Connection
) -> None:
    await observer.execute("SET application_name = 'pg_dump'")

    with pytest.raises(OtherWork, match="'pg_dump' from this machine"):
        await applied_to(empty_dsn, [BASE])

    assert "one" not in await schema_of(observer)


async def test_way_down_behind_a_held_lock_gives_up(empty_dsn: str, observer: Connection) -> None:
    await applied_to(empty_dsn, [BASE, WIDER])

    async with observer.transaction():
        await observer.execute("LOCK TABLE two IN ACCESS SHARE MODE")
        with pytest.raises(MigrationBlocked):
            await down(run_of(empty_dsn, [BASE, WIDER], patience=HASTY), to=1)

    assert 2 == await version_of(empty_dsn)


def test_every_migration_that_is_not_transactional_checks_what_it_did() -> None:
    alone = [
        each for name in DATABASES for each in shipped_migrations(name) if not each.is_transactional
    ]

    assert all(each.checks for each in alone)
