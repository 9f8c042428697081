"""What every benchmark is given: a server, fresh databases, a pace, a place to report."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measure import Load, Sample
from tollkeeper.database.embedded import EmbeddedServer
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.migrate.service import migrate


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The server under test and the pace; `quick` is for a first look, its figures are rough."""

    server: EmbeddedServer
    directory: Path
    quick: bool
    soak: bool
    say: Callable[[str], None]
    _numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    @property
    def rounds(self) -> int:
        """Rounds of every comparison."""
        return 3 if self.quick else 5

    def load(self, callers: int) -> Load:
        """Return the load of one round."""
        return Load(callers=callers, seconds=2.0 if self.quick else 5.0, warm_up_s=0.5)

    def reported(
        self, what: str, measure: Callable[[], Awaitable[Sample]]
    ) -> Callable[[], Awaitable[Sample]]:
        """Return `measure` with a line of progress for each round."""

        async def measure_and_say() -> Sample:
            sample = await measure()
            self.say(
                f"{what}: {sample.rate:,.0f}/s, P50 {sample.p50_ms:.2f}, P95 {sample.p95_ms:.2f}, "
                f"P99 {sample.p99_ms:.2f} ms, load {sample.load_average:.1f}"
            )
            return sample

        return measure_and_say

    def fresh_directory(self, name: str) -> Path:
        """Return the path of a directory that does not exist yet; removed in the end."""
        return self.directory / f"{name}_{next(self._numbers)}"

    def empty_database(self, name: str) -> str:
        """Make an empty database and return its DSN."""
        unique = f"{name}_{next(self._numbers)}"
        self.server.create_database(unique)
        return self.server.dsn(unique)

    def migrated_database(self, name: str) -> str:
        """Make a database with all migrations of `name` and return its DSN."""
        dsn = self.empty_database(name)
        asyncio.run(migrate(dsn, name, clock=SystemClock()))
        return dsn
