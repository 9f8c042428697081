"""Writes while the schema moves: the rate of a busy engine during `up`, and its longest wait.

The files are of the kind that a release brings: columns, a table with a function, a constraint that
is validated later, an index built concurrently. In a round of "during" one such release begins
every `PERIOD_S`, oftener than anybody releases; its rate is compared with a round of peace. On two
cores that are busy with the load alone, what `up` computes is taken from it.
"""

import asyncio
import contextlib
import time
from collections.abc import Sequence

import uvloop

from benchmarks.bench import Bench
from benchmarks.credits.engine import CALLERS, MANY_ACCOUNTS, measure_engine, running_engine
from benchmarks.credits.workload import FIRST_BALANCE_MINOR, account_names, open_accounts
from benchmarks.figures import Figure, load_note
from benchmarks.measure import Sample, in_pairs, median_rate, median_ratio
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.migrate.model import Migration
from tollkeeper.migrate.script import migration_from
from tollkeeper.migrate.service import Run, new_run_id, shipped_migrations, up
from tollkeeper.migrate.session import Patience
from tollkeeper.serving import quiet_collector

WANTED_SHARE = 0.9
"""Of the undisturbed rate (issue 5)."""

PERIOD_S = 1.0
"""Between the beginnings of two releases."""

_LIMITS = "SET LOCAL lock_timeout = '2s';\nSET LOCAL statement_timeout = '60s';\n"

_FILES = (
    f"-- up\n{_LIMITS}ALTER TABLE accounts ADD COLUMN note_@ text;\n",
    f"-- up\n{_LIMITS}ALTER TABLE credit_transactions ADD COLUMN region_@ text;\n",
    (
        f"-- up\n{_LIMITS}CREATE TABLE labels_@ (account_id text, label text);\n"
        "CREATE FUNCTION label_@() RETURNS integer LANGUAGE sql AS 'SELECT 1';\n"
        "GRANT SELECT ON labels_@ TO tollkeeper_credits;\n"
    ),
    (
        f"-- up\n{_LIMITS}ALTER TABLE accounts ADD CONSTRAINT note_@_short\n"
        "CHECK (length(note_@) < 100) NOT VALID;\n"
    ),
    f"-- up\n{_LIMITS}ALTER TABLE accounts VALIDATE CONSTRAINT note_@_short;\n",
    (
        "-- up transaction:false\nCREATE INDEX CONCURRENTLY tenants_@ ON accounts (tenant_id);\n"
        "-- verify\nSELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('tenants_@');\n"
    ),
    f"-- up\n{_LIMITS}DROP INDEX tenants_@;\n",
)
"""One release; `@` is its number. (The index goes again: ten of them would be the load.)"""


def measure(bench: Bench) -> list[Figure]:
    """Return the share of the rate that is left during `up`, and the longest wait."""
    return uvloop.run(_measure(bench, bench.migrated_database("credits")))


async def _measure(bench: Bench, dsn: str) -> list[Figure]:
    quiet_collector()
    names, load = account_names(MANY_ACCOUNTS), bench.load(CALLERS)
    what = f"engine, {CALLERS} callers, {MANY_ACCOUNTS:,} accounts"
    releases = _Releases(dsn)
    async with running_engine(dsn) as under_test:
        await open_accounts(under_test.engine, names, FIRST_BALANCE_MINOR)

        async def round_of(seed: int) -> Sample:
            return await measure_engine(under_test, names, load, seed=seed)

        async def during_up() -> Sample:
            is_over = asyncio.Event()
            applying = asyncio.create_task(releases.apply_until(is_over))
            try:
                return await round_of(1)
            finally:
                is_over.set()
                await applying

        pairs = await in_pairs(
            bench.rounds,
            bench.reported(f"{what}, during up", during_up),
            bench.reported(what, lambda: round_of(0)),
        )
    ours, theirs = tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
    timeout_ms = Patience().lock_timeout_ms
    return [
        Figure(
            what="writes during `up` of an expand-style migration", value=median_ratio(pairs),
            unit="of 1", target=WANTED_SHARE, samples=ours, compared=theirs,
            note=f"{median_rate(ours):,.0f}/s : {median_rate(theirs):,.0f}/s, {releases.files} "
            f"files applied, {len(_FILES)} every {PERIOD_S:g} s, {load_note(ours)}",
        ),
        Figure(
            what="longest wait of a caller during `up`",
            value=max(sample.max_ms for sample in ours), unit="ms", target=timeout_ms,
            at_most=True,
            note=f"undisturbed {max(sample.max_ms for sample in theirs):,.0f} ms; lock_timeout "
            f"{timeout_ms} ms",
        ),
    ]  # fmt: skip


class _Releases:
    """Applies one made-up release after the other."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._known: list[Migration] = list(shipped_migrations("credits"))
        self._shipped = len(self._known)

    @property
    def files(self) -> int:
        """Return how many files were applied."""
        return len(self._known) - self._shipped

    async def apply_until(self, is_over: asyncio.Event) -> None:
        """Apply releases until it is over; one that is under way is finished."""
        while not is_over.is_set():
            began_s = time.perf_counter()
            await self._apply(self._next())
            pause_s = max(0.0, PERIOD_S - (time.perf_counter() - began_s))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(is_over.wait(), pause_s)

    def _next(self) -> Sequence[Migration]:
        number = len(self._known)
        for offset, text in enumerate(_FILES, start=1):
            name = f"{number + offset:04}_release.sql"
            self._known.append(migration_from("credits", name, text.replace("@", str(number))))
        return tuple(self._known)

    async def _apply(self, available: Sequence[Migration]) -> None:
        clock = SystemClock()
        await up(
            Run(
                dsn=self._dsn, database="credits", available=available, clock=clock,
                run_id=new_run_id(clock),
            )
        )  # fmt: skip
