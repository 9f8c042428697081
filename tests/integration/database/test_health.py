"""What a check finds on a real server, and how often it looks."""

import asyncio
import random
import time

import asyncpg
from tests.supervised import CLOCK, eventually, supervised

from tollkeeper.database.connect import connector
from tollkeeper.database.dsn import Host
from tollkeeper.database.health import HealthMonitor, HostProbe, Pace
from tollkeeper.database.roles import HostCheck
from tollkeeper.database.status import Health, HostState, Probe

HERE = Host(name="here")


def probe_of(dsn: str, *, role: str | None = None, answered_s: float = 0.0) -> HostProbe:
    return HostProbe(
        HERE,
        connector(dsn, role=role),
        connector(dsn),
        clock=CLOCK,
        timeout_s=5.0,
        answered_s=lambda _host, _writes: answered_s,
    )


async def test_migrated_database_is_written_to(credits_dsn: str) -> None:
    probe = probe_of(credits_dsn, role="tollkeeper_credits")
    connection = await asyncpg.connect(credits_dsn)
    before = await connection.fetchval("SELECT probed_at FROM health_probe")

    check = await probe.check()

    assert (HostState.PRIMARY, Probe.WRITTEN, None) == (check.state, check.probe, check.fault)
    assert before < await connection.fetchval("SELECT probed_at FROM health_probe")
    await connection.close()
    await probe.close()


async def test_database_of_keys_is_written_to(access_dsn: str) -> None:
    probe = probe_of(access_dsn, role="tollkeeper_access")

    assert Probe.WRITTEN is (await probe.check()).probe
    await probe.close()


async def test_row_that_another_process_writes_is_not_waited_for(credits_dsn: str) -> None:
    probe = probe_of(credits_dsn)
    other = await asyncpg.connect(credits_dsn)
    async with other.transaction():
        await other.execute("UPDATE health_probe SET probed_at = now()")
        check = await probe.check()

    assert (HostState.PRIMARY, Probe.SKIPPED) == (check.state, check.probe)
    await other.close()
    await probe.close()


async def test_probe_without_its_row_or_its_role_is_missing_and_no_fault_of_the_server(
    credits_dsn: str, empty_dsn: str
) -> None:
    connection = await asyncpg.connect(credits_dsn)
    await connection.execute("DELETE FROM health_probe")
    await connection.close()
    emptied, not_migrated = probe_of(credits_dsn), probe_of(empty_dsn, role="nobody_made_this")

    for probe in (emptied, not_migrated):
        check = await probe.check()
        assert (HostState.PRIMARY, Probe.MISSING) == (check.state, check.probe)
        await probe.close()


async def test_probe_that_may_not_write_its_table_does_not_stop_the_writes(
    credits_dsn: str,
) -> None:
    connection = await asyncpg.connect(credits_dsn)
    await connection.execute("REVOKE UPDATE ON health_probe FROM tollkeeper_credits")
    await connection.execute("REVOKE UPDATE (probed_at) ON health_probe FROM tollkeeper_credits")
    await connection.close()
    probe = probe_of(credits_dsn, role="tollkeeper_credits")

    check = await probe.check()

    assert (HostState.PRIMARY, Probe.MISSING) == (check.state, check.probe)
    assert "permission denied" in (check.fault or "")
    await probe.close()


async def test_server_that_takes_no_writes_is_read_only(credits_dsn: str) -> None:
    connection = await asyncpg.connect(credits_dsn)
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    await connection.close()
    probe = probe_of(credits_dsn)

    assert HostState.READ_ONLY is (await probe.check()).state
    await probe.close()


