"""The composition root of the shadow service: from settings to pools and services.

Beside `wiring.py`, which makes the ledger's.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from tollkeeper.access.service import AccessService
from tollkeeper.config import Settings
from tollkeeper.connections import (
    ACCESS_ROLE,
    open_database,
    opened_entrance,
    pool_limits,
)
from tollkeeper.database.database import Database
from tollkeeper.database.metrics import DatabaseCollector
from tollkeeper.database.pool import Pool
from tollkeeper.database.status import Access
from tollkeeper.database.timeouts import Timeouts
from tollkeeper.kernel.clock import Clock, SystemClock
from tollkeeper.kernel.ids import EntropySource, entropy_in_blocks
from tollkeeper.telemetry.metrics import build_registry
from tollkeeper.web.auth import AuthenticationTally
from tollkeeper.web.request_log import RequestTally

SHADOW_ROLE = "tollkeeper_shadow"
"""What the service acts as: it decides and deploys through the database's functions only."""

TIMEOUTS = Timeouts(statement_s=10, lock_s=3, idle_in_transaction_s=15)
"""Of what answers a request."""

DECIDING_TIMEOUTS = Timeouts(statement_s=60, lock_s=5, idle_in_transaction_s=60)
"""Of decisions: what a decision rests on is counted anew before it stands."""

DECIDING = 2
"""Connections for decisions: one deployment and one look at a time, and others wait."""

BESIDE_EXPERIMENTS = DECIDING + 3
"""Connections of a service beside lanes and reads: decisions, checking keys, two health checks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowRuntime:
    """Everything a running shadow service is made of."""

    settings: Settings
    clock: Clock
    entropy: EntropySource
    registry: CollectorRegistry
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
        reads = _pool(
            shadow, "reads", settings,
            access=Access.READ, size=settings.pool_size, minimum=settings.pool_min,
        )  # fmt: skip
        yield ShadowRuntime(
            settings=settings,
            clock=clock,
            entropy=entropy_in_blocks(),
            registry=registry,
            access=entrance.access,
            tally=entrance.tally,
            requests=entrance.requests,
            reads=reads,
            databases=(shadow, keys),
        )


def _pool(
    database: Database,
    name: str,
    settings: Settings,
    *,
    access: Access,
    size: int,
    minimum: int,
    timeouts: Timeouts = TIMEOUTS,
) -> Pool:
    return database.pool(
        name,
        access=access,
        size=size,
        minimum=minimum,
        role=SHADOW_ROLE,
        settings=timeouts.settings(),
        # Writes are never cancelled by us: see `wiring.py`.
        command_timeout_s=timeouts.command_s if access is Access.READ else None,
        limits=pool_limits(settings, report_held_s=timeouts.statement_s),
    )
