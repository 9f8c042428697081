"""Freezes accounts that were proven wrong, remembers what was accepted, and says how all stand.

Invariants: each account is frozen alone, without its row being decoded; at most `limit` of them at
a time; a freeze does not depend on its evidence being written. Lifting a freeze accepts what was
found, by value: whatever stands there afterwards is new.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import msgspec
import structlog

from tollkeeper.credits.evidence import EvidenceFolder
from tollkeeper.credits.model import Fault, Point
from tollkeeper.credits.reconciliation_metrics import ReconciliationMetrics
from tollkeeper.credits.reconciliation_store import (
    EvidenceNote,
    FrozenRow,
    ReconciliationStore,
)
from tollkeeper.credits.verification_store import Place
from tollkeeper.database.driver import Connection
from tollkeeper.kernel.clock import Clock

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

_LAST_SEQUENCE: Final = 2**63 - 1

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """An account that two snapshots have shown to be wrong, and by which pass."""

    place: Place
    faults: Sequence[Fault]
    by: str
    point: Point | None


class Freezer:
    """Freezes accounts of one ledger, as the owner of its schema."""

    def __init__(
        self,
        store: ReconciliationStore,
        *,
        clock: Clock,
        metrics: ReconciliationMetrics,
        evidence: EvidenceFolder,
        limit: int,
    ) -> None:
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._evidence = evidence
        self._limit = limit
        self._frozen: int | None = None  # accounts, counted at most once a piece
        self._beyond_limit: set[Place] = set()
        self._beyond_limit_in_pass: set[Place] = set()
        self._newly_beyond: list[str] = []
        self._vanished = 0
        self._shown_at_s: float | None = None
        self._has_found = False  # something since the metrics were last set

    def begin_piece(self) -> None:
        """Forget how many accounts are frozen: operators lift freezes meanwhile."""
        self._frozen = None

    def is_sound(self, place: Place) -> None:
        """Take note that an account is right, again or still."""
        self._beyond_limit.discard(place)

    def end_pass(self) -> None:
        """Take note that all chains were looked at: who was not found again is right."""
        self._has_found = True
        self._beyond_limit = self._beyond_limit_in_pass
        self._beyond_limit_in_pass = set()

    async def vanished(self, connection: Connection, place: Place) -> None:
        """Take note that there is no such account, and count it if it has transactions."""
        await self._store.remember_vanished(connection, place)
        self._has_found = True

    async def not_accepted(
        self, connection: Connection, place: Place, faults: Sequence[Fault]
    ) -> tuple[Fault, ...]:
        """Return the faults that no lifted freeze has accepted."""
        accepted = await self._store.accepted(connection, place) if faults else frozenset()
        if not accepted:
            return tuple(faults)
        values = await self._values(connection, place, faults)
        return tuple(
            fault for fault, value in zip(faults, values, strict=True) if value not in accepted
        )

    async def _values(
        self, connection: Connection, place: Place, faults: Sequence[Fault]
    ) -> list[bytes | None]:
        """Return for each fault a digest of what was found; None: it cannot be accepted.

        A lifting restates the account's own row from its chain: nothing of it stays to be accepted.
        """
        keys = [_key_of(fault) for fault in faults]
        digests = await self._store.values_found(
            connection,
            place,
            sorted({key for key in keys if isinstance(key, int)}),
            sorted({key for key in keys if isinstance(key, UUID)}),
        )
        return [
            hashlib.sha256(f"{fault.fault} {key} ".encode() + digests[key]).digest()
            if key is not None and key in digests
            else None
            for fault, key in zip(faults, keys, strict=True)
        ]

    async def freeze(self, connection: Connection, proven: Proven) -> None:
        """Freeze an account, unless too many are frozen: then it is counted and told."""
        place, faults = proven.place, proven.faults
        account_id = place[1]
        self._has_found = True
        if self._frozen is None:
            self._frozen = await self._store.count_frozen(connection)
        if self._frozen >= self._limit:
            if place not in self._beyond_limit:
                self._newly_beyond.append(account_id)
            self._beyond_limit.add(place)
            self._beyond_limit_in_pass.add(place)
            return
        async with connection.transaction():
            frozen = await self._store.freeze(connection, place)
            if frozen is None:
                return
            values = await self._values(connection, place, faults)
            note = await self._write_evidence(connection, frozen, proven)
            found = sorted({value for value in values if value is not None})
            await self._store.add_freeze(
                connection, place, frozen, faults=faults[:FAULTS_KEPT], found=found, note=note
            )
        self._frozen += 1
        self._beyond_limit.discard(place)
        self._metrics.frozen(proven.by, has_evidence=note.problem is None)
        _log.warning(
            "worker.account_frozen", account=account_id, tenant=frozen.tenant_id,
            faults=[f"{f.fault} at {f.sequence}: {f.detail}" for f in faults[:FAULTS_TOLD]],
            found=len(faults), by=proven.by, evidence=note.name,
        )  # fmt: skip
        if note.problem is not None:
            _log.error("worker.evidence_not_written", account=account_id, problem=note.problem)

    async def _write_evidence(
        self, connection: Connection, frozen: FrozenRow, proven: Proven
    ) -> EvidenceNote:
        account_id, version, point = proven.place[1], frozen.version, proven.point
        near = {version, *(fault.sequence for fault in proven.faults[:FAULTS_KEPT])}
        around = {sequence + step for sequence in near for step in (-1, 0, 1)}
        around.add(0 if point is None else point.sequence)
        around = {sequence for sequence in around if 0 < sequence <= _LAST_SEQUENCE}
        found: dict[str, object] = {
            "found_by": proven.by,
            "account": frozen.stored,
            "reconciled": None if point is None else _document(point),
            "faults": proven.faults,
            "rows": await self._store.rows_at(connection, proven.place, sorted(around)),
        }
        try:
            async with asyncio.timeout(EVIDENCE_TIMEOUT_S):
                name, digest = await asyncio.to_thread(
                    self._evidence.write, account_id, self._clock.now(), found
                )
        except TimeoutError:
            return EvidenceNote(problem=f"not written within {EVIDENCE_TIMEOUT_S:g} s")
        except OSError as error:
            return EvidenceNote(problem=error.strerror or repr(error))
        return EvidenceNote(name, digest)

    # How all stand -------------------------------------------------------------------------------

    async def show_if_old(self, connection: Connection) -> None:
        """Set the metrics of all accounts if they were not set for a while."""
        shown_at_s = self._shown_at_s
        if shown_at_s is None or self._clock.monotonic_s() - shown_at_s >= STANDING_PERIOD_S:
            await self._show_standing(connection)

    async def show_if_found(self, connection: Connection) -> None:
        """Tell what was found since the last time, and set the metrics then."""
        if self._newly_beyond:
            # One line, however many: when it is everywhere, its cause is one.
            _log.error(
                "worker.freeze_limit_reached", limit=self._limit,
                accounts=len(self._newly_beyond), first=self._newly_beyond[:NAMES_TOLD],
            )  # fmt: skip
            self._newly_beyond.clear()
        if self._has_found:
            await self._show_standing(connection)

    async def _show_standing(self, connection: Connection) -> None:
        await self._store.tidy_freezes(connection)
        standing = await self._store.standing(connection)
        if standing.vanished != self._vanished:
            self._vanished = standing.vanished
            _log.error("worker.accounts_vanished", accounts=standing.vanished)
        self._has_found, self._shown_at_s = False, self._clock.monotonic_s()
        self._metrics.stand(
            broken=standing.frozen + standing.vanished + len(self._beyond_limit),
            negative=standing.negative,
        )


def _key_of(fault: Fault) -> int | UUID | None:
    """Return what a fault is about: a row, a hold or refund, or None: the account's own row."""
    return fault.sequence if fault.sequence > 0 else fault.about


def _document(point: Point) -> dict[str, object]:
    return {**msgspec.structs.asdict(point), "head_hash": point.head_hash.hex()}
