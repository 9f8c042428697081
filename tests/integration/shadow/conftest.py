"""A fresh database of experiments, its owner, and a running experiment."""

from collections.abc import AsyncIterator, Iterator

import pytest
from tests.conftest import Databases
from tests.counting import Counting, running_counting
from tests.experiments import create, definition, start

from tollkeeper.database.connect import close_gently, connector
from tollkeeper.database.driver import Connection
from tollkeeper.shadow.model import Metric, MetricKind, PerUnit

METRICS = (
    Metric(name="orders", kind=MetricKind.COUNT),
    Metric(name="success", kind=MetricKind.BINARY),
    Metric(name="latency", kind=MetricKind.CONTINUOUS, window_s=60),
    Metric(name="peak", kind=MetricKind.CONTINUOUS, per_unit=PerUnit.MAX),
)


@pytest.fixture
def shadow_dsn(databases: Databases) -> Iterator[str]:
    """A fresh database with all migrations of `shadow`."""
    with databases.fresh("shadow") as dsn:
        yield dsn


@pytest.fixture
async def shadow_owner(shadow_dsn: str) -> AsyncIterator[Connection]:
    """A connection that may do anything."""
    connection = await connector(shadow_dsn)()
    yield connection
    await close_gently(connection, 5)


@pytest.fixture
async def running(shadow_owner: Connection) -> int:
    """The number of a running experiment with a metric of each kind."""
    number = await create(shadow_owner, wanted=definition(metrics=METRICS))
    await start(shadow_owner, number)
    return number


@pytest.fixture
async def counting(shadow_dsn: str) -> AsyncIterator[Counting]:
    """A running engine."""
    async with running_counting(shadow_dsn) as counting:
        yield counting
