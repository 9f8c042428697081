"""Holds: reserve, capture a part, release the rest, as one triple of a caller."""

from dataclasses import replace
from uuid import UUID

import uvloop

from benchmarks.bench import Bench
from benchmarks.credits.engine import CALLERS, MANY_ACCOUNTS, EngineUnderTest, running_engine
from benchmarks.credits.workload import FIRST_BALANCE_MINOR, account_names, open_accounts
from benchmarks.figures import Figure, load_note
from benchmarks.measure import Load, Sample, closed_loop, median_rate
from tollkeeper.credits import requests
from tollkeeper.credits.model import Posted
from tollkeeper.credits.requests import WriteWords
from tollkeeper.kernel.ids import entropy_in_blocks

HELD_MINOR = 100
CAPTURED_MINOR = 60


def measure(bench: Bench) -> list[Figure]:
    """Return the figures of holds."""
    return uvloop.run(_measure(bench, bench.migrated_database("credits")))


async def _measure(bench: Bench, dsn: str) -> list[Figure]:
    names, load = account_names(MANY_ACCOUNTS), bench.load(CALLERS)
    async with running_engine(dsn) as under_test:
        await open_accounts(under_test.engine, names, FIRST_BALANCE_MINOR)
        measured = bench.reported("holds, triples", lambda: _triples(under_test, names, load))
        samples = tuple([await measured() for _ in range(bench.rounds)])
    return [
        Figure(
            what=f"holds (reserve, capture, release), {CALLERS} callers, {len(names):,} accounts",
            value=median_rate(samples),
            unit=" triples/s",
            samples=samples,
            note=f"latencies of whole triples, {load_note(samples)}",
        ),
    ]


async def _triples(under_test: EngineUnderTest, names: list[str], load: Load) -> Sample:
    engine, entropy = under_test.engine, entropy_in_blocks()
    turn = iter(range(10**12))

    async def step() -> None:
        name = names[next(turn) * 7_919 % len(names)]

        def words() -> WriteWords:
            drawn = entropy()
            return WriteWords(account_id=name, key=str(UUID(int=drawn)), entropy=drawn)

        (held,) = await engine.execute((requests.reserve(words(), amount=HELD_MINOR),))
        assert type(held) is Posted, held
        hold_id = held.transaction.transaction_id
        for settling in (
            requests.capture(words(), hold_id=hold_id, amount=CAPTURED_MINOR),
            requests.release(words(), hold_id=hold_id),
        ):
            (settled,) = await engine.execute((settling,))
            assert type(settled) is Posted, settled

    operations, batches = under_test.batches()
    sample = await closed_loop([step] * load.callers, load)
    operations_after, batches_after = under_test.batches()
    mean = (operations_after - operations) / (batches_after - batches)
    return replace(sample, batch_mean=mean)
