"""Rows of units, outcomes and their sums: runs `counting.sql`, rows to values and back.

Decides nothing. A batch is one unit of work: `load`, `write`. Its experiments are shared from the
first on, so nobody decides about them, or changes them, before the commit. Units are not locked,
but for those that have no exposure yet: `write` tells when another process was faster with an
outcome or a value. Who `lock`s first is overtaken by nobody who does so too, who `own`s by nobody.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from operator import itemgetter
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

_VERSION, _EXPOSED, _LOCKED, _OUTCOME, _VALUE, _CLOCK = range(6)
_NOT_LOCKED: Final = object()
_key: Final = itemgetter(0)
_STATUSES: Final = tuple(OutcomeStatus)


@dataclass(slots=True, kw_only=True)
class Facts:
    """What is known of a batch, as `counting.Loaded` wants it; versions of its experiments."""

    now: datetime
    versions: dict[int, int] = field(default_factory=dict)
    units: dict[UnitKey, Exposure | None] = field(default_factory=dict)
    outcomes: dict[OutcomeKey, Kept] = field(default_factory=dict)
    waiting: dict[UnitKey, dict[str, Kept]] = field(default_factory=dict)
    values: dict[ValueKey, tuple[int, int, int]] = field(default_factory=dict)


class CountingStore:
    """Reads and writes of what is counted; every method is one statement unless it says so."""

    def __init__(self) -> None:
        self._sql = load_queries("tollkeeper.shadow")

    async def own(self, connection: Connection, requests: Sequence[Request]) -> None:
        """Keep everybody else from counting in a batch's experiments until the commit."""
        await connection.fetch(self._sql["own_experiments"], _experiments(requests))

    async def lock(self, connection: Connection, requests: Sequence[Request]) -> None:
        """Share a batch's experiments and lock its units until the commit; two statements."""
        await connection.fetch(self._sql["share_experiments"], _experiments(requests))
        units = sorted({(each.experiment_no, each.unit_id) for each in requests})
        await connection.fetch(self._sql["lock_units"], units)

    async def load(self, connection: Connection, requests: Sequence[Request]) -> Facts:
        """Share a batch's experiments and read what is known of it, inside its unit of work.

        Takes a second statement when units get their exposure that are known already.
        """
        units: dict[UnitKey, None] = {}
        exposed: dict[UnitKey, None] = {}
        outcomes: dict[OutcomeKey, None] = {}
        values: dict[ValueKey, None] = {}
        for each in requests:
            number, unit_id = each.experiment_no, each.unit_id
            units[number, unit_id] = None
            if type(each) is Record:
                outcomes[number, unit_id, each.outcome_id] = None
                values[number, unit_id, each.metric_no] = None
            else:
                exposed[number, unit_id] = None
        rows = await connection.fetch(
            self._sql["known"],
            _experiments(requests),
            sorted(units),
            list(outcomes),
            list(values),
        )
        facts = _facts(rows)
        awaited = [unit for unit in exposed if facts.units.get(unit, _NOT_LOCKED) is None]
        for row in await connection.fetch(self._sql["waiting"], awaited) if awaited else ():
            number, unit_id, outcome_id, *kept = row
            facts.waiting.setdefault((number, unit_id), {})[outcome_id] = _kept(*kept)
        return facts

    async def write(self, connection: Connection, plan: Plan, facts: Facts) -> bool:
        """Write a plan; false when it must not stay: another process was faster."""
        made: list[tuple[object, ...]] = [
            (*unit, None, None, None, None, None) for unit in plan.awaited
        ]
        exposed: list[tuple[object, ...]] = []
        for unit, (exposure, attributes) in plan.exposures.items():
            (exposed if unit in facts.units else made).append(_written(unit, exposure, attributes))
        made.sort(key=_place)
        exposed.sort(key=_place)
        first, moved = _split(plan, facts)
        written: int = await connection.fetchval(
            self._sql["count_outcomes"],
            plan.now,
            made,
            exposed,
            [
                (*key, kept.metric_no, kept.value_micro, kept.occurred_at, kept.status)
                for key, kept in sorted(plan.outcomes.items(), key=_key)
            ],
            [(*key, status) for key, status in sorted(plan.settled.items())],
            first,
            moved,
            [(*key, units) for key, units in sorted(plan.arm_exposures.items())],
            [
                (*key, units, str(total), str(squares))
                for key, (units, total, squares) in sorted(plan.arm_statistics.items())
            ],
        )
        return written == len(made) + len(exposed) + len(plan.outcomes) + len(plan.settled) + len(
            plan.values
        )


def _experiments(requests: Sequence[Request]) -> list[int]:
    return sorted({each.experiment_no for each in requests})


def _facts(rows: Sequence[Row]) -> Facts:
    facts = Facts(now=rows[-1]["moment"])
    for kind, experiment_no, unit_id, outcome_id, place, count, number, moment, *more in rows:
        if kind == _OUTCOME:
            facts.outcomes[experiment_no, unit_id, outcome_id] = Kept(
                metric_no=place, value_micro=number, occurred_at=moment, status=_STATUSES[count]
            )
        elif kind == _VALUE:
            facts.values[experiment_no, unit_id, place] = (count, int(more[1]), int(more[2]))
        elif kind == _EXPOSED:
            facts.units[experiment_no, unit_id] = Exposure(
                variant_no=place, epoch=count, probability=more[0], exposed_at=moment
            )
        elif kind == _LOCKED:
            facts.units[experiment_no, unit_id] = None
        elif kind == _VERSION and number is not None:
            facts.versions[experiment_no] = number
    return facts


def _kept(metric_no: int, status: int, value_micro: int, occurred_at: datetime) -> Kept:
    return Kept(
        metric_no=metric_no, value_micro=value_micro, occurred_at=occurred_at,
        status=_STATUSES[status],
    )  # fmt: skip


def _split(plan: Plan, facts: Facts) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    """Return rows of first values of units, and of values that moved."""
    first: list[tuple[object, ...]] = []
    moved: list[tuple[object, ...]] = []
    for key, (outcomes, total, value) in sorted(plan.values.items(), key=_key):
        before = facts.values.get(key)
        if before is None:
            first.append((*key, 0, outcomes, str(total), str(value)))
        else:
            moved.append((*key, before[0], outcomes, str(total), str(value)))
    return first, moved


def _written(unit: UnitKey, exposure: Exposure, attributes: bytes | None) -> tuple[object, ...]:
    return (
        *unit, exposure.epoch, exposure.variant_no, exposure.exposed_at, exposure.probability,
        None if attributes is None else attributes.decode(),
    )  # fmt: skip


def _place(written: tuple[object, ...]) -> tuple[object, ...]:
    return written[:2]
