"""By how much a variant is better than the control, relative to it. Pure.

The lift of a variant is sign (theta_v - theta_c) / |theta_c|: positive is better, whatever the
direction of the metric. Its law has no mean, as the control may be close to 0; its quantiles exist.

For what is never negative it follows from the ratio of two arms, whose law is an integral along the
arm that is larger by the ratio: there the other one, scaled up, has no border.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import expm1, hypot, log
from typing import Final

import numpy as np
from scipy import special

from tollkeeper.shadow.laws import PositiveLaw, StudentLaw
from tollkeeper.shadow.posterior import Posterior
from tollkeeper.shadow.quadrature import Array, Grid, edges_of
from tollkeeper.shadow.roots import root_near

TOLERANCE: Final = 1e-9
"""How exact a bound of an interval is, in standard deviations of the lift."""

_FARTHEST: Final = 38.0
"""Normal deviates beyond it have no probability that a double can hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lift:
    """A variant and the control it is compared with; `sign` is 1 if more is better, -1 if less."""

    variant: Posterior
    control: Posterior
    sign: int

    def at_least(self, margin: float) -> float:
        """Return the probability that the variant is better by `margin` of the control or more."""
        variant, control = self.variant.law, self.control.law
        if isinstance(variant, PositiveLaw) and isinstance(control, PositiveLaw):
            exceeds = _ratio_at_least(variant, control, 1 + self.sign * margin)
            return (exceeds, 1 - exceeds)[:: self.sign][0]
        assert isinstance(variant, StudentLaw)
        assert isinstance(control, StudentLaw)
        return _real_at_least(_turned(variant, self.sign), _turned(control, self.sign), margin)

    def point(self) -> float | None:
        """Return the lift of the posterior means; None if the control's is 0.

        It is (m_v - m_c) / |m_c|, times the sign. A posterior mean of the lift exists for some
        families only; this one does for all, and is what the specified gate asks for.
        """
        if self.control.mean == 0:
            return None
        return self.sign * (self.variant.mean - self.control.mean) / abs(self.control.mean)

    def interval(self, mass: float) -> tuple[float, float]:
        """Return the equal-tailed credible interval of the lift."""
        tail = (1 - mass) / 2
        if isinstance(self.variant.law, PositiveLaw):
            ratios = [self._ratio_of(share) for share in (tail, 1 - tail)]
            low, high = sorted(self.sign * expm1(ratio) for ratio in ratios)
            return low, high
        low, high = sorted(self._real_of(share) for share in (tail, 1 - tail))
        return low, high

    def _ratio_of(self, share: float) -> float:
        """Return the logarithm of the ratio's quantile."""
        variant, control = self.variant.law, self.control.law
        assert isinstance(variant, PositiveLaw)
        assert isinstance(control, PositiveLaw)

        def below(log_ratio: float) -> float:
            return 1 - _ratio_at_least(variant, control, float(np.exp(log_ratio)))

        center = log(self.variant.mean) - log(self.control.mean)
        spread = hypot(self.variant.sd / self.variant.mean, self.control.sd / self.control.mean)
        return _quantile(below, share, center, spread)

    def _real_of(self, share: float) -> float:
        """Return the quantile of the lift, looked for around its first-order approximation."""
        size = max(abs(self.control.mean), self.control.sd)
        center = self.sign * (self.variant.mean - self.control.mean) / size
        leverage = min(1.0, abs(self.variant.mean) / size)
        spread = hypot(self.variant.sd, leverage * self.control.sd) / size
        return _quantile(lambda lift: 1 - self.at_least(lift), share, center, spread)


def _quantile(below: Callable[[float], float], share: float, center: float, spread: float) -> float:
    """Return the quantile of a law given by its distribution, on the scale of normal deviates."""
    wanted = float(special.ndtri(share))

    def excess(place: float) -> float:
        deviate = float(special.ndtri(below(place)))
        return max(-_FARTHEST, min(_FARTHEST, deviate)) - wanted

    return root_near(excess, center + wanted * spread, spread, tolerance=TOLERANCE * spread)


def _ratio_at_least(top: PositiveLaw, bottom: PositiveLaw, ratio: float) -> float:
    """Return P(top >= ratio * bottom)."""
    if ratio <= 0:
        return 1.0
    if ratio >= 1:
        return _exceeds(top, bottom, ratio)
    return 1 - _exceeds(bottom, top, 1 / ratio)


def _exceeds(top: PositiveLaw, bottom: PositiveLaw, ratio: float) -> float:
    """Return P(top >= ratio * bottom) of a ratio of 1 or more, along the axis of `top`."""
    [highest] = top.extents()
    raised = bottom.raised_extent(ratio)
    if raised.low >= highest.high:
        return 0.0
    edges = edges_of((highest, raised), min(highest.low, raised.low), highest.high)
    grid = Grid.of_edges(edges)
    axis, speed = bottom.scaled_axis(grid.nodes, ratio)
    below, _ = grid.running(bottom.density(axis) * speed)
    masses = top.density(grid.nodes)[0] * grid.weights
    share = float(masses @ below[0] / masses.sum())
    return min(1.0, max(0.0, share))


def _turned(law: StudentLaw, sign: int) -> StudentLaw:
    return StudentLaw(center=sign * law.center, scale=law.scale, freedom=law.freedom)


def _real_at_least(variant: StudentLaw, control: StudentLaw, margin: float) -> float:
    """Return P(v >= c + margin |c|), along the axis of the control."""
    slopes = (1 + margin, 1 - margin)  # of what is wanted: right of 0, and left of it
    seen = StudentLaw.stacked([control, *(_seen_from_control(variant, each) for each in slopes)])
    extents = seen.extents()
    first, last = extents[0].low, extents[0].high
    middle = min(max(0.0, first), last)
    parts = [edges_of(extents, *ends) for ends in ((first, middle), (middle, last))]
    edges = np.concatenate([parts[0], parts[1][1:]])
    grid = Grid.of_edges(edges)
    wanted: Array = grid.nodes + margin * np.abs(grid.nodes)
    above = special.stdtr(variant.freedom, (variant.center - wanted) / variant.scale)
    masses = control.density(grid.nodes)[0] * grid.weights
    share = float(masses @ above / masses.sum())
    return min(1.0, max(0.0, share))


def _seen_from_control(variant: StudentLaw, slope: float) -> StudentLaw:
    """Return where, and how narrow, the variant is along the control's axis."""
    steepness = max(abs(slope), _FLATTEST)
    return StudentLaw(
        center=variant.center / (steepness if slope >= 0 else -steepness),
        scale=variant.scale / steepness,
        freedom=variant.freedom,
    )


_FLATTEST: Final = 1e-9
"""A flatter way to see the variant would put it beyond any place."""
