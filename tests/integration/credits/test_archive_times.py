"""What is old, and where its quarter begins, hangs on no clock alone and on no setting."""

from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest
from tests.archive import QUARTER, aged_ledger, running_archivist
from tests.clocks import SetClock

from tollkeeper.database.connect import connector


async def test_one_clock_that_runs_ahead_archives_nothing(credits_dsn: str) -> None:
    """The worker's and the database's must agree: what is archived takes no payment any more."""
    clock = SetClock(datetime.now(UTC) - 8 * QUARTER)
    async with aged_ledger(credits_dsn) as aged:
        async with running_archivist(credits_dsn, clock=clock) as archivist:
            await archivist.round()

        assert [] == await aged.partitions("archived_transactions")


@pytest.mark.parametrize("style", ["ISO, MDY", "German"])
async def test_a_seal_covers_its_quarter_however_the_database_writes_times(
    other_credits_dsn: str, style: str
) -> None:
    """PostgreSQL before 18 reads the IST of Kolkata, which it wrote itself, as that of Israel."""
    database = urlsplit(other_credits_dsn).path.removeprefix("/")
    owner = await connector(other_credits_dsn)()
    await owner.execute(f"ALTER DATABASE {database} SET timezone = 'Asia/Kolkata'")
    await owner.execute(f"ALTER DATABASE {database} SET datestyle = '{style}'")
    async with aged_ledger(other_credits_dsn) as aged:
        async with running_archivist(other_credits_dsn) as archivist:
            await archivist.round()
        archived = await aged.owner.fetchval("SELECT count(*) FROM archived_transactions")
    sealed = await owner.fetchval("SELECT sum(transactions)::bigint FROM partition_seals")
    begins = await owner.fetch("SELECT from_time FROM partition_seals")
    await owner.execute(f"ALTER DATABASE {database} RESET ALL")
    await owner.close()

    assert archived == sealed > 0
    assert {(1, 0, 0)} == {(each.day, each.hour, each.minute) for (each,) in begins}
