"""The ledger's store and engine behind a real PgBouncer, with fewer connections than clients."""

import asyncio
from collections.abc import Iterator

import asyncpg
import pytest
from tests.ledger import Ledger, consume, held_by, opening, running_ledger, topup, words, words_of
from tests.pgbouncer import running_pgbouncer

from tollkeeper.credits import requests
from tollkeeper.credits.model import Operation
from tollkeeper.database.pooler import Pooler

ACCOUNTS = [f"account-{number}" for number in range(20)]
ROUNDS = 12
TOPPED_UP, SPENT = 30, 7


@pytest.fixture
def pooled_dsn(credits_dsn: str) -> Iterator[str]:
    with running_pgbouncer(credits_dsn, server_connections=2) as dsn:
        yield dsn


async def test_two_services_share_two_connections_and_every_balance_is_exact(
    pooled_dsn: str, credits_dsn: str
) -> None:
    """Ten client connections, two to the server; both services write every account."""
    async with (
        running_ledger(pooled_dsn, lanes=4, pooler=Pooler.PGBOUNCER) as one,
        running_ledger(pooled_dsn, lanes=4, pooler=Pooler.PGBOUNCER) as two,
    ):
        await one.open_with(100, *ACCOUNTS)
        start = asyncio.Barrier(2 * len(ACCOUNTS))

        async def work(ledger: Ledger, name: str) -> list[str]:
            await start.wait()
            done = []
            for _ in range(ROUNDS):
                done += await ledger.execute(topup(name, TOPPED_UP))
                done += await ledger.execute(consume(name, SPENT))
            return words_of(done)

        said = await asyncio.gather(
            *(work(ledger, name) for ledger in (one, two) for name in ACCOUNTS)
        )
        assert [["posted"] * 2 * ROUNDS] * 2 * len(ACCOUNTS) == said
        expected = 100 + 2 * ROUNDS * (TOPPED_UP - SPENT)
        assert [expected] * len(ACCOUNTS) == [await two.balance(name) for name in ACCOUNTS]
        await one.assert_sound()
        assert await server_connections(credits_dsn) <= 2


async def test_holds_replays_histories_and_refusals_are_what_they_are_without(
    pooled_dsn: str,
) -> None:
    """What needs units of work of their own: holds, captures, replays, pages, verification."""
    async with running_ledger(pooled_dsn, pooler=Pooler.PGBOUNCER) as ledger:
        operations: list[Operation] = [opening("ann"), topup("ann", 100, "first")]
        assert ["opened", "posted"] == words_of(await ledger.execute(*operations))
        (held,) = await ledger.execute(requests.reserve(words("ann"), amount=60))

        def capture() -> Operation:
            return requests.capture(words("ann", "a key"), hold_id=held_by(held), amount=25)

        assert ["posted"] == words_of(await ledger.execute(capture()))
        assert ["replayed"] == words_of(await ledger.execute(capture()))
        assert ["insufficient_credits"] == words_of(await ledger.execute(consume("ann", 41)))
        assert ["posted"] == words_of(await ledger.execute(consume("ann", 40)))
        assert 35 == await ledger.balance("ann")
        await ledger.assert_sound()


async def server_connections(dsn: str) -> int:
    """Count those of the service's role's login, without the one that looks."""
    connection = await asyncpg.connect(dsn)
    try:
        count: int = await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND backend_type = 'client backend'"
        )
    finally:
        await connection.close()
    return count
