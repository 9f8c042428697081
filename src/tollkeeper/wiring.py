"""The only composition root: from settings to pools, clock, randomness and services."""

import random  # noqa: TID251  # the composition root is where randomness comes from
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry

from tollkeeper import __version__
from tollkeeper.access import keyfile
from tollkeeper.access.issuer import IssuedKey, KeyIssuer
from tollkeeper.access.service import AccessService
from tollkeeper.config import Settings, variable_of
from tollkeeper.connections import (
    ACCESS_ROLE,
    ACCESS_TIMEOUTS,
    SPARE_CONNECTIONS,
    keys_pool,
    last_decisions,
    open_database,
    opened_entrance,
    pool_limits,
)
from tollkeeper.credits.alert_metrics import OpenAlerts
from tollkeeper.credits.alert_service import AlertService
from tollkeeper.credits.alert_store import AlertStore
from tollkeeper.credits.auditor import Auditor
from tollkeeper.credits.checkpoint_metrics import CheckpointMetrics
from tollkeeper.credits.checkpoint_store import CheckpointStore
from tollkeeper.credits.checkpointer import SESSION_SETTINGS as MAKER_SETTINGS
from tollkeeper.credits.checkpointer import TIMEOUTS as MAKER_TIMEOUTS
from tollkeeper.credits.checkpointer import Checkpointer
from tollkeeper.credits.engine import Engine
from tollkeeper.credits.evidence import EvidenceFolder
from tollkeeper.credits.freezer import Freezer
from tollkeeper.credits.keyfile import read_signing_key
from tollkeeper.credits.metrics import CreditsMetrics
from tollkeeper.credits.publication import HttpTarget
from tollkeeper.credits.reconciler import Reconciler
from tollkeeper.credits.reconciliation_metrics import ReconciliationMetrics
from tollkeeper.credits.reconciliation_store import SESSION_SETTINGS as RECONCILER_SETTINGS
from tollkeeper.credits.reconciliation_store import TIMEOUTS as RECONCILER_TIMEOUTS
from tollkeeper.credits.reconciliation_store import ReconciliationStore
from tollkeeper.credits.roller import Roller
from tollkeeper.credits.service import CreditsService
from tollkeeper.credits.store import SESSION_SETTINGS, TIMEOUTS, LedgerStore
from tollkeeper.credits.usage_metrics import UsageMetrics
from tollkeeper.credits.usage_reader import UsageReader
from tollkeeper.credits.usage_store import SESSION_SETTINGS as ROLLER_SETTINGS
from tollkeeper.credits.usage_store import TIMEOUTS as ROLLER_TIMEOUTS
from tollkeeper.credits.usage_store import UsageStore
from tollkeeper.database import preflight
from tollkeeper.database.connect import connector
from tollkeeper.database.database import Database
from tollkeeper.database.group_commit import EngineLimits
from tollkeeper.database.metrics import DatabaseCollector
from tollkeeper.database.pool import Pool
from tollkeeper.database.pooler import Pooler
from tollkeeper.database.status import Access
from tollkeeper.database.timeouts import GRACE_S, Timeouts
from tollkeeper.database.tuner import TuningPlan
from tollkeeper.kernel.clock import Clock, SystemClock
from tollkeeper.kernel.ids import EntropySource, entropy_in_blocks, system_entropy, system_token
from tollkeeper.telemetry.metrics import build_registry
from tollkeeper.web.auth import AuthenticationTally
from tollkeeper.web.request_log import RequestTally

_log = structlog.get_logger(__name__)

CREDITS_ROLE = "tollkeeper_credits"
"""What the ledger's service acts as: it may append transactions, never change them."""

BESIDE_LEDGER = 5
"""Connections of a service beside lanes and reads: setting alerts, checking keys, making them, two
health checks."""

BATCH_LIMIT_S = 3 * TIMEOUTS.statement_s + GRACE_S
"""A lane that holds its connection longer waits for an answer that does not come: a batch is three
statements at most."""

MAINTENANCE_TIMEOUTS = Timeouts(statement_s=600, lock_s=5, idle_in_transaction_s=60)
"""Dropping a day of keys waits for whoever reads it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditsRuntime:
    """Everything a running credits service is made of."""

    settings: Settings
    clock: Clock
    entropy: EntropySource
    registry: CollectorRegistry
    engine: Engine
    credits: CreditsService
    alerts: AlertService
    auditor: Auditor
    usage: UsageReader
    access: AccessService
    issuer: KeyIssuer
    tally: AuthenticationTally
    requests: RequestTally
    reads: Pool
    databases: Sequence[Database]


@asynccontextmanager
async def owned_ledger(settings: Settings, registry: CollectorRegistry) -> AsyncIterator[Database]:
    """Lend the ledger's database as its owner sees it, for periodic jobs."""
    async with open_database(settings, "credits", role=None) as database:
        DatabaseCollector([database], registry)
        yield database


