"""Which shares of new units the arms get, and which arm one request gets. Pure.

Thompson sampling gives an arm the probability that it is best. Top-two sampling finds the best arm
sooner, as it does not give nearly everything to the leader. A floor keeps every arm measurable, and
keeps their order. Weights are computed, not drawn: the same data give the same weights.

Source: Russo, "Simple Bayesian Algorithms for Best-Arm Identification" (2016), section 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum

import numpy as np

from tollkeeper.shadow.bayes import probability_best
from tollkeeper.shadow.errors import NotEnoughData
from tollkeeper.shadow.model import MetricKind
from tollkeeper.shadow.posterior import Posterior, Prior, posterior_of
from tollkeeper.shadow.statistics import NO_STATISTICS, ArmStatistics, Moments, weighted

LEAST_UNITS = 100
"""Units that every arm must have before weights change."""

NEGLIGIBLE = 1e-300
"""Probability that nothing can be divided by: the quotient might be no double."""

TOP_TWO_SHARE = 0.5
"""Share of the units that the leader gets in top-two sampling, if it is sure to lead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How weights follow the data.

    `temper` is the exponent of P(best) in Thompson sampling: 1 is Thompson's, 0 equal shares. One
    that grows with the share of the plan that is used up keeps the control from starving before
    anything is proven (Thall and Wathen, 2007, European Journal of Cancer 43:859).

    `floor` is every arm's least share. `top_two` is the leader's share in top-two sampling; None:
    Thompson sampling. `discount` is what a unit of an epoch is worth in the next one.

    Raises:
        ValueError: A number is outside its range.
    """

    floor: float = 0.05
    top_two: float | None = None
    discount: float = 1.0
    temper: float = 1.0
    least_units: int = LEAST_UNITS

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= 1:
            raise ValueError("the floor is 0 to 1")
        if self.top_two is not None and not 0 < self.top_two < 1:
            raise ValueError("the leader's share is between 0 and 1")
        if not 0 < self.discount <= 1:
            raise ValueError("the discount is above 0, and 1 at most")
        if not 0 <= self.temper <= 1:
            raise ValueError("the temper is 0 to 1")
        if self.least_units < 0:
            raise ValueError("least units are not negative")


def thompson_weights(p_best: Sequence[float]) -> tuple[float, ...]:
    """Return the shares that Thompson sampling gives on average: the probabilities of being best.

    Raises:
        ValueError: A probability is negative, or all are 0.
    """
    total = fsum(p_best)
    if not total > 0 or min(p_best) < 0:
        raise ValueError("probabilities of being best are not negative, and not all 0")
    return tuple(each / total for each in p_best)


def top_two_weights(p_best: Sequence[float], beta: float = TOP_TWO_SHARE) -> tuple[float, ...]:
    """Return the shares that top-two Thompson sampling gives on average.

    The first draw's best arm is taken with probability `beta`, otherwise the best of a draw in
    which another arm is best: psi_i = p_i (b + (1 - b) sum over j != i of p_j / (1 - p_j)).

    Raises:
        ValueError: As `thompson_weights`, or `beta` is not 0 to 1.
    """
    if not 0 <= beta <= 1:
        raise ValueError("the leader's share is 0 to 1")
    shares = thompson_weights(p_best)
    if len(shares) == 1:
        return shares
    others = [fsum(shares[:arm] + shares[arm + 1 :]) for arm in range(len(shares))]
    if min(others) < NEGLIGIBLE:  # one arm is best in every draw: nothing is known of the second
        rest = (1 - beta) / (len(shares) - 1)
        return tuple(beta if other < NEGLIGIBLE else rest for other in others)
    odds = [share / other for share, other in zip(shares, others, strict=True)]
    return tuple(
        share * (beta + (1 - beta) * fsum(odds[:arm] + odds[arm + 1 :]))
        for arm, share in enumerate(shares)
    )


def with_floor(weights: Sequence[float], floor: float) -> tuple[float, ...]:
    """Return p = f + (1 - n f) w: no share is below `floor`, and their order stays.

    Raises:
        ValueError: The floor is negative, or n floors are more than everything.
    """
    if not 0 <= floor * len(weights) <= 1:
        raise ValueError("the floor times the arms must be 0 to 1")
    rest = 1 - len(weights) * floor
    return tuple(floor + rest * weight for weight in weights)


def choose(posteriors: Sequence[Posterior], *, sign: int, generator: np.random.Generator) -> int:
    """Draw once from each posterior, and return the arm that is best in the draw."""
    draws = [sign * posterior.draw_one(generator) for posterior in posteriors]
    return draws.index(max(draws))


def discounted(statistics_by_epoch: Sequence[ArmStatistics], discount: float) -> Moments:
    """Return the moments of an arm, where a unit counts `discount` per epoch that passed since.

    The last epoch counts in full. So an arm follows a drift: with a discount of 1/2 a unit has a
    half-life of one epoch.

    Raises:
        ValueError: The discount is not above 0 and 1 at most.
    """
    if not 0 < discount <= 1:
        raise ValueError("the discount is above 0, and 1 at most")
    if discount == 1:
        return sum(statistics_by_epoch, start=NO_STATISTICS).moments  # without rounding
    ages = range(len(statistics_by_epoch) - 1, -1, -1)
    return weighted([each.moments for each in statistics_by_epoch], [discount**age for age in ages])


def adapted_weights(
    current: Sequence[float],
    arms: Sequence[Sequence[ArmStatistics]],
    *,
    kind: MetricKind,
    prior: Prior | None,
    sign: int,
    policy: Policy,
) -> tuple[float, ...]:
    """Return the weights for the next epoch; those that stand while there are not enough data.

    `arms` holds the statistics of every arm by epoch, oldest first. Not enough is an arm with fewer
    than `least_units` units in all epochs, or without a proper posterior.

    Raises:
        ValueError: There are not as many arms as weights, or the floor is too high for so many.
    """
    if len(current) != len(arms):
        raise ValueError("each arm needs a weight")
    if min(sum(epoch.units for epoch in epochs) for epochs in arms) < policy.least_units:
        return tuple(current)
    try:
        posteriors = [
            posterior_of(kind, prior, discounted(epochs, policy.discount)) for epochs in arms
        ]
    except NotEnoughData:
        return tuple(current)
    p_best = probability_best(posteriors, sign=sign)
    if policy.top_two is None:
        tempered = [each**policy.temper for each in p_best]
        return with_floor(thompson_weights(tempered), policy.floor)
    return with_floor(top_two_weights(p_best, policy.top_two), policy.floor)
