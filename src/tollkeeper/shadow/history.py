"""An experiment's analysis and its decisions, in the shape that a report shows. Pure.

The HTTP API's documents decode to it; so do decisions as they are stored.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec

from tollkeeper.shadow.analysis import Analysis
from tollkeeper.shadow.figures import ArmFigures
from tollkeeper.shadow.model import Decision, Verdict

SHOWN_LIMIT: Final = 6
"""Variants in a picture; all of them are in the table."""


class PastDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What a picture needs of a decision's document."""

    arms: tuple[ArmFigures, ...]
    why: str


class Past(msgspec.Struct, frozen=True, kw_only=True):
    """A decision of the past."""

    kind: str
    look: int
    decided_at: datetime
    verdict: Verdict
    document: PastDocument

    @property
    def units(self) -> int:
        """Units that counted then."""
        return sum(arm.units for arm in self.document.arms)


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """An arm when so many units of all arms counted."""

    units: int
    arm: ArmFigures


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What is reported of an experiment; `deployed` is the variant that everybody gets."""

    analysis: Analysis
    past: tuple[Past, ...] = ()
    state: str = "running"
    deployed: str | None = None

    @property
    def shown(self) -> tuple[int, ...]:
        """Numbers of the variants in pictures: the control, and those most probably best."""
        arms = self.analysis.arms
        control = next(no for no, arm in enumerate(arms) if arm.is_control)
        rivals = [no for no in range(len(arms)) if no != control]
        rivals.sort(key=lambda no: (-(arms[no].probability_best or 0.0), no))
        return (control, *sorted(rivals[: SHOWN_LIMIT - 1]))

    def course(self, variant_no: int) -> tuple[Point, ...]:
        """Return an arm at each look and now, by counted units."""
        points = [
            Point(units=past.units, arm=past.document.arms[variant_no])
            for past in self.past
            if past.kind == "look" and variant_no < len(past.document.arms)
        ]
        now = Point(units=self.analysis.looks.counted, arm=self.analysis.arms[variant_no])
        if not points or points[-1].units < now.units:
            points.append(now)
        return tuple(points)


def past_of(decisions: Sequence[Decision]) -> tuple[Past, ...]:
    """Return stored decisions as a report shows them."""
    return tuple(
        Past(
            kind=each.kind,
            look=each.look,
            decided_at=each.decided_at,
            verdict=each.verdict,
            document=msgspec.json.decode(each.document, type=PastDocument),
        )
        for each in decisions
    )
