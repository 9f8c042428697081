"""Locks of a session: one process at a time does what nobody waits for."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tollkeeper.database.driver import Connection


@asynccontextmanager
async def session_lock(
    connection: Connection, take: str, release: str, *arguments: object
) -> AsyncIterator[bool]:
    """Hold what the statement `take` takes until `release`; yields False when it is another's."""
    held: bool = await connection.fetchval(take, *arguments)
    try:
        yield held
    finally:
        if held and not connection.is_closed():
            await connection.fetchval(release, *arguments)
