"""Schema and planner agree: what the rules allow, PostgreSQL takes, whatever is asked."""

import asyncio
import itertools
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.ledger import consume, opening, topup
from tests.operations import ACCOUNTS, movements, operations

from tollkeeper.credits import planner
from tollkeeper.credits.model import Movement, OpenAccount, Operation
from tollkeeper.credits.store import SESSION_SETTINGS, LedgerStore
from tollkeeper.database.connect import connector
from tollkeeper.database.driver import Connection
from tollkeeper.kernel.amounts import MAX_AMOUNT_MINOR
from tollkeeper.kernel.ids import AccountId, shard_of
from tollkeeper.wiring import CREDITS_ROLE

Stage = tuple[asyncio.Runner, Connection, Iterator[int]]
opened: st.SearchStrategy[list[Operation]] = st.just([opening(name) for name in ACCOUNTS])
batches = st.lists(st.builds(list.__add__, opened, st.lists(movements(), max_size=15))
                   | st.lists(operations(), max_size=15), min_size=1, max_size=3)  # fmt: skip


@pytest.fixture
def stage(credits_dsn: str) -> Iterator[Stage]:
    with asyncio.Runner() as runner:
        connection = runner.run(connected(credits_dsn))
        yield runner, connection, itertools.count()
        runner.run(connection.close())


async def connected(dsn: str) -> Connection:
    return await connector(dsn, role=CREDITS_ROLE, settings=SESSION_SETTINGS)()


@given(batches=batches)
@example(
    batches=[
        [
            opening("ann"),
            topup("ann", MAX_AMOUNT_MINOR, "all"),
            topup("ann", 1, "one more"),
            consume("ann", MAX_AMOUNT_MINOR, "everything"),
            consume("ann", 1, "one more than that"),
        ]
    ]
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_postgresql_takes_every_plan_and_keeps_it_to_the_bit(
    stage: Stage, batches: list[list[Operation]]
) -> None:
    runner, connection, numbers = stage
    prefix = f"{next(numbers)}-"
    store = LedgerStore()

    async def write(batch: list[Operation]) -> None:
        plan = planner.plan(await store.load(connection, batch), batch)
        landed = await store.commit(connection, plan)
        found = await store.load(connection, batch)

        assert landed == {account.account_id for account in (*plan.moved, *plan.opened)}
        for account in (*plan.moved, *plan.opened):
            assert account == found.accounts[account.account_id]
        for keyed in plan.transactions:
            made = keyed.transaction
            assert made == found.kept[made.account_id, keyed.key_hash]

    for batch in batches:
        runner.run(write([renamed(operation, prefix) for operation in batch]))


def renamed(operation: Operation, prefix: str) -> Operation:
    """Return the operation on an account of this example's own."""
    name = AccountId(prefix + operation.account_id)
    if isinstance(operation, Movement):
        return msgspec.structs.replace(operation, account_id=name, shard=shard_of(name))
    assert isinstance(operation, OpenAccount)
    return opening(name, operation.tenant_id)
