"""What tests of keys share: an owner, a service's role, and both sides of the keys."""

from collections.abc import AsyncIterator

import pytest

from tollkeeper.access.issuer import KeyIssuer
from tollkeeper.database.connect import connector
from tollkeeper.database.driver import Connection
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.kernel.ids import system_entropy, system_token


@pytest.fixture
async def owner_pool(access_dsn: str) -> AsyncIterator[Pool]:
    pool = Pool(connector(access_dsn), size=2, clock=SystemClock())
    yield pool
    await pool.close()


@pytest.fixture
async def service_pool(access_dsn: str) -> AsyncIterator[Pool]:
    """Connections as an HTTP process has them."""
    pool = Pool(connector(access_dsn, role="tollkeeper_access"), size=2, clock=SystemClock())
    yield pool
    await pool.close()


@pytest.fixture
def issuer(owner_pool: Pool) -> KeyIssuer:
    return KeyIssuer(owner_pool, clock=SystemClock(), entropy=system_entropy, tokens=system_token)


@pytest.fixture
async def connection(access_dsn: str) -> AsyncIterator[Connection]:
    connection = await connector(access_dsn)()
    yield connection
    await connection.close()
