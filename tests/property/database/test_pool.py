"""Any interleaving of asking, cancelling, returning and resizing keeps the pool's invariants."""

import asyncio
import contextlib
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from tollkeeper.database.connect import connector
from tollkeeper.database.driver import Connection
from tollkeeper.database.embedded import EmbeddedServer
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.clock import SystemClock

ACTIONS = st.one_of(
    st.tuples(st.just("ask"), st.just(0)),
    st.tuples(st.just("cancel"), st.integers(0, 20)),
    st.tuples(st.just("give_back"), st.integers(0, 20)),
    st.tuples(st.just("discard"), st.integers(0, 20)),
    st.tuples(st.just("resize"), st.integers(1, 5)),
    st.tuples(st.just("run"), st.integers(1, 50)),
)


@dataclass(slots=True)
class Session:
    """Everybody who asks is a task; the order of asking must be the order of being served."""

    pool: Pool
    largest_size: int = 3
    asked: list[asyncio.Task[None]] = field(default_factory=list)
    served: list[int] = field(default_factory=list)
    held: dict[int, Connection] = field(default_factory=dict)

    async def ask(self, number: int) -> None:
        connection = await self.pool.acquire(30)
        assert connection not in self.held.values()
        self.served.append(number)
        self.held[number] = connection

    async def act(self, action: str, argument: int) -> None:
        match action:
            case "ask":
                self.asked.append(asyncio.create_task(self.ask(len(self.asked))))
            case "cancel" if self.asked:
                self.asked[argument % len(self.asked)].cancel()
            case "give_back" | "discard" if self.held:
                number = list(self.held)[argument % len(self.held)]
                await self.pool.release(self.held.pop(number), discard=action == "discard")
            case "resize":
                self.largest_size = max(self.largest_size, argument)
                self.pool.resize(argument)
            case "run":
                for _ in range(argument):
                    await asyncio.sleep(0)
            case _:
                pass
        self.check()

    def check(self) -> None:
        counters = self.pool.status()
        assert counters.open <= self.largest_size
        assert not (counters.waiting and counters.idle)
        assert self.served == sorted(self.served)

    async def serve_the_rest(self) -> None:
        while not all(task.done() for task in self.asked) or self.held:
            for number in list(self.held):
                await self.pool.release(self.held.pop(number))
            await asyncio.sleep(0)
            self.check()
        for task in self.asked:
            with contextlib.suppress(asyncio.CancelledError):
                await task


@settings(max_examples=60, deadline=None)
@given(actions=st.lists(ACTIONS, max_size=60))
def test_any_interleaving_serves_in_order_within_limits_and_leaks_nothing(
    server: EmbeddedServer, actions: list[tuple[str, int]]
) -> None:
    async def interleave() -> None:
        pool = Pool(connector(server.dsn("postgres")), size=3, clock=SystemClock())
        session = Session(pool)
        for action, argument in actions:
            await session.act(action, argument)
        await session.serve_the_rest()

        assert (0, 0) == (pool.status().in_use, pool.status().waiting)
        assert await pool.drain(10)
        assert 0 == pool.status().open

    asyncio.run(interleave())