def maintenance_pool(settings: Settings, database: Database) -> Pool:
    """Make the pool of the owner's own statements: for the partitions, and for the summary."""
    return database.pool(
        "maintenance",
        access=Access.WRITE,
        size=2,
        settings={"application_name": "tollkeeper worker", **MAINTENANCE_TIMEOUTS.settings()},
        command_timeout_s=MAINTENANCE_TIMEOUTS.command_s,
        limits=pool_limits(settings, report_held_s=MAINTENANCE_TIMEOUTS.statement_s),
    )


def open_alerts(settings: Settings, registry: CollectorRegistry, database: Database) -> OpenAlerts:
    """Make what counts the open alerts, for a periodic job."""
    pool = _ledger_pool(database, "alerts", settings, access=Access.WRITE, size=1, minimum=0)
    return OpenAlerts(pool, AlertStore(), registry)


@asynccontextmanager
async def ledger_service(
    settings: Settings, registry: CollectorRegistry, database: Database
) -> AsyncIterator[CreditsService]:
    """Lend the ledger without HTTP, for periodic jobs that write: an engine with one lane."""
    pool = _ledger_pool(database, "service", settings, access=Access.WRITE, size=2)
    store = LedgerStore()
    engine = Engine(
        pool, store, clock=SystemClock(),
        jitter=random.Random().random,  # noqa: S311  # jitter keeps no secret
        metrics=CreditsMetrics(registry), limits=EngineLimits(lanes=1),
    )  # fmt: skip
    engine.start()
    try:
        yield CreditsService(engine, pool, store)
    finally:
        await last_decisions(engine, "credits")


@asynccontextmanager
async def ledger_reconciler(
    settings: Settings, registry: CollectorRegistry, service: CreditsService, database: Database
) -> AsyncIterator[Reconciler | None]:
    """Lend what reconciles accounts and freezes, as the owner; None when its share is nothing."""
    if not settings.reconcile_share:
        yield None
        return
    clock = SystemClock()
    pool = database.pool(
        "reconciliation",
        access=Access.WRITE,
        size=1,
        settings=RECONCILER_SETTINGS,
        command_timeout_s=RECONCILER_TIMEOUTS.command_s,
        limits=pool_limits(settings, report_held_s=RECONCILER_TIMEOUTS.statement_s),
    )
    folder = settings.evidence or settings.data / "evidence"
    store, metrics = ReconciliationStore(), ReconciliationMetrics(registry)
    evidence = EvidenceFolder(folder.expanduser(), software=f"tollkeeper {__version__}")
    freezer = Freezer(
        store, clock=clock, metrics=metrics, evidence=evidence, limit=settings.freeze_limit
    )
    yield Reconciler(
        pool,
        store,
        service,
        clock=clock,
        metrics=metrics,
        freezer=freezer,
        share=settings.reconcile_share,
    )


def usage_roller(settings: Settings, registry: CollectorRegistry, database: Database) -> Roller:
    """Make what rolls usage up, as the owner."""
    pool = database.pool(
        "usage",
        access=Access.WRITE,
        size=1,
        settings=ROLLER_SETTINGS,
        command_timeout_s=ROLLER_TIMEOUTS.command_s,
        limits=pool_limits(settings, report_held_s=ROLLER_TIMEOUTS.statement_s),
    )
    return Roller(pool, UsageStore(), clock=SystemClock(), metrics=UsageMetrics(registry))


