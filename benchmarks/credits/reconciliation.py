"""What reconciliation costs the ledger, and how much it checks.

The worker runs as a process of its own, as it does in service: rounds of the engine with it and
without it take turns. Its own counters say how many transactions it checked meanwhile. Then the
reconciler is alone and never pauses, on what a round has written: that is the speed from which
follows what a share of the time keeps up with.
"""

import asyncio
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.request import urlopen

import uvloop
from prometheus_client import CollectorRegistry

from benchmarks.bench import Bench
from benchmarks.credits.checkpoints import STILL_ACCOUNTS, open_still_accounts
from benchmarks.credits.engine import CALLERS, MANY_ACCOUNTS, measure_engine, running_engine
from benchmarks.credits.http import free_port
from benchmarks.credits.workload import FIRST_BALANCE_MINOR, account_names, open_accounts
from benchmarks.figures import Figure, load_note
from benchmarks.measure import Sample, in_pairs, median_rate, median_ratio
from tollkeeper.config import Settings
from tollkeeper.credits.reconciler import Reconciler
from tollkeeper.serving import quiet_collector
from tollkeeper.telemetry.logging import configure_logging
from tollkeeper.wiring import ledger_reconciler, ledger_service, owned_ledger

WANTED_SHARE = 0.10
"""Of the throughput at most, at the share of one core that a default installation gives it."""

STARTED_S = 30.0
"""The worker answers its first scrape by then."""

_ROWS, _ACCOUNTS = "credits_reconciled_transactions_total", "credits_reconciled_accounts_total"
_SAMPLES = {
    name: re.compile(rf"^{re.escape(name)} (\S+)$", re.MULTILINE)
    for name in (
        f'{_ROWS}{{pass="recent"}}',
        f'{_ROWS}{{pass="thorough"}}',
        f'{_ACCOUNTS}{{pass="recent"}}',
    )
}


def measure(bench: Bench) -> list[Figure]:
    """Return the share of the throughput, and what is checked in a second."""
    return uvloop.run(_measure(bench, bench.migrated_database("credits")))


async def _measure(bench: Bench, dsn: str) -> list[Figure]:
    configure_logging("warning", "console")
    quiet_collector()
    names, load = account_names(MANY_ACCOUNTS), bench.load(CALLERS)
    what = f"engine, {CALLERS} callers, {MANY_ACCOUNTS:,} accounts"
    checked: list[tuple[float, float, float]] = []
    evidence = bench.fresh_directory("evidence")
    settings = Settings(credits_dsn=dsn, evidence=evidence)
    async with running_engine(dsn) as under_test:
        await open_accounts(under_test.engine, names, FIRST_BALANCE_MINOR)
        await open_still_accounts(dsn)
        # As in service: every account was reconciled some time ago.
        async with _reconciler(settings, CollectorRegistry()) as reconciler:
            await _until_done(reconciler)

        async def round_of(seed: int) -> Sample:
            return await measure_engine(under_test, names, load, seed=seed)

        async def with_worker() -> Sample:
            with _worker(dsn, evidence) as url:
                before, began_s = await asyncio.to_thread(_counts, url), time.perf_counter()
                sample = await round_of(1)
                after = await asyncio.to_thread(_counts, url)
                took_s = time.perf_counter() - began_s
            recent, thorough, accounts = (
                (b - a) / took_s for a, b in zip(before, after, strict=True)
            )
            checked.append((recent, thorough, accounts))
            return sample

        pairs = await in_pairs(
            bench.rounds,
            bench.reported(f"{what}, worker reconciles", with_worker),
            bench.reported(what, lambda: round_of(0)),
        )
        alone = await _alone(settings, lambda: round_of(2))
    assert not evidence.exists(), "an untouched ledger was accused"
    ours, theirs = tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
    share = Settings().reconcile_share
    recent, thorough, accounts = (statistics.median(each) for each in zip(*checked, strict=True))
    return [
        Figure(
            what=f"reconciliation at {share:.0%} of a core, share of the throughput",
            value=100 * max(0.0, 1 - median_ratio(pairs)),
            unit="%",
            target=100 * WANTED_SHARE,
            at_most=True,
            samples=ours,
            compared=theirs,
            note=f"{median_rate(ours):,.0f}/s : {median_rate(theirs):,.0f}/s; meanwhile it checks "
            f"{recent:,.0f} new transactions of {accounts:,.0f} accounts and {thorough:,.0f} in "
            f"all chains a second, {load_note(ours)}",
        ),
        *alone,
    ]


