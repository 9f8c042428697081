"""Reconciliation: accounts are held against their transactions, on and on, and frozen when wrong.

Two passes share a stated part of one core's time. *Recent* looks at the accounts whose row is not
what it was when they were last reconciled, and reads only the transactions behind that point;
*thorough* verifies all chains from their beginning, a slice at a time, and goes on after a restart
where it was.

Invariants: nothing is frozen (`freezer.py`) but an account that two snapshots have proven wrong,
the second one from its first row; what the reconciler itself wrote down proves nothing alone. An
account or slice that cannot be looked at is counted and told, and stops no other.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from tollkeeper.credits.chain import row_faults
from tollkeeper.credits.errors import AccountNotFound, InvalidRequest, VerificationRunning
from tollkeeper.credits.freezer import NAMES_TOLD, Freezer, Proven
from tollkeeper.credits.model import Account, Fault, FaultKind, Point
from tollkeeper.credits.reconciliation_metrics import ReconciliationMetrics
from tollkeeper.credits.reconciliation_store import AccountBesidePoint, ReconciliationStore
from tollkeeper.credits.service import CreditsService
from tollkeeper.credits.verification import PointsVerifier
from tollkeeper.credits.verification_store import END, START, Place
from tollkeeper.credits.verifier import cursor_of, place_at
from tollkeeper.database.connect import is_connection_lost, is_retryable, is_schema_missing
from tollkeeper.database.driver import Connection
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.clock import Clock
from tollkeeper.kernel.ids import AccountId, shard_of

PIECE_ACCOUNTS: Final = 2_000
"""Accounts that the recent pass checks before it pauses."""

PIECE_ROWS: Final = 10_000
"""Transactions that it reads before it pauses; a longer chain is checked in parts."""

RECENT_IN_A_ROW: Final = 8
"""Pieces of what changed to one of all chains, as long as there is more of it: what is new is
checked soon, what is old without fail."""

CHANGED_LIMIT: Final = 50_000
"""Changed accounts kept in memory from one look at all accounts: 5 MB."""

ACCOUNTS_ALONE: Final = 200
"""Accounts verified one by one where a slice of all chains cannot be verified."""

PAUSE_S: Final = 0.5
"""Between two pieces of work at least."""

PAUSE_LIMIT_S: Final = 600.0
"""And at most, however long a piece took."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Checked:
    """An account against its transactions behind `start`: they end at `end`."""

    account: Account
    start: Point | None
    end: Point
    is_whole: bool
    rows: int
    faults: Sequence[Fault]

    @property
    def place(self) -> Place:
        return (self.account.shard, self.account.account_id)


