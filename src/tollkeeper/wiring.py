"""The only composition root: from settings to pools, clock, randomness and services."""

import random  # noqa: TID251  # the composition root is where randomness comes from
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry

from tollkeeper.access.service import AccessService, KeyMaker
from tollkeeper.config import Settings, variable_of
from tollkeeper.credits.engine import Engine, EngineLimits
from tollkeeper.credits.metrics import CreditsMetrics
from tollkeeper.credits.service import CreditsService
from tollkeeper.credits.store import SESSION_SETTINGS, LedgerStore
from tollkeeper.database.connect import connector
from tollkeeper.database.metrics import PoolCollector
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.clock import Clock, SystemClock
from tollkeeper.kernel.errors import ConfigurationError
from tollkeeper.kernel.ids import EntropySource, entropy_in_blocks, system_entropy, system_token
from tollkeeper.telemetry.metrics import build_registry

CREDITS_ROLE = "tollkeeper_credits"
"""What the ledger's service acts as: it may append transactions, never change them."""

ACCESS_ROLE = "tollkeeper_access"
"""What services read API keys as."""

_ACCESS_POOL_SIZE = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditsRuntime:
    """Everything a running credits service is made of."""

    settings: Settings
    clock: Clock
    entropy: EntropySource
    registry: CollectorRegistry
    engine: Engine
    credits: CreditsService
    access: AccessService
    reads: Pool


@asynccontextmanager
async def ledger_service(settings: Settings) -> AsyncIterator[CreditsService]:
    """Lend the ledger without HTTP, for periodic jobs that write: an engine with one lane."""
    clock = SystemClock()
    connect = connector(dsn_of(settings, "credits"), role=CREDITS_ROLE, settings=SESSION_SETTINGS)
    pool = Pool(connect, size=2, clock=clock, acquire_timeout_s=settings.acquire_timeout_s)
    store = LedgerStore()
    engine = Engine(
        pool, store, clock=clock,
        jitter=random.Random().random,  # noqa: S311  # jitter keeps no secret
        metrics=CreditsMetrics(build_registry("worker")), limits=EngineLimits(lanes=1),
    )  # fmt: skip
    engine.start()
    try:
        yield CreditsService(engine, pool, store)
    finally:
        await engine.drain()
        await engine.close()
        await pool.close()


@asynccontextmanager
async def credits_runtime(settings: Settings) -> AsyncIterator[CreditsRuntime]:
    """Build and start the credits service; on leaving, decide what was accepted, then close.

    Needs no database to start: what cannot be reached yet is tried again.

    Raises:
        ConfigurationError: a DSN is missing.
    """
    clock = SystemClock()
    credits_dsn, access_dsn = dsn_of(settings, "credits"), dsn_of(settings, "access")
    registry = build_registry("credits")
    connect = connector(credits_dsn, role=CREDITS_ROLE, settings=SESSION_SETTINGS)
    timeout_s = settings.acquire_timeout_s
    # Two pools: a page of history must never keep a lane waiting.
    lanes = Pool(connect, size=settings.lanes, clock=clock, acquire_timeout_s=timeout_s)
    reads = Pool(connect, size=settings.pool_size, clock=clock, acquire_timeout_s=timeout_s)
    keys = Pool(
        connector(access_dsn, role=ACCESS_ROLE),
        size=_ACCESS_POOL_SIZE,
        clock=clock,
        acquire_timeout_s=timeout_s,
    )
    PoolCollector({"lanes": lanes, "reads": reads, "access": keys}, registry)
    store = LedgerStore()
    engine = Engine(
        lanes,
        store,
        clock=clock,
        jitter=random.Random().random,  # noqa: S311  # jitter keeps no secret
        metrics=CreditsMetrics(registry),
        limits=EngineLimits(
            lanes=settings.lanes, queue=settings.queue_limit, batch=settings.batch_limit
        ),
    )
    access = AccessService(keys, clock=clock)
    engine.start()
    access.start()
    try:
        yield CreditsRuntime(
            settings=settings,
            clock=clock,
            entropy=entropy_in_blocks(),
            registry=registry,
            engine=engine,
            credits=CreditsService(engine, reads, store),
            access=access,
            reads=reads,
        )
    finally:
        await engine.drain()
        await engine.close()
        await access.close()
        for pool in (lanes, reads, keys):
            await pool.close()


async def ensure_development_key(access_dsn: str, path: Path) -> str:
    """Return the key in `path` if it is still valid; otherwise make one and put it there.

    Raises:
        ConfigurationError: the file cannot be read or written.
        DatabaseError: the database cannot be reached.
    """
    clock = SystemClock()
    pool = Pool(connector(access_dsn), size=1, clock=clock)
    try:
        maker = KeyMaker(pool, clock=clock, entropy=system_entropy, tokens=system_token)
        return await maker.ensure_development_key(path)
    finally:
        await pool.close()


def dsn_of(settings: Settings, database: str) -> str:
    """Return the configured DSN of a database.

    Raises:
        ConfigurationError: it is not set.
    """
    dsn: str | None = getattr(settings, f"{database}_dsn")
    if dsn is None:
        raise ConfigurationError(
            problem=f"Set {variable_of(f'{database}_dsn')}, or run `tollkeeper up`."
        )
    return dsn
