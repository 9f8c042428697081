"""A runner that is killed, at every boundary of its statements, on every PostgreSQL here."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.conftest import Databases, run
from tests.migrations import (
    applied_to,
    eventually,
    put,
    schema_of,
    start_killed_at,
    step,
    was_killed,
)

from tollkeeper.database.connect import close_gently, connector
from tollkeeper.database.driver import Connection
from tollkeeper.migrate.errors import OutcomeUnknown
from tollkeeper.migrate.history import Happening
from tollkeeper.migrate.script import migration_from
from tollkeeper.migrate.service import history, status

INDEX = migration_from(
    "credits",
    "0002_index.sql",
    "-- up transaction:false\nCREATE INDEX CONCURRENTLY one_a ON one (a);\n-- verify\n"
    "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('one_a');\n",
)
FILES = [
    step(1, "CREATE TABLE one (a integer);\nINSERT INTO one SELECT generate_series(1, 100);"),
    INDEX,
    step(3, "ALTER TABLE one ADD COLUMN b text;\n-- verify\nSELECT count(*) = 100 FROM one;"),
]
BOUNDARIES = 2 * (2 + 1 + 1) + len(FILES)
"""Before and after each statement, and after each file."""


@pytest.fixture
def other_empty_dsn(other_databases: Databases) -> Iterator[str]:
    """A fresh empty database, on each PostgreSQL installed here."""
    with other_databases.fresh() as dsn:
        yield dsn


@pytest.fixture
async def observer(other_empty_dsn: str) -> AsyncIterator[Connection]:
    """A connection of its own, to look and to be in the way."""
    connection = await connector(other_empty_dsn)()
    yield connection
    await close_gently(connection, 5)


def test_killed_at_any_boundary_the_next_run_goes_on(
    other_databases: Databases, tmp_path: Path
) -> None:
    folder = put(tmp_path, FILES)
    found: list[object] = []

    async def finish(dsn: str) -> None:
        said: list[str] = []
        await applied_to(dsn, FILES, say=said.append)
        connection = await connector(dsn)()
        applied = [entry.entry.version for entry in await history(dsn, "credits")
                   if entry.entry.happening is Happening.APPLIED]  # fmt: skip
        found.append((await schema_of(connection), applied))
        await connection.close()

    with other_databases.fresh() as dsn:
        run(lambda: finish(dsn))
    for event in range(1, BOUNDARIES + 1):
        with other_databases.fresh() as dsn:
            assert was_killed(start_killed_at(dsn, folder, event))
            run(lambda: finish(dsn))  # it has run before the next one is bound

    whole = found[0]
    assert whole[1] == [1, 2, 3]  # type: ignore[index]
    assert [whole] * (BOUNDARIES + 1) == found


def test_more_boundaries_there_are_not(other_databases: Databases, tmp_path: Path) -> None:
    with other_databases.fresh() as dsn:
        assert not was_killed(start_killed_at(dsn, put(tmp_path, FILES), BOUNDARIES + 1))


async def test_index_cut_while_it_was_built_is_dropped_and_built_again(
    other_empty_dsn: str, observer: Connection, tmp_path: Path
) -> None:
    await applied_to(other_empty_dsn, FILES[:1])
    other = await connector(other_empty_dsn)()
    await other.execute("BEGIN; INSERT INTO one VALUES (101)")  # which it waits for
    process = start_killed_at(other_empty_dsn, put(tmp_path, FILES), 99)

    async def is_waiting() -> bool:
        return (await schema_of(observer)).get("one_a.a") == "iintegerfalse"

    await eventually(is_waiting)
    process.kill()
    process.wait()
    await other.execute("ROLLBACK")
    await close_gently(other, 5)
    before = await status(other_empty_dsn, "credits", FILES)
    said: list[str] = []
    await applied_to(other_empty_dsn, FILES, say=said.append)

    assert before.cut is not None
    assert (2, 1, 1) == (before.cut.version, before.cut.statement, before.cut.of)
    assert "iintegertrue" == (await schema_of(observer))["one_a.a"]
    assert any("version 2 was being applied" in line for line in said)


async def test_cut_statement_that_cannot_be_judged_nor_repeated_is_refused_with_the_reason(
    other_empty_dsn: str, tmp_path: Path
) -> None:
    unclear = migration_from(
        "credits",
        "0002_value.sql",
        "-- up transaction:false\nALTER TYPE mood ADD VALUE 'fine';\n-- verify\nSELECT false;\n",
    )
    files = [step(1, "CREATE TYPE mood AS ENUM ('bad');"), unclear]
    await applied_to(other_empty_dsn, files[:1])
    assert was_killed(start_killed_at(other_empty_dsn, put(tmp_path, files), 2))

    with pytest.raises(OutcomeUnknown, match="already exists"):
        await applied_to(other_empty_dsn, files)
