"""The counting engine: what a batch of exposures and outcomes becomes.

How callers that wait together form a batch, and what is put back, is the database layer's
(`group_commit.py`). A batch is one unit of work: it shares its experiments, loads what is known,
lets the planner decide, and writes everything in one statement, which tells when another process
was faster with one of the units.

What became of a batch after a lost connection is never guessed: it is decided again, and outcomes
are known by their ids, exposures by their units.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Final, Protocol

import structlog

from tollkeeper.database.driver import Connection
from tollkeeper.database.group_commit import EngineLimits, GroupCommit, GroupMetrics
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.clock import Clock
from tollkeeper.shadow import counting
from tollkeeper.shadow.catalogue import Catalogue
from tollkeeper.shadow.counting import Decided, Loaded, UnitKey
from tollkeeper.shadow.errors import Draining, OutcomeFailed, QueueFull, ShadowUnavailable
from tollkeeper.shadow.metrics import result_of
from tollkeeper.shadow.model import Expose, Request
from tollkeeper.shadow.store import CountingStore

CONTENDED_FOR_S: Final = 5.0
"""Units are locked before they are read for this long after another process was faster."""

Result = Decided | OutcomeFailed

_NOTHING_LOST: Final[frozenset[UnitKey]] = frozenset()

_log = structlog.get_logger(__name__)


class CountingMetrics(GroupMetrics, Protocol):
    """What the engine reports beside what every group commit does."""

    def batch_decided(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Count decided requests: (kind, result) to requests; see `kind_of` and `result_of`."""
        ...


class Engine(GroupCommit[Request, Result]):
    """Takes exposures and outcomes, answers what became of them."""

    def __init__(
        self,
        pool: Pool,
        store: CountingStore,
        catalogue: Catalogue,
        *,
        clock: Clock,
        jitter: Callable[[], float],
        metrics: CountingMetrics,
        limits: EngineLimits,
    ) -> None:
        work = CountingWork(store, catalogue, clock=clock, metrics=metrics)
        super().__init__(pool, work, clock=clock, jitter=jitter, metrics=metrics, limits=limits)


class _OvertakenError(Exception):
    """Another process was faster with a unit of the batch."""

    def __init__(self, results: Sequence[Result]) -> None:
        super().__init__()
        self.results = results


class CountingWork:
    """Decides batches of requests; a key of the group commit is a unit of an experiment."""

    name: Final = "shadow"
    lost_reason: Final = "another process kept being faster with the unit"

    def __init__(
        self,
        store: CountingStore,
        catalogue: Catalogue,
        *,
        clock: Clock,
        metrics: CountingMetrics,
    ) -> None:
        self._store = store
        self._catalogue = catalogue
        self._clock = clock
        self._metrics = metrics
        self._locks_until_s = 0.0
        self.log = _log
        self.key_of = attrgetter("experiment_no", "unit_id")
        self.kind_of = kind_of

    async def decide(
        self, connection: Connection, requests: Sequence[Request], *, is_retry: bool
    ) -> tuple[Sequence[Result], frozenset[UnitKey]]:
        """Load, plan and write; all of it is lost, and undone, when another process was faster.

        What was overtaken has its experiments alone the next time: that cannot happen twice. For a
        while all batches lock their units first, so that two processes that are sent outcomes of
        the same units wait for each other instead.
        """
        now_s = self._clock.monotonic_s()
        try:
            async with connection.transaction():
                if is_retry:
                    await self._store.own(connection, requests)
                elif now_s < self._locks_until_s:
                    await self._store.lock(connection, requests)
                return await self._count(connection, requests), _NOTHING_LOST
        except _OvertakenError as overtaken:
            self._locks_until_s = now_s + CONTENDED_FOR_S
            return overtaken.results, frozenset(map(self.key_of, requests))

    async def _count(self, connection: Connection, requests: Sequence[Request]) -> Sequence[Result]:
        facts = await self._store.load(connection, requests)
        loaded = Loaded(
            now=facts.now, rules=await self._catalogue.rules(connection, facts.versions),
            units=facts.units, outcomes=facts.outcomes, waiting=facts.waiting, values=facts.values,
        )  # fmt: skip
        plan = counting.plan(loaded, requests)
        if not (plan.is_empty or await self._store.write(connection, plan, facts)):
            raise _OvertakenError(plan.results)
        return plan.results

    async def mend(self, error: Exception) -> str | None:
        """Nothing can be mended here."""
        del error
        return None

    def note_decided(self, requests: Sequence[Request], results: Sequence[Result]) -> None:
        """Count what became of requests."""
        counts = Counter(zip(map(kind_of, requests), map(result_of, results), strict=True))
        self._metrics.batch_decided(counts)

    def draining(self) -> Draining:
        """Return what refuses callers once nothing new is accepted."""
        return Draining()

    def queue_full(self, *, waiting: int, limit: int) -> QueueFull:
        """Return what refuses callers while too many wait."""
        return QueueFull(waiting=waiting, limit=limit)

    def unavailable(self, *, attempts: int, reason: str) -> ShadowUnavailable:
        """Return the result of a request that was given up."""
        return ShadowUnavailable(attempts=attempts, reason=reason)

    def failed(self, request: Request, error: Exception) -> OutcomeFailed:
        """Return the result of a request that the database will not take."""
        failed = OutcomeFailed(experiment_no=request.experiment_no)
        failed.__cause__ = error
        return failed


def kind_of(request: Request) -> str:
    """Return the `kind` label of a request."""
    return "assignment" if type(request) is Expose else "outcome"
