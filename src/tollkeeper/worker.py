"""Periodic jobs: partitions, expired holds, usage, summary, archive, checkpoints, reconciliation.

Acts as the owner of the schema, and books as the service does. Any number may run; partitions are
maintained by one at a time. A job that fails is logged once and tried again, after waits that grow;
the ledger itself can do without for days. So nothing needs to be there when it starts: the jobs
begin to work when database and migrations are.
"""

import contextlib
from collections.abc import Iterator

import structlog
import uvloop
from prometheus_client import CollectorRegistry, start_http_server

from tollkeeper.backups import watch_backups
from tollkeeper.config import Settings, check_session
from tollkeeper.connections import check_databases
from tollkeeper.credits.engine import KEY_DAYS_AHEAD, QUARTERS_AHEAD
from tollkeeper.credits.life_metrics import PartitionMetrics
from tollkeeper.credits.roller import PERIOD_S as USAGE_PERIOD_S
from tollkeeper.credits.service import CreditsService
from tollkeeper.credits.store import LedgerStore
from tollkeeper.database.pool import Pool
from tollkeeper.jobs import Job, JobMetrics, work
from tollkeeper.kernel.errors import ConfigurationError
from tollkeeper.telemetry.logging import configure_logging
from tollkeeper.telemetry.metrics import build_registry
from tollkeeper.upkeep import ledger_archivist, ledger_summarizer
from tollkeeper.wiring import (
    checkpoint_maker,
    ledger_reconciler,
    ledger_service,
    maintenance_pool,
    open_alerts,
    owned_ledger,
    usage_roller,
)

PERIOD_S = 3_600.0
"""Between two rounds."""

RETRY_S = 2.0
"""Longest wait for the next round after some that failed."""

SLOW_RETRY_S = 300.0
"""Longest wait for the next round of what nobody waits for, after some that failed."""

SWEEP_PERIOD_S = 5.0
"""How long an expired hold stays unbooked. Its credits are free before: decisions look for it."""

ALERTS_PERIOD_S = 15.0
"""How old the count of open alerts in the metrics gets."""

RECONCILE_RETRY_S = 10.0
"""Until the next piece of reconciliation after one that failed."""

_log = structlog.get_logger(__name__)


def run_worker(settings: Settings, *, once: bool = False) -> None:
    """Run the jobs until SIGTERM or Ctrl-C; with `once`, one round and raise what failed.

    Raises:
        ConfigurationError: the DSN is missing, leads through PgBouncer, or will never do.
    """
    check_session(settings, "The worker")
    configure_logging(settings.log_level, settings.log_format)
    uvloop.run(_run(settings, once=once))


async def maintain_partitions(pool: Pool, store: LedgerStore) -> None:
    """Make the ledger's partitions ahead and drop expired idempotency partitions."""
    async with pool.connection() as connection, store.maintenance_lock(connection) as held:
        if not held:
            _log.info("worker.round_skipped", reason="another worker is at it")
            return
        made = await store.create_partitions(
            connection, quarters_ahead=QUARTERS_AHEAD, days_ahead=KEY_DAYS_AHEAD
        )
        dropped = await store.drop_expired_keys(connection)
        # Told, and not used: decision record 0025.
        unused = await store.schedulers(connection)
        _log.info(
            "worker.partitions_maintained", made=made, dropped=dropped, unused_extensions=unused
        )


async def show_partitions(pool: Pool, store: LedgerStore, metrics: PartitionMetrics) -> None:
    """Show how far the partitions reach, whoever made them."""
    async with pool.connection() as connection:
        metrics.reach(await store.partition_ends(connection))


async def sweep_holds(service: CreditsService) -> None:
    """Book the holds whose time is over."""
    booked = await service.sweep()
    if booked:
        _log.info("worker.holds_expired", holds=booked)


async def _run(settings: Settings, *, once: bool) -> None:
    await check_databases(settings, "credits")
    registry = build_registry("worker")
    async with (
        owned_ledger(settings, registry) as database,
        ledger_service(settings, registry, database) as service,
        checkpoint_maker(settings, registry, database) as maker,
        ledger_reconciler(settings, registry, service, database) as reconciler,
    ):
        pool = maintenance_pool(settings, database)
        store = LedgerStore()
        roller = usage_roller(settings, registry, database)
        summarizer = ledger_summarizer(settings, registry, pool)
        archivist = ledger_archivist(settings, registry, database)
        reach = PartitionMetrics(registry)

        async def partitions() -> None:
            await maintain_partitions(pool, store)
            await show_partitions(pool, store, reach)

        if once:
            await partitions()
            await sweep_holds(service)
            await summarizer.round()
            await archivist.round()
            if maker is not None:
                await maker.round()
            while reconciler is not None and not await reconciler.recent():
                pass
            while not await roller.round():
                pass
            return
        counting = open_alerts(settings, registry, database)
        watch_backups(settings, registry)
        jobs = [
            Job("partitions", partitions, PERIOD_S, RETRY_S),
            Job("holds", lambda: sweep_holds(service), SWEEP_PERIOD_S, RETRY_S),
            Job("alerts", counting.count, ALERTS_PERIOD_S, RETRY_S),
            Job("usage", roller.piece, USAGE_PERIOD_S, RETRY_S),
            Job("summary", summarizer.round, settings.summary_period_s, settings.summary_period_s),
            Job("archive", archivist.round, PERIOD_S, SLOW_RETRY_S),
        ]
        if maker is None:
            _log.info("worker.checkpoints_off", reason="TOLLKEEPER_CHECKPOINT_KEY is not set")
        else:
            period_s = settings.checkpoint_period_s
            jobs.append(Job("checkpoints", maker.round, period_s, period_s))
        if reconciler is None:
            _log.info("worker.reconciliation_off", reason="TOLLKEEPER_RECONCILE_SHARE is 0")
        else:
            pause_s = RECONCILE_RETRY_S
            jobs.append(Job("reconciliation", reconciler.piece, pause_s, pause_s))
        with _scraped(settings, registry):
            names = [job.name for job in jobs]
            _log.info("worker.started", jobs=names)
            await work(jobs, JobMetrics(registry, names), drain_timeout_s=settings.drain_timeout_s)
    _log.info("worker.left")


@contextlib.contextmanager
def _scraped(settings: Settings, registry: CollectorRegistry) -> Iterator[None]:
    """Answer scrapes of the worker's metrics, if it has a port for them.

    Raises:
        ConfigurationError: the port is taken.
    """
    if not settings.worker_port:
        yield
        return
    try:
        server, thread = start_http_server(
            settings.worker_port, addr=settings.host, registry=registry
        )
    except OSError as error:
        raise ConfigurationError(
            problem=f"Cannot listen on {settings.host}:{settings.worker_port}: "
            f"{(error.strerror or str(error)).lower()}. Choose another port."
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
