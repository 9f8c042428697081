"""A database with several engines on it, for tests that say step by step what happens."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import TypeVar

import msgspec
from tests.cutting_proxy import Cut, CuttingProxy
from tests.ledger import Ledger, running_ledger

from tollkeeper.credits.engine import Result
from tollkeeper.credits.model import OpenAccount, Operation, Sweep
from tollkeeper.credits.service import CreditsService
from tollkeeper.credits.store import LedgerStore
from tollkeeper.database.connect import connector
from tollkeeper.database.driver import Connection
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.kernel.ids import AccountId, system_entropy

ENGINES = 2
KILL_BACKENDS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND application_name = 'tollkeeper'"
)
T = TypeVar("T")


def as_another_request(operation: Operation) -> Operation:
    """Return the same operation as another request brings it: with other random bits."""
    assert not isinstance(operation, OpenAccount | Sweep)
    return msgspec.structs.replace(operation, entropy=system_entropy())


class Stage:
    """One database with its engines, used by every example; accounts differ by a prefix."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._runner = asyncio.Runner()
        self._owner = self._runner.run(self._own())
        self._ledgers: list[tuple[AsyncExitStack, Ledger]] = []
        self.examples = itertools.count(1)
        # Reads go over connections that nobody kills: they are not tried again.
        read = connector(dsn, settings={"application_name": "reader"})
        self._reads = Pool(read, size=1, clock=SystemClock())
        for _ in range(ENGINES):
            self._ledgers.append(self._runner.run(self._begin()))
        self._reader = CreditsService(self._ledgers[0][1].engine, self._reads, LedgerStore())

    async def _own(self) -> Connection:
        return await connector(self._dsn, settings={"application_name": "owner"})()

    async def _begin(self) -> tuple[AsyncExitStack, Ledger]:
        stack = AsyncExitStack()
        return stack, await stack.enter_async_context(running_ledger(self._dsn))

    def close(self) -> None:
        for stack, _ in self._ledgers:
            self._runner.run(stack.aclose())
        self._runner.run(self._reads.close())
        self._runner.run(self._owner.close())
        self._runner.close()

    def replace(self, engine: int) -> None:
        """Let an engine leave and another one come."""
        self._runner.run(self._ledgers[engine][0].aclose())
        self._ledgers[engine] = self._runner.run(self._begin())

    def answer(
        self, engine: int, batch: Sequence[Operation], *, apart: bool, killing: bool
    ) -> list[Result]:
        """Send operations, in one call or each in its own; return what became of them."""

        async def send() -> list[Result]:
            ledger = self._ledgers[engine][1]
            if apart:
                calls = [asyncio.ensure_future(ledger.execute(operation)) for operation in batch]
            else:
                calls = [asyncio.ensure_future(ledger.execute(*batch))]
            if killing:
                await self._kill_backends()
            return [result for results in await asyncio.gather(*calls) for result in results]

        return self._runner.run(send())

    async def _kill_backends(self) -> None:
        await self._owner.execute(KILL_BACKENDS)

    def race(self, operation: Operation, *, times: int) -> list[Result]:
        """Send one operation through every engine at once, each as requests of its own."""

        async def send() -> list[Result]:
            calls = [
                asyncio.ensure_future(ledger.execute(as_another_request(operation)))
                for _ in range(times)
                for _, ledger in self._ledgers
            ]
            return [result for results in await asyncio.gather(*calls) for result in results]

        return self._runner.run(send())

    def die(self, operation: Operation, cut: Cut) -> Result | None:
        """Send an operation to an engine that ends around its commit; None: nobody heard of it."""

        async def send() -> Result | None:
            async with CuttingProxy(self._dsn, [cut]) as proxy, AsyncExitStack() as stack:
                ledger = await stack.enter_async_context(running_ledger(proxy.dsn))
                call = asyncio.ensure_future(ledger.execute(operation))
                has_cut = asyncio.ensure_future(proxy.has_cut.wait())
                await asyncio.wait([call, has_cut], return_when=asyncio.FIRST_COMPLETED)
                has_cut.cancel()
                if call.done():
                    return call.result()[0]
                await ledger.engine.close()  # and so is everything it knew
                await asyncio.gather(call, return_exceptions=True)
                return None

        return self._runner.run(send())

    def execute(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Do something as the owner of the database."""

        async def done() -> T:
            return await work(self._owner)

        return self._runner.run(done())

    def run(self, work: Coroutine[object, object, T]) -> T:
        """Run a coroutine where the engines run."""
        return self._runner.run(work)

    async def connect(self) -> Connection:
        """Open one more connection of the owner's."""
        return await self._own()

    def sweep(self, engine: int) -> None:
        """Book what has expired, as the worker does."""
        service = CreditsService(self._ledgers[engine][1].engine, self._reads, LedgerStore())
        self._runner.run(service.sweep())

    def balance(self, account_id: str) -> int:
        account = self._runner.run(self._reader.account(AccountId(account_id), None))
        return account.balance

    def assert_sound(self, account_id: str) -> None:
        found = self._runner.run(self._reader.verify(AccountId(account_id), None, after=None))

        assert () == found.faults
