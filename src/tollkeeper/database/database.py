"""One database as a process sees it: its hosts and their health, its breakers, and its pools.

The one place where a check, a failed open and a lost connection meet. Reads and writes have a
breaker each: a database without a primary is still read. Invariants:
- pools connect where the last round of checks says, and everything that is open elsewhere expires;
- while a breaker is open nobody waits and nothing is opened for its pools; the round of checks
  holds the one permit that closes it again, so no caller's statement is the guinea pig;
- a breaker counts unreachable servers and lost connections, never errors of SQL, too many
  connections, wrong passwords or cancelled callers.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType, TracebackType
from typing import Final, Self

import structlog

from tollkeeper.database.connect import (
    close_gently,
    connector,
)
from tollkeeper.database.driver import Connection, LoggedQuery
from tollkeeper.database.dsn import Dsn, Host
from tollkeeper.database.errors import (
    DatabaseDown,
    DatabaseUnavailable,
    ReadOnlyServer,
    TooManyConnections,
)
from tollkeeper.database.health import ANSWERING_S, HealthMonitor, HostProbe, Pace
from tollkeeper.database.health import SESSION_SETTINGS as CHECK_SETTINGS
from tollkeeper.database.histogram import Histogram
from tollkeeper.database.limits import PoolLimits
from tollkeeper.database.opening import SAYS_WHY, ConnectLimiter, Guard, Ties
from tollkeeper.database.pgbouncer import is_pooled
from tollkeeper.database.places import Move, Places
from tollkeeper.database.pool import CLOSE_TIMEOUT_S, Pool
from tollkeeper.database.pooler import Pooler
from tollkeeper.database.queries import load_queries
from tollkeeper.database.roles import HostCheck
from tollkeeper.database.slot import Slot
from tollkeeper.database.slow import SlowQueries, failure_of
from tollkeeper.database.status import (
    Access,
    BreakerStatus,
    DatabaseStatus,
    HostState,
    HostStatus,
)
from tollkeeper.database.tuner import Tuner, TuningPlan
from tollkeeper.kernel.breaker import Breaker, BreakerRules, BreakerState, Permit
from tollkeeper.kernel.clock import Clock

OPEN_S: Final = 0.5
OPEN_CEILING_S: Final = 2.0
"""Times between probes of an open breaker: short, because a probe costs one connection, and a
restarted database should be found at once."""

CONNECT_TIMEOUT_S: Final = 5.0
WATCH_S: Final = 1.0

_NO_SETTINGS: Mapping[str, str] = MappingProxyType({})

_log = structlog.get_logger(__name__)


class Database:
    """The pools of one DSN, and what keeps them healthy; a context that runs while it is open."""

    def __init__(
        self,
        name: str,
        dsn: Dsn,
        *,
        clock: Clock,
        jitter: Callable[[], float],
        role: str | None = None,
        pooler: Pooler = Pooler.NONE,
        slow: SlowQueries,
        pace: Pace | None = None,
    ) -> None:
        self.name = name
        self.slow = slow
        self.operations = Histogram()
        """How long statements took, without waiting for a connection."""
        self._dsn = dsn
        self._clock = clock
        self._jitter = jitter
        self._pooler = pooler
        self._pace = pace or Pace()
        self._queries = load_queries("tollkeeper.database")
        self._pools: dict[str, Pool] = {}
        self._limiter = ConnectLimiter(clock)
        self._places = Places(dsn.hosts, now_s=clock.monotonic_s)
        self._permits: dict[Access, Permit] = {}
        self._breakers = {access: self._breaker(access) for access in Access}
        self._guards: dict[Access, Guard] = {
            access: _Guard(self, access, breaker) for access, breaker in self._breakers.items()
        }
        self._down_accesses: set[Access] = set()
        self.reason = "not looked at yet"
        """What was last known to be wrong."""
        self._tuner: Tuner | None = None
        self.too_many_total = 0
        """Opens that the server refused because it has no connection left (53300)."""
        self._tasks: list[asyncio.Task[None]] = []
        self.monitor = HealthMonitor(
            [self._probe(host, role) for host in dsn.hosts],
            clock=clock,
            jitter=jitter,
            pace=self._pace,
            begin=self._begin_round,
            judge=self._judge,
        )

    @property
    def pools(self) -> Mapping[str, Pool]:
        """The pools by name."""
        return self._pools

    @property
    def checks(self) -> Histogram:
        """Response times of health checks."""
        return self.monitor.checks

    def pool(
        self,
        name: str,
        *,
        access: Access,
        size: int,
        minimum: int = 0,
        role: str | None = None,
        settings: Mapping[str, str] = _NO_SETTINGS,
        command_timeout_s: float | None = None,
        limits: PoolLimits | None = None,
    ) -> Pool:
        """Make a pool for reads or writes, whose connections act as `role` with `settings`."""
        connects = {
            host: connector(
                self._dsn,
                role=role,
                settings=settings,
                host=host if len(self._dsn.hosts) > 1 else None,
                command_timeout_s=command_timeout_s,
                pooler=self._pooler,
                connect_timeout_s=CONNECT_TIMEOUT_S,
            )
            for host in self._dsn.hosts
        }

        async def connect() -> Connection:
            host = await self._home(access)
            connection = await connects[host]()
            self._places.note_connected(connection, host)
            if access is Access.READ or await self._takes_writes(connection, host):
                return connection
            await close_gently(connection, CLOSE_TIMEOUT_S)
            raise ReadOnlyServer(reason=f"{host} takes no writes")

        pool = Pool(
            connect,
            size=size,
            minimum=minimum,
            clock=self._clock,
            name=name,
            access=access,
            limits=limits,
            ties=Ties(
                guard=self._guards[access],
                limiter=self._limiter,
                jitter=self._jitter,
                observe=partial(self._observe, access),
            ),
        )
        self._pools[name] = pool
        if self._tasks:
            pool.warm()
        return pool

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self.monitor.run(), name=f"{self.name}-health"),
            asyncio.create_task(self._watch(), name=f"{self.name}-watch"),
        ]
        for pool in self._pools.values():
            pool.warm()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(pool.close() for pool in self._pools.values()))

    def status(self) -> DatabaseStatus:
        """Return how everything stands now."""
        checked = [each.checked_at for each in self.monitor.probes if each.checked_at is not None]
        return DatabaseStatus(
            name=self.name,
            health=self.monitor.health,
            checked_at=max(checked, default=None),
            budget=None if self._tuner is None else self._tuner.budget,
            tuning=None if self._tuner is None else self._tuner.said,
            hosts=tuple(self._host_status(probe) for probe in self.monitor.probes),
            breakers=tuple(
                BreakerStatus(
                    access=access,
                    state=breaker.state,
                    retry_after_s=breaker.retry_after_s,
                    opened_total=breaker.opened_total,
                )
                for access, breaker in self._breakers.items()
            ),
            pools=tuple(pool.status() for pool in self._pools.values()),
        )

    def wake(self) -> None:
        """Have every pool that pauses after a failure try again."""
        for pool in self._pools.values():
            if pool.has_failed:
                pool.wake()

    def is_answering(self, access: Access) -> bool:
        """Say whether a pool of this access did a moment ago what it is for."""
        return self._clock.monotonic_s() - self._places.served_s(access) < ANSWERING_S

    def tune(self, plan: TuningPlan) -> None:
        """Have the size of a pool follow its load, within what the server has room for.

        Not behind a pooler: whose connections those are, the server does not know.
        """
        if self._pooler is Pooler.NONE:
            self._tuner = Tuner(
                self._pools[plan.pool],
                plan,
                operations=self.operations,
                refusals=lambda: self.too_many_total,
                now_s=self._clock.monotonic_s(),
            )

    # Making the parts ----------------------------------------------------------------------------

    def _breaker(self, access: Access) -> Breaker:
        rules = BreakerRules(
            failures=3,
            open_s=OPEN_S,
            ceiling_s=OPEN_CEILING_S,
            probe_s=self._pace.check_timeout_s + 1.0,
        )
        return Breaker(
            rules,
            monotonic_s=self._clock.monotonic_s,
            jitter=self._jitter,
            on_change=lambda state: self._changed(access, state),
        )

    def _probe(self, host: Host, role: str | None) -> HostProbe:
        def connect(role: str | None) -> Callable[[], Awaitable[Connection]]:
            return connector(
                self._dsn,
                role=role,
                settings=CHECK_SETTINGS,
                host=host if len(self._dsn.hosts) > 1 else None,
                pooler=self._pooler,
            )

        return HostProbe(
            host,
            connect(role),
            connect(None),
            clock=self._clock,
            timeout_s=self._pace.check_timeout_s,
            answered_s=lambda each, writes: self._places.answered_s(each, writes=writes),
        )

    async def _home(self, access: Access) -> Host:
        """Return where to connect; of several hosts the first round of checks tells which."""
        if self._places.home(access) is None:
            await self.monitor.looked.wait()
        host = self._places.home(access)
        if host is None:
            raise DatabaseUnavailable(reason=self.reason)
        return host

    async def _takes_writes(self, connection: Connection, host: Host) -> bool:
        """Say whether a server takes writes: by its greeting, which costs no round trip."""
        if is_pooled(connection):
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    return not await connection.fetchval(self._queries["takes_no_writes"])
            except Exception as error:  # noqa: BLE001  # as whatever fails while connecting
                connection.terminate()
                reason = f"{host} was asked in vain: {str(error) or type(error).__name__}"
                raise DatabaseUnavailable(reason=reason) from None
            except asyncio.CancelledError:
                connection.terminate()
                raise
        settings = connection.get_settings()
        return "on" not in {
            getattr(settings, "in_hot_standby", "off"),
            getattr(settings, "default_transaction_read_only", "off"),
        }

    # What the pools tell -------------------------------------------------------------------------

    def _observe(self, access: Access, slot: Slot, query: LoggedQuery) -> None:
        """Learn from a statement that has ended."""
        failure = query.exception
        self.operations.observe(query.elapsed)
        if failure is None:
            self._places.note_answer(slot.connection, access, query.query)
        self.slow.note(
            query.query,
            args=query.args,
            # The wait belongs to the first statement that does something.
            wait_s=0.0 if query.query.startswith("BEGIN") else slot.take_wait_s(),
            run_s=query.elapsed,
            failed=failure_of(failure),
        )

    # Rounds of checks ----------------------------------------------------------------------------

    def _begin_round(self) -> None:
        """Take the permits of a round: of an open breaker whose time is over, the only one."""
        for access, breaker in self._breakers.items():
            permit = breaker.permit()
            if permit is not None:
                self._permits[access] = permit

    def _judge(self, checks: Sequence[HostCheck]) -> float | None:
        """Draw the consequences of a round; return when to look again, if a breaker is open."""
        moves = self._places.judge(checks)
        choice = self._places.choice
        self.reason = "; ".join(map(_said, checks))
        is_unknown = any(check.state is HostState.UNKNOWN for check in checks)
        for access, host in ((Access.WRITE, choice.writes), (Access.READ, choice.reads)):
            permit = self._permits.pop(access, None)
            if permit is None:
                continue
            if host is not None:
                self._breakers[access].succeeded(permit)
            elif is_unknown:
                self._breakers[access].dropped(permit)
            else:
                self._breakers[access].failed(permit)
        if choice.writes is None and self._places.says_read_only():
            self._breakers[Access.WRITE].trip()  # nothing to make sure of
        for move in moves:
            self._move(move)
        for check in checks:
            if self._tuner is not None and check.host == choice.writes and check.connections:
                self._tuner.learn(*check.connections)
        waits = [each.retry_after_s for each in self._breakers.values() if not each.is_closed]
        if choice.writes is None and self._breakers[Access.WRITE].is_closed:
            waits.append(self._pace.failing_period_s)
        return min(waits) if waits else None

    def _move(self, move: Move) -> None:
        """Have pools connect somewhere else."""
        for pool in self._pools_of(move.access):
            if move.former is not None and (move.is_former_silent or pool.access is Access.WRITE):
                # A commit over there would be lost, or wait for ever; its key tells what became.
                pool.hang_up()
            elif move.former is not None:
                pool.expire()
            pool.wake()
        if move.former is not None:
            _log.warning(
                "database.moved", database=self.name, access=move.access.value,
                to=str(move.present), former=str(move.former),
            )  # fmt: skip

    def _changed(self, access: Access, state: BreakerState) -> None:
        """Do for the pools what a breaker's change means."""
        if state is BreakerState.CLOSED:
            self._down_accesses.discard(access)
            _log.info("database.up", database=self.name, access=access.value)
            for pool in self._pools_of(access):
                pool.wake()
            return
        if access in self._down_accesses:
            return  # a probe goes out, or has failed: it is down as before
        self._down_accesses.add(access)
        _log.error("database.down", database=self.name, access=access.value, reason=self.reason)
        for pool in self._pools_of(access):
            if access is Access.WRITE and self._places.says_read_only():
                pool.expire()
            else:
                pool.hang_up()
            pool.refuse_waiting(lambda: self.down(access))

    def down(self, access: Access) -> DatabaseDown:
        """Return what callers of pools get while the breaker is open."""
        return DatabaseDown(
            reason=self.reason,
            retry_after_s=self._breakers[access].retry_after_s,
            access=access.value,
        )

    def _pools_of(self, access: Access) -> Iterable[Pool]:
        return [pool for pool in self._pools.values() if pool.access is access]

    def _host_status(self, probe: HostProbe) -> HostStatus:
        last = probe.last
        return HostStatus(
            host=str(probe.host),
            state=last.state,
            is_writes=probe.host == self._places.choice.writes,
            is_reads=probe.host == self._places.choice.reads,
            latency_s=last.latency_s,
            lag_s=last.lag_s,
            probe=last.probe,
            version=last.version,
            timeline=last.timeline,
            checked_at=probe.checked_at,
            fault=last.fault,
        )

    async def _watch(self) -> None:
        """Have the hosts looked at when statements get no answer, and the pool tuned."""
        while True:
            await self._clock.sleep(WATCH_S)
            try:
                self._watch_once(self._clock.monotonic_s())
            except Exception:  # noqa: BLE001  # the task's edge: it must not end
                _log.exception("database.watch_failed", database=self.name)

    def _watch_once(self, now_s: float) -> None:
        since_s = now_s - self._pace.stall_s
        if any(
            pool.is_stalled(since_s) and self._places.served_s(pool.access) < since_s
            for pool in self._pools.values()
        ):
            self.monitor.look()
        if self._tuner is not None:
            self._tuner.tick(now_s)


