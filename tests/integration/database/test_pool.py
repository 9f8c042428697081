"""The pool under races, cancellation, killed backends and a server that is not there."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from tollkeeper.database.connect import connector
from tollkeeper.database.driver import Connection
from tollkeeper.database.errors import DatabaseBusy, DatabaseUnavailable, PoolClosed, PoolTimeout
from tollkeeper.database.limits import PoolLimits
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.clock import SystemClock

DEADLINE_S = 10.0
MakePool = Callable[..., Pool]


@pytest.fixture
async def make_pool(empty_dsn: str) -> AsyncIterator[MakePool]:
    pools: list[Pool] = []

    def make(size: int, dsn: str = empty_dsn, *, minimum: int = 0, **limits: Any) -> Pool:
        pool = Pool(
            connector(dsn),
            size=size,
            minimum=minimum,
            clock=SystemClock(),
            limits=PoolLimits(**limits),
        )
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        await pool.close()


@pytest.fixture
async def observer(empty_dsn: str) -> AsyncIterator[Connection]:
    """A connection of its own, to look at the server and to kill backends."""
    connection = await connector(empty_dsn, settings={"application_name": "observer"})()
    yield connection
    await connection.close()


async def eventually(condition: Callable[[], Awaitable[Any]]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not await condition():
            await asyncio.sleep(0.002)


async def backends(observer: Connection) -> int:
    count: int = await observer.fetchval(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'tollkeeper'"
    )
    return count


async def step(times: int = 1) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


async def test_two_hundred_acquirers_share_five_connections_in_order(make_pool: MakePool) -> None:
    pool = make_pool(5)
    served: list[int] = []
    held_together: list[int] = []
    start = asyncio.Barrier(200)
    first_five = asyncio.Barrier(5)

    async def work(number: int) -> int:
        await start.wait()
        asked.append(number)
        async with pool.connection(DEADLINE_S) as connection:
            served.append(number)
            if len(served) <= 5:
                await first_five.wait()
            held_together.append(pool.status().in_use)
            result: int = await connection.fetchval("SELECT $1::int", number)
            return result

    asked: list[int] = []
    results = await asyncio.gather(*(work(number) for number in range(200)))

    assert list(range(200)) == results
    assert asked == served
    assert max(held_together) == 5
    counters = pool.status()
    assert (200, 5, 0, 0) == (
        counters.acquired_total,
        counters.opened_total,
        counters.in_use,
        counters.waiting,
    )
    assert pool.wait_times.sum_s > 0


async def test_free_connection_is_handed_out_without_waiting(make_pool: MakePool) -> None:
    pool = make_pool(2)
    first = await pool.acquire()
    await pool.release(first)
    waited_before = pool.status().waited_total

    again = await pool.acquire(0)
    await pool.release(again)

    assert again is first
    assert waited_before == pool.status().waited_total


async def test_deadline_is_kept_and_who_gave_up_is_forgotten(make_pool: MakePool) -> None:
    pool = make_pool(1, acquire_timeout_s=0.01)
    held = await pool.acquire(DEADLINE_S)

    with pytest.raises(PoolTimeout) as caught:
        await asyncio.create_task(pool.acquire())
    with pytest.raises(PoolTimeout):
        await asyncio.create_task(pool.acquire(0))

    assert (0.01, 1) == (caught.value.waited_s, caught.value.size)
    assert (0, 2) == (pool.status().waiting, pool.status().timeouts_total)
    await pool.release(held)
    assert held is await pool.acquire()
    await pool.release(held)


async def test_deadline_includes_opening(make_pool: MakePool) -> None:
    greeted = asyncio.Event()

    async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeted.set()
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(never_answer, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    pool = make_pool(1, f"postgresql://nobody@127.0.0.1:{port}/none?sslmode=disable")

    with pytest.raises(PoolTimeout):
        await pool.acquire(0.05)

    assert greeted.is_set()
    await pool.close()
    listener.close()
    await listener.wait_closed()


@pytest.mark.parametrize("warm", [False, True])
async def test_cancellation_at_any_point_leaks_and_strands_nothing(
    make_pool: MakePool, observer: Connection, warm: bool
) -> None:
    """Cancel an acquirer after every number of loop steps; another one waits behind it."""
    for steps in range(60):
        pool = make_pool(1)
        if warm:
            await pool.release(await pool.acquire())
        cancelled = asyncio.create_task(ask(pool))
        behind = asyncio.create_task(ask(pool))
        await step(steps)
        cancelled.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await cancelled
        assert await behind == 1
        assert (0, 0) == (pool.status().in_use, pool.status().waiting)
        await pool.close()

    async def all_gone() -> bool:
        return await backends(observer) == 0

    await eventually(all_gone)


async def ask(pool: Pool) -> int:
    async with pool.connection(DEADLINE_S) as connection:
        answer: int = await connection.fetchval("SELECT 1")
        return answer


async def test_acquirer_cancelled_while_being_handed_a_connection_passes_it_on(
    make_pool: MakePool,
) -> None:
    pool = make_pool(1)
    held = await pool.acquire()
    cancelled = asyncio.create_task(pool.acquire())
    behind = asyncio.create_task(pool.acquire())
    await step()

    await pool.release(held)  # handed over; the task has not run yet
    cancelled.cancel()

    assert held is await behind
    assert cancelled.cancelled()
    await pool.release(held)


async def test_statement_of_a_cancelled_holder_stops_and_its_connection_is_not_reused(
    make_pool: MakePool, observer: Connection
) -> None:
    pool = make_pool(1)
    pids: list[int] = []

    async def hold() -> None:
        async with pool.connection() as connection:
            pids.append(connection.get_server_pid())
            await connection.execute("SELECT pg_sleep(600)")

    async def is_asleep() -> Any:
        return await observer.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY($1) AND wait_event = 'PgSleep'",
            pids,
        )

    async def is_gone() -> bool:
        count = await observer.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY($1)", pids
        )
        return bool(count == 0)

    holder = asyncio.create_task(hold())
    await eventually(is_asleep)
    holder.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holder

    fresh = await pool.acquire()
    assert fresh.get_server_pid() not in pids
    await eventually(is_gone)
    await pool.release(fresh)


async def test_timeout_inside_a_block_discards_the_connection(make_pool: MakePool) -> None:
    pool = make_pool(1)

    with pytest.raises(DatabaseBusy):
        async with pool.connection() as connection:
            await connection.fetchval("SELECT pg_sleep(600)", timeout=0.01)

    assert pool.status().retired_total == 1
    assert await ask(pool) == 1


async def test_error_of_the_caller_keeps_the_connection(make_pool: MakePool) -> None:
    pool = make_pool(1)

    with pytest.raises(asyncpg.DivisionByZeroError):
        async with pool.connection() as connection:
            await connection.fetchval("SELECT 1 / 0")

    assert (1, 0) == (pool.status().idle, pool.status().retired_total)


async def test_connection_inside_a_database_transaction_is_not_reused(make_pool: MakePool) -> None:
    pool = make_pool(1)
    left = await pool.acquire()
    await left.execute("BEGIN")

    await pool.release(left)

    assert 0 == pool.status().idle
    assert left is not await pool.acquire()


async def test_connection_that_still_says_goodbye_keeps_its_place(empty_dsn: str) -> None:
    """The server has to bear both of them: a storm of cancellations must not double the load."""
    beside: list[int] = []

    def connect() -> Awaitable[Connection]:
        beside.append(pool.status().open)
        return connector(empty_dsn)()

    pool = Pool(connect, size=1, clock=SystemClock())
    await pool.release(await pool.acquire(), discard=True)
    assert 1 == await ask(pool)
    await pool.close()

    assert [0, 0] == beside


async def test_backend_killed_while_idle_is_replaced(
    make_pool: MakePool, observer: Connection
) -> None:
    pool = make_pool(3)
    connections = [await pool.acquire() for _ in range(3)]
    for connection in connections:
        await pool.release(connection)
        await observer.fetchval("SELECT pg_terminate_backend($1)", connection.get_server_pid())

    async def all_closed() -> bool:
        return all(connection.is_closed() for connection in connections)

    await eventually(all_closed)

    assert await ask(pool) == 1
    assert pool.status().opened_total == 4


async def test_backend_killed_while_held_is_noticed_and_replaced(
    make_pool: MakePool, observer: Connection
) -> None:
    pool = make_pool(1)

    async def hold() -> None:
        async with pool.connection() as connection:
            await observer.fetchval("SELECT pg_terminate_backend($1)", connection.get_server_pid())
            await connection.fetchval("SELECT pg_sleep(600)")

    with pytest.raises(DatabaseUnavailable):
        await hold()

    assert await ask(pool) == 1
    assert (1, 2) == (pool.status().lost_total, pool.status().opened_total)


async def test_growth_serves_who_waits_and_reduction_retires(
    make_pool: MakePool, observer: Connection
) -> None:
    pool = make_pool(1)
    first = await pool.acquire()
    waiting = [asyncio.create_task(pool.acquire(DEADLINE_S)) for _ in range(3)]
    await step()

    pool.resize(4)
    others = [await task for task in waiting]
    assert (4, 4) == (pool.status().in_use, pool.status().open)

    pool.resize(2)
    for connection in [first, *others]:
        await pool.release(connection)

    async def has_two() -> bool:
        return await backends(observer) == 2

    await eventually(has_two)
    assert pool.status().idle == 2


async def test_resizing_under_load_keeps_everyone_served(make_pool: MakePool) -> None:
    pool = make_pool(4)
    working = asyncio.gather(*(ask(pool) for _ in range(300)))
    sizes = [1, 6, 2, 8, 1, 3]
    turn = 0
    while not working.done():
        pool.resize(sizes[turn % len(sizes)])
        turn += 1
        await step(20)

    assert [1] * 300 == await working
    assert (0, 0) == (pool.status().in_use, pool.status().waiting)


async def test_drain_refuses_new_callers_waits_for_holders_and_leaves_nothing(
    make_pool: MakePool, observer: Connection
) -> None:
    pool = make_pool(2)
    idle, held = await pool.acquire(), await pool.acquire()
    third = asyncio.create_task(pool.acquire())
    await step()
    await pool.release(idle)
    passed_on = await third
    waiting = asyncio.create_task(pool.acquire())
    await step()

    draining = asyncio.create_task(pool.drain(DEADLINE_S))
    await step()
    with pytest.raises(PoolClosed):
        await pool.acquire()
    with pytest.raises(PoolClosed):
        await waiting
    assert await held.fetchval("SELECT 1") == 1
    await pool.release(held)
    await step()
    assert not draining.done()
    await pool.release(passed_on)

    assert await draining
    assert pool.status().open == 0

    async def all_gone() -> bool:
        return await backends(observer) == 0

    await eventually(all_gone)


async def test_drain_cuts_off_a_holder_after_its_deadline(
    make_pool: MakePool, observer: Connection
) -> None:
    pool = make_pool(1)
    holder = asyncio.create_task(pool.acquire())
    connection = await holder
    sleeping = asyncio.create_task(connection.execute("SELECT pg_sleep(600)"))
    await step()

    assert not await pool.drain(0.01)
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
        await sleeping
    await pool.release(connection)

    async def all_gone() -> bool:
        return await backends(observer) == 0

    await eventually(all_gone)


async def test_close_hangs_up_on_holders_and_openers(make_pool: MakePool) -> None:
    pool = make_pool(2)
    connection = await pool.acquire()
    opening = asyncio.create_task(pool.acquire())
    await step()

    await pool.close()

    with pytest.raises(PoolClosed):
        await opening
    assert connection.is_closed()
    await pool.release(connection)
    with pytest.raises(PoolClosed):
        await pool.acquire()


async def test_failed_open_refuses_everyone_who_waits_and_recovers(
    make_pool: MakePool, empty_dsn: str, tmp_path: Path
) -> None:
    """The server's socket appears only later."""
    parts = urlsplit(empty_dsn)
    [directory] = parse_qs(parts.query)["host"]
    pool = make_pool(2, f"postgresql://tollkeeper@{parts.path}?host={tmp_path}")

    refused = await asyncio.gather(*(ask(pool) for _ in range(20)), return_exceptions=True)
    assert all(isinstance(refusal, DatabaseUnavailable) for refusal in refused)
    assert len({id(refusal) for refusal in refused}) == 20
    assert pool.status().waiting == 0

    name = ".s.PGSQL.5432"
    (tmp_path / name).symlink_to(Path(directory) / name)
    assert [1] * 20 == await asyncio.gather(*(ask(pool) for _ in range(20)))


