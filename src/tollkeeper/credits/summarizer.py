"""Keeps `credit_balances_summary`: what each tenant has, as it was a few minutes ago at most.

Invariants: readers never wait and never find it empty, except before the first round on a ledger
that was large when the summary came; nothing is written where no number of it changed.
"""

from datetime import datetime, timedelta

from tollkeeper.credits.life_metrics import SummaryMetrics
from tollkeeper.credits.summary_store import SummaryStore
from tollkeeper.database.driver import Connection
from tollkeeper.database.pool import Pool


class Summarizer:
    """Keeps the summary of one ledger, as the owner of its schema."""

    def __init__(
        self, pool: Pool, store: SummaryStore, *, metrics: SummaryMetrics, period_s: float
    ) -> None:
        self._pool = pool
        self._store = store
        self._metrics = metrics
        # Whoever comes within half a period after another worker leaves it as it is.
        self._fresh_for = timedelta(seconds=period_s / 2)

    async def round(self) -> None:
        """Bring the summary up to date if any number in it changed and no other worker is at it."""
        async with (
            self._pool.connection() as connection,
            self._store.summary_lock(connection) as held,
        ):
            result, as_of = await self._round(connection) if held else ("busy", None)
        self._metrics.as_of(as_of)
        self._metrics.ended(result)

    async def _round(self, connection: Connection) -> tuple[str, datetime | None]:
        state = await self._store.state(connection, self._fresh_for)
        if state.is_populated and state.is_fresh:
            return "fresh", state.as_of
        async with connection.transaction():
            result = "refreshed"
            if not state.is_populated:
                await self._store.populate(connection)
            elif await self._store.is_current(connection):
                result = "unchanged"
            else:
                await self._store.refresh(connection)
            return result, await self._store.mark(connection)
