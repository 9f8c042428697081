"""A running ledger on a fresh database, and the owner's connection beside it."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import timedelta

import asyncpg
import msgspec
import pytest
from tests.conftest import Databases
from tests.ledger import Ledger, consume, held_by, opening, running_ledger, topup, words, words_of

from tollkeeper.credits import requests
from tollkeeper.credits.model import Kind, Sweep
from tollkeeper.database.connect import connector
from tollkeeper.database.driver import Connection
from tollkeeper.kernel.ids import AccountId, shard_of


@pytest.fixture
async def ledger(credits_dsn: str) -> AsyncIterator[Ledger]:
    async with running_ledger(credits_dsn) as ledger:
        yield ledger


@pytest.fixture
def other_dsn(databases: Databases) -> Iterator[str]:
    """A second ledger beside the first."""
    with databases.fresh("credits") as dsn:
        yield dsn


@pytest.fixture
async def owner(credits_dsn: str) -> AsyncIterator[Connection]:
    """Who may do anything to the schema."""
    connection = await connector(credits_dsn, settings={"application_name": "owner"})()
    yield connection
    await connection.close()


@pytest.fixture
async def forger(credits_dsn: str) -> AsyncIterator[Connection]:
    """A connection that no trigger and no check stops."""
    connection = await asyncpg.connect(credits_dsn)
    await connection.execute("SET session_replication_role = replica")
    for table, constraint in await connection.fetch(
        "SELECT conrelid::regclass::text, conname FROM pg_constraint"
        " WHERE contype = 'c' AND coninhcount = 0 AND connamespace = 'public'::regnamespace"
    ):
        await connection.execute(f'ALTER TABLE {table} DROP CONSTRAINT "{constraint}"')
    yield connection
    await connection.close()


@pytest.fixture
async def full(ledger: Ledger, owner: Connection) -> Ledger:
    """A ledger in which `ann` has every kind of transaction, and `bob` and `cleo` one each."""
    ann_id = AccountId("ann")
    await ledger.open_with(50, "bob", "cleo")
    await ledger.execute(opening("ann"), topup("ann", 10))
    made = await ledger.execute(
        topup(
            "ann", 1_000, description="order 7", metadata={"order": 7},
            payment={"card": "4111 1111 1111 1111"},
        ),
        consume("ann", 30, description="a call", metadata={"model": "m"}),
        requests.reserve(words("ann"), amount=50, allowance=5),
        requests.reserve(words("ann"), amount=60),
        msgspec.structs.replace(
            requests.reserve(words("ann"), amount=70), expires_in=timedelta(microseconds=1)
        ),
    )  # fmt: skip
    spent, first, second = made[1], held_by(made[2]), held_by(made[3])
    results = await ledger.execute(
        requests.extend(words("ann"), hold_id=first, amount=5, expires_in_s=60),
        requests.capture(words("ann"), hold_id=first, amount=40),
        requests.release(words("ann"), hold_id=second),
        requests.refund(words("ann"), transaction_id=held_by(spent), amount=10),
        Sweep(account_id=ann_id, shard=shard_of(ann_id)),
    )
    assert ["posted"] * 4 == words_of(results)[:4]
    await owner.execute("UPDATE accounts SET frozen_at = now() WHERE account_id = 'ann'")
    await owner.execute(
        "INSERT INTO freezes (frozen_at, version, shard, account_id, faults, evidence_problem)"
        " SELECT frozen_at, version, shard, account_id, '[]', 'none' FROM accounts"
        " WHERE account_id = 'ann'"
    )
    reason = replace(words("ann"), description="looked into it")
    assert ["posted"] == words_of(await ledger.execute(requests.unfreeze(reason, actor="ops")))
    history = await ledger.service.history(ann_id, None, after=0, limit=100)
    assert set(Kind) == {each.kind for each in history}
    await ledger.assert_sound()
    return ledger
