"""A database that restarts, or is killed, under a hundred writers: when is it written to again?

Every pool has 20 connections to a server of this benchmark's own; its writers try again a moment
after an error. A write tells since when the server runs that took it, so the first good one is
known. The server's own log says when it was ready, and how many connections came and when: those
it turned away because it was still starting count, too.
"""

import asyncio
import os
import re
import signal
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from random import Random

import uvloop

from benchmarks.bench import Bench
from benchmarks.figures import Figure
from benchmarks.measure import in_turns
from benchmarks.pool.contestants import (
    QUERIES,
    Contestant,
    asyncpg_pool,
    psycopg_pool_of,
    services_pool,
)
from tollkeeper.database.connect import connector
from tollkeeper.database.embedded import EmbeddedServer

CONNECTIONS = 20
WRITERS = 100
WRITE_TIMEOUT_S = 1.0
"""A writer gives up waiting for a connection after so long."""

PAUSE_S = 0.05
"""A writer tries again after half to one and a half of it."""

WARM_WRITES = 500
AFTERMATH_S = 1.0
"""Connections are counted for so long after the first good write."""

DEADLINE_S = 60.0
WANTED_S = 5.0
WINDOWS_S = (0.1, 1.0)

_READY = re.compile(
    rb"^(\S+ \S+) UTC .*database system is ready to accept connections", re.MULTILINE
)
_CONNECT = re.compile(rb"^(\S+ \S+) UTC .*connection received", re.MULTILINE)


class Blow(StrEnum):
    """What happens to the server."""

    RESTART = "a restart"
    KILL = "SIGKILL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """What came of one blow; seconds."""

    from_ready_s: float
    """First good write after the server said that it is ready."""
    from_blow_s: float
    failures: int
    """Writes that failed until the first good one."""
    peaks: tuple[int, ...]
    """Most connections that arrived within each of the windows."""


@dataclass(slots=True)
class _Writers:
    """What the writers of one pool saw."""

    pool: Contestant
    random: Random
    server_since_s: float = 0.0
    first_good_s: float | None = None
    """Of the server that runs now, on the wall clock, as the server's log is."""
    written: int = 0
    failures: int = 0
    is_over: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def write_on(self) -> None:
        while not self.is_over:
            try:
                since_s = await self.pool.write(WRITE_TIMEOUT_S)
            except Exception:  # noqa: BLE001  # every library has its own errors for a lost server
                self.failures += self.first_good_s is None
                await asyncio.sleep(PAUSE_S * (0.5 + self.random.random()))
                continue
            self.written += 1
            if since_s > self.server_since_s and self.first_good_s is None:
                self.first_good_s = time.time()
                self.server_since_s = since_s
            self.changed.set()

    def start_over(self) -> float:
        """Begin to count anew; return the time on the wall clock."""
        self.failures, self.first_good_s = 0, None
        return time.time()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


def measure(bench: Bench) -> list[Figure]:
    """Return the figures of restarts, of all pools."""
    directory = bench.fresh_directory("restarts")
    with EmbeddedServer.start(directory) as server:
        return uvloop.run(_measure(bench, server, directory / "postgres.log"))


async def _measure(bench: Bench, server: EmbeddedServer, log: Path) -> list[Figure]:
    connection = await connector(server.dsn("postgres"))()
    for query in ("create_marks", "log_connections", "reload"):
        await connection.execute(QUERIES[query])
    await connection.close()

    def measured(blow: Blow, pool: str) -> Callable[[], Awaitable[Outage]]:
        async def measure_round() -> Outage:
            async with OPENED[pool](server.dsn("postgres")) as opened:
                outage = await _outage(opened, server, blow, log)
            bench.say(
                f"{blow.value}, {pool}: written {outage.from_ready_s:.2f} s after the server was "
                f"ready, {outage.from_blow_s:.2f} s after the blow, {outage.failures} failures, "
                f"connects in {WINDOWS_S} s: {outage.peaks}"
            )
            return outage

        return measure_round

    figures: list[Figure] = []
    for blow in Blow:
        measures = {pool: measured(blow, pool) for pool in OPENED}
        outages = await in_turns(1 if bench.quick else 3, measures)
        figures += _figures(blow, outages)
    return figures


@asynccontextmanager
async def _ours(dsn: str) -> AsyncIterator[Contestant]:
    async with services_pool(dsn, size=CONNECTIONS) as (pool, _):
        yield pool


OPENED: Mapping[str, Callable[[str], AbstractAsyncContextManager[Contestant]]] = {
    "ours": _ours,
    "asyncpg.Pool": partial(asyncpg_pool, size=CONNECTIONS),
    "psycopg_pool": partial(psycopg_pool_of, size=CONNECTIONS),
}


async def _outage(pool: Contestant, server: EmbeddedServer, blow: Blow, log: Path) -> Outage:
    writers = _Writers(pool, Random(0))
    tasks = [asyncio.create_task(writers.write_on()) for _ in range(WRITERS)]
    try:
        await writers.until(lambda: writers.written > WARM_WRITES and pool.open() == CONNECTIONS)
        said, blow_s = len(_read(log)), writers.start_over()
        if blow is Blow.KILL:
            os.kill(server.pid, signal.SIGKILL)
        await asyncio.to_thread(server.restart)
        await writers.until(lambda: writers.first_good_s is not None)
        await asyncio.sleep(AFTERMATH_S)
    finally:
        writers.is_over = True
        await asyncio.gather(*tasks)
    first_good_s = writers.first_good_s
    assert first_good_s is not None
    text = _read(log)[said:]
    (ready_s,) = _times(_READY, text)
    connects_s = _times(_CONNECT, text)
    return Outage(
        from_ready_s=max(0.0, first_good_s - ready_s),
        from_blow_s=first_good_s - blow_s,
        failures=writers.failures,
        peaks=tuple(most_within(connects_s, window_s) for window_s in WINDOWS_S),
    )


def _read(log: Path) -> bytes:
    return log.read_bytes()


def _times(pattern: re.Pattern[bytes], text: bytes) -> list[float]:
    found = (f"{match.decode('ascii')}+00:00" for match in pattern.findall(text))
    return [datetime.fromisoformat(each).timestamp() for each in found]


def most_within(times_s: Sequence[float], window_s: float) -> int:
    """Return the most of rising times that lie within a window."""
    most = first = 0
    for last, time_s in enumerate(times_s):
        while time_s - times_s[first] >= window_s:
            first += 1
        most = max(most, last - first + 1)
    return most


def _figures(blow: Blow, outages: Mapping[str, Sequence[Outage]]) -> list[Figure]:
    figures: list[Figure] = []
    for pool, results in outages.items():
        is_ours = pool == "ours"
        blows = [each.from_blow_s for each in results]
        figures += [
            Figure(
                what=f"pool: first good write after {blow.value}, {pool}",
                value=max(each.from_ready_s for each in results),
                unit="s",
                target=WANTED_S if is_ours else None,
                at_most=True,
                note=f"the worst of {len(results)}, since the server was ready; "
                f"{min(blows):.1f} to {max(blows):.1f} s since the blow; "
                f"{statistics.median(each.failures for each in results):,.0f} failed writes",
            ),
            Figure(
                what=f"pool: connect peak after {blow.value}, {pool}",
                value=max(each.peaks[0] for each in results),
                unit="",
                note=f"arrived in any {WINDOWS_S[0] * 1_000:.0f} ms, as the server logs them; in "
                f"any {WINDOWS_S[1]:.0f} s {max(each.peaks[1] for each in results)}",
            ),
        ]
    return figures
