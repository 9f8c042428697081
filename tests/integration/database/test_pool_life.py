"""What a pool does by itself: keeps its minimum, replaces, expires, refuses early, and reports."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from tollkeeper.database.connect import connector
from tollkeeper.database.deadline import within
from tollkeeper.database.driver import Connection
from tollkeeper.database.errors import (
    DatabaseBusy,
    DatabaseDown,
    DatabaseUnavailable,
    NestedAcquire,
    PoolFull,
    PoolTimeout,
    SchemaMissing,
)
from tollkeeper.database.limits import PoolLimits
from tollkeeper.database.opening import ConnectLimiter, Ties
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.breaker import Permit
from tollkeeper.kernel.clock import SystemClock

DEADLINE_S = 10.0
CLOCK = SystemClock()
MakePool = Callable[..., Pool]


@pytest.fixture
async def make_pool(empty_dsn: str) -> AsyncIterator[MakePool]:
    pools: list[Pool] = []

    def make(size: int, *, minimum: int = 0, guard: Gate | None = None, **limits: Any) -> Pool:
        pool = Pool(
            connector(empty_dsn),
            size=size,
            minimum=minimum,
            clock=CLOCK,
            limits=PoolLimits(**{"tick_s": 0.01, **limits}),
            ties=Ties(guard=guard),
        )
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        await pool.close()


@pytest.fixture
async def observer(empty_dsn: str) -> AsyncIterator[Connection]:
    connection = await connector(empty_dsn, settings={"application_name": "observer"})()
    yield connection
    await connection.close()


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.002)


async def ask(pool: Pool) -> int:
    async with pool.connection(DEADLINE_S) as connection:
        answer: int = await connection.fetchval("SELECT 1")
        return answer


class Gate:
    """A guard whose breaker is set by hand, and that remembers what it was told."""

    def __init__(self) -> None:
        self.is_closed = True
        self.told: list[str] = []

    def refusal(self) -> DatabaseUnavailable | None:
        return None if self.is_closed else DatabaseDown(retry_after_s=1.5, access="write")

    def permit(self) -> Permit | None:
        return Permit(is_probe=False) if self.is_closed else None

    def opened(self, _permit: Permit) -> None:
        self.told.append("opened")

    def failed(self, _permit: Permit, _error: BaseException) -> None:
        self.told.append("failed")

    def lost(self, _error: BaseException | None) -> None:
        self.told.append("lost")

    def stalled(self) -> None:
        self.told.append("stalled")


async def test_minimum_is_opened_before_anybody_asks_and_again_when_the_server_ends_it(
    make_pool: MakePool, observer: Connection
) -> None:
    gate = Gate()
    pool = make_pool(4, minimum=2, guard=gate)

    pool.warm()
    await eventually(lambda: pool.status().idle == 2)
    await observer.fetch(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'tollkeeper' AND datname = current_database()"
    )
    await eventually(lambda: pool.status().lost_total == 2)
    await eventually(lambda: pool.status().idle == 2)

    assert pool.status().opened_total == 4
    assert ["lost", "lost"] == [each for each in gate.told if each == "lost"]


async def test_connection_above_the_minimum_is_closed_when_it_was_idle_for_long(
    make_pool: MakePool,
) -> None:
    pool = make_pool(4, minimum=1, idle_s=0.05)
    held = [await asyncio.create_task(pool.acquire()) for _ in range(4)]
    for connection in held:
        await pool.release(connection)

    await eventually(lambda: pool.status().open == 1)

    assert (1, 3) == (pool.status().idle, pool.status().retired_total)


async def test_old_connections_are_replaced_at_different_ages(empty_dsn: str) -> None:
    chances = iter([0.0, 1.0, *[0.5] * 100])
    pool = Pool(
        connector(empty_dsn),
        size=2,
        minimum=2,
        clock=CLOCK,
        ties=Ties(jitter=lambda: next(chances)),
        limits=PoolLimits(lifetime_s=1000.0),
    )
    pool.warm()
    await eventually(lambda: pool.status().idle == 2)

    lives_s = sorted(slot.expires_s - slot.since_s for slot in pool._idle)
    for slot in pool._idle:
        slot.expires_s = CLOCK.monotonic_s()
    pool._look_at_ages()
    await eventually(lambda: pool.status().idle == 2)

    assert [800.0, 1000.0] == [round(each_s) for each_s in lives_s]
    assert (2, 4) == (pool.status().retired_total, pool.status().opened_total)
    await pool.close()


async def test_held_connection_that_is_too_old_is_replaced_when_it_comes_back(
    make_pool: MakePool,
) -> None:
    pool = make_pool(1, lifetime_s=0.000_001)

    first = await pool.acquire()
    await pool.release(first)

    assert first is not await pool.acquire()


async def test_who_would_wait_behind_too_many_is_refused_at_once(make_pool: MakePool) -> None:
    pool = make_pool(1, max_waiting=2)
    held = await pool.acquire()
    waiting = [asyncio.create_task(ask(pool)) for _ in range(2)]
    await eventually(lambda: pool.status().waiting == 2)

    with pytest.raises(PoolFull) as caught:
        await asyncio.create_task(ask(pool))

    assert (2, 2, None) == (caught.value.waiting, caught.value.limit, caught.value.expected_s)
    assert 1 == pool.status().refused_total
    await pool.release(held)
    assert [1, 1] == await asyncio.gather(*waiting)


async def test_who_could_not_be_served_before_the_deadline_is_refused_at_once(
    make_pool: MakePool,
) -> None:
    """The line moves by one in 20 ms; twenty wait; nobody can be served within 10 ms."""
    pool = make_pool(1)

    async def hold() -> None:
        async with pool.connection(DEADLINE_S) as connection:
            await connection.fetchval("SELECT pg_sleep(0.02)")

    waiting = [asyncio.create_task(hold()) for _ in range(30)]
    await eventually(lambda: pool.status().waiting == 20)

    with pytest.raises(PoolFull) as caught:
        await pool.acquire(0.01)

    assert caught.value.expected_s is not None
    assert caught.value.expected_s > 0.01
    assert 0 == pool.status().timeouts_total
    await asyncio.gather(*waiting)


async def test_burst_after_a_quiet_time_is_not_taken_for_a_slow_line(make_pool: MakePool) -> None:
    pool = make_pool(1)
    for _ in range(20):
        await ask(pool)
        await asyncio.sleep(0.01)

    assert [1] * 50 == await asyncio.gather(*(ask(pool) for _ in range(50)))
    assert 0 == pool.status().refused_total


async def test_deadline_of_the_request_ends_the_wait(make_pool: MakePool) -> None:
    pool = make_pool(1, acquire_timeout_s=DEADLINE_S)
    held = await pool.acquire()

    async def answer() -> None:
        with within(0.01, CLOCK), within(DEADLINE_S, CLOCK):
            await pool.acquire()

    with pytest.raises(PoolTimeout) as caught:
        await asyncio.create_task(answer())

    assert caught.value.waited_s <= 0.01
    await pool.release(held)


async def test_task_that_would_wait_for_itself_is_refused(make_pool: MakePool) -> None:
    pool = make_pool(1)

    with capture_logs() as logs:
        async with pool.connection():
            with pytest.raises(NestedAcquire):
                await pool.acquire()

    assert [("database.nested_acquire", True)] == [(e["event"], e["refused"]) for e in logs]
    assert "test_task_that_would_wait_for_itself" in logs[0]["frames"][-1]
    assert (1, 1) == (pool.status().nested_total, await ask(pool))


async def test_second_connection_that_is_there_is_lent_and_reported(make_pool: MakePool) -> None:
    pool = make_pool(2)

    with capture_logs() as logs:
        async with pool.connection(), pool.connection():
            pass
        async with pool.connection():
            pass

    assert [("database.nested_acquire", False)] == [(e["event"], e["refused"]) for e in logs]


async def test_connection_held_for_long_is_reported_once_with_the_stack_of_its_holder(
    make_pool: MakePool,
) -> None:
    pool = make_pool(1, report_held_s=0.02)
    done = asyncio.Event()

    async def forgets_to_give_back() -> None:
        async with pool.connection():
            await done.wait()

    with capture_logs() as logs:
        holder = asyncio.create_task(forgets_to_give_back(), name="holder")
        await eventually(lambda: pool.status().held_long_total == 1)
        for _ in range(3):
            pool._look_at_ages()
    done.set()
    await holder

    [line] = [each for each in logs if each["event"] == "database.connection_held"]
    assert ("holder", False) == (line["task"], line["has_ended"])
    assert any("forgets_to_give_back" in frame for frame in line["frames"])


async def test_leak_of_a_task_that_has_ended_is_reported(make_pool: MakePool) -> None:
    pool = make_pool(1, report_held_s=0.02)

    with capture_logs() as logs:
        leaked = await asyncio.create_task(pool.acquire(), name="leaker")
        await eventually(lambda: pool.status().held_long_total == 1)

    [line] = [each for each in logs if each["event"] == "database.connection_held"]
    assert ("leaker", True, ()) == (line["task"], line["has_ended"], line["frames"])
    await pool.release(leaked)


async def test_expiry_retires_idle_ones_now_and_held_ones_when_they_come_back(
    make_pool: MakePool,
) -> None:
    pool = make_pool(2)
    held, idle = (
        await asyncio.create_task(pool.acquire()),
        await asyncio.create_task(pool.acquire()),
    )
    await pool.release(idle)

    assert pool.expire(pool.status().generation)
    assert not pool.expire(1)
    assert await held.fetchval("SELECT 1") == 1
    await pool.release(held)

    assert (0, 2, 2) == (
        pool.status().idle,
        pool.status().retired_total,
        pool.status().generation,
    )
    assert await pool.acquire() not in {held, idle}


async def test_many_statements_that_fail_of_one_shutdown_expire_one_generation(
    make_pool: MakePool, observer: Connection
) -> None:
    gate = Gate()
    pool = make_pool(8, guard=gate)
    together = asyncio.Barrier(9)

    async def sleep() -> None:
        async with pool.connection() as connection:
            await together.wait()
            await connection.execute("SELECT pg_sleep(600)")

    sleepers = [asyncio.create_task(sleep()) for _ in range(8)]
    await together.wait()
    async with asyncio.timeout(DEADLINE_S):
        while 8 > await observer.fetchval(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event = 'PgSleep'"
        ):
            await asyncio.sleep(0.01)
    await observer.fetch(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event = 'PgSleep'"
    )

    ends = await asyncio.gather(*sleepers, return_exceptions=True)

    assert [DatabaseUnavailable] * 8 == [type(end) for end in ends]
    assert 2 == pool.status().generation
    assert 1 == gate.told.count("lost")


async def test_hanging_up_ends_what_waits_for_an_answer(make_pool: MakePool) -> None:
    pool = make_pool(2)
    began = asyncio.Event()

    async def sleep() -> None:
        async with pool.connection() as connection:
            began.set()
            await connection.execute("SELECT pg_sleep(600)")

    sleeper = asyncio.create_task(sleep())
    await began.wait()
    await asyncio.sleep(0)
    pool.hang_up()

    with pytest.raises(DatabaseUnavailable):
        await sleeper
    assert (1, 0) == (pool.status().lost_total, pool.status().in_use)
    assert await ask(pool) == 1


async def test_open_breaker_refuses_at_once_and_opens_nothing_until_it_closes(
    make_pool: MakePool,
) -> None:
    gate = Gate()
    pool = make_pool(1, guard=gate)
    gate.is_closed = False

    with pytest.raises(DatabaseDown) as caught:
        await pool.acquire()
    pool.warm()
    opened_while_open = pool.status().opening
    gate.is_closed = True
    pool.wake()

    assert (1.5, 0) == (caught.value.retry_after_s, opened_while_open)
    assert await ask(pool) == 1
    assert ["opened"] == gate.told


async def test_who_waits_when_the_breaker_opens_is_refused_each_with_an_error_of_its_own(
    make_pool: MakePool,
) -> None:
    pool = make_pool(1)
    held = await pool.acquire()
    waiting = [asyncio.create_task(ask(pool)) for _ in range(3)]
    await eventually(lambda: pool.status().waiting == 3)

    pool.refuse_waiting(lambda: DatabaseDown(retry_after_s=1.0, access="write"))
    ends = await asyncio.gather(*waiting, return_exceptions=True)

    assert [DatabaseDown] * 3 == [type(end) for end in ends]
    assert 3 == len({id(end) for end in ends})
    await pool.release(held)


async def test_acquire_that_ran_out_of_time_has_the_server_looked_at(make_pool: MakePool) -> None:
    gate = Gate()
    pool = make_pool(1, guard=gate)
    held = await pool.acquire()

    with pytest.raises(PoolTimeout):
        await asyncio.create_task(pool.acquire(0.01))

    assert ["opened", "stalled"] == gate.told
    await pool.release(held)


async def test_statement_that_ran_out_of_time_has_the_server_looked_at(make_pool: MakePool) -> None:
    gate = Gate()
    pool = make_pool(1, guard=gate)

    with pytest.raises(DatabaseBusy):
        async with pool.connection() as connection:
            await connection.execute("SELECT pg_sleep(600)", timeout=0.01)

    assert ["opened", "stalled"] == gate.told


async def test_error_of_a_statement_tells_the_breaker_nothing(make_pool: MakePool) -> None:
    gate = Gate()
    pool = make_pool(1, guard=gate)

    with pytest.raises(Exception, match="division by zero"):
        async with pool.connection() as connection:
            await connection.execute("SELECT 1 / 0")

    assert (["opened"], 1) == (gate.told, pool.status().generation)


async def test_no_two_failures_in_a_row_are_followed_by_an_attempt_at_once() -> None:
    """A server that refuses is asked again after a pause, however many callers there are."""
    attempts = 0

    async def refuse() -> Connection:
        nonlocal attempts
        attempts += 1
        raise DatabaseUnavailable(reason="it is away")

    pool = Pool(refuse, size=10, clock=CLOCK)
    refused = await asyncio.gather(*(ask(pool) for _ in range(50)), return_exceptions=True)
    first = attempts
    later = [asyncio.create_task(ask(pool)) for _ in range(50)]
    await asyncio.sleep(0)
    during_the_pause = attempts - first
    await asyncio.gather(*later, return_exceptions=True)

    assert [DatabaseUnavailable] * 50 == [type(each) for each in refused]
    assert (10, 0) == (first, during_the_pause)
    await pool.close()


async def test_pauses_grow_to_a_ceiling_and_differ_by_chance() -> None:
    pauses_s: list[list[float]] = []
    for seed in (1, 2):
        pool = Pool(_never, size=1, clock=CLOCK, ties=Ties(jitter=random.Random(seed).random))
        pauses_s.append([pool._opener._next_pause_s() for _ in range(40)])

    assert pauses_s[0] != pauses_s[1]
    for each_s in pauses_s:
        assert all(0.1 <= pause_s <= 2.0 for pause_s in each_s)
        assert max(each_s) > 1.0


async def _never() -> Connection:
    raise AssertionError


class SetClock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.time_s = 100.0

    def monotonic_s(self) -> float:
        return self.time_s


def test_connects_are_limited_to_a_rate_after_a_burst() -> None:
    clock = SetClock()
    limiter = ConnectLimiter(clock, per_s=8.0, burst=3)  # type: ignore[arg-type]  # durations only

    at_once = [limiter.wait_s() for _ in range(4)]
    clock.time_s += 0.125
    later = [limiter.wait_s() for _ in range(2)]
    clock.time_s += 100.0
    after_a_rest = [limiter.wait_s() for _ in range(4)]

    assert [0.0, 0.0, 0.0, 0.125] == at_once
    assert [0.0, 0.125] == later
    assert [0.0, 0.0, 0.0] == after_a_rest[:3]
    assert after_a_rest[3] > 0


async def test_pools_that_share_a_limit_open_no_more_than_it_together(empty_dsn: str) -> None:
    limiter = ConnectLimiter(CLOCK, per_s=0.001, burst=3)
    pools = [
        Pool(connector(empty_dsn), size=5, clock=CLOCK, ties=Ties(limiter=limiter))
        for _ in range(2)
    ]

    first = await asyncio.gather(*(ask(pools[0]) for _ in range(2)))
    second = await asyncio.gather(*(ask(pools[1]) for _ in range(20)))

    assert [1] * 22 == [*first, *second]
    assert [2, 1] == [pool.status().opened_total for pool in pools]
    for pool in pools:
        await pool.close()


async def test_a_thousand_random_cancellations_leak_nothing_and_leave_nothing_dirty(
    make_pool: MakePool, observer: Connection
) -> None:
    chance = random.Random(20)
    pool = make_pool(4)
    await observer.execute("CREATE TABLE marks (id int)")

    async def work() -> None:
        async with pool.connection(DEADLINE_S) as connection, connection.transaction():
            await connection.execute("SET LOCAL statement_timeout = '3s'")
            await connection.execute("INSERT INTO marks VALUES (1)")
            await connection.fetchval("SELECT pg_sleep(0.001)")

    for _ in range(50):
        tasks = [asyncio.create_task(work()) for _ in range(20)]
        for task in tasks:
            asyncio.get_running_loop().call_later(chance.random() * 0.01, task.cancel)
        await asyncio.gather(*tasks, return_exceptions=True)

    assert (0, 0) == (pool.status().in_use, pool.status().waiting)
    timeouts: list[str] = []
    for _ in range(4):
        async with pool.connection() as connection:
            timeouts.append(await connection.fetchval("SHOW statement_timeout"))
    assert ["0"] * 4 == timeouts
    assert await pool.drain(DEADLINE_S)
    async with asyncio.timeout(DEADLINE_S):
        while await observer.fetchval(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("minimum", [-1, 3])
def test_minimum_above_the_size_is_refused(minimum: int) -> None:
    with pytest.raises(ValueError, match="minimum"):
        Pool(_never, size=2, minimum=minimum, clock=CLOCK)


async def test_what_the_server_said_is_told_at_once_during_the_pause() -> None:
    """A database that is not migrated says so to everybody, not to one caller every two seconds."""

    async def refuse() -> Connection:
        raise SchemaMissing(reason="no such role")

    pool = Pool(refuse, size=2, clock=CLOCK)
    for _ in range(3):
        with pytest.raises(SchemaMissing, match="no such role"):
            await pool.acquire(DEADLINE_S)

    assert 1 == pool.status().failed_opens_total
    await pool.close()


async def test_deadline_that_passes_while_nothing_can_be_opened_says_why() -> None:
    async def refuse() -> Connection:
        raise DatabaseUnavailable(reason="nobody listens")

    pool = Pool(refuse, size=1, clock=CLOCK)
    with pytest.raises(DatabaseUnavailable):
        await pool.acquire(DEADLINE_S)
    with pytest.raises(PoolTimeout) as caught:
        await pool.acquire(0.01)

    assert "nobody listens" in str(caught.value)
    await pool.close()


async def test_connection_that_arrives_after_its_generation_ended_is_not_used(
    empty_dsn: str,
) -> None:
    may_arrive = asyncio.Event()
    began = 0

    async def connect() -> Connection:
        nonlocal began
        began += 1
        if began == 1:
            with contextlib.suppress(asyncio.CancelledError):
                await may_arrive.wait()
        return await connector(empty_dsn)()

    pool = Pool(connect, size=1, clock=CLOCK)
    waiting = asyncio.create_task(ask(pool))
    await eventually(lambda: pool.status().opening == 1)
    pool.expire()
    may_arrive.set()

    assert await waiting == 1
    assert (2, 1) == (pool.status().opened_total, pool.status().retired_total)
    await pool.close()


async def test_who_waits_for_a_connection_on_its_way_is_served_after_its_generation_ended(
    empty_dsn: str,
) -> None:
    silent, began = asyncio.Event(), 0

    async def connect() -> Connection:
        nonlocal began
        began += 1
        if began == 1:
            await silent.wait()  # a host that never answers
        return await connector(empty_dsn)()

    pool = Pool(connect, size=1, clock=CLOCK)
    waiting = asyncio.create_task(ask(pool))
    await eventually(lambda: pool.status().opening == 1)
    pool.hang_up()

    assert await waiting == 1
    assert 0 == pool.status().failed_opens_total
    await pool.close()
