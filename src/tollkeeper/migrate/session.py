"""The two sessions of a runner: one changes the schema, the other holds the lock and watches.

The lock is on a session of its own because a lock taken where the work is done would either open a
unit of work, which CREATE INDEX CONCURRENTLY does not bear, or be lost with the statement that
breaks the connection. The working session has a second lock: while the server still runs the last
statement of a killed runner, nobody else begins.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import asyncpg

from tollkeeper.database.connect import close_gently, connector, is_connection_lost
from tollkeeper.database.driver import Connection
from tollkeeper.database.dsn import parse_dsn
from tollkeeper.database.errors import DatabaseError, DatabaseUnavailable, ReadOnlyServer
from tollkeeper.kernel.backoff import Backoff
from tollkeeper.kernel.clock import Clock
from tollkeeper.migrate.errors import (
    OtherWork,
    PoolerRefused,
    RunnerBusy,
    RunnerLockLost,
    RunnerRefused,
)
from tollkeeper.migrate.report import Tell
from tollkeeper.migrate.store import LockWait, MigrationStore

CLOSE_TIMEOUT_S = 2.0
"""How long the goodbye may take; a statement of ours that still runs is cancelled by it."""

WATCH_PERIOD_S = 0.02
"""How often the watching session looks what the working one waits for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a runner waits: for another runner, for a lock, and before it tries again.

    By default a file is tried six times for two seconds each, about 15 s together.
    """

    runner_wait_s: float = 60.0
    poll_interval_s: float = 0.1
    lock_timeout_ms: int = 2_000
    backoff: Backoff = field(default_factory=lambda: Backoff(first_ms=100.0))


class RunnerSession:
    """Both sessions of one runner on one database."""

    def __init__(
        self,
        database: str,
        work: Connection,
        watch: Connection,
        *,
        clock: Clock,
        patience: Patience,
        tell: Tell,
    ) -> None:
        self.database = database
        self.work = work
        self.store = MigrationStore(work)
        self.watcher = MigrationStore(watch)
        self.clock = clock
        self.patience = patience
        self.tell = tell

    async def begin(self) -> None:
        """Become the one runner of this database.

        Raises:
            PoolerRefused, OtherWork, RunnerBusy: it cannot be; nothing was changed.
        """
        for store in (self.store, self.watcher):
            if await store.is_pooled():
                raise PoolerRefused(where=self.database)
            # Not in the greeting: a pooler would refuse that before it is known to be one.
            await store.be_patient()
        await self.store.notice_dead_client()
        await self.watcher.note_quickly()
        await self._lock(self.watcher.try_lock)
        await self._lock(self.store.try_work_lock)
        dump = await self.watcher.find_dump()
        if dump is not None:
            raise OtherWork(database=self.database, what=dump)

    async def check_lock(self) -> None:
        """Make sure, before something lasts, that we are still the one runner.

        Raises:
            RunnerLockLost: the session that held the lock is gone, or another's.
        """
        try:
            is_ours = await self.watcher.holds_lock()
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise RunnerLockLost(database=self.database) from error
        if not is_ours:
            raise RunnerLockLost(database=self.database)

    async def end(self) -> None:
        """Let the next runner in; on any error the locks end with their sessions.

        Raises:
            RunnerLockLost: a lock was not ours.
        """
        is_ours = [await self.store.unlock_work(), await self.watcher.unlock()]
        if not all(is_ours):
            raise RunnerLockLost(database=self.database)

    @asynccontextmanager
    async def watching(
        self, told: Callable[[LockWait], None]
    ) -> AsyncIterator[Callable[[], float]]:
        """Look, while the block runs, what the working session waits for.

        Yields a function that returns for how many milliseconds it waited for locks, to
        `WATCH_PERIOD_S`; `told` hears of every wait once.
        """
        waits, is_over = _Waits(told), asyncio.Event()
        pid = self.work.get_server_pid()

        async def look() -> None:
            while not is_over.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(is_over.wait(), WATCH_PERIOD_S)
                    return
                waits.add(await self.watcher.lock_wait(pid))

        watching = asyncio.create_task(look(), name="watch lock waits")
        try:
            yield lambda: waits.total_ms
        finally:
            is_over.set()
            # A look under way is not cut: that would cost a connection to say so. If it failed,
            # whoever asks next whether the lock is held finds out.
            await asyncio.wait([watching], timeout=CLOSE_TIMEOUT_S)
            if not watching.done():
                watching.cancel()
            elif not watching.cancelled():
                watching.exception()

    async def _lock(self, try_lock: Callable[[], Awaitable[bool]]) -> None:
        limit_s = self.clock.monotonic_s() + self.patience.runner_wait_s
        has_said = False
        while not await try_lock():
            holder = await self.watcher.find_lock_holder()
            if self.clock.monotonic_s() >= limit_s:
                raise RunnerBusy(
                    database=self.database,
                    holder=holder or "it ended just now, run again",
                    waited_s=self.patience.runner_wait_s,
                )
            if holder is not None and not has_said:
                self.tell({"event": "migrate.waiting", "database": self.database, "holder": holder})
                has_said = True
            await self.clock.sleep(self.patience.poll_interval_s)


class _Waits:
    """Adds up the waits that a series of looks has seen."""

    def __init__(self, told: Callable[[LockWait], None]) -> None:
        self._told = told
        self._ended_ms = 0.0
        self._current_ms = 0.0

    @property
    def total_ms(self) -> float:
        return round(self._ended_ms + self._current_ms, 1)

    def add(self, wait: LockWait | None) -> None:
        waited_ms = 0.0 if wait is None else wait.waited_s * 1_000
        if waited_ms < self._current_ms or wait is None:  # the one before is over
            self._ended_ms += self._current_ms
            self._current_ms = 0.0
        if wait is not None:
            if not self._current_ms:
                self._told(wait)
            self._current_ms = waited_ms


@asynccontextmanager
async def runner_session(
    dsn: str,
    database: str,
    *,
    clock: Clock,
    patience: Patience,
    tell: Tell,
    stand_in: str | None = None,
) -> AsyncIterator[RunnerSession]:
    """Connect to the database's primary, twice; or to the database `stand_in` beside it.

    Raises:
        DatabaseError: no host of the DSN is there and takes writes.
    """
    async with connected(dsn, database, stand_in=stand_in) as (work, again):
        watch = await again()
        try:
            yield RunnerSession(database, work, watch, clock=clock, patience=patience, tell=tell)
        finally:
            await close_gently(watch, CLOSE_TIMEOUT_S)


@asynccontextmanager
async def connected(
    dsn: str, database: str, *, stand_in: str | None = None
) -> AsyncIterator[tuple[Connection, Callable[[], Awaitable[Connection]]]]:
    """Connect to the first host of a DSN that takes writes; with what connects there again.

    Raises:
        DatabaseError: there is none, or it went away during the block.
        RunnerRefused: the server refused something during the block that nobody has explained.
    """
    settings = {"application_name": f"tollkeeper migrate {database}"}
    parsed = parse_dsn(dsn)
    failed: DatabaseError | None = None
    for host in parsed.hosts:
        connect = connector(parsed, settings=settings, host=host, database=stand_in)
        try:
            connection = await connect()
        except DatabaseError as error:
            failed = failed or error
            continue
        try:
            if len(parsed.hosts) > 1 and await MigrationStore(connection).is_standby():
                failed = failed or ReadOnlyServer(reason=f"{host} is a standby")
                continue
            with _explained(database):
                yield connection, connect
            return
        finally:
            await close_gently(connection, CLOSE_TIMEOUT_S)
    assert failed is not None
    raise failed


@contextmanager
def _explained(database: str) -> Iterator[None]:
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        if is_connection_lost(error):
            raise DatabaseUnavailable(reason=str(error)) from error
        if isinstance(error, asyncpg.PostgresError):
            raise RunnerRefused(database=database, reason=str(error)) from error
        raise
