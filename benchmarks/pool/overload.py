"""Twice the load that a pool can carry, and how a health check fares beside it.

Requests arrive at random, twice as many as the connections can serve, and do not wait for each
other. Each wants one statement of 10 ms, and its answer is of use for one second; nine tenths of
that it gives to waiting for a connection. The capacity is what the connections could do if nothing
but the statements took time.

Half of the requests cannot be served, whatever the pool does. What differs is when they learn it,
and whether those who are served are served in time.
"""

import asyncio
import itertools
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from enum import StrEnum
from random import Random

import uvloop

from benchmarks.bench import Bench
from benchmarks.figures import Figure, load_note
from benchmarks.measure import Sample, in_turns, median_percentiles, open_loop, sample_of
from benchmarks.pool.contestants import SIZE, Contestant, all_pools, services_pool
from tollkeeper.database.connect import connector
from tollkeeper.database.dsn import parse_dsn
from tollkeeper.database.health import SESSION_SETTINGS, HostProbe
from tollkeeper.kernel.clock import SystemClock

STATEMENT_S = 0.010
CAPACITY = SIZE / STATEMENT_S
"""Statements a second."""

FACTOR = 2.0
OF_USE_S = 1.0
WAIT_S = 0.9 * OF_USE_S
FEW = 2 * SIZE
"""A pool that has only so many wait: what a service with less patience would set."""

FILL_S = 1.2
"""Until the line is as long as it gets; what arrives before is not counted."""

PROBE_PERIOD_S = 0.02
WANTED_CHECK_MS = 50.0
WANTED_GOODPUT = 1.0
"""Of another pool's: refusing early must not cost an answer."""

WANTED_NO_MS = 50.0
"""Who cannot be served knows it by then."""


