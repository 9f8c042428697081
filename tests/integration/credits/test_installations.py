"""The ledger on every PostgreSQL installed here, the oldest supported one among them."""

import asyncio

from tests.ledger import consume, running_ledger, words_of


async def test_a_hundred_workers_and_their_replays_are_exact(other_credits_dsn: str) -> None:
    async with (
        running_ledger(other_credits_dsn) as ledger,
        running_ledger(other_credits_dsn) as other,
    ):
        await ledger.open_with(1_000, "hot")
        work = [(consume("hot", 3, f"key-{number}"), number) for number in range(200)]
        first = await asyncio.gather(
            *((ledger, other)[number % 2].execute(operation) for operation, number in work)
        )
        again = await asyncio.gather(
            *(other.execute(consume("hot", 3, f"key-{number}")) for _, number in work)
        )

        assert ["posted"] * 200 == words_of([result for (result,) in first])
        assert ["replayed"] * 200 == words_of([result for (result,) in again])
        assert 400 == await ledger.balance("hot")
        await ledger.assert_sound()
