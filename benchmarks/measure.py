"""How things are measured: closed loops of callers, percentiles, interleaved pairs.

A closed loop keeps `callers` operations under way: who was answered asks again at once. A latency
is what the caller sees, from before its request is put together until its answer is there.
"""

import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

_Result = TypeVar("_Result")

Step = Callable[[], Awaitable[None]]
"""One operation of one caller, from request to answer; raises when the answer is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one round measured; latencies in milliseconds, `load_average` of the last minute."""

    operations: int
    duration_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    load_average: float
    batch_mean: float | None = None

    @property
    def rate(self) -> float:
        """Operations per second."""
        return self.operations / self.duration_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How hard and how long: callers at once, seconds measured after seconds of warm-up."""

    callers: int
    seconds: float
    warm_up_s: float


async def closed_loop(steps: Sequence[Step], load: Load, *, operations_per_step: int = 1) -> Sample:
    """Run one caller per step for the load's time and return what the callers saw."""
    began = time.perf_counter() + load.warm_up_s
    until = began + load.seconds
    latencies_s: list[float] = []

    async def caller(step: Step) -> None:
        while (started := time.perf_counter()) < until:
            await step()
            if started >= began:
                latencies_s.append(time.perf_counter() - started)

    await asyncio.gather(*(caller(step) for step in steps))
    return sample_of(
        latencies_s,
        duration_s=time.perf_counter() - began,
        operations=len(latencies_s) * operations_per_step,
    )


async def open_loop(
    rate: float, seconds: float, step: Callable[[float], Awaitable[None]], random: Random
) -> None:
    """Start a step at random moments, `rate` a second, however many are under way; wait for all.

    A step is told when it was due, in seconds since the start: who starts late has waited, too.
    """
    began, due_s = time.perf_counter(), 0.0
    steps: list[asyncio.Future[None]] = []
    while (due_s := due_s + random.expovariate(rate)) < seconds:
        ahead_s = due_s - (time.perf_counter() - began)
        if ahead_s > 0:
            await asyncio.sleep(ahead_s)
        steps.append(asyncio.ensure_future(step(due_s)))
    await asyncio.gather(*steps)


def sample_of(latencies_s: Sequence[float], *, duration_s: float, operations: int) -> Sample:
    """Return the sample of a round from its latencies in seconds."""
    ordered = sorted(latencies_s)
    if not ordered:
        raise RuntimeError("nothing was answered in the time measured")
    return Sample(
        operations=operations,
        duration_s=duration_s,
        p50_ms=percentile_ms(ordered, 0.50),
        p95_ms=percentile_ms(ordered, 0.95),
        p99_ms=percentile_ms(ordered, 0.99),
        max_ms=ordered[-1] * 1000,
        load_average=os.getloadavg()[0],
    )


def percentile_ms(ordered_s: Sequence[float], share: float) -> float:
    """Return a percentile (nearest rank) of latencies in rising order, in milliseconds."""
    return ordered_s[min(len(ordered_s) - 1, int(len(ordered_s) * share))] * 1000


async def in_pairs(
    rounds: int, ours: Callable[[], Awaitable[Sample]], theirs: Callable[[], Awaitable[Sample]]
) -> list[tuple[Sample, Sample]]:
    """Measure both in each round, side by side; who begins changes with every round."""
    pairs: list[tuple[Sample, Sample]] = []
    for number in range(rounds):
        if number % 2 == 0:
            first = await ours()
            pairs.append((first, await theirs()))
        else:
            second = await theirs()
            pairs.append((await ours(), second))
    return pairs


async def in_turns(
    rounds: int, measures: Mapping[str, Callable[[], Awaitable[_Result]]]
) -> dict[str, list[_Result]]:
    """Measure all in each round, one after the other; who begins changes with every round."""
    names = list(measures)
    results: dict[str, list[_Result]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            results[name].append(await measures[name]())
    return results


def median_ratio(pairs: Sequence[tuple[Sample, Sample]]) -> float:
    """Return the median of the pairs' rates: ours divided by theirs."""
    return statistics.median(ours.rate / theirs.rate for ours, theirs in pairs)


def median_of(samples: Sequence[Sample], field: Callable[[Sample], float]) -> float:
    """Return the median over the rounds of one field."""
    return statistics.median(field(sample) for sample in samples)


def median_rate(samples: Sequence[Sample]) -> float:
    """Return the median over the rounds of operations per second."""
    return median_of(samples, lambda sample: sample.rate)


def median_percentiles(samples: Sequence[Sample]) -> tuple[float, float, float]:
    """Return the medians over the rounds of P50, P95 and P99, in milliseconds."""
    return (
        median_of(samples, lambda sample: sample.p50_ms),
        median_of(samples, lambda sample: sample.p95_ms),
        median_of(samples, lambda sample: sample.p99_ms),
    )