async def test_open_failing_in_an_unforeseen_way_reaches_who_waits() -> None:
    async def connect() -> Connection:
        raise KeyError("nobody thought of this")

    pool = Pool(connect, size=1, clock=SystemClock())

    with pytest.raises(DatabaseUnavailable) as caught:
        await pool.acquire()

    assert "KeyError: 'nobody thought of this'" == caught.value.reason
    await pool.close()


async def test_server_with_fewer_places_than_the_pool_serves_all_with_what_it_has(
    make_pool: MakePool, observer: Connection, empty_dsn: str
) -> None:
    """Two of five connections are granted: nobody is refused, nobody is stranded."""
    role = f"limited_{observer.get_server_pid()}"
    await observer.execute(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 2")
    pool = make_pool(5, empty_dsn.replace("tollkeeper@", f"{role}@"))

    assert [1] * 100 == await asyncio.gather(*(ask(pool) for _ in range(100)))
    assert pool.status().opened_total == 2

    await pool.drain(DEADLINE_S)
    await observer.execute(f"DROP ROLE {role}")


async def test_last_working_connection_lost_while_opening_rests_strands_nobody(
    make_pool: MakePool, observer: Connection, empty_dsn: str
) -> None:
    role = f"single_{observer.get_server_pid()}"
    await observer.execute(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 1")
    pool = make_pool(2, empty_dsn.replace("tollkeeper@", f"{role}@"))
    held = await pool.acquire()
    behind = asyncio.create_task(ask(pool))

    async def second_was_refused() -> bool:
        return pool.status().failed_opens_total > 0

    await eventually(second_was_refused)
    await pool.release(held, discard=True)

    assert await behind == 1
    await pool.drain(DEADLINE_S)
    await observer.execute(f"DROP ROLE {role}")


async def test_an_open_refused_for_a_connection_that_is_gone_meanwhile_refuses_nobody(
    observer: Connection, empty_dsn: str
) -> None:
    """The refusal arrives last, when nothing is left that could serve: its cause is gone, too."""
    role = f"late_{observer.get_server_pid()}"
    await observer.execute(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 1")
    connect = connector(empty_dsn.replace("tollkeeper@", f"{role}@"))
    is_refused, may_arrive = asyncio.Event(), asyncio.Event()

    async def connect_with_late_refusals() -> Connection:
        try:
            return await connect()
        except DatabaseUnavailable:
            is_refused.set()
            await may_arrive.wait()
            raise

    pool = Pool(connect_with_late_refusals, size=2, clock=SystemClock())
    held = await pool.acquire()
    behind = asyncio.create_task(ask(pool))
    await is_refused.wait()
    await pool.release(held, discard=True)

    async def nothing_is_left() -> bool:
        return pool.status().open == 0

    await eventually(nothing_is_left)
    may_arrive.set()

    assert await behind == 1
    await pool.drain(DEADLINE_S)
    await observer.execute(f"DROP ROLE {role}")


async def test_releasing_twice_is_our_mistake(make_pool: MakePool) -> None:
    pool = make_pool(1)
    connection = await pool.acquire()
    await pool.release(connection)

    with pytest.raises(AssertionError):
        await pool.release(connection)


@pytest.mark.parametrize("size", [0, -1])
async def test_pool_without_connections_is_refused(make_pool: MakePool, size: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        make_pool(size)
    with pytest.raises(ValueError, match="at least one"):
        make_pool(1).resize(size)
