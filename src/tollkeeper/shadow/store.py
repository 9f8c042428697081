"""Rows of units, outcomes and their sums: runs `counting.sql`, rows to values and back.

Decides nothing. A batch is one unit of work: `hold`, `load`, `write`. The locks of `hold` keep
everybody else from the batch's units, and deciders from its experiments, until the commit; so what
is loaded stays true until the plan is written. Units that have no row yet cannot be held: `write`
tells when another process was faster with one of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from tollkeeper.database.driver import Connection, Row
from tollkeeper.database.queries import load_queries
from tollkeeper.database.timeouts import Timeouts
from tollkeeper.shadow.counting import Exposure, Kept, OutcomeKey, Plan, UnitKey, ValueKey
from tollkeeper.shadow.model import (
    OutcomeStatus,
    Record,
    Request,
)

TIMEOUTS: Final = Timeouts(statement_s=15, lock_s=5, idle_in_transaction_s=15)

SESSION_SETTINGS: Final[Mapping[str, str]] = {
    # As for the ledger: keyed statements over arrays, whose lengths the planner cannot see.
    "plan_cache_mode": "force_generic_plan",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "jit": "off",
    **TIMEOUTS.settings(),
}
"""What a connection of the pool that counts is opened with."""

_CLOCK, _VERSION, _OUTCOME, _WAITING, _VALUE = range(5)
_STATUSES: Final = tuple(OutcomeStatus)


@dataclass(slots=True, kw_only=True)
class Facts:
    """What a batch's units are, as `counting.Loaded` wants it; versions of its experiments."""

    now: datetime
    versions: dict[int, int] = field(default_factory=dict)
    outcomes: dict[OutcomeKey, Kept] = field(default_factory=dict)
    waiting: dict[UnitKey, dict[str, Kept]] = field(default_factory=dict)
    values: dict[ValueKey, tuple[int, int, int]] = field(default_factory=dict)


class CountingStore:
    """Reads and writes of what is counted; every method is one statement unless it says so."""

    def __init__(self) -> None:
        self._sql = load_queries("tollkeeper.shadow")

    async def hold(
        self, connection: Connection, requests: Sequence[Request]
    ) -> dict[UnitKey, Exposure | None]:
        """Lock a batch's units that have a row, share its experiments; return those units.

        Inside the caller's unit of work. A unit without an exposure is None.
        """
        places = sorted({(each.experiment_no, each.unit_id) for each in requests})
        numbers = sorted({number for number, _ in places})
        rows = await connection.fetch(self._sql["hold_units"], places, numbers)
        return {
            (row["experiment_no"], row["unit_id"]): _exposure(row)
            for row in rows
            if row["experiment_no"] is not None
        }

    async def load(
        self,
        connection: Connection,
        requests: Sequence[Request],
        units: Mapping[UnitKey, Exposure | None],
    ) -> Facts:
        """Read what is known of a batch whose `units` are held."""
        outcomes: dict[OutcomeKey, None] = {}
        awaited: dict[UnitKey, None] = {}
        values: dict[ValueKey, None] = {}
        for each in requests:
            unit = (each.experiment_no, each.unit_id)
            if unit not in units:
                continue
            if isinstance(each, Record):
                outcomes[(*unit, each.outcome_id)] = None
                if units[unit] is not None:
                    values[(*unit, each.metric_no)] = None
            elif units[unit] is None:
                awaited[unit] = None
        numbers = sorted({each.experiment_no for each in requests})
        rows = await connection.fetch(
            self._sql["counted"], numbers, list(outcomes), list(awaited), list(values)
        )
        return _facts(rows)

    async def write(
        self, connection: Connection, plan: Plan, units: Mapping[UnitKey, Exposure | None]
    ) -> bool:
        """Write a plan for held `units`; false when it must not stay: another was faster."""
        made: list[tuple[object, ...]] = [
            (*unit, None, None, None, None, None) for unit in plan.awaited
        ]
        exposed: list[tuple[object, ...]] = []
        for unit, (exposure, attributes) in plan.exposures.items():
            (exposed if unit in units else made).append(_written(unit, exposure, attributes))
        made.sort(key=_place)
        written: int = await connection.fetchval(
            self._sql["count_outcomes"],
            plan.now,
            made,
            exposed,
            [
                (*key, kept.metric_no, kept.value_micro, kept.occurred_at, kept.status)
                for key, kept in plan.outcomes.items()
            ],
            [(*key, status) for key, status in plan.settled.items()],
            [
                (*key, outcomes, str(total), str(value))
                for key, (outcomes, total, value) in plan.values.items()
            ],
            [(*key, units_) for key, units_ in sorted(plan.arm_exposures.items())],
            [
                (*key, units_, str(total), str(squares))
                for key, (units_, total, squares) in sorted(plan.arm_statistics.items())
            ],
        )
        return written == len(made) + len(exposed) + len(plan.outcomes) + len(plan.settled)


def _facts(rows: Sequence[Row]) -> Facts:
    facts = Facts(now=rows[0]["moment"])
    for row in rows[1:]:
        kind, number = row["kind"], row["experiment_no"]
        if kind == _VERSION:
            facts.versions[number] = row["number"]
        elif kind == _OUTCOME:
            facts.outcomes[number, row["unit_id"], row["outcome_id"]] = _kept(row)
        elif kind == _WAITING:
            waiting = facts.waiting.setdefault((number, row["unit_id"]), {})
            waiting[row["outcome_id"]] = _kept(row)
        else:
            facts.values[number, row["unit_id"], row["metric_no"]] = (
                row["number"], int(row["total"]), int(row["value"]),
            )  # fmt: skip
    return facts


def _kept(row: Row) -> Kept:
    return Kept(
        metric_no=row["metric_no"], value_micro=row["number"], occurred_at=row["moment"],
        status=_STATUSES[row["status"]],
    )  # fmt: skip


def _exposure(row: Row) -> Exposure | None:
    if row["variant_no"] is None:
        return None
    return Exposure(
        variant_no=row["variant_no"], epoch=row["epoch"], probability=row["probability"],
        exposed_at=row["exposed_at"],
    )  # fmt: skip


def _written(unit: UnitKey, exposure: Exposure, attributes: bytes | None) -> tuple[object, ...]:
    return (
        *unit, exposure.epoch, exposure.variant_no, exposure.exposed_at, exposure.probability,
        None if attributes is None else attributes.decode(),
    )  # fmt: skip


def _place(written: tuple[object, ...]) -> tuple[object, ...]:
    return written[:2]
