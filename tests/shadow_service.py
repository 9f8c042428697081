"""The shadow service without HTTP: everything between a database and the routes."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from tests.experiments import SERVICE_ROLE, definition

from tollkeeper.database.connect import connector
from tollkeeper.database.group_commit import EngineLimits
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.clock import Clock, SystemClock
from tollkeeper.kernel.ids import TenantId, entropy_in_blocks
from tollkeeper.shadow.catalogue import Catalogue
from tollkeeper.shadow.decider import Decider, Instruments
from tollkeeper.shadow.decision_store import DecisionStore
from tollkeeper.shadow.engine import Engine
from tollkeeper.shadow.experiment_store import ExperimentStore
from tollkeeper.shadow.metrics import ShadowMetrics
from tollkeeper.shadow.model import (
    MICRO,
    Definition,
    Experiment,
    ExperimentState,
    Recorded,
)
from tollkeeper.shadow.requests import Assigned, AssignUnit, Change, ReportedOutcome
from tollkeeper.shadow.service import ShadowService
from tollkeeper.shadow.store import SESSION_SETTINGS, CountingStore

ACME = TenantId("acme")


@dataclass(frozen=True, kw_only=True)
class Shadow:
    """A service and its decider, in one process of their own."""

    service: ShadowService
    decider: Decider
    registry: CollectorRegistry
    metrics: ShadowMetrics

    async def running(
        self, name: str = "checkout", *, wanted: Definition | None = None
    ) -> Experiment:
        """Make an experiment and start it."""
        await self.service.create(name, wanted or definition(), ACME)
        return await self.service.change(name, ACME, Change(state=ExperimentState.RUNNING))

    async def assign(self, units: Sequence[str], name: str = "checkout") -> list[Assigned]:
        """Assign units, all of which must be."""
        results = await self.service.assign(
            name, ACME, [AssignUnit(unit_id=unit_id) for unit_id in units]
        )
        return [assigned(each) for each in results]

    async def serve(
        self, units: int, rates: dict[str, float], *, prefix: str = "u", name: str = "checkout"
    ) -> None:
        """Assign units, and have a share of each variant's succeed: spread evenly, not drawn."""
        done = dict.fromkeys(rates, 0)
        outcomes = []
        for each in await self.assign([f"{prefix}-{number}" for number in range(units)], name):
            count, rate = done[each.variant], rates[each.variant]
            is_success = int((count + 1) * rate) > int(count * rate)
            done[each.variant] = count + 1
            outcomes.append(report(each.unit_id, is_success, name=name))
        for result in await self.service.record(outcomes, ACME):
            assert isinstance(result, Recorded), result


def assigned(result: object) -> Assigned:
    """Return what must be an assignment."""
    assert isinstance(result, Assigned), result
    return result


def report(
    unit_id: str, value: float = 1, *, outcome_id: str = "o", name: str = "checkout"
) -> ReportedOutcome:
    """Return an outcome of the first metric."""
    return ReportedOutcome(
        experiment_id=name,
        unit_id=unit_id,
        outcome_id=outcome_id,
        value_micro=round(value * MICRO),
    )


@asynccontextmanager
async def running_shadow(
    dsn: str, *, clock: Clock | None = None, store: ExperimentStore | None = None
) -> AsyncIterator[Shadow]:
    """Run the service on a database."""
    clock = clock or SystemClock()
    registry = CollectorRegistry()
    async with AsyncExitStack() as stack:

        def pool(size: int, settings: dict[str, str] | None = None) -> Pool:
            made = Pool(
                connector(dsn, role=SERVICE_ROLE, settings=settings or {}), size=size, clock=clock
            )
            stack.push_async_callback(made.close)
            return made

        lanes, reads, writes = pool(2, dict(SESSION_SETTINGS)), pool(4), pool(4)
        metrics, store = ShadowMetrics(registry), store or ExperimentStore()
        catalogue = Catalogue(reads, store, clock=clock)
        engine = Engine(
            lanes, CountingStore(), catalogue, clock=clock, jitter=random.Random(0).random,
            metrics=metrics, limits=EngineLimits(),
        )  # fmt: skip
        engine.start()
        stack.push_async_callback(engine.close)
        stack.push_async_callback(engine.drain)
        yield Shadow(
            service=ShadowService(
                engine, catalogue, store, reads=reads, writes=writes, clock=clock
            ),
            decider=Decider(
                DecisionStore(), store, catalogue, writes=writes, reads=reads,
                metrics=metrics.decisions,
                instruments=Instruments(clock=clock, entropy=entropy_in_blocks(), code="a test"),
            ),
            registry=registry,
            metrics=metrics,
        )  # fmt: skip
