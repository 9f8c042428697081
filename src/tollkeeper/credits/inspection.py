"""What a backup of the ledger must keep, and what going back to one would lose.

It reads whole databases that it is handed, and changes nothing; their schema may be older than the
archive. What is right and wrong in a chain is decided by the verifier.
"""

import hashlib
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from tollkeeper.credits.model import Fault
from tollkeeper.credits.verifier import LedgerVerifier
from tollkeeper.database.copying import copy_rows
from tollkeeper.database.driver import Connection, Row
from tollkeeper.database.limits import PoolLimits
from tollkeeper.database.pool import Pool
from tollkeeper.database.queries import load_queries
from tollkeeper.kernel.clock import Clock

PAGE = 1_000
"""Accounts whose transactions are looked up at once."""

_AHEAD = 5_000  # rows a cursor fetches at once
_Place = tuple[int, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerLoss:
    """Transactions that one ledger has and another does not."""

    accounts: int = 0
    """Opened since."""
    count: int = 0
    """Transactions."""
    sum_minor: int = 0
    """What they changed all balances by, together."""

    @property
    def detail(self) -> str:
        """Say it for people."""
        return (
            f"{self.count} transactions with a sum of {self.sum_minor:+} minor units, and "
            f"{self.accounts} accounts opened"
        )

    def __add__(self, other: "LedgerLoss") -> "LedgerLoss":
        return LedgerLoss(
            accounts=self.accounts + other.accounts,
            count=self.count + other.count,
            sum_minor=self.sum_minor + other.sum_minor,
        )


_NOTHING = LedgerLoss()


@dataclass(frozen=True, slots=True)
class _Changed:
    """An account that two ledgers have differently."""

    shard: int
    account_id: str
    here: Row
    there: Row

    @property
    def common_at_most(self) -> int:
        """The last sequence that both can have."""
        return int(min(self.here["version"], self.there["version"]))


class LedgerInspector:
    """Inspects databases of the ledger."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._sql = load_queries("tollkeeper.credits")

    async def facts(self, connection: Connection) -> Mapping[str, int | str]:
        """Return counts, sums, and a digest over the heads of all chains, in order."""
        standing = await connection.fetchrow(self._sql["ledger_standing"])
        has_archive = await connection.fetchval(self._sql["has_archive"])
        totals = await connection.fetchrow(
            self._sql["ledger_totals"] if has_archive else self._sql["totals_before_archive"]
        )
        assert standing is not None
        assert totals is not None
        heads = hashlib.sha256()
        await copy_rows(connection, self._sql["ledger_heads"], take=heads.update)
        return {**standing, **totals, "heads_sha256": heads.hexdigest()}

    async def faults(self, connect: Callable[[], Awaitable[Connection]]) -> Sequence[str]:
        """Verify every chain, hold and refund, and that sums and balances agree."""

        async def connect_to_any() -> Connection:
            connection = await connect()
            await connection.execute(self._sql["stand_in_for_archive"])
            return connection

        pool = Pool(
            connect_to_any, size=1, clock=self._clock, limits=PoolLimits(acquire_timeout_s=30)
        )
        try:
            found = await self._chains(pool)
            async with pool.connection() as connection:
                facts = await self.facts(connection)
                negative = await connection.fetch(self._sql["negative_accounts"])
        finally:
            await pool.close()
        if facts["total"] != facts["balance"]:
            found.append(
                f"the transactions' sum is {facts['total']}, the balances' {facts['balance']}"
            )
        return [*found, *(f"account {row['account_id']} is negative" for row in negative)]

    async def estimate(self, connection: Connection, facts: Mapping[str, int | str]) -> LedgerLoss:
        """Return by how much the ledger has grown since these facts; exact if it only grew."""
        now = await connection.fetchrow(self._sql["ledger_standing"])
        assert now is not None
        return LedgerLoss(
            accounts=max(0, now["accounts"] - int(facts["accounts"])),
            count=max(0, now["booked"] - int(facts["booked"])),
            sum_minor=int(now["balance"]) - int(facts["balance"]),
        )

    async def loss(self, live: Connection, other: Connection) -> LedgerLoss:
        """Return what is in the chains of `live` and not in those of `other`.

        Chains that have parted are compared back to the last transaction that both have.
        """
        lost, changed = _NOTHING, []
        async with (
            live.transaction(isolation="repeatable_read", readonly=True),
            other.transaction(isolation="repeatable_read", readonly=True),
        ):
            heads = self._sql["ledger_heads"]
            ours = live.cursor(heads, prefetch=_AHEAD)
            theirs = other.cursor(heads, prefetch=_AHEAD)
            async for here, there in _side_by_side(ours, theirs):
                if there is None:
                    lost += LedgerLoss(accounts=1, count=here["version"], sum_minor=here["balance"])
                elif here["head_hash"] != there["head_hash"]:
                    changed.append(_Changed(here["shard"], here["account_id"], here, there))
                if len(changed) == PAGE:
                    lost += await self._lost_of(live, other, changed)
                    changed = []
            return lost + await self._lost_of(live, other, changed)

    async def _chains(self, pool: Pool) -> list[str]:
        verifier, found, after = LedgerVerifier(pool), list[str](), None
        while True:
            verification = await verifier.verify(None, None, after=after)
            found += [_told(fault) for fault in verification.faults]
            after = verification.next
            if after is None:
                return found

    async def _lost_of(
        self, live: Connection, other: Connection, changed: Sequence[_Changed]
    ) -> LedgerLoss:
        """Return what the live chains of some accounts have beyond what both have."""
        lost = _NOTHING
        points = [(each, each.common_at_most) for each in changed]
        ours, theirs = await self._links(live, points), await self._links(other, points)
        for each, sequence in points:
            at = (each.shard, each.account_id, sequence)
            is_one = at in ours and at in theirs and ours[at][0] == theirs[at][0]
            common = sequence if is_one else await self._parted(live, other, each)
            lost += LedgerLoss(
                count=each.here["version"] - common,
                sum_minor=each.here["balance"] - await self._balance(live, each, common),
            )
        return lost

    async def _balance(self, live: Connection, each: _Changed, sequence: int) -> int:
        """Return the balance that an account had after one of its transactions."""
        if not sequence:
            return 0
        [(_, balance)] = (await self._links(live, [(each, sequence)])).values()
        return balance

    async def _parted(self, live: Connection, other: Connection, each: _Changed) -> int:
        """Return the last sequence up to which two chains are one; 0: none.

        Each hash binds all before it, so halving finds it.
        """
        low, high = 0, each.common_at_most
        while low + 1 < high:
            middle = (low + high) // 2
            ours = await self._links(live, [(each, middle)])
            theirs = await self._links(other, [(each, middle)])
            is_common = bool(ours) and {k: v[0] for k, v in ours.items()} == {
                k: v[0] for k, v in theirs.items()
            }
            low, high = (middle, high) if is_common else (low, middle)
        return low

    async def _links(
        self, connection: Connection, points: Sequence[tuple[_Changed, int]]
    ) -> Mapping[tuple[int, str, int], tuple[bytes, int]]:
        """Return hash and balance after some transactions, by shard, account and sequence."""
        has_archive = await connection.fetchval(self._sql["has_archive"])
        rows = await connection.fetch(
            self._sql["ledger_links"] if has_archive else self._sql["links_before_archive"],
            [each.shard for each, _ in points],
            [each.account_id for each, _ in points],
            [sequence for _, sequence in points],
        )
        return {
            (row["shard"], row["account_id"], row["sequence"]): (row["hash"], row["balance"])
            for row in rows
        }


async def _side_by_side(
    ours: AsyncIterable[Row], theirs: AsyncIterable[Row]
) -> AsyncIterator[tuple[Row, Row | None]]:
    """Walk through our rows, each with theirs of the same account; both are in order."""
    behind = aiter(theirs)
    there = await anext(behind, None)
    async for here in ours:
        while there is not None and _place(there) < _place(here):
            there = await anext(behind, None)
        is_same = there is not None and _place(there) == _place(here)
        yield here, there if is_same else None


def _place(row: Row) -> _Place:
    return (row["shard"], row["account_id"].encode())


def _told(fault: Fault) -> str:
    return f"account {fault.account_id}, sequence {fault.sequence}: {fault.detail}"
