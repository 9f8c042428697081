"""What tests of counting share: a running engine, requests in one word, what the database says."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

from tests.experiments import SERVICE_ROLE

from tollkeeper.database.connect import connector
from tollkeeper.database.driver import Connection
from tollkeeper.database.group_commit import EngineLimits
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.backoff import Backoff
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.shadow.catalogue import Catalogue
from tollkeeper.shadow.counting import shard_of
from tollkeeper.shadow.engine import Engine, Result
from tollkeeper.shadow.errors import ShadowUnavailable
from tollkeeper.shadow.experiment_store import ExperimentStore
from tollkeeper.shadow.model import MICRO, Expose, Exposed, Record, Recorded, Request
from tollkeeper.shadow.store import SESSION_SETTINGS, CountingStore

DIFFERENCES = "SELECT count(*) FROM experiment_differences($1)"
SUMS = """
SELECT
    (SELECT sum(units) FROM arm_exposures WHERE experiment_no = $1)::bigint AS exposed,
    (SELECT sum(units) FROM arm_statistics WHERE experiment_no = $1)::bigint AS units,
    (SELECT sum(total) FROM arm_statistics WHERE experiment_no = $1)::bigint AS total
"""


def expose(
    experiment_no: int, unit_id: str, variant_no: int = 0, *, exposed_at: datetime | None = None,
    epoch: int = 1, attributes: bytes | None = None,
) -> Expose:  # fmt: skip
    return Expose(
        experiment_no=experiment_no, unit_id=unit_id, shard=shard_of(unit_id),
        variant_no=variant_no, epoch=epoch, probability=0.5, exposed_at=exposed_at,
        attributes=attributes,
    )  # fmt: skip


def record(
    experiment_no: int, unit_id: str, outcome_id: str = "o", value: float = 1.0, *,
    metric_no: int = 0, occurred_at: datetime | None = None,
) -> Record:  # fmt: skip
    return Record(
        experiment_no=experiment_no, unit_id=unit_id, shard=shard_of(unit_id),
        outcome_id=outcome_id, metric_no=metric_no, value_micro=round(value * MICRO),
        occurred_at=occurred_at,
    )  # fmt: skip


class Storm:
    """Units of an experiment, and three outcomes of each, all of which count, as often as asked."""

    def __init__(self, experiment_no: int, units: int, *, prefix: str = "unit") -> None:
        self.units = units
        self.total = sum(1 + unit % 3 + outcome for unit in range(units) for outcome in range(3))
        self.requests: list[Request] = []
        for unit in range(units):
            unit_id = f"{prefix}-{unit}"
            self.requests.append(expose(experiment_no, unit_id, unit % 2))
            self.requests += [
                record(experiment_no, unit_id, f"o-{number}", 1 + unit % 3 + number)
                for number in range(3)
            ]

    def shuffled(self, seed: int) -> list[Request]:
        """Return the requests in an order of its own."""
        ordered = list(self.requests)
        random.Random(seed).shuffle(ordered)
        return ordered

    async def assert_counted(self, owner: Connection, experiment_no: int) -> None:
        """Compare what is in the database with what each request adds, once."""
        await assert_sound(
            owner, experiment_no, exposed=self.units, units=self.units, total=self.total
        )


async def in_pieces(
    counting: "Counting", requests: Sequence[Request], *, callers: int, seed: int = 0
) -> list[Result]:
    """Let callers send requests in pieces of 1 to 9, one after the other; return all answers."""
    dice, queue, answers = random.Random(seed), list(requests), list[Result]()

    async def caller() -> None:
        while queue:
            count = dice.randint(1, 9)
            piece, queue[:count] = queue[:count], []
            answers.extend(await counting.engine.execute(piece))

    await asyncio.gather(*(caller() for _ in range(callers)))
    return answers


class Tally:
    """The metrics of an engine, as a test reads them."""

    def __init__(self) -> None:
        self.decided: Counter[tuple[str, str]] = Counter()
        self.retries: Counter[str] = Counter()
        self.rejections: Counter[str] = Counter()

    def watch_queue(self, depth: object) -> None:
        del depth

    def batch_taken(self, size: int) -> None:
        del size

    def answered(self, kind: str, duration_s: float) -> None:
        del kind, duration_s

    def retried(self, reason: str, count: int) -> None:
        self.retries[reason] += count

    def rejected(self, reason: str, count: int) -> None:
        self.rejections[reason] += count

    def batch_decided(self, counts: Mapping[tuple[str, str], int]) -> None:
        self.decided.update(counts)


@dataclass(frozen=True, kw_only=True)
class Counting:
    """A running engine and everything around it."""

    engine: Engine
    catalogue: Catalogue
    tally: Tally

    async def execute(self, *requests: Request) -> list[Result]:
        return await self.engine.execute(requests)


@asynccontextmanager
async def running_counting(
    dsn: str,
    *,
    store: CountingStore | None = None,
    lanes: int = 2,
    batch: int = 2_000,
    backoff: Backoff | None = None,
    tally: Tally | None = None,
) -> AsyncIterator[Counting]:
    """Run an engine as the service does; afterwards it is drained and closed."""
    clock, tally = SystemClock(), tally or Tally()
    pool = Pool(
        connector(dsn, role=SERVICE_ROLE, settings=SESSION_SETTINGS), size=lanes + 1, clock=clock
    )
    catalogue = Catalogue(pool, ExperimentStore(), clock=clock)
    engine = Engine(
        pool, store or CountingStore(), catalogue, clock=clock, jitter=random.Random(0).random,
        metrics=tally,
        limits=EngineLimits(lanes=lanes, batch=batch, backoff=backoff or Backoff()),
    )  # fmt: skip
    engine.start()
    try:
        yield Counting(engine=engine, catalogue=catalogue, tally=tally)
        await engine.drain()
    finally:
        await engine.close()
        await pool.close()


def words_of(results: Sequence[Result]) -> list[str]:
    """Say in a word what became of each request."""
    return [_word_of(result) for result in results]


def _word_of(result: Result) -> str:
    if isinstance(result, Exposed):
        return "exposed" if result.is_new else "exposed before"
    if isinstance(result, Recorded):
        return result.status.name.lower() + ("" if result.is_new else " before")
    return "unavailable" if isinstance(result, ShadowUnavailable) else type(result).__name__


async def assert_sound(
    owner: Connection, experiment_no: int, *, exposed: int, units: int, total: int
) -> None:
    """Compare counters with a recount of the rows, and with what callers were told.

    `total` is in whole units of the metric.
    """
    assert 0 == await owner.fetchval(DIFFERENCES, experiment_no)
    sums = await owner.fetchrow(SUMS, experiment_no)
    assert sums is not None

    assert (exposed, units, total * MICRO) == (
        sums["exposed"] or 0, sums["units"] or 0, sums["total"] or 0
    )  # fmt: skip
