"""Looks how the hosts of a database are, on connections of its own.

Never through a pool: a ping that queues behind the traffic it judges declares a healthy database
dead (terraform-aws-n8n #106). A check asks for role, timeline and lag, and writes to a one-row
table; a host that answers and cannot do that is not a primary. What follows from a round of checks
is decided by others (`roles.py`, `database.py`): this paces the rounds.

A check that takes too long proves nothing while the host's statements are answered: then the host
keeps its state, and is suspect. For the write that a check makes, writes count only: where commits
wait for a synchronous standby that is gone, reads are answered as ever.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

import asyncpg
import structlog

from tollkeeper.database.connect import close_gently, is_connection_lost, is_schema_missing
from tollkeeper.database.driver import Connection, Row
from tollkeeper.database.dsn import Host
from tollkeeper.database.errors import DatabaseUnavailable, SchemaMissing, TooManyConnections
from tollkeeper.database.histogram import Histogram
from tollkeeper.database.queries import load_queries
from tollkeeper.database.roles import HostCheck
from tollkeeper.database.status import Health, HostState, Probe
from tollkeeper.database.timeouts import Timeouts
from tollkeeper.kernel.clock import Clock

LEAST_PERIOD_S = 0.25
"""However often something goes wrong, rounds begin no closer together."""

JITTER = 0.2
"""Share of a period by which it is longer or shorter: replicas do not look together."""

CLOSE_TIMEOUT_S = 0.5
LAG_S = 0.1
"""So long an answer is looked for after its limit: it may have come while this process was busy."""

ANSWERING_S = 1.0
"""What was answered no longer ago than this is answered now."""

CONFIRM_S = 0.25
"""A host that cannot be connected to is lost, unless a statement is answered within this time."""

CANNOT_WRITE_STATES = ("25006", "53", "57014", "58", "XX")
"""Read-only, no disk or memory left, out of time, input/output error, corruption: what writes would
meet, too. Anything else (the table's grants are not there) says nothing about them."""

SESSION_SETTINGS: Final[Mapping[str, str]] = {
    "application_name": "tollkeeper health",
    **Timeouts(statement_s=2, lock_s=1, idle_in_transaction_s=5).settings(),
}
"""What the connections of checks are opened with."""

Connect = Callable[[], Awaitable[Connection]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often hosts are looked at, and how long that may take. Seconds."""

    period_s: float = 30.0
    """Between two rounds when all is well (SPEC D1)."""
    suspect_period_s: float = 5.0
    """Between two rounds after something went wrong, for `suspect_for_s`."""
    suspect_for_s: float = 30.0
    failing_period_s: float = 0.5
    """Until the next round after one that found no primary, while the breaker is closed."""
    check_timeout_s: float = 2.0
    """A host that has not answered by then counts as not answering."""
    stall_s: float = 2.0
    """When a connection is held so long and nothing is answered, the hosts are looked at."""


_log = structlog.get_logger(__name__)


class HostProbe:
    """The checks of one host, over one connection that is kept while it is good."""

    def __init__(
        self,
        host: Host,
        connect: Connect,
        connect_plainly: Connect,
        *,
        clock: Clock,
        timeout_s: float,
        answered_s: Callable[[Host, bool], float],
    ) -> None:
        self.host = host
        self.last = HostCheck(host=host, state=HostState.UNKNOWN)
        self._said = self.last
        self.checked_at: datetime | None = None
        self._connect = connect
        self._connect_plainly = connect_plainly
        self._clock = clock
        self._timeout_s = timeout_s
        self._answered_s = answered_s
        self._connection: Connection | None = None
        self._is_writing = False
        self._queries = load_queries("tollkeeper.database")

    async def check(self) -> HostCheck:
        """Look at the host; every failure is a result."""
        began_s = self._clock.monotonic_s()
        self._is_writing = False
        try:
            self.last = self._said = await self._check_in_time()
        except TimeoutError:
            self._drop()
            self.last = self._out_of_time(began_s)
        except Exception as error:  # noqa: BLE001  # in whatever way a check fails, that is its result
            self._drop()
            self.last = await self._failed(error)
        self.checked_at = self._clock.now()
        return self.last

    async def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            await close_gently(self._connection, CLOSE_TIMEOUT_S)

    async def _check_in_time(self) -> HostCheck:
        check = asyncio.ensure_future(self._check())
        try:
            for limit_s in (self._timeout_s, LAG_S):
                done, _ = await asyncio.wait({check}, timeout=limit_s)
                if done:
                    return check.result()
            raise TimeoutError
        finally:
            if not check.done():
                check.cancel()
                await asyncio.wait({check})

    async def _check(self) -> HostCheck:
        kept, self._connection = self._connection, None
        if kept is not None and not kept.is_closed():
            try:
                return await self._ask(kept)
            except Exception as error:
                kept.terminate()
                if not is_connection_lost(error):
                    raise
        # It may have been lost long ago, with no harm to anybody: a new one tells.
        return await self._ask(await self._open())

    async def _open(self) -> Connection:
        try:
            return await self._connect()
        except SchemaMissing:  # the role is made by the migrations
            return await self._connect_plainly()

    async def _ask(self, connection: Connection) -> HostCheck:
        began_s = self._clock.monotonic_s()
        try:
            row = await connection.fetchrow(self._queries["check_role"])
            assert row is not None
            probe, fault = await self._probe(connection, row)
        except BaseException:
            connection.terminate()
            raise
        self._connection = connection
        wal_file: str | None = row["wal_file"]
        version = connection.get_server_version()
        return HostCheck(
            host=self.host,
            state=_state_of(row, probe),
            timeline=None if wal_file is None else int(wal_file[:8], 16),
            latency_s=self._clock.monotonic_s() - began_s,
            lag_s=row["lag_s"],
            probe=probe,
            connections=(row["max_connections"], row["reserved"]),
            says_read_only=row["in_recovery"] or row["read_only"],
            version=f"{version.major}.{version.micro}",
            fault=fault,
        )

    async def _probe(self, connection: Connection, row: Row) -> tuple[Probe, str | None]:
        """Write to the one-row table, or to the log alone; nobody's lock is waited for."""
        if row["in_recovery"] or row["read_only"]:
            return Probe.SKIPPED, None
        self._is_writing = True
        probe, fault = await _write(connection, self._queries["probe_write"])
        if probe in {Probe.SKIPPED, Probe.MISSING}:
            # Somebody holds the row, perhaps a check whose commit never ends: that must not pass
            # for a write. Nor must a database that is not migrated.
            logged, failure = await _write(connection, self._queries["write_elsewhere"])
            return (logged, failure) if logged is Probe.FAILED else (probe, fault)
        return probe, fault

    def _out_of_time(self, began_s: float) -> HostCheck:
        """Judge a host that answered nothing, or did not finish a write, in time."""
        fault = f"no answer in {self._timeout_s:g} s"
        probe, state = Probe.SKIPPED, HostState.OFFLINE
        if self._is_writing:
            fault = f"a write was not finished in {self._timeout_s:g} s"
            probe, state = Probe.FAILED, HostState.READ_ONLY
        if self._answered_s(self.host, self._is_writing) >= began_s:
            return self._as_before(f"{fault}; others were")
        return HostCheck(host=self.host, state=state, probe=probe, fault=fault)

    async def _failed(self, error: Exception) -> HostCheck:
        """Judge a host to which the check could not connect, or that it lost.

        A server that has no place left for a check is not lost, nor is one whose statements are
        answered: then the way to it may be closed to new connections only.
        """
        fault = error.reason if isinstance(error, DatabaseUnavailable) else str(error)
        fault = fault or type(error).__name__
        if isinstance(error, TooManyConnections):
            return self._as_before(fault)
        failed_s = self._clock.monotonic_s()
        await self._clock.sleep(CONFIRM_S)
        if self._answered_s(self.host, False) > failed_s:
            return self._as_before(fault)
        return HostCheck(host=self.host, state=HostState.OFFLINE, fault=fault)

    def _as_before(self, fault: str) -> HostCheck:
        """Return what the host last said itself: this check proved nothing."""
        return replace(self._said, latency_s=None, fault=fault)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


class HealthMonitor:
    """Rounds of checks over all hosts, as often as the last ones make it worth."""

    def __init__(
        self,
        probes: Sequence[HostProbe],
        *,
        clock: Clock,
        jitter: Callable[[], float],
        pace: Pace,
        begin: Callable[[], None],
        judge: Callable[[Sequence[HostCheck]], float | None],
    ) -> None:
        self.probes = tuple(probes)
        self.health = Health.UNKNOWN
        self.checks = Histogram()
        """Response times of the checks that were answered."""
        self._clock = clock
        self._jitter = jitter
        self._pace = pace
        self._begin = begin
        self._judge = judge
        self._woken = asyncio.Event()
        self._suspect_until_s = 0.0
        self._began_s = 0.0
        self.looked = asyncio.Event()
        """Set after the first round."""

    async def run(self) -> None:
        """Look at the hosts until cancelled."""
        try:
            while True:
                self._woken.clear()
                try:
                    pause_s = await self._round()
                except Exception:  # noqa: BLE001  # the task's edge
                    # Without rounds no breaker would ever close again.
                    _log.exception("database.round_failed")
                    pause_s = self._pace.suspect_period_s
                self.looked.set()
                await self._rest(max(LEAST_PERIOD_S, pause_s))
        finally:
            await asyncio.gather(*(probe.close() for probe in self.probes))

    def suspect(self) -> None:
        """Look now, and more often for a while: something went wrong."""
        self._suspect_until_s = self._clock.monotonic_s() + self._pace.suspect_for_s
        if self.health is Health.HEALTHY:
            self.health = Health.SUSPECT
        self._woken.set()

    def look(self) -> None:
        """Look now, without a reason for doubt, if the last round was not just now."""
        if self._clock.monotonic_s() - self._began_s >= self._pace.suspect_period_s:
            self._woken.set()

    async def _round(self) -> float:
        """Check all hosts at once; return the pause until the next round."""
        self._began_s = self._clock.monotonic_s()
        self._begin()
        checks = await asyncio.gather(*(probe.check() for probe in self.probes))
        for check in checks:
            if check.latency_s is not None:
                self.checks.observe(check.latency_s)
        retry_s = self._judge(checks)
        if retry_s is not None:
            self.health = Health.DOWN
            return retry_s
        is_failing = any(check.fault for check in checks)
        is_suspect = self._clock.monotonic_s() < self._suspect_until_s
        self.health = Health.SUSPECT if is_failing or is_suspect else Health.HEALTHY
        is_well = self.health is Health.HEALTHY
        period_s = self._pace.period_s if is_well else self._pace.suspect_period_s
        return period_s * (1.0 + JITTER * (2.0 * self._jitter() - 1.0))

    async def _rest(self, pause_s: float) -> None:
        try:
            async with asyncio.timeout(pause_s):
                await self._woken.wait()
        except TimeoutError:
            return
        early_s = self._began_s + LEAST_PERIOD_S - self._clock.monotonic_s()
        if early_s > 0:
            await self._clock.sleep(early_s)


def _state_of(row: Row, probe: Probe) -> HostState:
    if row["in_recovery"]:
        return HostState.STANDBY
    if row["read_only"] or probe is Probe.FAILED:
        return HostState.READ_ONLY
    return HostState.PRIMARY


async def _write(connection: Connection, query: str) -> tuple[Probe, str | None]:
    try:
        written = await connection.fetchrow(query)
    except asyncpg.PostgresError as error:
        if is_connection_lost(error):
            raise
        if is_schema_missing(error):
            return Probe.MISSING, None
        fault = f"it refuses to write: {error}"
        cannot_write = (error.sqlstate or "").startswith(CANNOT_WRITE_STATES)
        return (Probe.FAILED if cannot_write else Probe.MISSING), fault
    assert written is not None
    if not written["rows"]:
        return Probe.MISSING, None
    return (Probe.WRITTEN if written["written"] else Probe.SKIPPED), None
