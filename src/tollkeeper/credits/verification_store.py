"""What verification reads of the ledger, a stretch at a time, in the caller's snapshot."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tollkeeper.credits.model import Account
from tollkeeper.credits.store import account_of
from tollkeeper.database.copying import copy_rows
from tollkeeper.database.driver import Connection
from tollkeeper.database.queries import load_queries
from tollkeeper.kernel.ids import AccountId, TenantId, TransactionId

Place = tuple[int, str]
"""A shard and an account id: the order in which accounts are walked."""

START: Final[Place] = (-(2**15) - 1, "")
"""Before every account, in whatever shard somebody put it."""

END: Final[Place] = (2**15, "")
"""Behind every account, likewise."""

_BEFORE_ALL, _BEHIND_ALL = -(2**63), 2**63 - 1  # sequences


@dataclass(frozen=True, slots=True)
class Stretch:
    """All rows of the accounts behind `after` up to `upto`; of `after` the sequences above one."""

    after: Place
    above: int
    upto: Place

    @classmethod
    def between(cls, after: Place, upto: Place) -> "Stretch":
        """Return the accounts behind `after`, up to and with `upto`."""
        return cls(after, _BEHIND_ALL, upto)

    @classmethod
    def of(cls, place: Place) -> "Stretch":
        """Return one account."""
        return cls(place, _BEFORE_ALL, place)

    @property
    def bounds(self) -> tuple[int, str, int, int, str]:
        """The parameters of every query about it."""
        return (*self.after, self.above, *self.upto)


@dataclass(frozen=True, slots=True)
class WrongRow:
    """A hold, or what was refunded of a transaction, that is not what the transactions say.

    `is_beyond`: these say themselves that more was taken, or given back, than could be.
    """

    account_id: AccountId
    row_id: TransactionId
    is_beyond: bool


UNHURRIED_S: Final = 86_400.0
"""The driver's limit on a statement of the walk; the server has none (`take_time`). A server that
falls silent is found by the health checks, which hang up."""


class VerificationStore:
    """Reads for verification; every method is one statement."""

    def __init__(self) -> None:
        self._sql = load_queries("tollkeeper.credits")

    async def take_time(self, connection: Connection) -> None:
        """Lift the limit on a statement's time for the caller's unit of work."""
        await connection.execute(self._sql["unhurried"])

    async def accounts_of(
        self, connection: Connection, stretch: Stretch, tenant_id: TenantId | None, limit: int
    ) -> tuple[Account, ...]:
        """Return up to `limit` accounts of a stretch in key order, of all tenants or of one.

        A time that is none has no time zone; for a missing number stands `chain.MISSING`, for a
        missing text an empty one.
        """
        rows = await connection.fetch(
            self._sql["accounts_of"], *stretch.bounds, tenant_id, limit, timeout=UNHURRIED_S
        )
        return tuple(account_of(row) for row in rows)

    async def chains(
        self, connection: Connection, stretch: Stretch, take: Callable[[bytes], None]
    ) -> None:
        """Hand the rows of a stretch to `take` as they come, in the form of `chain_rows.py`."""
        await copy_rows(
            connection, self._sql["chains"], *stretch.bounds, take=take, limit_s=UNHURRIED_S
        )

    async def has_side_rows(self, connection: Connection, stretch: Stretch) -> bool:
        """Return whether a stretch has holds or refunds."""
        found: bool = await connection.fetchval(
            self._sql["has_side_rows"], *stretch.bounds, timeout=UNHURRIED_S
        )
        return found

    async def wrong_holds(
        self, connection: Connection, stretch: Stretch, limit: int
    ) -> list[WrongRow]:
        """Return holds that are not what the transactions say of them, or took too much."""
        rows = await connection.fetch(
            self._sql["wrong_holds"], *stretch.bounds, limit, timeout=UNHURRIED_S
        )
        return [
            WrongRow(AccountId(row["account_id"]), TransactionId(row["hold_id"]), row["is_beyond"])
            for row in rows
        ]

    async def wrong_expiries(
        self, connection: Connection, stretch: Stretch, limit: int
    ) -> list[AccountId]:
        """Return accounts of which a hold expires before they expect it."""
        rows = await connection.fetch(
            self._sql["wrong_expiries"], *stretch.bounds, limit, timeout=UNHURRIED_S
        )
        return [AccountId(row["account_id"]) for row in rows]

    async def wrong_refunds(
        self, connection: Connection, stretch: Stretch, limit: int
    ) -> list[WrongRow]:
        """Return transactions of which more or less was refunded than the rows say, or too much."""
        rows = await connection.fetch(
            self._sql["wrong_refunds"], *stretch.bounds, limit, timeout=UNHURRIED_S
        )
        return [
            WrongRow(
                AccountId(row["account_id"]), TransactionId(row["transaction_id"]), row["is_beyond"]
            )
            for row in rows
        ]

    async def partition_gaps(self, connection: Connection) -> list[tuple[str, str]]:
        """Return the stretches of time of which no transaction could be there."""
        rows = await connection.fetch(self._sql["partition_gaps"])
        return [(row["gap_from"], row["gap_to"]) for row in rows]

    async def broken_seals(self, connection: Connection) -> list[tuple[str, str]]:
        """Return archived partitions that are not what their seal says, and how."""
        rows = await connection.fetch(self._sql["broken_seals"])
        return [(row["partition"], row["problem"]) for row in rows]
