"""Two services, the worker and PostgreSQL itself, killed in turn in the middle of a load.

`kill -9`, of all processes of the server at once, so that it must recover from its log. How often
is said by TOLLKEEPER_KILLS; `make soak` says 200.
"""

import asyncio
import os
import random
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
from tests.acceptance.conftest import create_key, free_port
from tests.conftest import Databases, fastest_folder, with_cluster
from tests.customers import ANSWER_TIMEOUT_S, NO_RETRIES, Books, Cashier, Customer, rows_of
from tests.programs import PATIENCE_S, Program, kill_server

from tollkeeper.client.credits import CreditsClient
from tollkeeper.database.embedded import EmbeddedServer

KILLS = int(os.environ.get("TOLLKEEPER_KILLS", "12"))
ACCOUNTS = 4
CUSTOMERS = 8
FUNDS = 2_000
ANSWERS_BETWEEN = (15, 60)
"""So many requests are answered between a kill and the next."""


@dataclass(frozen=True)
class Site:
    """Everything that runs, and how to reach it."""

    server: EmbeddedServer
    data: Path
    programs: dict[str, Program]
    url: str
    api_key: str
    credits_dsn: str

    async def kill(self, victim: str) -> None:
        """Kill a victim and start it again."""
        if victim == "server":
            await asyncio.to_thread(kill_server, self.server, self.data)
            return
        await asyncio.to_thread(self.programs[victim].kill)
        self.programs[victim].start()


@contextmanager
def running_site(folder: Path) -> Iterator[Site]:
    with (
        tempfile.TemporaryDirectory(prefix="tollkeeper-test-", dir=fastest_folder()) as data,
        EmbeddedServer.start(with_cluster(Path(data))) as server,
        both_databases(server) as (credits_dsn, access_dsn),
    ):
        environment = {
            "TOLLKEEPER_CREDITS_DSN": credits_dsn, "TOLLKEEPER_ACCESS_DSN": access_dsn,
            "TOLLKEEPER_SHARE_PORT": "1",
        }  # fmt: skip
        port = free_port()
        api_key = create_key(access_dsn, folder / "dev.key")
        serve = ("serve", "credits", "--port", str(port))
        programs = {
            name: Program(*arguments, environment=environment, log=folder / f"{name}.log")
            for name, arguments in {"one": serve, "two": serve, "worker": ("worker",)}.items()
        }
        try:
            yield Site(
                server, Path(data).resolve() / "postgres", programs, f"http://127.0.0.1:{port}",
                api_key, credits_dsn,
            )  # fmt: skip
        finally:
            statuses = [program.end() for program in programs.values()]

        assert [0, 0, 0] == statuses


@contextmanager
def both_databases(server: EmbeddedServer) -> Iterator[tuple[str, str]]:
    databases = Databases(server)
    with databases.fresh("credits") as credits_dsn, databases.fresh("access") as access_dsn:
        yield credits_dsn, access_dsn


@asynccontextmanager
async def customers_at_work(site: Site, books: Books) -> AsyncIterator[None]:
    """Let customers work until the block ends; then they finish what they asked for last."""
    leaving = asyncio.Event()
    async with AsyncExitStack() as stack:
        customers = [
            Customer(
                await stack.enter_async_context(client_of(site)),
                books,
                f"account-{number % ACCOUNTS}",
                dice=random.Random(number),
            )
            for number in range(CUSTOMERS)
        ]
        async with asyncio.TaskGroup() as group:
            for customer in customers:
                group.create_task(customer.live(leaving))
            yield
            leaving.set()


def client_of(site: Site) -> CreditsClient:
    return CreditsClient(
        site.url, site.api_key, connections=1, timeout_s=ANSWER_TIMEOUT_S, backoff=NO_RETRIES
    )


def victims(count: int, dice: random.Random) -> Iterator[str]:
    """Name so many victims, each in turn, in an order that differs from round to round."""
    names: list[str] = []
    for _ in range(count):
        if not names:
            names = ["one", "server", "two", "worker"]
            dice.shuffle(names)
        yield names.pop()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with running_site(tmp_path) as site:
        yield site
    for log in sorted(tmp_path.glob("*.log")):
        assert "web.request_failed" not in log.read_text(), log
        assert "credits.operation_failed" not in log.read_text(), log


async def test_what_was_answered_is_there_once_however_often_everything_dies(site: Site) -> None:
    books, killed = Books(), Counter[str]()
    dice = random.Random(7)
    async with CreditsClient(site.url, site.api_key) as client:
        cashier = Cashier(client, books)
        async with asyncio.timeout(PATIENCE_S):
            for number in range(ACCOUNTS):
                await cashier.open(f"account-{number}", FUNDS)
        async with customers_at_work(site, books):
            for victim in victims(KILLS, dice):
                async with asyncio.timeout(PATIENCE_S):
                    await books.wait_for_answers(dice.randint(*ANSWERS_BETWEEN))
                await site.kill(victim)
                killed[victim] += 1
        async with asyncio.timeout(PATIENCE_S):
            await cashier.ask_again_for_half_of_what_is_unknown()
            found = await client.verify()

    assert KILLS == killed.total()
    assert books.unknown
    assert books.repeated
    assert () == found.faults
    assert found.topped_up == found.consumed + found.balance
    connection = await asyncpg.connect(site.credits_dsn)
    try:
        rows = await rows_of(connection)
    finally:
        await connection.close()
    books.settle(rows)
    assert len(rows) == found.transactions
