"""The counting engine in process: outcomes one by one and in batches, and assignments.

100 callers send outcomes of 50,000 units that came into an experiment of two arms and two metrics
during the last 50 minutes, or assign new units; a few callers send batches of 500 outcomes. Beside
the rates: that the counters are what a recount of all rows gives.
"""

import itertools
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
import uvloop

from benchmarks.bench import Bench
from benchmarks.figures import Figure, load_note
from benchmarks.measure import Sample, Step, closed_loop, median_rate
from tollkeeper.database.connect import connector
from tollkeeper.database.group_commit import EngineLimits
from tollkeeper.database.pool import Pool
from tollkeeper.database.queries import load_queries
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.serving import quiet_collector
from tollkeeper.shadow.catalogue import Catalogue
from tollkeeper.shadow.counting import shard_of
from tollkeeper.shadow.engine import Engine
from tollkeeper.shadow.experiment_store import ExperimentStore
from tollkeeper.shadow.model import (
    MICRO,
    Definition,
    Expose,
    Exposed,
    Metric,
    MetricKind,
    Record,
    Recorded,
    Variant,
)
from tollkeeper.shadow.store import SESSION_SETTINGS, CountingStore

CALLERS: Final = 100
BATCH_CALLERS: Final = 4
BATCH: Final = 500
UNITS: Final = 50_000
EXPOSED_DURING: Final = timedelta(minutes=50)
"""Of the hour that outcomes of a unit count."""

ROLE: Final = "tollkeeper_shadow"
DEFINITION: Final = Definition(
    variants=(Variant(name="a", weight=0.5), Variant(name="b", weight=0.5)),
    control="a",
    metrics=(
        Metric(name="success", kind=MetricKind.BINARY),
        Metric(name="latency", kind=MetricKind.CONTINUOUS),
    ),
)


class BatchSizes:
    """What the benchmark wants to know of the engine: how many requests went into a commit."""

    def __init__(self) -> None:
        self.batches = 0
        self.requests = 0

    def watch_queue(self, depth: Callable[[], int]) -> None:
        """Nobody looks at the queue."""

    def batch_taken(self, size: int) -> None:
        """Add a batch."""
        self.batches += 1
        self.requests += size

    def answered(self, kind: str, duration_s: float) -> None:
        """The callers measure their own time."""

    def retried(self, reason: str, count: int) -> None:
        """Refuse to measure what was tried twice because of a fault."""
        if reason == "database":
            raise RuntimeError(f"{count} requests met a fault")

    def rejected(self, reason: str, count: int) -> None:
        """Refuse to measure what was not done."""
        raise RuntimeError(f"{count} requests were not accepted: {reason}")

    def batch_decided(self, counts: Mapping[tuple[str, str], int]) -> None:
        """The callers look at their answers."""


@dataclass(slots=True)
class Requests:
    """Draws requests for one experiment."""

    experiment_no: int
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)
    dice: random.Random = field(default_factory=lambda: random.Random(0))

    def exposure(self, unit_id: str, exposed_at: datetime | None = None) -> Expose:
        """Assign a unit."""
        return Expose(
            experiment_no=self.experiment_no, unit_id=unit_id, shard=shard_of(unit_id),
            variant_no=shard_of(unit_id) % 2, epoch=1, probability=0.5, exposed_at=exposed_at,
        )  # fmt: skip

    def outcome(self) -> Record:
        """Report an outcome of a unit, with an id that nobody else has."""
        number, draw = next(self.numbers), self.dice.random()
        unit_id = f"unit-{int(draw * UNITS):06d}"
        metric_no = number % 2
        return Record(
            experiment_no=self.experiment_no, unit_id=unit_id, shard=shard_of(unit_id),
            outcome_id=f"outcome-{number:09d}", metric_no=metric_no,
            value_micro=int(draw * 1e8) if metric_no else MICRO * (number % 10 == 0),
        )  # fmt: skip


