"""The ledger's rows: runs `queries.sql` on a given connection, rows to values and back.

Decides nothing. A batch travels as arrays of rows (composite types of the schema), not as one array
for each column: in batches of 28 an operation then costs Python 28.6 µs instead of 32.0 µs, and
PostgreSQL 30.1 µs instead of 33.5 µs.
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

from tollkeeper.credits.model import (
    KEY_RETENTION,
    Account,
    Kind,
    Loaded,
    Movement,
    Operation,
    Plan,
    Transaction,
)
from tollkeeper.database.driver import Connection, Row
from tollkeeper.database.queries import load_queries
from tollkeeper.kernel.ids import AccountId, TenantId, TransactionId

CHAIN_PREFETCH = 500
"""Rows of a chain fetched at a time while verifying."""

SESSION_SETTINGS: Final[Mapping[str, str]] = {
    # The ledger's statements are few, keyed and parametrised by arrays, whose lengths the planner
    # cannot see: generic plans over nested loops are right for every length, and visit rows in the
    # sorted order of the arrays, which is the lock order.
    "plan_cache_mode": "force_generic_plan",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "jit": "off",
    "statement_timeout": "15s",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "15s",
}
"""What a connection of the ledger's pool is opened with."""

_KINDS: Final[Mapping[str, Kind]] = {kind.value: kind for kind in Kind}


class LedgerStore:
    """Reads and writes of the ledger; every method is one statement unless it says otherwise."""

    def __init__(self) -> None:
        self._sql = load_queries("tollkeeper.credits")

    async def load(self, connection: Connection, operations: Sequence[Operation]) -> Loaded:
        """Read the batch's accounts and known keys in one snapshot, with the database's clock.

        Known keys cost a second statement for the transactions they made, which never change.
        """
        accounts = {operation.account_id: operation.shard for operation in operations}
        movements = [operation for operation in operations if type(operation) is Movement]
        rows = await connection.fetch(
            self._sql["load"],
            [(shard, name) for name, shard in accounts.items()],
            [(m.shard, m.account_id, key_tag(m.key_hash), m.key_hash) for m in movements],
            KEY_RETENTION,
        )
        now = rows[0]["created_at"]
        found: dict[AccountId, Account] = {}
        hits: list[Row] = []
        for row in rows[1:]:
            if row["key_hash"] is None:
                account = _account(row)
                found[account.account_id] = account
            else:
                hits.append(row)
        return Loaded(now, found, await self._kept(connection, hits) if hits else {})

    async def _kept(
        self, connection: Connection, hits: Sequence[Row]
    ) -> dict[tuple[AccountId, bytes], Transaction]:
        rows = await connection.fetch(
            self._sql["transactions_by_key"],
            [hit["shard"] for hit in hits],
            [hit["account_id"] for hit in hits],
            [hit["version"] for hit in hits],
            [hit["created_at"] for hit in hits],
        )
        by_place = {(row["account_id"], row["sequence"]): transaction_of(row) for row in rows}
        return {
            (AccountId(hit["account_id"]), hit["key_hash"]): by_place[
                hit["account_id"], hit["version"]
            ]
            for hit in hits
        }

    async def lock_accounts(
        self, connection: Connection, accounts: Mapping[AccountId, int]
    ) -> None:
        """Lock `accounts` (id to shard) in sorted order, inside the caller's unit of work."""
        ordered = sorted((shard, account_id) for account_id, shard in accounts.items())
        await connection.fetch(
            self._sql["lock_accounts"],
            [shard for shard, _ in ordered],
            [name for _, name in ordered],
        )

    async def commit(self, connection: Connection, plan: Plan) -> frozenset[AccountId]:
        """Write `plan` and return the accounts that landed; the others had moved meanwhile."""
        rows = await connection.fetch(
            self._sql["commit"],
            [
                (a.shard, a.account_id, expected, a.balance, a.reserved, a.version, a.head_hash)
                for a, expected in zip(plan.moved, plan.expected, strict=True)
            ],
            [
                (a.shard, a.account_id, a.tenant_id, a.balance, a.reserved, a.version, a.head_hash)
                for a in plan.opened
            ],
            [_accepted(keyed.key_hash, keyed.transaction) for keyed in plan.transactions],
            plan.now,
        )
        return frozenset(AccountId(row["account_id"]) for row in rows)

    async def account(
        self, connection: Connection, account_id: AccountId, shard: int
    ) -> Account | None:
        """Return an account as it stands, None when there is none."""
        row = await connection.fetchrow(self._sql["account"], shard, account_id)
        return None if row is None else _account(row)

    async def history(
        self, connection: Connection, account: Account, *, after: int, limit: int
    ) -> tuple[Transaction, ...]:
        """Return up to `limit` transactions of an account with a sequence above `after`."""
        rows = await connection.fetch(
            self._sql["history"], account.shard, account.account_id, after, limit
        )
        return tuple(transaction_of(row) for row in rows)

    async def accounts_after(
        self, connection: Connection, place: tuple[int, str], limit: int
    ) -> tuple[Account, ...]:
        """Return up to `limit` accounts behind `place` (shard, account id) in key order."""
        rows = await connection.fetch(self._sql["accounts_after"], *place, limit)
        return tuple(_account(row) for row in rows)

    async def chain(self, connection: Connection, account: Account) -> AsyncIterator[Transaction]:
        """Stream an account's transactions, oldest first, inside the caller's unit of work."""
        rows = connection.cursor(
            self._sql["chain"], account.shard, account.account_id, prefetch=CHAIN_PREFETCH
        )
        async for row in rows:
            yield transaction_of(row)

    async def create_partitions(
        self, connection: Connection, *, quarters_ahead: int, days_ahead: int
    ) -> int:
        """Make the partitions for now and the time ahead; return how many were missing."""
        made: int = await connection.fetchval(
            self._sql["create_partitions"], quarters_ahead, days_ahead
        )
        return made

    @asynccontextmanager
    async def maintenance_lock(self, connection: Connection) -> AsyncIterator[bool]:
        """Hold the right to maintain partitions; yields False when another session has it."""
        held: bool = await connection.fetchval(self._sql["take_maintenance"])
        try:
            yield held
        finally:
            if held and not connection.is_closed():
                await connection.fetchval(self._sql["release_maintenance"])

    async def drop_expired_keys(self, connection: Connection) -> tuple[str, ...]:
        """Remove key partitions older than the retention; return their names.

        Each is two statements of their own (a concurrent detach cannot share a commit); cut short
        anywhere, the next call goes on.
        """
        rows = await connection.fetch(self._sql["expired_key_partitions"], KEY_RETENTION)
        for row in rows:
            if row["detach"] is not None:
                await connection.execute(row["detach"])
            await connection.execute(row["remove"])
        return tuple(row["partition"] for row in rows)


