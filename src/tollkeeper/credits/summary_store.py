"""The summary's statements: runs their blocks of `life.sql` on a given connection."""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta

from tollkeeper.database.driver import Connection
from tollkeeper.database.locks import session_lock
from tollkeeper.database.queries import load_queries


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryState:
    """Whether the summary can be read, when it was last true, and whether that was just now."""

    is_populated: bool
    is_fresh: bool
    as_of: datetime | None


class SummaryStore:
    """Reads and writes of the summary; every method is one statement."""

    def __init__(self) -> None:
        self._sql = load_queries("tollkeeper.credits")

    def summary_lock(self, connection: Connection) -> AbstractAsyncContextManager[bool]:
        """Hold the right to refresh; yields False when another session has it."""
        return session_lock(
            connection, self._sql["take_summary_lock"], self._sql["release_summary_lock"]
        )

    async def state(self, connection: Connection, fresh_for: timedelta) -> SummaryState:
        """Return how the summary stands."""
        row = await connection.fetchrow(self._sql["summary_state"], fresh_for)
        assert row is not None
        return SummaryState(
            is_populated=row["is_populated"], is_fresh=row["is_fresh"], as_of=row["as_of"]
        )

    async def is_current(self, connection: Connection) -> bool:
        """Return whether every number in the summary is what the accounts say now."""
        is_current: bool = await connection.fetchval(self._sql["is_summary_current"])
        return is_current

    async def populate(self, connection: Connection) -> None:
        """Fill a summary that cannot be read yet."""
        await connection.execute(self._sql["populate_summary"])

    async def refresh(self, connection: Connection) -> None:
        """Bring the summary up to date beside its readers."""
        await connection.execute(self._sql["refresh_summary"])

    async def mark(self, connection: Connection) -> datetime:
        """Remember that the summary is true as of this unit of work, and return since when."""
        as_of: datetime = await connection.fetchval(self._sql["mark_summary"])
        return as_of
