"""Reconciliation: accounts are held against their transactions, on and on, and frozen when wrong.

Two passes share a stated part of one core's time. *Recent* looks at the accounts whose row is not
what it was when they were last reconciled, and reads only the transactions behind that point;
*thorough* verifies all chains from their beginning, a slice at a time, and goes on after a restart
where it was.

Invariants: nothing is frozen but an account that two snapshots have proven wrong; each alone; at
most `freeze_limit` of them at a time; a freeze does not depend on its evidence being written. What
was accepted by lifting a freeze is not held against the account again.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import structlog

from tollkeeper.credits.evidence import EvidenceFolder
from tollkeeper.credits.model import Account, Fault, FaultKind, Point
from tollkeeper.credits.reconciliation_metrics import ReconciliationMetrics
from tollkeeper.credits.reconciliation_store import (
    AccountBesidePoint,
    EvidenceNote,
    Place,
    ReconciliationStore,
)
from tollkeeper.credits.service import CreditsService
from tollkeeper.credits.verification import PointsVerifier
from tollkeeper.credits.verifier import place_at
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

PAUSE_S: Final = 0.5
"""Between two pieces of work at least."""

PAUSE_LIMIT_S: Final = 600.0
"""And at most, however long a piece took."""

EVIDENCE_TIMEOUT_S: Final = 10.0
"""A freeze waits so long for its evidence to be written, and goes without after that."""

STANDING_PERIOD_S: Final = 60.0
"""How old the counts of all accounts in the metrics get while nothing is found."""

FAULTS_KEPT: Final = 100
"""Faults of an account that are written down with its freeze."""

FAULTS_TOLD: Final = 3
"""Faults of an account that its line in the log has."""

NAMES_TOLD: Final = 5
"""Accounts beyond the limit that a line in the log names."""

_START: Final[Place] = (-1, "")
_SIDE_FAULTS: Final = frozenset((FaultKind.HOLD, FaultKind.REFUND))

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Proven:
    """An account that two snapshots have shown to be wrong, and by which pass."""

    place: Place
    faults: Sequence[Fault]
    by: str
    point: Point | None


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
        evidence: EvidenceFolder,
        share: float,
        freeze_limit: int,
    ) -> None:
        self._pool = pool
        self._store = store
        self._service = service
        self._clock = clock
        self._metrics = metrics
        self._evidence = evidence
        self._share = share
        self._freeze_limit = freeze_limit
        self._changed: deque[Place] = deque()
        self._looked_behind: Place | None = None  # None: the next look begins at the first account
        self._beyond_limit: set[str] = set()
        self._beyond_limit_in_pass: set[str] = set()
        self._vanished = 0
        self._shown_at_s: float | None = None
        self._newly_beyond: list[str] = []
        self._has_found = False  # something since the metrics were last set
        self._recent_in_a_row = 0

    async def piece(self) -> float:
        """Do a piece of work of one of the passes; return how long to pause after it."""
        began_s = self._clock.monotonic_s()
        if self._recent_in_a_row < RECENT_IN_A_ROW:
            self._recent_in_a_row += 1
            if await self.recent():
                self._recent_in_a_row = RECENT_IN_A_ROW
        else:
            self._recent_in_a_row = 0
            await self.thorough()
        took_s = self._clock.monotonic_s() - began_s
        return min(max(PAUSE_S, took_s * (1 / self._share - 1)), PAUSE_LIMIT_S)

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
            if not self._changed:
                await self._look(connection)
            count = min(len(self._changed), PIECE_ACCOUNTS)
            places = [self._changed.popleft() for _ in range(count)]
            for place in await self._reconcile(connection, places):
                self._changed.append(place)
            self._metrics.behind(len(self._changed))
            await self._show_if_found(connection)
            if self._changed or self._looked_behind is not None:
                return False
        self._metrics.ended("recent", self._clock.now())
        return True

    async def _look(self, connection: Connection) -> None:
        shown_at_s = self._shown_at_s
        if shown_at_s is None or self._clock.monotonic_s() - shown_at_s >= STANDING_PERIOD_S:
            await self._show_standing(connection)
        after = self._looked_behind or _START
        self._changed.extend(await self._store.changed(connection, after, CHANGED_LIMIT))
        is_full = len(self._changed) == CHANGED_LIMIT
        self._looked_behind = self._changed[-1] if is_full else None

    async def _reconcile(self, connection: Connection, places: Sequence[Place]) -> list[Place]:
        """Check accounts; return those that have more to check than fitted."""
        if not places:
            return []
        checked, left = await self._check(connection, places)
        sound = [each for each in checked if not each.faults]
        if sound:
            await self._store.mark(connection, [(each.account, each.end) for each in sound])
        rows = sum(each.rows for each in checked)
        self._metrics.checked("recent", accounts=len(checked), transactions=rows)
        self._beyond_limit.difference_update(each.account.account_id for each in sound)
        for each in checked:
            if each.faults:
                await self._confirm_recent(connection, each)
        left += [(e.account.shard, e.account.account_id) for e in sound if not e.is_whole]
        return left

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

    async def _confirm_recent(self, connection: Connection, suspect: _Checked) -> None:
        """Look again in a snapshot of its own, and freeze what is wrong there too."""
        place = (suspect.account.shard, suspect.account.account_id)
        checked, _ = await self._check(connection, [place])
        for again in checked:
            faults = await self._not_accepted(connection, place, again.faults)
            if faults:
                await self._freeze(
                    connection, _Proven(place=place, faults=faults, by="recent", point=again.start)
                )
            elif again.faults:
                # All of it was accepted, and there is no sound point behind it yet.
                await self._store.mark(connection, [(again.account, again.end)])

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
            after = await self._store.progress(connection)
            suspects, following = await self._verify_slice(connection, after)
            for account_id in suspects:
                await self._confirm_thorough(connection, account_id)
            await self._store.advance(connection, following)
            if following is None:
                self._has_found = True
                self._beyond_limit = self._beyond_limit_in_pass
                self._beyond_limit_in_pass = set()
            await self._show_if_found(connection)
            if following is not None:
                return False
        self._metrics.ended("thorough", self._clock.now())
        return True

    async def _verify_slice(
        self, connection: Connection, after: str | None
    ) -> tuple[Iterable[str], str | None]:
        """Verify a slice; return the accounts to look at again, and where the next one begins."""
        found = await self._service.verify(None, None, after=after)
        self._metrics.checked("thorough", accounts=found.accounts, transactions=found.transactions)
        suspects: Iterable[str] = dict.fromkeys(
            fault.account_id for fault in found.faults if fault.account_id is not None
        )
        if found.more_faults:
            # More than are listed: whoever has many of them must not hide others behind it.
            suspects = await self._store.accounts_between(
                connection, _place_of(after), _place_of(found.next)
            )
        return suspects, found.next

    async def _confirm_thorough(self, connection: Connection, account_id: str) -> None:
        name, place = AccountId(account_id), (shard_of(account_id), account_id)
        beside = await self._store.beside_points(connection, [place])
        if not beside or beside[0].account.frozen_at is not None:
            return
        again = (await self._service.verify(name, None, after=None)).faults
        faults = await self._not_accepted(connection, place, again)
        if faults:
            await self._freeze(
                connection,
                _Proven(place=place, faults=faults, by="thorough", point=beside[0].point),
            )

    # Freezing ------------------------------------------------------------------------------------

    async def _not_accepted(
        self, connection: Connection, place: Place, faults: Sequence[Fault]
    ) -> tuple[Fault, ...]:
        """Return the faults that no lifted freeze has accepted."""
        if not faults:
            return ()
        lifted = await self._store.lifted(connection, place)
        sequence = max((up_to for up_to, _ in lifted), default=0)
        known = {
            (fault.fault, fault.detail)
            for _, accepted in lifted
            for fault in accepted
            if fault.fault in _SIDE_FAULTS
        }
        return tuple(
            fault
            for fault in faults
            if not 0 < fault.sequence <= sequence and (fault.fault, fault.detail) not in known
        )

    async def _freeze(self, connection: Connection, proven: _Proven) -> None:
        account_id, faults = proven.place[1], proven.faults
        self._has_found = True
        if await self._store.count_frozen(connection) >= self._freeze_limit:
            if account_id not in self._beyond_limit:
                self._newly_beyond.append(account_id)
            self._beyond_limit.add(account_id)
            self._beyond_limit_in_pass.add(account_id)
            return
        async with connection.transaction():
            frozen = await self._store.freeze(connection, proven.place)
            if frozen is None:
                return
            note = await self._write_evidence(connection, frozen, proven)
            await self._store.add_freeze(connection, frozen, faults[:FAULTS_KEPT], note)
        self._beyond_limit.discard(account_id)
        self._metrics.frozen(proven.by, has_evidence=note.problem is None)
        _log.warning(
            "worker.account_frozen", account=account_id, tenant=frozen.tenant_id,
            faults=[f"{f.fault} at {f.sequence}: {f.detail}" for f in faults[:FAULTS_TOLD]],
            found=len(faults), by=proven.by, evidence=note.name,
        )  # fmt: skip
        if note.problem is not None:
            _log.error("worker.evidence_not_written", account=account_id, problem=note.problem)

    async def _write_evidence(
        self, connection: Connection, frozen: Account, proven: _Proven
    ) -> EvidenceNote:
        around = {
            fault.sequence + step for fault in proven.faults[:FAULTS_KEPT] for step in (-1, 0, 1)
        }
        ends = {frozen.version - 1, frozen.version, frozen.version + 1, _sequence_of(proven.point)}
        found: dict[str, object] = {
            "found_by": proven.by,
            "account": _document(frozen),
            "reconciled": None if proven.point is None else _document(proven.point),
            "faults": proven.faults,
            "rows": await self._store.rows_at(connection, proven.place, sorted(around | ends)),
        }
        try:
            async with asyncio.timeout(EVIDENCE_TIMEOUT_S):
                name, digest = await asyncio.to_thread(
                    self._evidence.write, frozen.account_id, self._clock.now(), found
                )
        except TimeoutError:
            return EvidenceNote(problem=f"not written within {EVIDENCE_TIMEOUT_S:g} s")
        except OSError as error:
            return EvidenceNote(problem=error.strerror or repr(error))
        return EvidenceNote(name, digest)

    async def _show_if_found(self, connection: Connection) -> None:
        if self._newly_beyond:
            # One line, however many: when it is everywhere, its cause is one.
            _log.error(
                "worker.freeze_limit_reached", limit=self._freeze_limit,
                accounts=len(self._newly_beyond), first=self._newly_beyond[:NAMES_TOLD],
            )  # fmt: skip
            self._newly_beyond.clear()
        if self._has_found:
            await self._show_standing(connection)

    async def _show_standing(self, connection: Connection) -> None:
        standing = await self._store.standing(connection)
        if standing.vanished != self._vanished:
            self._vanished = standing.vanished
            _log.error("worker.accounts_vanished", accounts=standing.vanished)
        self._has_found, self._shown_at_s = False, self._clock.monotonic_s()
        self._metrics.stand(
            broken=standing.frozen + standing.vanished + len(self._beyond_limit),
            negative=standing.negative,
        )


def _sequence_of(point: Point | None) -> int:
    return 0 if point is None else point.sequence


def _rows_expected(each: AccountBesidePoint) -> int:
    """Return how many rows to ask for: those up to the account's version, and one too many."""
    return max(0, each.account.version - _sequence_of(each.point)) + 1


def _place_of(after: str | None) -> Place | None:
    return None if after is None else place_at(after)


def _document(value: Account | Point) -> dict[str, object]:
    return {**msgspec.structs.asdict(value), "head_hash": value.head_hash.hex()}