async def _alone(settings: Settings, write: Callable[[], Awaitable[Sample]]) -> list[Figure]:
    """Measure the reconciler without pauses: on everything, on a round, on nothing new."""
    registry, accounts = CollectorRegistry(), STILL_ACCOUNTS + MANY_ACCOUNTS

    def count(what: str) -> float:
        return registry.get_sample_value(what, {"pass": "recent"}) or 0.0

    async with _reconciler(settings, registry) as reconciler:
        await _until_done(reconciler)
        await write()
        rows, changed = count(_ROWS), count(_ACCOUNTS)
        took_s = await _until_done(reconciler)
        rows, changed = count(_ROWS) - rows, count(_ACCOUNTS) - changed
        still_s = [await _until_done(reconciler) for _ in range(5)]
    rate, share = rows / (took_s - statistics.median(still_s)), settings.reconcile_share
    return [
        Figure(
            what="reconciling what was written, without pauses",
            value=rate,
            unit="/s",
            note=f"{rows:,.0f} transactions of {changed:,.0f} accounts in {took_s:.1f} s; "
            f"{share:.0%} of the time keep up with {rate * share:,.0f}/s",
        ),
        Figure(
            what=f"seeing that none of {accounts:,} accounts changed",
            value=1_000 * statistics.median(still_s),
            unit="ms",
        ),
    ]


@asynccontextmanager
async def _reconciler(settings: Settings, registry: CollectorRegistry) -> AsyncIterator[Reconciler]:
    """Lend a reconciler as the worker has it."""
    async with (
        owned_ledger(settings, registry) as database,
        ledger_service(settings, registry, database) as service,
        ledger_reconciler(settings, registry, service, database) as reconciler,
    ):
        assert reconciler is not None
        yield reconciler


async def _until_done(reconciler: Reconciler) -> float:
    began_s = time.perf_counter()
    while not await reconciler.recent():
        pass
    return time.perf_counter() - began_s


@contextmanager
def _worker(dsn: str, evidence: Path) -> Iterator[str]:
    """Run a worker with the settings of a default installation; lend where it is scraped."""
    port = free_port()
    kept = {name: os.environ[name] for name in os.environ if not name.startswith("TOLLKEEPER_")}
    settings = {
        "TOLLKEEPER_CREDITS_DSN": dsn,
        "TOLLKEEPER_WORKER_PORT": str(port),
        "TOLLKEEPER_EVIDENCE": str(evidence),
        "TOLLKEEPER_LOG_LEVEL": "warning",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "tollkeeper", "worker"], env={**kept, **settings}
    ) as process:
        try:
            url = f"http://127.0.0.1:{port}/metrics"
            _wait_for(url)
            yield url
        finally:
            process.terminate()


def _wait_for(url: str) -> None:
    until_s = time.perf_counter() + STARTED_S
    while True:
        try:
            _counts(url)
        except OSError:
            if time.perf_counter() > until_s:
                raise
            time.sleep(0.05)
        else:
            return


def _counts(url: str) -> list[float]:
    """Return the worker's counters in the order of `_SAMPLES`."""
    with urlopen(url, timeout=5) as answer:
        text = answer.read().decode()
    return [float(found.findall(text)[0]) for found in _SAMPLES.values()]