async def test_connection_that_was_lost_since_the_last_check_is_no_fault(
    credits_dsn: str,
) -> None:
    probe = probe_of(credits_dsn)
    await probe.check()
    connection = await asyncpg.connect(credits_dsn)
    await connection.fetch(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await connection.close()

    assert Probe.WRITTEN is (await probe.check()).probe
    await probe.close()


async def test_host_that_nobody_listens_at_is_offline_with_a_sentence() -> None:
    check = await probe_of("postgresql://nobody@127.0.0.1:1/none").check()

    assert HostState.OFFLINE is check.state
    assert "127.0.0.1:1" in (check.fault or "")


async def test_check_that_takes_too_long_keeps_the_state_while_statements_are_answered(
    credits_dsn: str,
) -> None:
    """A busy server is slow to everybody: that is no reason to end what it is at."""
    for answered_s, state in (
        (CLOCK.monotonic_s() + 60, HostState.PRIMARY),
        (0.0, HostState.READ_ONLY),
    ):
        probe = probe_of(credits_dsn, answered_s=answered_s)
        await probe.check()
        blocker = await asyncpg.connect(credits_dsn)
        async with blocker.transaction():
            await blocker.execute("LOCK TABLE health_probe")
            probe._timeout_s = 0.05
            check = await probe.check()
        await blocker.close()
        await probe.close()

        assert state is check.state
        assert check.fault


async def test_checks_do_not_wait_for_the_pools(credits_dsn: str) -> None:
    """Everything is lent and many wait: the monitor looks and finds the database healthy."""
    async with (
        supervised(credits_dsn, size=1) as it,
        it.writes.connection(),
        it.reads.connection(),
    ):
        waiting = [asyncio.create_task(it.reads.acquire()) for _ in range(50)]
        await eventually(lambda: it.reads.status().waiting == 50)
        before = it.database.checks.total
        it.database.monitor.suspect()
        await eventually(lambda: it.database.checks.total > before)
        assert HostState.PRIMARY is it.database.status().hosts[0].state
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_rounds_are_as_far_apart_as_the_last_one_allows() -> None:
    """Healthy 30 s, suspect 5 s, both give or take a fifth; down, as the breaker says."""
    pauses_s: dict[str, list[float]] = {}
    outcomes: dict[str, tuple[HostCheck, float | None]] = {
        "healthy": (HostCheck(host=HERE, state=HostState.PRIMARY), None),
        "suspect": (HostCheck(host=HERE, state=HostState.PRIMARY, fault="slow"), None),
        "down": (HostCheck(host=HERE, state=HostState.OFFLINE, fault="away"), 1.25),
    }
    for name, (check, retry_s) in outcomes.items():
        chance = random.Random(7)
        monitor = HealthMonitor(
            [_Found(check)],  # type: ignore[list-item]  # what a probe answers, without a server
            clock=CLOCK,
            jitter=chance.random,
            pace=Pace(),
            begin=lambda: None,
            judge=lambda _, retry_s=retry_s: retry_s,  # type: ignore[misc]  # bound early
        )
        pauses_s[name] = [await monitor._round() for _ in range(50)]
        assert {"healthy": Health.HEALTHY, "down": Health.DOWN}.get(
            name, Health.SUSPECT
        ) is monitor.health

    assert all(24 <= pause_s <= 36 for pause_s in pauses_s["healthy"])
    assert max(pauses_s["healthy"]) - min(pauses_s["healthy"]) > 6
    assert all(4 <= pause_s <= 6 for pause_s in pauses_s["suspect"])
    assert [1.25] * 50 == pauses_s["down"]


class _Found:
    def __init__(self, check: HostCheck) -> None:
        self._check = check

    async def check(self) -> HostCheck:
        return self._check


async def test_answer_that_came_while_this_process_was_busy_is_an_answer(
    credits_dsn: str,
) -> None:
    probe = probe_of(credits_dsn)
    await probe.check()
    probe._timeout_s = 0.2
    checking = asyncio.create_task(probe.check())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    time.sleep(0.4)  # noqa: ASYNC251  # what a busy event loop is

    assert (HostState.PRIMARY, Probe.WRITTEN) == ((await checking).state, probe.last.probe)
    await probe.close()