class End(StrEnum):
    """How a request ended."""

    SERVED = "served"
    LATE = "served, too late to be of use"
    REFUSED = "refused at once"
    TIMED_OUT = "timed out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request: how it ended, and how long it waited for a connection or for the no."""

    end: End
    wait_s: float
    due_s: float
    ended_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What came of requests in `seconds`, once the line was as long as it gets."""

    seconds: float
    arrived: tuple[Request, ...]
    """In that time."""
    answered: int
    """In that time, and of use."""

    def share(self, *ends: End) -> float:
        """Return the share of requests that ended so, in per cent."""
        return 100.0 * sum(each.end in ends for each in self.arrived) / len(self.arrived)

    @property
    def goodput(self) -> float:
        """Answers that were of use, in per cent of what the connections could give."""
        return 100.0 * self.answered / self.seconds / CAPACITY

    def waits(self, *ends: End) -> Sample | None:
        """Return how long those waited who ended so; None when nobody did."""
        waits_s = [each.wait_s for each in self.arrived if each.end in ends]
        if not waits_s:
            return None
        return sample_of(waits_s, duration_s=self.seconds, operations=len(waits_s))


def measure(bench: Bench) -> list[Figure]:
    """Return the figures of overload and of health checks."""
    dsn = bench.migrated_database("credits")
    rounds = uvloop.run(_compare(bench, dsn))
    idle, loaded = uvloop.run(_checks(bench, dsn))
    return [*_overload_figures(rounds), *_check_figures(idle, loaded)]


async def _compare(bench: Bench, dsn: str) -> dict[str, list[Round]]:
    seconds = 1.2 if bench.quick else 3.0

    def measured(pool: Contestant) -> Callable[[], Awaitable[Round]]:
        seeds = itertools.count()  # in each round the same requests for all

        async def measure_round() -> Round:
            result = await _overload(pool, seconds, Random(next(seeds)))
            waits = result.waits(End.SERVED, End.LATE)
            bench.say(
                f"twice the load, {pool.name}: goodput {result.goodput:.0f} %, "
                + ", ".join(f"{end.value} {result.share(end):.0f} %" for end in End)
                + ("" if waits is None else f", waits P50 {waits.p50_ms:.0f} ms")
            )
            return result

        return measure_round

    rounds = 2 if bench.quick else 3
    async with services_pool(dsn, max_waiting=FEW) as (strict, _), all_pools(dsn) as pools:
        return await in_turns(rounds, {pool.name: measured(pool) for pool in (*pools, strict)})


async def _overload(pool: Contestant, seconds: float, random: Random) -> Round:
    requests: list[Request] = []
    began = time.perf_counter()

    async def request(due_s: float) -> None:
        requests.append(await _request(pool, began, due_s))

    until_s = FILL_S + seconds
    await open_loop(FACTOR * CAPACITY, until_s, request, random)
    return Round(
        seconds=seconds,
        arrived=tuple(each for each in requests if each.due_s >= FILL_S),
        answered=sum(
            each.end is End.SERVED and FILL_S <= each.ended_s < until_s for each in requests
        ),
    )


async def _request(pool: Contestant, began: float, due_s: float) -> Request:
    got_s = 0.0

    def now_s() -> float:
        return time.perf_counter() - began

    def note() -> None:
        nonlocal got_s
        got_s = now_s()

    try:
        await pool.sleep(STATEMENT_S, max(0.0, due_s + WAIT_S - now_s()), note)
        end = End.SERVED
    except pool.refusals:
        end = End.REFUSED
    except pool.timeouts:
        end = End.TIMED_OUT
    ended_s = now_s()
    if end is not End.SERVED:
        got_s = ended_s
    elif ended_s - due_s > OF_USE_S:
        end = End.LATE
    return Request(end=end, wait_s=got_s - due_s, due_s=due_s, ended_s=ended_s)


# Health checks -----------------------------------------------------------------------------------


async def _checks(bench: Bench, dsn: str) -> tuple[Sample, Sample]:
    """Return the response times of checks: with nothing else to do, and under twice the load."""
    async with AsyncExitStack() as stack:
        ours, _ = await stack.enter_async_context(services_pool(dsn))
        connect = connector(dsn, settings=SESSION_SETTINGS)
        (host,) = parse_dsn(dsn).hosts
        probe = HostProbe(
            host,
            connect,
            connect,
            clock=SystemClock(),
            timeout_s=2.0,
            answered_s=lambda _host, _access: 0.0,
        )
        stack.push_async_callback(probe.close)
        seconds = 1.0 if bench.quick else 4.0
        idle = await _check_often(probe, seconds)
        load = asyncio.create_task(_overload(ours, seconds + 0.5, Random(1)))
        await asyncio.sleep(FILL_S)
        loaded = await _check_often(probe, seconds)
        await load
        return idle, loaded


async def _check_often(probe: HostProbe, seconds: float) -> Sample:
    latencies_s: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        check = await probe.check()
        assert check.latency_s is not None, check.fault
        latencies_s.append(check.latency_s)
        await asyncio.sleep(PROBE_PERIOD_S)
    return sample_of(
        latencies_s, duration_s=time.perf_counter() - began, operations=len(latencies_s)
    )


# Figures -----------------------------------------------------------------------------------------


def _overload_figures(rounds: Mapping[str, Sequence[Round]]) -> list[Figure]:
    figures: list[Figure] = [
        Figure(
            what=f"pool: answers of use at twice the load, against {name}",
            value=statistics.median(
                ours.goodput / max(theirs.goodput, 1.0)
                for ours, theirs in zip(rounds["ours"], rounds[name], strict=True)
            ),
            unit="x",
            target=WANTED_GOODPUT,
            note="refusing early costs no answer",
        )
        for name in ("asyncpg.Pool", "psycopg_pool")
    ]
    for name, results in rounds.items():
        is_ours = name.startswith("ours")
        served = [each.waits(End.SERVED, End.LATE) for each in results]
        refused = [each.waits(End.REFUSED, End.TIMED_OUT) for each in results]
        figures += [
            Figure(
                what=f"pool: answers of use at twice the load, {name}",
                value=statistics.median(each.goodput for each in results),
                unit="%",
                samples=tuple(each for each in served if each is not None),
                note="of capacity; percentiles: waits of those served; "
                + ", ".join(
                    f"{end.value} {statistics.median(each.share(end) for each in results):.1f} %"
                    for end in End
                ),
            ),
            Figure(
                what=f"pool: who cannot be served knows after, P50, {name}",
                value=statistics.median(each.p50_ms for each in refused if each is not None),
                unit="ms",
                target=WANTED_NO_MS if is_ours else None,
                at_most=True,
                samples=tuple(each for each in refused if each is not None),
            ),
        ]
    return figures


def _check_figures(idle: Sample, loaded: Sample) -> list[Figure]:
    return [
        Figure(
            what=f"pool: health check, {what}, P99", value=median_percentiles([sample])[2],
            unit="ms", target=WANTED_CHECK_MS, at_most=True, samples=(sample,),
            note=f"role, lag and a write; {sample.operations} checks, {load_note([sample])}",
        )
        for what, sample in (("idle", idle), ("at twice the pool's load", loaded))
    ]  # fmt: skip
