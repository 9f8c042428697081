"""Jobs that are done again and again until their process leaves, and how their rounds end."""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from tollkeeper.kernel.backoff import Backoff

RETRY_BACKOFF = Backoff(first_ms=1_000.0, ceiling_ms=3_600_000.0, retries=0)
"""Waits after failed rounds, up to the job's own longest; there is no last one."""

_log = structlog.get_logger(__name__)


async def work(jobs: Sequence["Job"], metrics: "JobMetrics", *, drain_timeout_s: float) -> None:
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
class Job:
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
