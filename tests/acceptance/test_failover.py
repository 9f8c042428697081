"""A service whose primary dies under customers' hands: the standby takes over, to the unit.

Replication is synchronous, so what was acknowledged is at the standby; without that a promotion
loses what only the dead primary had, whatever a pool does.
"""

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests.acceptance.conftest import Service, running_service, tollkeeper
from tests.customers import ANSWER_TIMEOUT_S, NO_RETRIES, Books, Cashier, Customer, rows_of
from tests.replication import Pair, ask, replicated_pair

from tollkeeper.client.credits import CreditsClient

CUSTOMERS = 6
ANSWERS = 60
PATIENCE_S = 60.0


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A primary with a migrated ledger, and a standby that has whatever is acknowledged."""
    with replicated_pair() as pair:
        for name in ("credits", "access"):
            asyncio.run(_create(pair, name))
        environment = {
            "TOLLKEEPER_CREDITS_DSN": pair.dsn("credits"),
            "TOLLKEEPER_ACCESS_DSN": pair.dsn("access"),
        }
        assert 0 == tollkeeper("migrate", "up", environment=environment).code
        asyncio.run(_synchronise(pair))
        yield pair


async def _create(pair: Pair, name: str) -> None:
    await ask(pair.first, f"CREATE DATABASE {name}")


async def _synchronise(pair: Pair) -> None:
    await ask(pair.first, "ALTER SYSTEM SET synchronous_standby_names = '*'")
    await ask(pair.first, "SELECT pg_reload_conf()")
    await pair.caught_up()


def test_nothing_acknowledged_is_lost_and_nothing_is_charged_twice(
    pair: Pair, tmp_path: Path
) -> None:
    with running_service(pair.dsn("credits"), pair.dsn("access"), tmp_path) as service:
        books = asyncio.run(_spend_through_a_failover(pair, service.url, service.api_key))
        # Nobody has written to the keys meanwhile: their next health check finds the new primary.
        deadline_s = time.monotonic() + PATIENCE_S
        while (writes := _writes_of(service)) != [[False, True]] * 2:
            assert time.monotonic() < deadline_s, writes
            time.sleep(0.1)

        log = (tmp_path / "service.log").read_text()

    assert books.answered >= 2 * ANSWERS
    assert log.count("database.moved") >= 2  # of the ledger: reads and writes


def _writes_of(service: Service) -> list[list[bool]]:
    """Return of each database which of its hosts are written to."""
    status: Any = service.run("db", "status", "--json").json()
    return [[host["is_writes"] for host in each["hosts"]] for each in status["databases"]]


async def _spend_through_a_failover(pair: Pair, url: str, api_key: str) -> Books:
    books, leaving = Books(), asyncio.Event()
    async with (
        asyncio.timeout(PATIENCE_S),
        CreditsClient(
            url,
            api_key,
            connections=CUSTOMERS,
            backoff=NO_RETRIES,
            timeout_s=ANSWER_TIMEOUT_S,
        ) as client,
    ):
        cashier = Cashier(client, books)
        for number in range(2):
            await cashier.open(f"account-{number}", 5_000)
        customers = [
            Customer(client, books, f"account-{number % 2}", dice=random.Random(number))
            for number in range(CUSTOMERS)
        ]
        living = [asyncio.create_task(customer.live(leaving)) for customer in customers]
        await books.wait_for_answers(ANSWERS)
        os.kill(pair.first.pid, signal.SIGKILL)
        await pair.promote_second()
        await books.wait_for_answers(ANSWERS)
        leaving.set()
        await asyncio.gather(*living)
        await cashier.ask_again_for_half_of_what_is_unknown()
    connection = await asyncpg.connect(pair.second.dsn("credits"))
    books.settle(await rows_of(connection))
    await connection.close()
    return books