@asynccontextmanager
async def running_engine(dsn: str) -> AsyncIterator[tuple[Engine, BatchSizes]]:
    """Run an engine as the service wires it, without HTTP."""
    clock, limits, sizes = SystemClock(), EngineLimits(), BatchSizes()
    pool = Pool(
        connector(dsn, role=ROLE, settings=SESSION_SETTINGS), size=limits.lanes, clock=clock
    )
    engine = Engine(
        pool, CountingStore(), Catalogue(pool, ExperimentStore(), clock=clock), clock=clock,
        jitter=random.Random(0).random, metrics=sizes, limits=limits,
    )  # fmt: skip
    engine.start()
    try:
        yield engine, sizes
    finally:
        await engine.drain()
        await engine.close()
        await pool.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One thing that callers do again and again."""

    what: str
    step: Step
    callers: int = CALLERS
    together: int = 1
    target: float


def measure(bench: Bench) -> list[Figure]:
    """Return the figures of counting."""
    return uvloop.run(_measure(bench, bench.migrated_database("shadow")))


async def _measure(bench: Bench, dsn: str) -> list[Figure]:
    quiet_collector()  # as the service does
    requests = Requests(await _running_experiment(dsn))
    async with running_engine(dsn) as (engine, sizes):
        await _assign_units(engine, requests)
        figures = [await _figure(bench, part, sizes) for part in _parts(engine, requests)]
    return [*figures, await _differences(dsn, requests.experiment_no)]


def _parts(engine: Engine, requests: Requests) -> tuple[Part, ...]:
    assigned = itertools.count()

    async def assign() -> None:
        (result,) = await engine.execute((requests.exposure(f"new-{next(assigned):09d}"),))
        assert type(result) is Exposed, result

    async def report() -> None:
        (result,) = await engine.execute((requests.outcome(),))
        assert type(result) is Recorded, result

    async def report_batch() -> None:
        results = await engine.execute([requests.outcome() for _ in range(BATCH)])
        assert all(type(result) is Recorded for result in results), results

    return (
        Part(what="assignments, engine", step=assign, target=4_000),
        Part(what="outcomes, engine", step=report, target=3_000),
        Part(
            what=f"outcomes in batches of {BATCH}, engine", step=report_batch,
            callers=BATCH_CALLERS, together=BATCH, target=30_000,
        ),
    )  # fmt: skip


async def _figure(bench: Bench, part: Part, sizes: BatchSizes) -> Figure:
    what, load = f"{part.what}, {part.callers} callers", bench.load(part.callers)

    async def measure_round() -> Sample:
        requests, batches = sizes.requests, sizes.batches
        sample = await closed_loop(
            [part.step] * part.callers, load, operations_per_step=part.together
        )
        mean = (sizes.requests - requests) / (sizes.batches - batches)
        return replace(sample, batch_mean=mean)

    measured = bench.reported(what, measure_round)
    samples = tuple([await measured() for _ in range(bench.rounds)])
    return Figure(
        what=what, value=median_rate(samples), unit="/s", target=part.target, samples=samples,
        note=load_note(samples),
    )  # fmt: skip


async def _running_experiment(dsn: str) -> int:
    connection, sql = await connector(dsn)(), load_queries("benchmarks.shadow")
    try:
        text = msgspec.json.encode(DEFINITION).decode()
        number: int = await connection.fetchval(sql["create"], text)
        await connection.execute(sql["start"], number)
    finally:
        await connection.close()
    return number


async def _assign_units(engine: Engine, requests: Requests) -> None:
    """Assign units over most of their window, so that their outcomes meet many counters."""
    now = datetime.now(UTC)
    for start in range(0, UNITS, BATCH):
        results = await engine.execute(
            [
                requests.exposure(f"unit-{number:06d}", now - EXPOSED_DURING * (number / UNITS))
                for number in range(start, start + BATCH)
            ]
        )
        assert all(type(result) is Exposed for result in results), results


async def _differences(dsn: str, experiment_no: int) -> Figure:
    connection, sql = await connector(dsn)(), load_queries("benchmarks.shadow")
    try:
        differences = await connection.fetchval(sql["differences"], experiment_no)
        outcomes = await connection.fetchval(sql["outcomes"], experiment_no)
    finally:
        await connection.close()
    return Figure(
        what="counters that a recount does not give", value=differences, unit="", target=0,
        at_most=True, note=f"{outcomes:,} outcomes",
    )  # fmt: skip
