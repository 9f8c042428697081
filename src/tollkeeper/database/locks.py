"""Locks of a session: one process at a time does what nobody waits for."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tollkeeper.database.driver import Connection
from tollkeeper.database.pgbouncer import is_pooled
from tollkeeper.kernel.errors import ConfigurationError


@asynccontextmanager
async def session_lock(
    connection: Connection, take: str, release: str, *arguments: object
) -> AsyncIterator[bool]:
    """Hold what the statement `take` takes until `release`; yields False when it is another's.

    Raises:
        ConfigurationError: there is no session that could hold it.
    """
    if is_pooled(connection):
        raise ConfigurationError(
            problem="A lock of a session cannot be held through PgBouncer: give a DSN that leads "
            "to PostgreSQL itself, and TOLLKEEPER_POOLER=none."
        )
    held: bool = await connection.fetchval(take, *arguments)
    try:
        yield held
    finally:
        if held and not connection.is_closed():
            await connection.fetchval(release, *arguments)
