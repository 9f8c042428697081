"""Periodic jobs: partitions, expired keys and holds, usage, checkpoints, reconciliation.

Acts as the owner of the schema, and books as the service does. Any number may run; partitions are
maintained by one at a time. A job that fails is logged once and tried again, after waits that grow;
the ledger itself can do without for days. So nothing needs to be there when it starts: the jobs
begin to work when database and migrations are.
"""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

import structlog
import uvloop
from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from tollkeeper.config import Settings, check_session
from tollkeeper.credits.engine import KEY_DAYS_AHEAD, QUARTERS_AHEAD
from tollkeeper.credits.roller import PERIOD_S as USAGE_PERIOD_S
from tollkeeper.credits.service import CreditsService
from tollkeeper.credits.store import LedgerStore
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.backoff import Backoff
from tollkeeper.kernel.errors import ConfigurationError
from tollkeeper.telemetry.logging import configure_logging
from tollkeeper.telemetry.metrics import build_registry
from tollkeeper.wiring import (
    check_databases,
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

RETRY_BACKOFF = Backoff(first_ms=1_000.0, ceiling_ms=3_600_000.0, retries=0)
"""Waits after failed rounds, up to the job's own longest; there is no last one."""

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
        _log.info("worker.partitions_maintained", made=made, dropped=dropped)


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
        if once:
            await maintain_partitions(pool, store)
            await sweep_holds(service)
            if maker is not None:
                await maker.round()
            while reconciler is not None and not await reconciler.recent():
                pass
            while not await roller.round():
                pass
            return
        partitions = _Job("partitions", lambda: maintain_partitions(pool, store), PERIOD_S, RETRY_S)
        holds = _Job("holds", lambda: sweep_holds(service), SWEEP_PERIOD_S, RETRY_S)
        counting = open_alerts(settings, registry, database)
        jobs = [
            partitions,
            holds,
            _Job("alerts", counting.count, ALERTS_PERIOD_S, RETRY_S),
            _Job("usage", roller.piece, USAGE_PERIOD_S, RETRY_S),
        ]
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
            names = [job.name for job in jobs]
            _log.info("worker.started", jobs=names)
            await _work(jobs, JobMetrics(registry, names), drain_timeout_s=settings.drain_timeout_s)
    _log.info("worker.left")


async def _work(jobs: Sequence["_Job"], metrics: "JobMetrics", *, drain_timeout_s: float) -> None:
    """Repeat the jobs until a signal; rounds under way are finished, but not for ever."""
    leaving = asyncio.Event()
    tasks = [asyncio.create_task(job.repeat(leaving, metrics), name=job.name) for job in jobs]

    def hurry() -> None:
        for task in tasks:
            if task.cancel():
                _log.warning("worker.round_cut", job=task.get_name())

    loop = asyncio.get_running_loop()

    def leave(number: signal.Signals) -> None:
        if leaving.is_set():
            hurry()
            return
        _log.info("worker.leaving", signal=number.name, drain_timeout_s=drain_timeout_s)
        leaving.set()
        loop.call_later(drain_timeout_s, hurry)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave, number)
    await asyncio.wait(tasks)


class JobMetrics:
    """How the rounds of the jobs end; `worker_*` in the exposition."""

    def __init__(self, registry: CollectorRegistry, jobs: Sequence[str]) -> None:
        rounds = Counter(
            "worker_rounds", "Rounds of the jobs, by result.", ("job", "result"), registry=registry
        )
        self._rounds = {
            (job, result): rounds.labels(job, result) for job in jobs for result in ("ok", "failed")
        }
        last = Gauge(
            "worker_last_success_timestamp_seconds",
            "When a job last finished a round; 0 before.",
            ("job",),
            registry=registry,
        )
        self._last = {job: last.labels(job) for job in jobs}

    def succeeded(self, job: str) -> None:
        """Count a round that did its work, now."""
        self._rounds[job, "ok"].inc()
        self._last[job].set_to_current_time()

    def failed(self, job: str) -> None:
        """Count a round that will be tried again."""
        self._rounds[job, "failed"].inc()


@dataclass(frozen=True, slots=True)
class _Job:
    """Work that is done again and again: `period_s` after a success, sooner after a failure.

    The waits after failures grow to `retry_s`. Work that returns a number says itself after how
    many seconds it wants to go on.
    """

    name: str
    work: Callable[[], Awaitable[float | None]]
    period_s: float
    retry_s: float

    async def repeat(self, leaving: asyncio.Event, metrics: JobMetrics) -> None:
        """Work until it is time to leave; a round under way is finished.

        A failure is logged when it begins, changes, or is over.
        """
        failures, said = 0, ""
        while not leaving.is_set():
            try:
                wanted_s = await self.work()
                pause_s = self.period_s if wanted_s is None else wanted_s
            except Exception as error:  # noqa: BLE001  # the job's edge: the next round tries again
                metrics.failed(self.name)
                if repr(error) != said:
                    said = repr(error)
                    _log.warning("worker.round_failed", job=self.name, error=said)
                pause_s = min(self.retry_s, RETRY_BACKOFF.wait_ms(min(failures, 16), 0.0) / 1_000)
                failures += 1
            else:
                metrics.succeeded(self.name)
                if failures:
                    _log.info("worker.round_recovered", job=self.name, failures=failures)
                failures, said = 0, ""
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
            problem=f"Cannot listen on {settings.host}:{settings.worker_port}: "
            f"{(error.strerror or str(error)).lower()}. Choose another port."
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
