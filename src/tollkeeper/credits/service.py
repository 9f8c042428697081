"""What can be asked of the ledger.

Writes go through the engine; reads are one unit of work each.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from tollkeeper.credits.chain import AccountVerifier
from tollkeeper.credits.engine import KEY_DAYS_AHEAD, QUARTERS_AHEAD, Engine, Result
from tollkeeper.credits.errors import AccountNotFound, CreditsError, VerificationRunning
from tollkeeper.credits.model import (
    Account,
    Fault,
    Opened,
    Operation,
    Posted,
    Transaction,
    Verification,
)
from tollkeeper.credits.requests import account_id_of
from tollkeeper.credits.store import LedgerStore
from tollkeeper.database.driver import Connection
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.ids import AccountId, TenantId, shard_of

PAGE_LIMIT = 1_000
"""Most transactions in one page of a history."""

VERIFY_ACCOUNTS = 200
"""Accounts read in one unit of work while verifying."""

VERIFY_TRANSACTIONS = 20_000
"""A verification pauses at the first account boundary behind this many transactions."""

FAULTS_LIMIT = 1_000
"""Faults reported by one verification; `more_faults` says that there are others."""


@dataclass(slots=True)
class _Findings:
    """What a verification has seen so far."""

    accounts: int = 0
    transactions: int = 0
    topped_up: int = 0
    consumed: int = 0
    balance: int = 0


class CreditsService:
    """The ledger's methods. A caller bound to a tenant sees that tenant's accounts only."""

    def __init__(self, engine: Engine, pool: Pool, store: LedgerStore) -> None:
        self._engine = engine
        self._pool = pool
        self._store = store
        self._verifying = asyncio.Lock()

    async def execute(self, operations: Sequence[Operation]) -> list[Result]:
        """Decide a batch: one result per operation, in order; see `Engine.execute`."""
        return await self._engine.execute(operations)

    async def execute_one(self, operation: Operation) -> Posted | Opened:
        """Decide one operation.

        Raises:
            Refusal: the rules say no.
            Busy: not now.
        """
        (result,) = await self._engine.execute((operation,))
        if isinstance(result, CreditsError):
            raise result
        return result

    async def account(self, account_id: AccountId, tenant_id: TenantId | None) -> Account:
        """Return an account as it stands.

        Raises:
            AccountNotFound: there is none, or it is another tenant's.
        """
        async with self._pool.connection() as connection:
            return await self._visible(connection, account_id, tenant_id)

    async def history(
        self, account_id: AccountId, tenant_id: TenantId | None, *, after: int, limit: int
    ) -> tuple[Transaction, ...]:
        """Return up to `limit` transactions with a sequence above `after`, oldest first.

        Raises:
            AccountNotFound: there is no such account, or it is another tenant's.
        """
        async with self._pool.connection() as connection:
            account = await self._visible(connection, account_id, tenant_id)
            return await self._store.history(connection, account, after=after, limit=limit)

    async def verify(
        self, account_id: AccountId | None, tenant_id: TenantId | None, *, after: str | None
    ) -> Verification:
        """Check chains and balances of one account, or of all behind the cursor `after`.

        Streams; memory does not grow with the ledger. All accounts are checked a slice at a time:
        `next` of the answer is the cursor of the next slice.

        Raises:
            AccountNotFound: there is no such account.
            VerificationRunning: one at a time, so that verifying never starves serving.
        """
        if self._verifying.locked():
            raise VerificationRunning
        async with self._verifying, self._pool.connection() as connection:
            if account_id is not None:
                return await self._verify_one(connection, account_id, tenant_id)
            return await self._verify_slice(connection, tenant_id, after)

    async def create_partitions(self) -> int:
        """Make the partitions for the time ahead; return how many were missing."""
        async with self._pool.connection() as connection:
            return await self._store.create_partitions(
                connection, quarters_ahead=QUARTERS_AHEAD, days_ahead=KEY_DAYS_AHEAD
            )

    async def _visible(
        self, connection: Connection, account_id: AccountId, tenant_id: TenantId | None
    ) -> Account:
        account = await self._store.account(connection, account_id, shard_of(account_id))
        if account is None or (tenant_id is not None and account.tenant_id != tenant_id):
            raise AccountNotFound(account_id=account_id)
        return account

    async def _verify_one(
        self, connection: Connection, account_id: AccountId, tenant_id: TenantId | None
    ) -> Verification:
        findings, faults = _Findings(), list[Fault]()
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            account = await self._visible(connection, account_id, tenant_id)
            await self._verify_account(connection, account, findings, faults)
        return _verification(findings, faults, None)

    async def _verify_slice(
        self, connection: Connection, tenant_id: TenantId | None, after: str | None
    ) -> Verification:
        findings, faults = _Findings(), list[Fault]()
        place = (-1, "") if after is None else (shard_of(after), account_id_of(after))
        while True:
            # Heads and rows of a page come from one snapshot; pages need not share theirs.
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                page = await self._store.accounts_after(connection, place, VERIFY_ACCOUNTS)
                for account in page:
                    place = (account.shard, account.account_id)
                    if tenant_id is None or account.tenant_id == tenant_id:
                        await self._verify_account(connection, account, findings, faults)
                    if findings.transactions >= VERIFY_TRANSACTIONS:
                        return _verification(findings, faults, account.account_id)
            if len(page) < VERIFY_ACCOUNTS:
                return _verification(findings, faults, None)

    async def _verify_account(
        self, connection: Connection, account: Account, findings: _Findings, faults: list[Fault]
    ) -> None:
        verifier = AccountVerifier(account)
        async for transaction in self._store.chain(connection, account):
            verifier.feed(transaction)
            findings.transactions += 1
        verifier.finish()
        findings.accounts += 1
        findings.topped_up += verifier.topped_up
        findings.consumed += verifier.consumed
        findings.balance += account.balance
        room = FAULTS_LIMIT + 1 - len(faults)
        faults.extend(verifier.faults[:room])


def _verification(
    findings: _Findings, faults: Sequence[Fault], following: str | None
) -> Verification:
    return Verification(
        accounts=findings.accounts, transactions=findings.transactions,
        topped_up=findings.topped_up, consumed=findings.consumed, balance=findings.balance,
        faults=tuple(faults[:FAULTS_LIMIT]), more_faults=len(faults) > FAULTS_LIMIT, next=following,
    )  # fmt: skip