class Reconciler:
    """Reconciles one ledger, as the owner of its schema."""

    def __init__(
        self,
        pool: Pool,
        store: ReconciliationStore,
        service: CreditsService,
        *,
        clock: Clock,
        metrics: ReconciliationMetrics,
        freezer: Freezer,
        share: float,
    ) -> None:
        self._pool = pool
        self._store = store
        self._service = service
        self._clock = clock
        self._metrics = metrics
        self._freezer = freezer
        self._share = share
        self._changed: deque[Place] = deque()
        self._looked_behind: Place | None = None  # None: the next look begins at the first account
        self._recent_in_a_row = 0
        self._failing: dict[str, str] = {}  # passes whose last piece failed, and how
        self._not_looked_at: set[Place] = set()  # accounts that cannot be, and were told
        self._newly_not_looked_at: list[tuple[Place, str]] = []

    async def piece(self) -> float:
        """Do a piece of work of one of the passes; return how long to pause after it.

        One pass that fails is told when that begins and is over, and the other goes on; when both
        do, nothing is done here, and the failure is the caller's.
        """
        began_s = self._clock.monotonic_s()
        if self._recent_in_a_row < RECENT_IN_A_ROW:
            self._recent_in_a_row += 1
            if await self._try("recent", self.recent):
                self._recent_in_a_row = RECENT_IN_A_ROW
        else:
            self._recent_in_a_row = 0
            await self._try("thorough", self.thorough)
        took_s = self._clock.monotonic_s() - began_s
        return min(max(PAUSE_S, took_s * (1 / self._share - 1)), PAUSE_LIMIT_S)

    async def _try(self, name: str, work: Callable[[], Awaitable[bool]]) -> bool:
        """Do a piece of a pass; True when it is the other pass's turn."""
        try:
            is_done = await work()
        except Exception as error:
            self._metrics.failed(name)
            is_other_failing = bool(self._failing.keys() - {name})
            is_new = self._failing.get(name) != repr(error)
            self._failing[name] = repr(error)
            if is_other_failing:
                raise
            if is_new:
                _log.warning("worker.pass_failed", name=name, error=repr(error))
            return True
        if self._failing.pop(name, None) is not None:
            _log.info("worker.pass_recovered", name=name)
        return is_done

    # What has changed ----------------------------------------------------------------------------

    async def recent(self) -> bool:
        """Check a piece of what changed; True when all that had changed at a look is checked.

        Also True while another worker is at it.
        """
        async with (
            self._pool.connection() as connection,
            self._store.reconciler_lock(connection) as held,
        ):
            if not held:
                return True
            self._freezer.begin_piece()
            if not self._changed:
                await self._look(connection)
            count = min(len(self._changed), PIECE_ACCOUNTS)
            places = [self._changed.popleft() for _ in range(count)]
            self._changed.extend(await self._reconcile_all(connection, places))
            self._metrics.behind(len(self._changed))
            self._tell_not_looked_at()
            await self._freezer.show_if_found(connection)
            if self._changed or self._looked_behind is not None:
                return False
        self._metrics.ended("recent", self._clock.now())
        return True

    async def _look(self, connection: Connection) -> None:
        await self._freezer.show_if_old(connection)
        after = self._looked_behind or START
        self._changed.extend(await self._store.changed(connection, after, CHANGED_LIMIT))
        is_full = len(self._changed) == CHANGED_LIMIT
        self._looked_behind = self._changed[-1] if is_full else None

    async def _reconcile_all(self, connection: Connection, places: Sequence[Place]) -> list[Place]:
        """As `_reconcile`; where that fails, in halves down to the account that it fails at."""
        if not places:
            return []
        try:
            checked, left = await self._reconcile(connection, places)
        except Exception as error:
            if not _is_of_what_is_stored(error):
                raise
            if len(places) == 1:
                self._cannot_look_at("recent", places[0], error)
                return []
            middle = len(places) // 2
            left = await self._reconcile_all(connection, places[:middle])
            return left + await self._reconcile_all(connection, places[middle:])
        for each in checked:
            if each.faults:
                left += await self._confirm(connection, each.place, "recent")
        return left

    async def _reconcile(
        self, connection: Connection, places: Sequence[Place]
    ) -> tuple[list[_Checked], list[Place]]:
        """Check accounts; return also those that have more to check than fitted."""
        checked, left = await self._check(connection, places)
        sound = [each for each in checked if not each.faults]
        if sound:
            await self._store.mark(connection, [(each.account, each.end) for each in sound])
        rows = sum(each.rows for each in checked)
        self._metrics.checked("recent", accounts=len(checked), transactions=rows)
        for each in sound:
            self._freezer.is_sound(each.place)
            self._not_looked_at.discard(each.place)
        return checked, left + [each.place for each in sound if not each.is_whole]

    async def _check(
        self, connection: Connection, places: Sequence[Place]
    ) -> tuple[list[_Checked], list[Place]]:
        """Check accounts in one snapshot; return also those that did not fit into the piece."""
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            beside = await self._store.beside_points(connection, places)
            found = [each for each in beside if each.account.frozen_at is None]
            wanted: list[tuple[Account, int, int]] = []
            total = 0
            for each in found:
                most = min(_rows_expected(each), PIECE_ROWS)
                if wanted and total + most > PIECE_ROWS:
                    break
                total += most
                wanted.append((each.account, _sequence_of(each.point), most))
            verifier = PointsVerifier([(each.account, each.point) for each in found])
            await self._store.rows_behind(connection, wanted, verifier.feed)
            verifier.finish()
        left: list[Place] = [
            (each.account.shard, each.account.account_id) for each in found[len(wanted) :]
        ]
        checked = []
        for each, (account, _, most) in zip(found, wanted, strict=False):
            one, count = verifier.of(account)
            end = one.point
            is_whole = count < most or end.sequence >= account.version
            if is_whole:
                one.finish()
            checked.append(_Checked(account, each.point, end, is_whole, count, tuple(one.faults)))
        return checked, left

    # All chains ----------------------------------------------------------------------------------

    async def thorough(self) -> bool:
        """Verify the next slice of all chains; True at the end of a pass.

        Also True while another worker is at it.
        """
        async with (
            self._pool.connection() as connection,
            self._store.reconciler_lock(connection) as held,
        ):
            if not held:
                return True
            self._freezer.begin_piece()
            after = await self._progress(connection)
            suspects, following = await self._suspects(connection, after)
            for place in suspects:
                await self._confirm(connection, place, "thorough")
            await self._store.advance(connection, following)
            if following is None:
                self._freezer.end_pass()
            self._tell_not_looked_at()
            await self._freezer.show_if_found(connection)
            if following is not None:
                return False
        self._metrics.ended("thorough", self._clock.now())
        return True

    async def _progress(self, connection: Connection) -> str | None:
        """Return where the pass goes on; from the start if what is written there is no place."""
        after = await self._store.progress(connection)
        try:
            _place_of(after, START)
        except InvalidRequest:
            _log.error("worker.progress_unreadable", after=after)
            return None
        return after

    async def _suspects(
        self, connection: Connection, after: str | None
    ) -> tuple[Iterable[Place], str | None]:
        """Verify a slice; return the accounts to look at again, and where the next one begins."""
        try:
            found = await self._service.verify(None, None, after=after)
        except Exception as error:
            if not _is_of_what_is_stored(error):
                raise
            return await self._each_alone(connection, after, error)
        self._metrics.checked("thorough", accounts=found.accounts, transactions=found.transactions)
        if found.more_faults:
            # More than are listed: whoever has many of them must not hide others behind it.
            places = (_place_of(after, START), _place_of(found.next, END))
            return await self._store.accounts_between(connection, *places, None), found.next
        suspects = [fault for fault in found.faults if fault.account_id is not None]
        astray = {str(each.account_id) for each in suspects if each.fault is FaultKind.ACCOUNT}
        places_astray = await self._store.places_of(connection, sorted(astray)) if astray else []
        places_right = [(shard_of(str(f.account_id)), str(f.account_id)) for f in suspects]
        return dict.fromkeys([*places_right, *places_astray]), found.next

    async def _each_alone(
        self, connection: Connection, after: str | None, error: Exception
    ) -> tuple[Iterable[Place], str | None]:
        """Return the next accounts for being verified alone: as a slice, they cannot be."""
        _log.error("worker.slice_not_verified", after=after, error=repr(error))
        self._metrics.failed("thorough")
        places = await self._store.accounts_between(
            connection, _place_of(after, START), END, ACCOUNTS_ALONE
        )
        is_last = len(places) < ACCOUNTS_ALONE
        return places, None if is_last else cursor_of(places[-1])

    # Suspects ------------------------------------------------------------------------------------

    async def _confirm(self, connection: Connection, place: Place, by: str) -> list[Place]:
        """Look at an account again, from its first row, and freeze it if it is wrong there too.

        Return it if it is to be reconciled from its first row.
        """
        try:
            return await self._judge(connection, place, by)
        except Exception as error:
            if not _is_of_what_is_stored(error):
                raise
            self._cannot_look_at(by, place, error)
            return []

    async def _judge(self, connection: Connection, place: Place, by: str) -> list[Place]:
        beside = await self._store.beside_points(connection, [place])
        if not beside:
            await self._freezer.vanished(connection, place)
            return []
        account, point = beside[0].account, beside[0].point
        if account.frozen_at is not None:
            return []
        # What needs no look at the chain, and may not allow one.
        faults: Sequence[Fault] = row_faults(account)
        if not faults:
            faults = await self._faults_of(connection, place)
        if not faults and by == "recent":
            faults, point, is_dropped = await self._judge_point(connection, place)
            if is_dropped:
                return [place]
        if faults:
            await self._freezer.freeze(
                connection, Proven(place=place, faults=faults, by=by, point=point)
            )
        return []

    async def _faults_of(self, connection: Connection, place: Place) -> Sequence[Fault]:
        """Return the faults of an account from its first row on, without those accepted."""
        try:
            found = await self._service.verify(AccountId(place[1]), None, after=None)
        except AccountNotFound:
            return ()
        if found.more_faults:
            return found.faults  # who has more than can be listed cannot have them accepted
        return await self._freezer.not_accepted(connection, place, found.faults)

    async def _judge_point(
        self, connection: Connection, place: Place
    ) -> tuple[Sequence[Fault], Point | None, bool]:
        """Judge an account that agrees with its chain, and not with where it was reconciled.

        Return its faults, that point, and whether the point was wrong and is forgotten. What hangs
        on a hash that was reconciled cannot differ from it; but a hash that is gone from the chain
        was there.
        """
        checked, _ = await self._check(connection, [place])
        if not checked or not checked[0].faults:
            return (), None, False
        again, point = checked[0], checked[0].start
        if point is None:
            # All of it was accepted, and there is no sound point behind it yet.
            await self._store.mark(connection, [(again.account, again.end)])
            return (), None, False
        row = await self._store.row_at(connection, place, point.sequence)
        if row == point:
            await self._store.mark(connection, [(again.account, again.end)])
            return (), None, False
        if point.sequence <= 0 or (row is not None and row.head_hash == point.head_hash):
            await self._store.drop_point(connection, place)
            _log.error("worker.point_dropped", account=place[1], sequence=point.sequence)
            return (), None, True
        kind, detail = FaultKind.HASH, "the row is not the one that was reconciled"
        if row is None:
            kind, detail = FaultKind.SEQUENCE, "the row was reconciled, and is gone"
        fault = Fault(
            account_id=AccountId(place[1]), sequence=point.sequence, fault=kind, detail=detail
        )
        return (fault,), point, False

    def _cannot_look_at(self, name: str, place: Place, error: Exception) -> None:
        self._metrics.failed(name)
        if place not in self._not_looked_at:
            self._not_looked_at.add(place)
            self._newly_not_looked_at.append((place, repr(error)))

    def _tell_not_looked_at(self) -> None:
        told = self._newly_not_looked_at
        if told:
            _log.error(
                "worker.accounts_not_reconciled", accounts=len(told), error=told[0][1],
                first=[account_id for (_, account_id), _ in told[:NAMES_TOLD]],
            )  # fmt: skip
            told.clear()


def _is_of_what_is_stored(error: Exception) -> bool:
    """Whether an error may come from rows: else from the database as a whole, or not for long."""
    return not (
        is_connection_lost(error)
        or is_retryable(error)
        or is_schema_missing(error)
        or isinstance(error, VerificationRunning | TimeoutError)
    )


def _sequence_of(point: Point | None) -> int:
    return 0 if point is None else point.sequence


def _rows_expected(each: AccountBesidePoint) -> int:
    """Return how many rows to ask for: those up to the account's version, and one too many."""
    return max(0, each.account.version - _sequence_of(each.point)) + 1


def _place_of(after: str | None, without: Place) -> Place:
    return without if after is None else place_at(after)