def key_tag(key_hash: bytes) -> int:
    """Return the first eight bytes of a key's hash as PostgreSQL's signed bigint."""
    return int.from_bytes(key_hash[:8], "big", signed=True)


def accounts_of(operations: Iterable[Operation]) -> dict[AccountId, int]:
    """Return the accounts that operations touch, with their shards."""
    return {operation.account_id: operation.shard for operation in operations}


def _account(row: Row) -> Account:
    return Account(
        account_id=AccountId(row["account_id"]), tenant_id=TenantId(row["tenant_id"]),
        shard=row["shard"], balance=row["balance"], reserved=row["reserved"],
        version=row["version"], head_hash=row["head_hash"], created_at=row["created_at"],
    )  # fmt: skip


def transaction_of(row: Row) -> Transaction:
    """Return a row of `credit_transactions`, read with all its columns."""
    return Transaction(
        transaction_id=TransactionId(row["transaction_id"]),
        account_id=AccountId(row["account_id"]), shard=row["shard"], kind=_KINDS[row["kind"]],
        amount=row["amount"], balance=row["balance"], reserved=row["reserved"],
        sequence=row["sequence"], fingerprint=row["fingerprint"], hash=row["hash"],
        created_at=row["created_at"], description=row["description"], metadata=row["metadata"],
    )  # fmt: skip


def _accepted(key_hash: bytes, t: Transaction) -> tuple[object, ...]:
    return (
        t.shard, t.account_id, t.transaction_id, t.kind, t.amount, t.balance, t.reserved,
        t.sequence, t.fingerprint, t.hash, t.description, t.metadata, key_hash, key_tag(key_hash),
    )  # fmt: skip
