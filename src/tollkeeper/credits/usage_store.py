"""The rows of usage: runs the blocks of `usage.sql` on a given connection.

Decides nothing. Rolling up acts as the owner of the schema.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from tollkeeper.credits.usage import START, Bucket, By, Cursor, Question, Usage
from tollkeeper.database.driver import Connection, Row
from tollkeeper.database.locks import session_lock
from tollkeeper.database.queries import load_queries
from tollkeeper.database.timeouts import Timeouts
from tollkeeper.kernel.ids import TenantId, shard_of

TIMEOUTS: Final = Timeouts(statement_s=300, lock_s=5, idle_in_transaction_s=60)

SESSION_SETTINGS: Final[Mapping[str, str]] = {
    "application_name": "tollkeeper usage",
    # All accounts are compared with how far they are rolled up: one core at most.
    "max_parallel_workers_per_gather": "0",
    "work_mem": "64MB",
    "jit": "off",
    **TIMEOUTS.settings(),
}
"""What the roller's connection is opened with."""

PREFETCH: Final = 500
"""Buckets fetched at a time while they are exported."""

Place = tuple[int, str]
"""Shard and account id: the key of an account."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rolled:
    """What became of an account: `has_landed` is False when its rows are not whole."""

    place: Place
    transactions: int
    has_more: bool
    has_landed: bool


class UsageStore:
    """Reads and writes of usage; every method is one statement."""

    def __init__(self) -> None:
        self._sql = load_queries("tollkeeper.credits")

    def roller_lock(self, connection: Connection) -> AbstractAsyncContextManager[bool]:
        """Hold the right to roll up; yields False when another session has it."""
        return session_lock(
            connection, self._sql["take_usage_lock"], self._sql["release_usage_lock"]
        )

    async def behind(self, connection: Connection, after: Place, limit: int) -> list[Place]:
        """Return up to `limit` accounts behind a place that are not rolled up to their end."""
        rows = await connection.fetch(self._sql["accounts_to_roll"], *after, limit)
        return [(row["shard"], row["account_id"]) for row in rows]

    async def roll_up(
        self, connection: Connection, places: Sequence[Place], budget: int
    ) -> list[Rolled]:
        """Roll up to `budget` transactions of accounts; return those it was enough for."""
        rows = await connection.fetch(self._sql["roll_up"], places, budget)
        return [
            Rolled(
                place=(row["shard"], row["account_id"]),
                transactions=row["transactions"],
                has_more=row["has_more"],
                has_landed=row["has_landed"],
            )
            for row in rows
        ]

    async def has_accounts(self, connection: Connection, tenant_id: TenantId) -> bool:
        """Say whether a tenant has an account."""
        found: bool = await connection.fetchval(self._sql["has_accounts"], tenant_id)
        return found

    async def page(
        self, connection: Connection, question: Question, *, after: Cursor, limit: int
    ) -> tuple[Usage, tuple[Bucket, ...]]:
        """Return the usage of the whole range, and up to `limit` of its buckets that have any."""
        bounds = question.bounds()
        asked = _arguments(question, bounds, after, limit + 1)
        total, *rows = await connection.fetch(self._sql["usage"], *asked)
        return _usage(total), tuple(_bucket(row, question, bounds) for row in rows)

    async def stream(
        self, connection: Connection, question: Question
    ) -> AsyncIterator[Usage | Bucket]:
        """Stream the usage of the whole range, then its buckets, inside a unit of work."""
        bounds = question.bounds()
        asked = _arguments(question, bounds, START, None)
        rows = connection.cursor(self._sql["usage"], *asked, prefetch=PREFETCH)
        async for row in rows:
            yield _usage(row) if row["is_total"] else _bucket(row, question, bounds)


def _arguments(
    question: Question, bounds: tuple[datetime, ...], after: Cursor, limit: int | None
) -> tuple[object, ...]:
    account_id = question.account_id
    return (
        None if account_id is None else shard_of(account_id),
        account_id,
        None if account_id is not None else question.tenant_id,
        question.start,
        question.end,
        bounds,
        question.by is By.FEATURE,
        *after.place(bounds),
        limit,
    )


def _usage(row: Row) -> Usage:
    return Usage(
        consumed=int(row["consumed"]), purchased=int(row["purchased"]),
        refunded=int(row["refunded"]), count=row["consumptions"],
        transactions=row["transactions"], peak_balance=row["peak_balance"],
    )  # fmt: skip


def _bucket(row: Row, question: Question, bounds: tuple[datetime, ...]) -> Bucket:
    if question.by is By.FEATURE:
        return Bucket(
            start=question.start, end=question.end, usage=_usage(row), feature=row["feature"]
        )
    number = row["bucket"]
    return Bucket(start=bounds[number - 1], end=bounds[number], usage=_usage(row))
