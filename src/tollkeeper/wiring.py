"""The only composition root: from settings to pools, clock, randomness and services."""

import asyncio
import random  # noqa: TID251  # the composition root is where randomness comes from
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry

from tollkeeper import __version__
from tollkeeper.access import keyfile
from tollkeeper.access.issuer import IssuedKey, KeyIssuer
from tollkeeper.access.metrics import AccessCollector
from tollkeeper.access.service import AccessService
from tollkeeper.config import Settings, variable_of
from tollkeeper.credits.auditor import Auditor
from tollkeeper.credits.checkpoint_metrics import CheckpointMetrics
from tollkeeper.credits.checkpoint_store import CheckpointStore
from tollkeeper.credits.checkpointer import SESSION_SETTINGS as MAKER_SETTINGS
from tollkeeper.credits.checkpointer import Checkpointer
from tollkeeper.credits.engine import Engine, EngineLimits
from tollkeeper.credits.evidence import EvidenceFolder
from tollkeeper.credits.freezer import Freezer
from tollkeeper.credits.keyfile import read_signing_key
from tollkeeper.credits.metrics import CreditsMetrics
from tollkeeper.credits.publication import HttpTarget
from tollkeeper.credits.reconciler import Reconciler
from tollkeeper.credits.reconciliation_metrics import ReconciliationMetrics
from tollkeeper.credits.reconciliation_store import SESSION_SETTINGS as RECONCILER_SETTINGS
from tollkeeper.credits.reconciliation_store import ReconciliationStore
from tollkeeper.credits.service import CreditsService
from tollkeeper.credits.store import SESSION_SETTINGS, LedgerStore
from tollkeeper.database.connect import connector
from tollkeeper.database.metrics import DatabaseCollector
from tollkeeper.database.pool import Pool
from tollkeeper.database.source import Source
from tollkeeper.kernel.clock import Clock, SystemClock
from tollkeeper.kernel.errors import ConfigurationError
from tollkeeper.kernel.ids import EntropySource, entropy_in_blocks, system_entropy, system_token
from tollkeeper.telemetry.metrics import build_registry
from tollkeeper.web.auth import AuthenticationTally
from tollkeeper.web.metrics import RequestCollector
from tollkeeper.web.request_log import RequestTally

_log = structlog.get_logger(__name__)

CREDITS_ROLE = "tollkeeper_credits"
"""What the ledger's service acts as: it may append transactions, never change them."""

LAST_DECISIONS_S = 2.0
"""What was accepted is decided so long after the last caller has its answer or is gone."""

