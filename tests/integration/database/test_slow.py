"""What asyncpg tells of a statement is what is noted."""

import asyncio

import asyncpg
import pytest
from tests.clocks import SetClock

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
