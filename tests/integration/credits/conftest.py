"""A running ledger on a fresh database, and the owner's connection beside it."""

from collections.abc import AsyncIterator, Iterator

import pytest
from tests.conftest import Databases
from tests.ledger import Ledger, running_ledger

from tollkeeper.database.connect import connector
from tollkeeper.database.driver import Connection


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
