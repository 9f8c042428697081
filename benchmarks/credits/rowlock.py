"""The honest competitor: one unit of work for each operation, the account's row locked.

What a careful team writes today on the same server with the same durability: look the idempotency
key up, SELECT FOR UPDATE, UPDATE, INSERT the transaction, INSERT the key, COMMIT. It is treated
well: bare connections from a pool that costs no round trip (asyncpg's own resets each connection),
statements prepared once, uvloop, the same operations, leaner tables, no hash chain to compute.
"""

from collections.abc import Sequence

from tollkeeper.credits.model import Kind, Movement
from tollkeeper.database.pool import Pool
from tollkeeper.database.queries import load_queries
from tollkeeper.kernel.ids import compose_id

POOL_SIZE = 20
"""Connections of the competitor."""


class RowLockRefused(Exception):
    """The operation would overdraw the account, or its key was used for another request."""


class RowLockLedger:
    """A ledger with one unit of work per operation."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._sql = load_queries("benchmarks.credits")

    async def create(self, accounts: Sequence[str], balance: int) -> None:
        """Make the tables and the accounts."""
        async with self._pool.connection() as connection:
            await connection.execute(self._sql["create_rowlock"])
            await connection.execute(self._sql["open_rowlock"], accounts, balance)
            await connection.execute("VACUUM ANALYZE")

    async def execute(self, movement: Movement, now_ms: int) -> int:
        """Do one operation and return the balance after it, or of its first time.

        Raises:
            RowLockRefused: it would overdraw, or the key belongs to another request.
        """
        sql = self._sql
        async with self._pool.connection() as connection, connection.transaction():
            known = await connection.fetchrow(sql["find_key"], movement.key_hash)
            account = await connection.fetchrow(sql["lock_account"], movement.account_id)
            assert account is not None
            if known is not None:
                if known["fingerprint"] != movement.fingerprint:
                    raise RowLockRefused
                return int(account["balance"])
            signed = movement.amount if movement.kind is Kind.TOPUP else -movement.amount
            balance, sequence = account["balance"] + signed, account["version"] + 1
            if balance < 0:
                raise RowLockRefused
            await connection.execute(sql["update_account"], movement.account_id, balance, sequence)
            await connection.execute(
                sql["insert_transaction"], movement.account_id, sequence,
                compose_id(now_ms, movement.entropy, movement.shard), movement.kind.value,
                movement.amount, balance, movement.description, movement.metadata,
            )  # fmt: skip
            await connection.execute(
                sql["insert_key"], movement.key_hash, movement.account_id, sequence,
                movement.fingerprint,
            )  # fmt: skip
            return int(balance)