ACCESS_ROLE = "tollkeeper_access"
"""What services check and administer API keys as."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditsRuntime:
    """Everything a running credits service is made of."""

    settings: Settings
    clock: Clock
    entropy: EntropySource
    registry: CollectorRegistry
    engine: Engine
    credits: CreditsService
    auditor: Auditor
    access: AccessService
    issuer: KeyIssuer
    tally: AuthenticationTally
    requests: RequestTally
    reads: Pool
    databases: tuple[Source, ...]


@asynccontextmanager
async def ledger_service(
    settings: Settings, registry: CollectorRegistry
) -> AsyncIterator[CreditsService]:
    """Lend the ledger without HTTP, for periodic jobs that write: an engine with one lane."""
    clock = SystemClock()
    connect = connector(dsn_of(settings, "credits"), role=CREDITS_ROLE, settings=SESSION_SETTINGS)
    pool = Pool(connect, size=2, clock=clock, acquire_timeout_s=settings.acquire_timeout_s)
    store = LedgerStore()
    engine = Engine(
        pool, store, clock=clock,
        jitter=random.Random().random,  # noqa: S311  # jitter keeps no secret
        metrics=CreditsMetrics(registry), limits=EngineLimits(lanes=1),
    )  # fmt: skip
    engine.start()
    try:
        yield CreditsService(engine, pool, store)
    finally:
        await _close(engine)
        await pool.close()


@asynccontextmanager
async def ledger_reconciler(
    settings: Settings, registry: CollectorRegistry, service: CreditsService
) -> AsyncIterator[Reconciler | None]:
    """Lend what reconciles accounts and freezes, as the owner; None when its share is nothing."""
    if not settings.reconcile_share:
        yield None
        return
    clock = SystemClock()
    connect = connector(dsn_of(settings, "credits"), settings=RECONCILER_SETTINGS)
    pool = Pool(connect, size=1, clock=clock, acquire_timeout_s=settings.acquire_timeout_s)
    folder = settings.evidence or settings.data / "evidence"
    store, metrics = ReconciliationStore(), ReconciliationMetrics(registry)
    evidence = EvidenceFolder(folder.expanduser(), software=f"tollkeeper {__version__}")
    freezer = Freezer(
        store, clock=clock, metrics=metrics, evidence=evidence, limit=settings.freeze_limit
    )
    try:
        yield Reconciler(
            pool,
            store,
            service,
            clock=clock,
            metrics=metrics,
            freezer=freezer,
            share=settings.reconcile_share,
        )
    finally:
        await pool.close()


@asynccontextmanager
async def checkpoint_maker(
    settings: Settings, registry: CollectorRegistry
) -> AsyncIterator[Checkpointer | None]:
    """Lend what makes and publishes checkpoints, as the owner; None without a key to sign with.

    Raises:
        ConfigurationError: the key cannot be read.
    """
    if settings.checkpoint_key is None:
        yield None
        return
    clock = SystemClock()
    key = read_signing_key(settings.checkpoint_key)
    connect = connector(dsn_of(settings, "credits"), settings=MAKER_SETTINGS)
    pool = Pool(connect, size=1, clock=clock, acquire_timeout_s=settings.acquire_timeout_s)
    target = None if settings.checkpoint_url is None else HttpTarget(settings.checkpoint_url)
    try:
        yield Checkpointer(
            pool,
            CheckpointStore(),
            key=key,
            clock=clock,
            metrics=CheckpointMetrics(registry),
            file=settings.checkpoint_file,
            target=target,
        )
    finally:
        await pool.close()
        if target is not None:
            await target.close()


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
    connect = connector(access_dsn, role=ACCESS_ROLE)
    # Two pools here too: however much keys are administered, a revocation is seen in time.
    checking = Pool(connect, size=1, clock=clock, acquire_timeout_s=timeout_s)
    issuing = Pool(connect, size=1, clock=clock, acquire_timeout_s=timeout_s)
    databases: tuple[Source, ...] = ()
    DatabaseCollector(databases, registry)
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
    access, tally = AccessService(checking, clock=clock), AuthenticationTally()
    requests = RequestTally()
    RequestCollector(requests, registry)
    AccessCollector(tally, registry, age_s=lambda: access.age_s, held=lambda: access.held)
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
            auditor=Auditor(reads, CheckpointStore(), store),
            access=access,
            issuer=KeyIssuer(issuing, clock=clock, entropy=system_entropy, tokens=system_token),
            tally=tally,
            requests=requests,
            reads=reads,
            databases=databases,
        )
    finally:
        await _close(engine)
        await access.close()
        for pool in (lanes, reads, checking, issuing):
            await pool.close()


async def _close(engine: Engine) -> None:
    """Decide what was accepted, and stop; a database that does not answer cannot keep us.

    What stays undecided was not acknowledged: the caller's idempotency key makes a repeat safe.
    """
    try:
        async with asyncio.timeout(LAST_DECISIONS_S):
            await engine.drain()
    except TimeoutError:
        _log.warning("credits.left_undecided", operations=engine.waiting)
    await engine.close()


async def ensure_development_key(access_dsn: str, path: Path) -> str:
    """Return the key in `path` if it is still valid; otherwise make one and put it there.

    Raises:
        ConfigurationError: the file cannot be read or written.
        DatabaseError: the database cannot be reached.
    """
    async with _owners_issuer(access_dsn) as issuer:
        return await keyfile.ensure_development_key(issuer, path)


async def create_first_key(
    access_dsn: str, name: str, *, expires_in_s: int | None, is_forced: bool
) -> IssuedKey:
    """Make the first key that can make others, as the owner of the database.

    Raises:
        AdminKeyExists: somebody has such a key, and it is not forced.
        KeyInvalid: a name or expiry that cannot be.
        DatabaseError: the database cannot be reached.
    """
    async with _owners_issuer(access_dsn) as issuer:
        return await issuer.create_first_key(name, expires_in_s=expires_in_s, is_forced=is_forced)


@asynccontextmanager
async def _owners_issuer(access_dsn: str) -> AsyncIterator[KeyIssuer]:
    clock = SystemClock()
    pool = Pool(connector(access_dsn), size=1, clock=clock)
    try:
        yield KeyIssuer(pool, clock=clock, entropy=system_entropy, tokens=system_token)
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
