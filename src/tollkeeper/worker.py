"""Periodic jobs: partitions ahead of time, expired idempotency keys away.

Acts as the owner of the schema. Any number may run; a job is done by one at a time. A job that
fails is logged and tried again a minute later; the ledger itself can do without for days.
"""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator

import structlog
import uvloop

from tollkeeper.config import Settings
from tollkeeper.credits.engine import KEY_DAYS_AHEAD, QUARTERS_AHEAD
from tollkeeper.credits.store import LedgerStore
from tollkeeper.database.connect import connector
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.telemetry.logging import configure_logging
from tollkeeper.wiring import dsn_of

PERIOD_S = 3_600.0
"""Between two rounds."""

RETRY_S = 60.0
"""Until the next round after one that failed."""

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


async def _run(settings: Settings, *, once: bool) -> None:
    async with _pool(settings) as pool:
        store = LedgerStore()
        if once:
            await maintain_partitions(pool, store)
            return
        leaving = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, leaving.set)
        while not leaving.is_set():
            pause_s = PERIOD_S
            try:
                await maintain_partitions(pool, store)
            except Exception as error:  # noqa: BLE001  # the job's edge: the next round tries again
                _log.warning("worker.round_failed", error=repr(error))
                pause_s = RETRY_S
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(leaving.wait(), pause_s)


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
