"""When an experiment is looked at. Pure.

Looks are planned by counted units, so that nobody can look again because of what was seen: with a
plan of U units and L looks, look k is due from k U / L units on. Looks that were missed are not
made up for. A verdict to deploy stands until it expires: it is not looked away.
"""

from datetime import datetime
from typing import Final

import msgspec

from tollkeeper.shadow.model import Definition, ExperimentId, Verdict

UNPLANNED_PERCENT: Final = 101
"""Where no looks are planned, there is one when so much of what was counted is counted: a decision
is kept with its inputs, and one a second tells nothing more."""


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How far an experiment is: counted units of all arms, and its last look, if there was one.

    `counted` may be 0 where no look can be due any more, or while a verdict to deploy stands.
    `counted_then` is what was counted at the last look; it is known where no looks are planned.
    """

    experiment_no: int
    experiment_id: ExperimentId
    definition: Definition
    moment: datetime
    counted: int
    look: int | None = None
    verdict: Verdict | None = None
    expires_at: datetime | None = None
    counted_then: int = 0


def due_look(standing: Standing) -> int | None:
    """Return the number of the look that is due; None: none is."""
    definition, last = standing.definition, standing.look or 0
    stands = standing.expires_at is not None and standing.expires_at > standing.moment
    if standing.verdict is Verdict.DEPLOY and stands:
        return None
    if definition.looks is None:
        is_more = standing.counted * 100 > standing.counted_then * UNPLANNED_PERCENT
        return last + 1 if is_more else None
    due = min(definition.looks, standing.counted * definition.looks // definition.units)
    return due if due > last else None


def next_look_at(definition: Definition, last: int) -> int | None:
    """Return at how many counted units the look after `last` is due; None: there is no other."""
    if definition.looks is None or last >= definition.looks:
        return None
    return -(-(last + 1) * definition.units // definition.looks)