class _Guard:
    """What the pools of one access ask and tell: a `Guard`."""

    def __init__(self, database: Database, access: Access, breaker: Breaker) -> None:
        self._database = database
        self._access = access
        self._breaker = breaker

    def refusal(self) -> DatabaseUnavailable | None:
        """Return why nobody is served; None while the breaker is closed."""
        return None if self._breaker.is_closed else self._database.down(self._access)

    def permit(self) -> Permit | None:
        """Return leave to open; what an open breaker allows is the health monitor's."""
        return self._breaker.permit() if self._breaker.is_closed else None

    def opened(self, permit: Permit, /) -> None:
        """Learn that connecting works, also for pools that pause because it did not.

        It does not end a row of failures: checks may fail while connecting works.
        """
        self._breaker.dropped(permit)
        self._database.wake()

    def failed(self, permit: Permit, error: BaseException, /) -> None:
        """Learn that it does not; a server that says why is not lost."""
        if isinstance(error, TooManyConnections):
            self._database.too_many_total += 1
        if isinstance(error, SAYS_WHY) or not isinstance(error, DatabaseUnavailable):
            self._breaker.dropped(permit)
            return
        self._database.monitor.suspect()
        if self._database.is_answering(self._access):
            self._breaker.dropped(permit)  # connecting fails, what is connected works
        else:
            self._database.reason = error.reason
            self._breaker.failed(permit)

    def lost(self, _error: BaseException | None, /) -> None:
        """Have the hosts looked at."""
        self._database.monitor.suspect()

    def stalled(self) -> None:
        """Have the hosts looked at, unless statements are answered: then it is only slow."""
        if not self._database.is_answering(self._access):
            self._database.monitor.suspect()


def _said(check: HostCheck) -> str:
    """Say how a host is; most faults name it already."""
    said, host = check.fault or check.state.value, str(check.host)
    return said if host in said else f"{host}: {said}"
