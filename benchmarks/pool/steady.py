"""A pool on an ordinary day: how often a connection is used again, how seldom anybody waits.

Requests arrive at random at 70 % of what the connections can do, for exponential times. Even a
perfect pool has some of them wait: how many follows from the number of connections (Erlang's C),
27 % for 8 and 2 % for 40. So the promised 95 % is asked of 40; a pool of 8, the size of a service
before it was tuned, is held to what a perfect pool does with the very same requests.
"""

import asyncio
import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import uvloop

from benchmarks.bench import Bench
from benchmarks.figures import Figure
from benchmarks.measure import open_loop
from benchmarks.pool.contestants import ACQUIRE_TIMEOUT_S, SIZE, services_pool

LOAD = 0.7
LARGE = 40
MEAN_S = {SIZE: 0.020, LARGE: 0.100}
"""Mean time of a statement by size of the pool: 280 requests a second are no load for the driver,
so that they wait for connections and not for the processor."""

ACQUIRES = 20_000
WANTED_REUSE = 99.9
WANTED_EFFICIENCY = 95.0
LOST_AT_MOST = 5.0
"""Per cent of the requests: when others take the processor for some milliseconds, requests that
came one after the other come together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """What a pool did in its steady state; shares in per cent of the requests that did not wait."""

    size: int
    requests: int
    efficiency: float
    possible: float
    """What a perfect pool does with the same requests, if it keeps connections as long."""
    load: float
    """What the connections were really in use, in per cent."""


def measure(bench: Bench) -> list[Figure]:
    """Return the figures of reuse and efficiency."""
    dsn = bench.empty_database("steady")
    reuse = uvloop.run(_reuse(dsn))
    seconds = 5.0 if bench.quick else 20.0
    large = uvloop.run(_day(dsn, LARGE, seconds))
    small = uvloop.run(_day(dsn, SIZE, seconds))
    for day in (large, small):
        bench.say(f"70 % load, {day.size} connections: did not wait: {_note(day)}")
    return [
        Figure(
            what="pool: connections used again", value=100.0 * reuse, unit="%",
            target=WANTED_REUSE, note=f"{ACQUIRES:,} acquires from the start on",
        ),
        Figure(
            what=f"pool: served without waiting at 70 % load, {LARGE} connections",
            value=large.efficiency, unit="%", target=WANTED_EFFICIENCY, note=_note(large),
        ),
        Figure(
            what=f"pool: the same, {SIZE} connections: below what is possible",
            value=max(0.0, small.possible - small.efficiency), unit="%", target=LOST_AT_MOST,
            at_most=True, note=_note(small),
        ),
    ]  # fmt: skip


async def _reuse(dsn: str) -> float:
    async with services_pool(dsn) as (ours, database):
        await database.monitor.looked.wait()

        async def caller() -> None:
            for _ in range(ACQUIRES // SIZE):
                await ours.ask()

        await asyncio.gather(*(caller() for _ in range(SIZE)))
        ratio = ours.pool.status().reuse_ratio
        assert ratio is not None
        return ratio


async def _day(dsn: str, size: int, seconds: float) -> Day:
    random, mean_s = Random(0), MEAN_S[size]
    async with services_pool(dsn, size=size) as (ours, database):
        await database.monitor.looked.wait()
        while ours.pool.status().idle < size:  # noqa: ASYNC110  # the pool tells nobody
            await asyncio.sleep(0.05)
        before, before_s = ours.pool.status(), ours.pool.use_times.sum_s
        asked: list[tuple[float, float]] = []
        began = time.perf_counter()

        async def request(due_s: float) -> None:
            wanted_s = random.expovariate(1.0 / mean_s)
            asked.append((due_s, wanted_s))
            await ours.sleep(wanted_s, ACQUIRE_TIMEOUT_S, lambda: None)

        await open_loop(LOAD * size / mean_s, seconds, request, random)
        duration_s = time.perf_counter() - began
        after, used_s = ours.pool.status(), ours.pool.use_times.sum_s - before_s
    extra_s = (used_s - sum(wanted_s for _, wanted_s in asked)) / len(asked)
    return Day(
        size=size,
        requests=len(asked),
        efficiency=100.0 * (1.0 - (after.waited_total - before.waited_total) / len(asked)),
        possible=100.0 * served_at_once(size, [(at, wanted + extra_s) for at, wanted in asked]),
        load=100.0 * used_s / (size * duration_s),
    )


def served_at_once(size: int, requests: Sequence[tuple[float, float]]) -> float:
    """Return the share that does not wait in a perfect pool; a request is (when, for how long)."""
    free_at = [0.0] * size  # a heap
    at_once = 0
    for due_s, wanted_s in requests:
        first_s = heapq.heappop(free_at)
        at_once += first_s <= due_s
        heapq.heappush(free_at, max(first_s, due_s) + wanted_s)
    return at_once / len(requests)


def _note(day: Day) -> str:
    return (
        f"{day.efficiency:.1f} % of {day.requests:,}, a perfect pool {day.possible:.1f} %; "
        f"in use {day.load:.0f} % of the time"
    )
