"""Whether callers who wait are treated alike: ten times as many callers as connections.

Each caller asks again as soon as it was answered. Jain's index of how often each was served,
(sum x)² / (n · sum x²), is 1 when all were served equally often, and 1/n when one got everything
(Jain, Chiu, Hawe 1984). The same of each caller's mean wait.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import uvloop

from benchmarks.bench import Bench
from benchmarks.figures import Figure
from benchmarks.measure import Sample, in_turns, sample_of
from benchmarks.pool.contestants import ACQUIRE_TIMEOUT_S, SIZE, Contestant, all_pools

CALLERS = 10 * SIZE
STATEMENT_S = 0.002
WANTED = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """How alike callers were served."""

    by_services: float
    by_waits: float
    fewest: int
    most: int
    waits: Sample


def measure(bench: Bench) -> list[Figure]:
    """Return the figures of fairness."""
    rounds = uvloop.run(_compare(bench, bench.empty_database("fairness")))
    return [_figure(name, results) for name, results in rounds.items()]


async def _compare(bench: Bench, dsn: str) -> dict[str, list[Round]]:
    seconds = 1.0 if bench.quick else 2.0

    def measured(pool: Contestant) -> Callable[[], Awaitable[Round]]:
        async def measure_round() -> Round:
            result = await _round(pool, seconds)
            bench.say(
                f"fairness, {pool.name}: {result.by_services:.4f}, "
                f"served {result.fewest} to {result.most} times"
            )
            return result

        return measure_round

    async with all_pools(dsn) as pools:
        return await in_turns(
            2 if bench.quick else 3, {pool.name: measured(pool) for pool in pools}
        )


async def _round(pool: Contestant, seconds: float) -> Round:
    waits_s: list[list[float]] = [[] for _ in range(CALLERS)]
    until = time.perf_counter() + seconds

    async def caller(own_s: list[float]) -> None:
        while (asked := time.perf_counter()) < until:
            await pool.sleep(
                STATEMENT_S, ACQUIRE_TIMEOUT_S, lambda: own_s.append(time.perf_counter() - asked)
            )

    await asyncio.gather(*(caller(own_s) for own_s in waits_s))
    counts = [len(own_s) for own_s in waits_s]
    every_s = [wait_s for own_s in waits_s for wait_s in own_s]
    return Round(
        by_services=jain(counts),
        by_waits=jain([statistics.fmean(own_s) for own_s in waits_s]),
        fewest=min(counts),
        most=max(counts),
        waits=sample_of(every_s, duration_s=seconds, operations=len(every_s)),
    )


def jain(values: Sequence[float]) -> float:
    """Return Jain's fairness index of values, in (0, 1]."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def _figure(name: str, results: Sequence[Round]) -> Figure:
    waits = statistics.median(each.by_waits for each in results)
    return Figure(
        what=f"pool: fairness, {CALLERS} callers, {name}",
        value=statistics.median(each.by_services for each in results),
        unit="of 1",
        target=WANTED if name == "ours" else None,
        samples=tuple(each.waits for each in results),
        note=f"Jain; served {min(each.fewest for each in results)} to "
        f"{max(each.most for each in results)} times; of mean waits {waits:.4f}",
    )
