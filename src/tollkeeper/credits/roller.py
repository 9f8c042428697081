"""Rolls transactions up into usage, behind the writes.

Reads the ledger and never writes it: no lock is taken that a commit waits for. Invariants: how far
an account is rolled up and what came of it commit together or not at all; that is counted by
sequence and never by a clock; one roller at a time, and where there were two, what one has rolled
up the other does not.
"""

from typing import Final

import structlog

from tollkeeper.credits.usage_metrics import UsageMetrics
from tollkeeper.credits.usage_store import Place, UsageStore
from tollkeeper.database.driver import Connection
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.clock import Clock

PERIOD_S: Final = 30.0
"""Between two looks at all accounts, once nothing is left to do."""

PAUSE_S: Final = 0.05
"""Between two pieces of work at least; a piece is followed by a pause as long as it took."""

LOOK_LIMIT: Final = 20_000
"""Accounts taken from one look at all of them."""

SLICE_ACCOUNTS: Final = 500
SLICE_TRANSACTIONS: Final = 5_000
"""What one unit of work rolls up at most: about 50 ms."""

BEFORE_ALL: Final[Place] = (-1, "")

_log = structlog.get_logger(__name__)


class Roller:
    """Rolls up one ledger, as the owner of its schema."""

    def __init__(
        self, pool: Pool, store: UsageStore, *, clock: Clock, metrics: UsageMetrics
    ) -> None:
        self._pool = pool
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._after = BEFORE_ALL
        self._not_whole = 0  # accounts of this pass that were left alone
        self._said = 0  # how many they were when it was last told

    async def piece(self) -> float:
        """Do a piece of work; return how long to pause after it."""
        began_s = self._clock.monotonic_s()
        if await self.round():
            return PERIOD_S
        return max(PAUSE_S, self._clock.monotonic_s() - began_s)

    async def round(self) -> bool:
        """Roll up what one look at the accounts finds; True when that was all there is.

        Also True while another worker is at it.
        """
        async with (
            self._pool.connection() as connection,
            self._store.roller_lock(connection) as held,
        ):
            if not held:
                self._after = BEFORE_ALL
                return True
            found = await self._store.behind(connection, self._after, LOOK_LIMIT)
            for start in range(0, len(found), SLICE_ACCOUNTS):
                await self._roll_up(connection, found[start : start + SLICE_ACCOUNTS])
        if len(found) == LOOK_LIMIT:
            self._after = found[-1]
            return False
        self._end_pass()
        return True

    def _end_pass(self) -> None:
        self._metrics.ended(self._clock.now(), not_whole=self._not_whole)
        if self._not_whole != self._said:
            self._said = self._not_whole
            _log.warning("credits.usage_not_whole", accounts=self._not_whole)
        self._after, self._not_whole = BEFORE_ALL, 0

    async def _roll_up(self, connection: Connection, places: list[Place]) -> None:
        """Roll accounts up to their end, in as many units of work as it takes."""
        while places:
            done = await self._store.roll_up(connection, places, SLICE_TRANSACTIONS)
            landed = [each for each in done if each.has_landed]
            self._metrics.rolled_up(sum(each.transactions for each in landed))
            again = [each.place for each in landed if each.has_more]
            self._not_whole += len(done) - len(landed)
            last = done[-1].place if done else places[-1]
            places = again + [place for place in places if place > last]
