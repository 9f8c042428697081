"""The composition root of the shadow service: from settings to pools and services.

Beside `wiring.py`, which makes the ledger's.
"""

import random  # noqa: TID251  # a part of the composition root, where randomness comes from
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version

from prometheus_client import CollectorRegistry

from tollkeeper import __version__
from tollkeeper.access.service import AccessService
from tollkeeper.config import Settings
from tollkeeper.connections import (
    ACCESS_ROLE,
    DECIDING,
    last_decisions,
    open_database,
    opened_entrance,
    pool_limits,
)
from tollkeeper.database.database import Database
from tollkeeper.database.group_commit import EngineLimits
from tollkeeper.database.metrics import DatabaseCollector
from tollkeeper.database.pool import Pool
from tollkeeper.database.status import Access
from tollkeeper.database.timeouts import Timeouts
from tollkeeper.kernel.clock import Clock, SystemClock
from tollkeeper.kernel.ids import EntropySource, entropy_in_blocks
from tollkeeper.shadow.catalogue import Catalogue
from tollkeeper.shadow.decider import Decider, Instruments
from tollkeeper.shadow.decision import code_version
from tollkeeper.shadow.decision_store import DecisionStore
from tollkeeper.shadow.engine import Engine
from tollkeeper.shadow.evaluator import Evaluator
from tollkeeper.shadow.experiment_store import ExperimentStore
from tollkeeper.shadow.metrics import DecisionMetrics, ShadowMetrics
from tollkeeper.shadow.profiles import PROFILES
from tollkeeper.shadow.service import ShadowService
from tollkeeper.shadow.store import SESSION_SETTINGS, CountingStore
from tollkeeper.shadow.store import TIMEOUTS as COUNTING_TIMEOUTS
from tollkeeper.telemetry.metrics import build_registry
from tollkeeper.web.auth import AuthenticationTally
from tollkeeper.web.request_log import RequestTally

SHADOW_ROLE = "tollkeeper_shadow"
"""What the service acts as: it decides and deploys through the database's functions only."""

TIMEOUTS = Timeouts(statement_s=10, lock_s=3, idle_in_transaction_s=15)
"""Of what answers a request."""

DECIDING_TIMEOUTS = Timeouts(statement_s=60, lock_s=5, idle_in_transaction_s=60)
"""Of decisions: what a decision rests on is counted anew before it stands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowRuntime:
    """Everything a running shadow service is made of."""

    settings: Settings
    clock: Clock
    entropy: EntropySource
    registry: CollectorRegistry
    experiments: ShadowService
    decider: Decider
    access: AccessService
    tally: AuthenticationTally
    requests: RequestTally
    reads: Pool
    databases: Sequence[Database]


@asynccontextmanager
async def shadow_runtime(settings: Settings) -> AsyncIterator[ShadowRuntime]:
    """Build and start the shadow service; on leaving, decide what was accepted, then close.

    Needs no database to start: what cannot be reached yet is tried again.

    Raises:
        ConfigurationError: a DSN is missing.
    """
    clock, registry = SystemClock(), build_registry("shadow")
    async with (
        open_database(settings, "shadow", role=SHADOW_ROLE) as shadow,
        open_database(settings, "access", role=ACCESS_ROLE) as keys,
        opened_entrance(settings, registry, keys, clock=clock) as entrance,
    ):
        DatabaseCollector([shadow, keys], registry)
        # Pools of their own, as in the ledger: a page or a decision never keeps a lane waiting.
        lanes = _pool(
            shadow, "lanes", settings, access=Access.WRITE, size=settings.lanes,
            session=SESSION_SETTINGS, timeouts=COUNTING_TIMEOUTS,
        )  # fmt: skip
        reads = _pool(
            shadow, "reads", settings,
            access=Access.READ, size=settings.pool_size, minimum=settings.pool_min,
        )  # fmt: skip
        writes = _pool(shadow, "changes", settings, access=Access.WRITE, size=1, minimum=0)
        deciding = _pool(
            shadow, "decisions", settings,
            access=Access.WRITE, size=DECIDING, minimum=0, timeouts=DECIDING_TIMEOUTS,
        )  # fmt: skip
        store, metrics = ExperimentStore(), ShadowMetrics(registry)
        catalogue = Catalogue(reads, store, clock=clock)
        engine = Engine(
            lanes,
            CountingStore(),
            catalogue,
            clock=clock,
            jitter=random.Random().random,  # noqa: S311  # jitter keeps no secret
            metrics=metrics,
            limits=EngineLimits(
                lanes=settings.lanes, queue=settings.queue_limit, batch=settings.batch_limit
            ),
        )
        entropy = entropy_in_blocks()
        decider = Decider(
            DecisionStore(),
            store,
            catalogue,
            writes=deciding,
            reads=reads,
            metrics=metrics.decisions,
            instruments=Instruments(clock=clock, entropy=entropy, code=software()),
        )
        evaluator = Evaluator(decider, clock=clock, metrics=metrics.decisions)
        _publish(metrics.decisions)
        engine.start()
        evaluator.start()
        try:
            yield ShadowRuntime(
                settings=settings,
                clock=clock,
                entropy=entropy,
                registry=registry,
                experiments=ShadowService(
                    engine, catalogue, store, reads=reads, writes=writes, clock=clock
                ),
                decider=decider,
                access=entrance.access,
                tally=entrance.tally,
                requests=entrance.requests,
                reads=reads,
                databases=(shadow, keys),
            )
        finally:
            await evaluator.close()
            await last_decisions(engine, "shadow")


def software() -> str:
    """Return what decides here: decisions of other software may differ in the last digit."""
    return code_version(tollkeeper=__version__, numpy=version("numpy"), scipy=version("scipy"))


def _publish(metrics: DecisionMetrics) -> None:
    """Show how often each profile deployed what is no better, when it was measured."""
    for profile in PROFILES.values():
        if profile.false_deploy is not None:
            metrics.show_rate(profile.name, profile.false_deploy.deploy_rate)


def _pool(
    database: Database,
    name: str,
    settings: Settings,
    *,
    access: Access,
    size: int,
    minimum: int | None = None,
    session: Mapping[str, str] | None = None,
    timeouts: Timeouts = TIMEOUTS,
) -> Pool:
    return database.pool(
        name,
        access=access,
        size=size,
        minimum=size if minimum is None else minimum,
        role=SHADOW_ROLE,
        settings=session or timeouts.settings(),
        # Writes are never cancelled by us: see `wiring.py`.
        command_timeout_s=timeouts.command_s if access is Access.READ else None,
        limits=pool_limits(settings, report_held_s=timeouts.statement_s),
    )
