"""Periodic jobs: partitions, expired keys and holds, checkpoints, and reconciliation without end.

Acts as the owner of the schema, and books as the service does. Any number may run; partitions are
maintained by one at a time. A job that fails is logged and tried again later; the ledger itself can
do without for days.
"""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass

import structlog
import uvloop
from prometheus_client import CollectorRegistry, start_http_server

from tollkeeper.config import Settings
from tollkeeper.credits.engine import KEY_DAYS_AHEAD, QUARTERS_AHEAD
from tollkeeper.credits.service import CreditsService
from tollkeeper.credits.store import LedgerStore
from tollkeeper.database.connect import connector
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.kernel.errors import ConfigurationError
from tollkeeper.telemetry.logging import configure_logging
from tollkeeper.telemetry.metrics import build_registry
from tollkeeper.wiring import checkpoint_maker, dsn_of, ledger_reconciler, ledger_service

PERIOD_S = 3_600.0
"""Between two rounds."""

RETRY_S = 60.0
"""Until the next round after one that failed."""

SWEEP_PERIOD_S = 5.0
"""How long an expired hold stays unbooked. Its credits are free before: decisions look for it."""

RECONCILE_RETRY_S = 10.0
"""Until the next piece of reconciliation after one that failed."""

_log = structlog.get_logger(__name__)


def run_worker(settings: Settings, *, once: bool = False) -> None:
    """Run the jobs until SIGTERM or Ctrl-C; with `once`, one round and raise what failed."""
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
        _log.info("worker.partitions_maintained", made=made, dropped=dropped)


async def sweep_holds(service: CreditsService) -> None:
    """Book the holds whose time is over."""
    booked = await service.sweep()
    if booked:
        _log.info("worker.holds_expired", holds=booked)


async def _run(settings: Settings, *, once: bool) -> None:
    registry = build_registry("worker")
    async with (
        _pool(settings) as pool,
        ledger_service(settings, registry) as service,
        checkpoint_maker(settings, registry) as maker,
        ledger_reconciler(settings, registry, service) as reconciler,
    ):
        store = LedgerStore()
        if once:
            await maintain_partitions(pool, store)
            await sweep_holds(service)
            if maker is not None:
                await maker.round()
            while reconciler is not None and not await reconciler.recent():
                pass
            return
        leaving = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, leaving.set)
        partitions = _Job("partitions", lambda: maintain_partitions(pool, store), PERIOD_S, RETRY_S)
        holds = _Job("holds", lambda: sweep_holds(service), SWEEP_PERIOD_S, SWEEP_PERIOD_S)
        jobs = [partitions, holds]
        if maker is None:
            _log.info("worker.checkpoints_off", reason="TOLLKEEPER_CHECKPOINT_KEY is not set")
        else:
            period_s = settings.checkpoint_period_s
            jobs.append(_Job("checkpoints", maker.round, period_s, period_s))
        if reconciler is None:
            _log.info("worker.reconciliation_off", reason="TOLLKEEPER_RECONCILE_SHARE is 0")
        else:
            pause_s = RECONCILE_RETRY_S
            jobs.append(_Job("reconciliation", reconciler.piece, pause_s, pause_s))
        with _scraped(settings, registry):
            await asyncio.gather(*(job.repeat(leaving) for job in jobs))


@dataclass(frozen=True, slots=True)
class _Job:
    """Work that is done again and again: `period_s` after a success, `retry_s` after a failure.

    Work that returns a number says itself after how many seconds it wants to go on.
    """

    name: str
    work: Callable[[], Awaitable[float | None]]
    period_s: float
    retry_s: float

    async def repeat(self, leaving: asyncio.Event) -> None:
        """Work until it is time to leave; a round under way is finished."""
        while not leaving.is_set():
            try:
                wanted_s = await self.work()
                pause_s = self.period_s if wanted_s is None else wanted_s
            except Exception as error:  # noqa: BLE001  # the job's edge: the next round tries again
                _log.warning("worker.round_failed", job=self.name, error=repr(error))
                pause_s = self.retry_s
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(leaving.wait(), pause_s)


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
            problem=f"Cannot listen on {settings.host}:{settings.worker_port}: {error.strerror}."
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.asynccontextmanager
async def _pool(settings: Settings) -> AsyncIterator[Pool]:
    connect = connector(
        dsn_of(settings, "credits"),
        settings={"application_name": "tollkeeper worker", "statement_timeout": "10min"},
    )
    pool = Pool(connect, size=1, clock=SystemClock())
    try:
        yield pool
    finally:
        await pool.close()