@asynccontextmanager
async def checkpoint_maker(
    settings: Settings, registry: CollectorRegistry, database: Database
) -> AsyncIterator[Checkpointer | None]:
    """Lend what makes and publishes checkpoints, as the owner; None without a key to sign with.

    Raises:
        ConfigurationError: the key cannot be read.
    """
    if settings.checkpoint_key is None:
        yield None
        return
    key = read_signing_key(settings.checkpoint_key)
    pool = database.pool(
        "checkpoints",
        access=Access.WRITE,
        size=1,
        settings=MAKER_SETTINGS,
        command_timeout_s=MAKER_TIMEOUTS.command_s,
        limits=pool_limits(settings, report_held_s=MAKER_TIMEOUTS.statement_s),
    )
    target = None if settings.checkpoint_url is None else HttpTarget(settings.checkpoint_url)
    try:
        yield Checkpointer(
            pool,
            CheckpointStore(),
            key=key,
            clock=SystemClock(),
            metrics=CheckpointMetrics(registry),
            file=settings.checkpoint_file,
            target=target,
        )
    finally:
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
    registry = build_registry("credits")
    async with (
        open_database(settings, "credits", role=CREDITS_ROLE) as ledger,
        open_database(settings, "access", role=ACCESS_ROLE) as keys,
        opened_entrance(settings, registry, keys, clock=clock) as entrance,
    ):
        DatabaseCollector([ledger, keys], registry)
        # Two pools: a page of history must never keep a lane waiting.
        lanes = _ledger_pool(ledger, "lanes", settings, access=Access.WRITE, size=settings.lanes)
        reads = _ledger_pool(
            ledger, "reads", settings,
            access=Access.READ, size=settings.pool_size, minimum=settings.pool_min,
        )  # fmt: skip
        # What waits for an account's row here must not keep a lane waiting either.
        settings_pool = _ledger_pool(
            ledger, "alerts", settings, access=Access.WRITE, size=1, minimum=0
        )
        # Not the pool that checks keys: however much they are administered, it answers in time.
        issuing = keys_pool(keys, "keys", settings, access=Access.WRITE)
        if settings.pool_max > settings.pool_size:
            ledger.tune(_plan(settings))
        store, metrics = LedgerStore(), CreditsMetrics(registry)
        engine = Engine(
            lanes,
            store,
            clock=clock,
            jitter=random.Random().random,  # noqa: S311  # jitter keeps no secret
            metrics=metrics,
            limits=EngineLimits(
                lanes=settings.lanes, queue=settings.queue_limit, batch=settings.batch_limit
            ),
        )
        engine.start()
        try:
            yield CreditsRuntime(
                settings=settings,
                clock=clock,
                entropy=entropy_in_blocks(),
                registry=registry,
                engine=engine,
                credits=CreditsService(engine, reads, store),
                alerts=AlertService(
                    AlertStore(), writes=settings_pool, reads=reads, metrics=metrics
                ),
                auditor=Auditor(reads, CheckpointStore(), store),
                usage=UsageReader(reads, UsageStore(), store),
                access=entrance.access,
                issuer=KeyIssuer(issuing, clock=clock, entropy=system_entropy, tokens=system_token),
                tally=entrance.tally,
                requests=entrance.requests,
                reads=reads,
                databases=(ledger, keys),
            )
        finally:
            await last_decisions(engine, "credits")


def _plan(settings: Settings) -> TuningPlan:
    """Say how far the pool of reads may grow; the keys may be on the same server."""
    return TuningPlan(
        pool="reads",
        floor=settings.pool_size,
        least=max(1, settings.pool_min),
        most=settings.pool_max,
        replicas=settings.replicas,
        others=settings.lanes + BESIDE_LEDGER,
        spare=SPARE_CONNECTIONS,
    )


def _ledger_pool(
    database: Database,
    name: str,
    settings: Settings,
    *,
    access: Access,
    size: int,
    minimum: int | None = None,
) -> Pool:
    return database.pool(
        name,
        access=access,
        size=size,
        minimum=size if minimum is None else minimum,
        role=CREDITS_ROLE,
        settings=SESSION_SETTINGS,
        # Writes are never cancelled by us: a commit that waits for its standby would then stand on
        # the primary alone, and count as done. A silent server is found by the health checks.
        command_timeout_s=TIMEOUTS.command_s if access is Access.READ else None,
        limits=pool_limits(settings, cut_held_s=None if access is Access.READ else BATCH_LIMIT_S),
    )


async def ensure_development_key(access_dsn: str, path: Path) -> str:
    """Return the key in `path` if it is still valid; otherwise make one and put it there.

    Raises:
        ConfigurationError: the file cannot be read or written.
        DatabaseError: the database cannot be reached.
    """
    async with owners_issuer(access_dsn) as issuer:
        return await keyfile.ensure_development_key(issuer, path)


async def create_first_key(
    access_dsn: str,
    name: str,
    *,
    expires_in_s: int | None,
    is_forced: bool,
    pooler: Pooler = Pooler.NONE,
) -> IssuedKey:
    """Make the first key that can make others, as the owner of the database.

    Raises:
        AdminKeyExists: somebody has such a key, and it is not forced.
        KeyInvalid: a name or expiry that cannot be.
        ConfigurationError: the database will never be reached like this.
        DatabaseError: the database cannot be reached.
    """
    await preflight.check({variable_of("access_dsn"): access_dsn}, pooler=pooler)
    async with owners_issuer(access_dsn, pooler) as issuer:
        return await issuer.create_first_key(name, expires_in_s=expires_in_s, is_forced=is_forced)


@asynccontextmanager
async def owners_issuer(access_dsn: str, pooler: Pooler = Pooler.NONE) -> AsyncIterator[KeyIssuer]:
    """Lend what makes keys, as the owner of their database."""
    clock = SystemClock()
    connect = connector(
        access_dsn,
        settings=ACCESS_TIMEOUTS.settings(),
        command_timeout_s=ACCESS_TIMEOUTS.command_s,
        pooler=pooler,
    )
    pool = Pool(connect, size=1, clock=clock)
    try:
        yield KeyIssuer(pool, clock=clock, entropy=system_entropy, tokens=system_token)
    finally:
        await pool.close()
