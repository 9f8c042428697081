"""Between client and service requests come twice, or late, and requests and answers get lost."""

import asyncio
import random

import asyncpg
from tests.acceptance.conftest import Service
from tests.customers import NO_RETRIES, Books, Cashier, Customer, rows_of
from tests.http_proxy import Fate, HttpProxy

from tollkeeper.client.credits import CreditsClient

CUSTOMERS = 4
ANSWERS = 400
PATIENCE_S = 60.0


def status_and_body(answer: bytes) -> tuple[bytes, bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.split(b" ", 2)[1], body


def is_replay(answer: bytes) -> bool:
    return b"idempotent-replayed: true" in answer.partition(b"\r\n\r\n")[0].lower()


async def test_whatever_becomes_of_requests_and_answers_each_has_its_effect_once(
    service: Service,
) -> None:
    books, leaving = Books(), asyncio.Event()
    async with (
        HttpProxy(service.url, list(Fate), random.Random(1)) as proxy,
        CreditsClient(service.url, service.api_key) as client,
    ):
        await Cashier(client, books).open("ann", 3_000)
        clients = [
            CreditsClient(proxy.url, service.api_key, connections=1, backoff=NO_RETRIES)
            for _ in range(CUSTOMERS)
        ]
        async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
            for number, each in enumerate(clients):
                customer = Customer(each, books, "ann", dice=random.Random(number))
                group.create_task(customer.live(leaving))
            await books.wait_for_answers(ANSWERS)
            leaving.set()
        for each in clients:
            each.close()
        before = await client.account("ann")
        late = await proxy.send_late()
        after = await client.account("ann")
        found = await client.verify()

    assert all(proxy.seen.values())
    assert before.balance == after.balance
    assert () == found.faults
    for first, second in [*proxy.twice, *late]:
        if b"201" in {status_and_body(first)[0], status_and_body(second)[0]}:
            assert status_and_body(first) == status_and_body(second)
            assert is_replay(first) or is_replay(second)
    connection = await asyncpg.connect(service.credits_dsn)
    try:
        books.settle(await rows_of(connection))
    finally:
        await connection.close()
