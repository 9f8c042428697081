"""What is known of each arm, as numbers that people and programs read. Pure.

Means, intervals and losses are in the metric's own unit; lifts are relative to the control, and
positive when the variant is better, whatever the metric's direction.
"""

from typing import Final

import msgspec

from tollkeeper.shadow.errors import NotEnoughData
from tollkeeper.shadow.evidence import Evidence
from tollkeeper.shadow.posterior import highest_density_interval, interval

MASS: Final = 0.95
"""Probability of every interval here."""


class ArmFigures(msgspec.Struct, frozen=True, kw_only=True):
    """A variant in the primary metric; null: nobody can say yet."""

    variant: str
    is_control: bool
    exposed: int
    """Units that were assigned the variant."""
    mature: int
    """Exposed units whose attribution window has closed."""
    answered: int
    """Mature units with an outcome."""
    units: int
    """Units that count."""
    share: float | None
    """Of all exposed units."""
    mean: float | None
    """Mean of the units that count."""
    posterior_mean: float | None = None
    posterior_sd: float | None = None
    interval: tuple[float, float] | None = None
    """Equal-tailed 95 % credible interval of the mean."""
    density_interval: tuple[float, float] | None = None
    """Shortest 95 % credible interval of the mean."""
    probability_best: float | None = None
    expected_loss: float | None = None
    """What is lost on average, in the metric's unit, if another variant is the best."""
    probability_better: float | None = None
    """P(better than the control); null for the control."""
    probability_lift: float | None = None
    """P(better than the control by the margin); null for the control."""
    lift: float | None = None
    """Lift of the posterior means: 0.05 is 5 % better; null for the control."""
    lift_interval: tuple[float, float] | None = None
    """Equal-tailed 95 % credible interval of the lift; null for the control."""


def arm_figures(evidence: Evidence) -> tuple[ArmFigures, ...]:
    """Return the figures of every variant, in order."""
    exposed = evidence.exposed
    counts = tuple(
        ArmFigures(
            variant=evidence.definition.variants[no].name,
            is_control=no == evidence.control_no,
            exposed=arm.exposed,
            mature=arm.mature,
            answered=arm.answered,
            units=arm.statistics.units,
            share=arm.exposed / exposed if exposed else None,
            mean=arm.statistics.mean if arm.statistics.units else None,
        )
        for no, arm in enumerate(evidence.primary)
    )
    try:
        posteriors, comparison = evidence.posteriors(0), evidence.comparison
    except NotEnoughData:
        return counts
    return tuple(
        msgspec.structs.replace(
            counts[no],
            posterior_mean=posterior.mean,
            posterior_sd=posterior.sd,
            interval=interval(posterior, MASS),
            density_interval=highest_density_interval(posterior, MASS),
            probability_best=comparison.p_best[no],
            expected_loss=comparison.expected_loss[no],
            probability_better=None if counts[no].is_control else comparison.p_better[no],
            probability_lift=None if counts[no].is_control else comparison.p_lift[no],
            lift=None if counts[no].is_control else comparison.lift[no],
            lift_interval=None if counts[no].is_control else evidence.lift_interval(no, MASS),
        )
        for no, posterior in enumerate(posteriors)
    )
