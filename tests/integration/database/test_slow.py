"""What asyncpg tells of a statement is what is noted."""

import asyncio

import asyncpg
import pytest
from tests.clocks import SetClock
from tests.supervised import DEADLINE_S, supervised

from tollkeeper.database.slow import SlowQueries, failure_of
from tollkeeper.telemetry.request import REQUEST_ID, current_request


async def test_the_request_is_named_that_a_driver_ran_it_for(empty_dsn: str) -> None:
    """asyncpg tells its loggers later, in the context of the task that asked."""
    slow = SlowQueries(clock=SetClock(), name="credits")
    noted = asyncio.Event()

    def tell(record: asyncpg.connection.LoggedQuery) -> None:
        slow.note(
            record.query,
            args=record.args,
            wait_s=0,
            run_s=1 + record.elapsed,
            failed=failure_of(record.exception),
        )
        noted.set()

    connection = await asyncpg.connect(empty_dsn)
    try:
        connection.add_query_logger(tell)
        token = current_request.set({REQUEST_ID: "asked-1"})
        with pytest.raises(asyncpg.DivisionByZeroError):
            await connection.fetch("SELECT $1::int / 0", 5)
        current_request.reset(token)
        await asyncio.wait_for(noted.wait(), 10)
    finally:
        await connection.close()

    (query,) = slow.latest()
    assert ("SELECT $1::int / ?", ("int",), "22012", "asked-1") == (
        query.statement, query.types, query.failed, query.request_id
    )  # fmt: skip


async def test_wait_is_told_apart_from_the_run_when_many_wait(empty_dsn: str) -> None:
    """A holder gives its connection to the next before the driver tells of its statement."""
    async with supervised(empty_dsn, size=1) as it:

        async def work() -> None:
            async with it.reads.connection(DEADLINE_S) as connection:
                await connection.fetchval("SELECT pg_sleep(0.06)")

        await asyncio.gather(*(work() for _ in range(8)))
        found = it.database.slow.latest()

    # Who was first waited for the connection to be opened; the second waited for one statement.
    assert 6 <= len(found)
    assert all(each.run_s < each.wait_s for each in found[:-2])  # who waited for several
    waits_s = [each.wait_s for each in reversed(found)]
    assert sorted(waits_s) == waits_s


async def test_wait_of_a_unit_of_work_belongs_to_what_it_does(empty_dsn: str) -> None:
    async with supervised(empty_dsn, size=1) as it:

        async def work() -> None:
            async with it.writes.connection(DEADLINE_S) as connection, connection.transaction():
                await connection.fetchval("SELECT pg_sleep(0.15)")

        await asyncio.gather(work(), work())
        found = it.database.slow.latest()

    assert {"SELECT pg_sleep(?)"} == {each.statement for each in found}
    assert max(each.wait_s for each in found) > 0.1
