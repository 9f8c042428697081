"""What can be asked about usage: a page of it, or all of it as an export.

An answer is one statement, and an export one cursor of a statement: one snapshot each. A caller
bound to a tenant sees that tenant only.
"""

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from tollkeeper.credits.errors import AccountNotFound, ExportsRunning, TenantNotFound
from tollkeeper.credits.store import LedgerStore
from tollkeeper.credits.usage import Bucket, Cursor, Question, Usage
from tollkeeper.credits.usage_store import UsageStore
from tollkeeper.database.driver import Connection
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.ids import TenantId, shard_of

EXPORTS_LIMIT: Final = 2
"""Exports at a time in a process: each holds a connection of the pool that reads share."""


class UsageReader:
    """Answers questions about usage."""

    def __init__(self, pool: Pool, store: UsageStore, ledger: LedgerStore) -> None:
        self._pool = pool
        self._store = store
        self._ledger = ledger
        self._exports = 0

    async def page(
        self, question: Question, tenant_id: TenantId | None, *, after: Cursor, limit: int
    ) -> tuple[Question, Usage, tuple[Bucket, ...]]:
        """Return the question with its tenant, the usage of the range, and a page of buckets.

        Up to `limit + 1` buckets that have any usage: one more than a page says that there is more.

        Raises:
            AccountNotFound, TenantNotFound: there is none, or it is another tenant's.
        """
        async with self._pool.connection() as connection:
            question = await self._visible(connection, question, tenant_id)
            more = limit + 1
            total, buckets = await self._store.page(connection, question, after=after, limit=more)
            return question, total, buckets

    async def export(
        self, question: Question, tenant_id: TenantId | None
    ) -> AsyncGenerator[Question | Usage | Bucket, None]:
        """Yield the question with its tenant, the range's usage, and its buckets that have any.

        Raises:
            AccountNotFound, TenantNotFound: there is none, or it is another tenant's.
            ExportsRunning: enough of them are.
        """
        with self._counted():
            async with self._pool.connection() as connection:
                question = await self._visible(connection, question, tenant_id)
                yield question
                async with connection.transaction(isolation="repeatable_read", readonly=True):
                    async for each in self._store.stream(connection, question):
                        yield each

    @contextmanager
    def _counted(self) -> Iterator[None]:
        if self._exports >= EXPORTS_LIMIT:
            raise ExportsRunning(limit=EXPORTS_LIMIT)
        self._exports += 1
        try:
            yield
        finally:
            self._exports -= 1

    async def _visible(
        self, connection: Connection, question: Question, tenant_id: TenantId | None
    ) -> Question:
        account_id, asked = question.account_id, question.tenant_id
        if account_id is not None:
            shard = shard_of(account_id)
            account = await self._ledger.account(connection, account_id, shard)
            if account is None or tenant_id not in {None, account.tenant_id}:
                raise AccountNotFound(account_id=account_id)
            return replace(question, tenant_id=account.tenant_id)
        assert asked is not None, "usage is an account's or a tenant's"
        if tenant_id not in {None, asked} or not await self._store.has_accounts(connection, asked):
            raise TenantNotFound(tenant_id=asked)
        return question
