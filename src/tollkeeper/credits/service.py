"""What can be asked of the ledger.

Writes go through the engine; reads are one unit of work each.
"""

from collections.abc import Sequence
from uuid import UUID

from tollkeeper.credits.engine import KEY_DAYS_AHEAD, QUARTERS_AHEAD, Engine, Result
from tollkeeper.credits.errors import (
    AccountNotFound,
    CreditsError,
    HoldNotFound,
    OperationFailed,
    TransactionNotFound,
)
from tollkeeper.credits.model import (
    Account,
    Freeze,
    Hold,
    Opened,
    Operation,
    Posted,
    Reserve,
    Swept,
    Transaction,
    Verification,
)
from tollkeeper.credits.reconciliation_store import ReconciliationStore
from tollkeeper.credits.store import LedgerStore
from tollkeeper.credits.verifier import LedgerVerifier
from tollkeeper.database.driver import Connection
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.ids import AccountId, TenantId, TransactionId, shard_of

HOLDS_REMEMBERED = 100_000
"""Holds whose account is kept in memory, so that settling one costs no read to find it: 20 MB."""

SWEEP_ACCOUNTS = 500
"""Accounts whose expired holds are booked together."""


class CreditsService:
    """The ledger's methods. A caller bound to a tenant sees that tenant's accounts only."""

    def __init__(self, engine: Engine, pool: Pool, store: LedgerStore) -> None:
        self._engine = engine
        self._pool = pool
        self._store = store
        self._verifier = LedgerVerifier(pool)
        self._freezes = ReconciliationStore()
        self._hold_accounts: dict[TransactionId, AccountId] = {}

    async def execute(self, operations: Sequence[Operation]) -> list[Result]:
        """Decide a batch: one result per operation, in order; see `Engine.execute`."""
        return await self._engine.execute(operations)

    async def execute_one(self, operation: Operation) -> Posted | Opened:
        """Decide one operation.

        Raises:
            Refusal: the rules say no.
            Busy: not now.
            OperationFailed: nobody foresaw why.
        """
        (result,) = await self._engine.execute((operation,))
        if isinstance(result, CreditsError | OperationFailed):
            raise result
        assert not isinstance(result, Swept), "sweeps are batches"
        if type(operation) is Reserve and isinstance(result, Posted):
            self._remember(result.transaction.transaction_id, operation.account_id)
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

    async def hold(self, hold_id: TransactionId, tenant_id: TenantId | None) -> Hold:
        """Return a hold as it stands.

        Raises:
            HoldNotFound: there is none, or it is another tenant's.
        """
        async with self._pool.connection() as connection:
            found = await self._store.hold(connection, hold_id)
        if found is None or tenant_id not in {None, found[1]}:
            raise HoldNotFound(hold_id=hold_id)
        return found[0]

    async def holds(
        self, account_id: AccountId, tenant_id: TenantId | None, *, after: UUID, limit: int
    ) -> tuple[Hold, ...]:
        """Return up to `limit` open holds of an account with an id above `after`, oldest first.

        Raises:
            AccountNotFound: there is no such account, or it is another tenant's.
        """
        async with self._pool.connection() as connection:
            account = await self._visible(connection, account_id, tenant_id)
            return await self._store.account_holds(connection, account, after=after, limit=limit)

    async def transaction(
        self, transaction_id: TransactionId, tenant_id: TenantId | None
    ) -> Transaction:
        """Return a transaction.

        Raises:
            TransactionNotFound: there is none, or it is another tenant's.
        """
        async with self._pool.connection() as connection:
            found = await self._store.transaction(connection, transaction_id)
        if found is None or tenant_id not in {None, found[1]}:
            raise TransactionNotFound(transaction_id=transaction_id)
        return found[0]

    async def frozen(
        self, tenant_id: TenantId | None, *, after: int, limit: int
    ) -> tuple[Freeze, ...]:
        """Return up to `limit` frozen accounts behind a number, the longest frozen first."""
        async with self._pool.connection() as connection:
            return await self._freezes.open_freezes(connection, tenant_id, after=after, limit=limit)

    async def account_of_hold(
        self, hold_id: TransactionId, tenant_id: TenantId | None
    ) -> AccountId:
        """Return the account of a hold, which never changes: of recent ones it is remembered.

        Raises:
            HoldNotFound: there is none, or it is another tenant's.
        """
        known = self._hold_accounts.get(hold_id)
        if known is not None:
            return known  # whose it is, the planner judges
        account_id = (await self.hold(hold_id, tenant_id)).account_id
        self._remember(hold_id, account_id)
        return account_id

    async def account_of_transaction(
        self, transaction_id: TransactionId, tenant_id: TenantId | None
    ) -> AccountId:
        """Return the account of a transaction.

        Raises:
            TransactionNotFound: there is none, or it is another tenant's.
        """
        return (await self.transaction(transaction_id, tenant_id)).account_id

    def _remember(self, hold_id: TransactionId, account_id: AccountId) -> None:
        known = self._hold_accounts
        if len(known) >= HOLDS_REMEMBERED:
            del known[next(iter(known))]
        known[hold_id] = account_id

    async def sweep(self) -> int:
        """Book the expiry of holds whose time is over; return how many were booked."""
        booked = 0
        while True:
            async with self._pool.connection() as connection:
                due = await self._store.due_accounts(connection, SWEEP_ACCOUNTS)
            results = await self._engine.execute(due)
            swept = sum(each.expired for each in results if isinstance(each, Swept))
            booked += swept
            if len(due) < SWEEP_ACCOUNTS or swept == 0:
                return booked

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
        return await self._verifier.verify(account_id, tenant_id, after=after)

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
