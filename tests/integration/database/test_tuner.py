"""A real pool is measured and resized as the windows say."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from structlog.testing import capture_logs

from tollkeeper.database.connect import connector
from tollkeeper.database.histogram import Histogram
from tollkeeper.database.pool import Pool
from tollkeeper.database.tuner import Tuner, TuningPlan
from tollkeeper.database.tuning import Reason
from tollkeeper.kernel.clock import SystemClock

CLOCK = SystemClock()


MakePool = Callable[..., Pool]


@pytest.fixture
async def make_pool(empty_dsn: str) -> AsyncIterator[MakePool]:
    pools: list[Pool] = []

    def make(size: int, *, minimum: int = 0) -> Pool:
        pool = Pool(connector(empty_dsn), size=size, minimum=minimum, clock=CLOCK, name="reads")
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        await pool.close()


def plan(*, floor: int = 2, most: int = 200, replicas: int = 1) -> TuningPlan:
    return TuningPlan(
        pool="reads", floor=floor, least=1, most=most, replicas=replicas, others=6, spare=10
    )


def tuner_of(pool: Pool, wanted: TuningPlan, refusals: list[int] | None = None) -> Tuner:
    counts = refusals or [0]
    return Tuner(pool, wanted, operations=Histogram(), refusals=lambda: counts[0], now_s=0.0)


async def crowd(pool: Pool, callers: int) -> None:
    async def ask() -> None:
        async with pool.connection(30) as connection:
            await connection.fetchval("SELECT 1")

    await asyncio.gather(*(ask() for _ in range(callers)))


async def test_pool_whose_callers_wait_grows_and_says_why(make_pool: MakePool) -> None:
    pool = make_pool(2)
    tuner = tuner_of(pool, plan())
    tuner.learn(100, 3)

    await crowd(pool, 150)
    with capture_logs() as logs:
        tuner.tick(31.0)

    assert 12 == pool.status().size
    assert [("database.pool_tuned", "waits", 12, 2)] == [
        (line["event"], line["reason"], line["size"], line["former"]) for line in logs
    ]
    assert "waits: 150 waits in 30 s" == tuner.said


async def test_waits_of_the_window_before_count_no_more(make_pool: MakePool) -> None:
    pool = make_pool(2)
    tuner = tuner_of(pool, plan())
    tuner.learn(100, 3)

    await crowd(pool, 150)
    for end_s in (31.0, 62.0, 93.0, 124.0, 155.0):
        tuner.tick(end_s)

    assert 12 == pool.status().size


@pytest.mark.parametrize("replicas", [1, 2, 3, 5])
async def test_replicas_together_leave_what_others_need(make_pool: MakePool, replicas: int) -> None:
    pool = make_pool(2)
    tuner = tuner_of(pool, plan(replicas=replicas))

    tuner.learn(100, 3)

    assert tuner.budget is not None
    assert replicas * (tuner.budget + 6) + 10 + 3 <= 100


async def test_server_with_less_room_than_the_pool_is_obeyed(
    make_pool: MakePool,
) -> None:
    pool = make_pool(8, minimum=8)
    tuner = tuner_of(pool, plan(floor=8))

    with capture_logs() as logs:
        tuner.learn(22, 3)
        tuner.learn(22, 3)
        tuner.tick(31.0)

    assert ["database.pool_exceeds_server", "database.pool_tuned"] == [e["event"] for e in logs]
    assert (3, 3) == (pool.status().size, pool.status().minimum)


async def test_nothing_is_decided_before_the_server_was_asked(make_pool: MakePool) -> None:
    pool = make_pool(2)
    tuner = tuner_of(pool, plan())

    await crowd(pool, 150)
    tuner.tick(31.0)
    tuner.learn(100, 3)
    tuner.tick(62.0)

    assert 2 == pool.status().size
    assert tuner.last is not None
    assert Reason.STEADY is tuner.last.reason


async def test_refusals_shrink_the_pool(make_pool: MakePool) -> None:
    refusals = [0]
    pool = make_pool(20)
    tuner = tuner_of(pool, plan(), refusals)
    tuner.learn(100, 3)

    refusals[0] = 4
    tuner.tick(31.0)

    assert 15 == pool.status().size
