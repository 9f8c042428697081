"""Which arm is best, how sure that is, and what a wrong choice costs. Pure.

All figures of `compare` are integrals by quadrature, exact to 1e-9 for any number of units, and the
same every time. `monte_carlo` draws them from the same posteriors by another way; `disagreement`
says whether the two could both be right.

`sign` is 1 where more is better and -1 where less is: the metric times the sign is what is
maximised, and no formula knows which. Losses and margins are not negative then either.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, sqrt
from typing import Final

import numpy as np
from scipy import special

from tollkeeper.shadow.lift import Lift
from tollkeeper.shadow.posterior import Posterior
from tollkeeper.shadow.quadrature import Array

ARMS_LIMIT: Final = 50
DRAWS: Final = 10_000
DISAGREEMENT_LIMIT: Final = 5.0
"""Standard errors by which exact and drawn figures may differ: beyond, one of them is wrong."""

_FARTHEST: Final = 38.0
"""Normal deviates beyond it have no probability that a double can hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What `compare` finds, one entry per arm.

    `p_best` sums to 1. `expected_loss` is what choosing the arm costs on average, in the metric's
    unit. Against the control: `p_better` is the probability of being better at all, `p_lift` of
    being better by the margin; `lift` is the relative lift of the posterior means (None: the
    control's is 0), positive when better, in its credible interval `lift_interval`. The control
    has no lift over itself: 0 with certainty.
    """

    control: int
    sign: int
    margin: float
    p_best: tuple[float, ...]
    expected_loss: tuple[float, ...]
    means: tuple[float, ...]
    p_better: tuple[float, ...]
    p_lift: tuple[float, ...]
    lift: tuple[float | None, ...]
    lift_interval: tuple[tuple[float, float], ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What `monte_carlo` finds, one entry per arm, each with its standard error.

    `best_mean` is the mean of the best arm of each draw, in the metric's unit times the sign.
    """

    draws: int
    p_best: tuple[float, ...]
    p_lift: tuple[float, ...]
    expected_loss: tuple[float, ...]
    best_mean: float
    p_best_error: tuple[float, ...]
    p_lift_error: tuple[float, ...]
    expected_loss_error: tuple[float, ...]
    best_mean_error: float


def probability_best(posteriors: Sequence[Posterior], *, sign: int) -> tuple[float, ...]:
    """Return each arm's probability of being best, and nothing else: this is the fast way.

    Raises:
        ValueError: No arms, too many, or no sign.
    """
    _check(posteriors, control=0, sign=sign)
    return _best(posteriors, sign).p_best


def compare(
    posteriors: Sequence[Posterior],
    *,
    control: int,
    sign: int,
    margin: float,
    mass: float | None = 0.95,
) -> Comparison:
    """Compare 1 to 50 arms of one family; intervals of the lift have probability `mass`.

    Without `mass` there are no intervals, which take nine tenths of the time.

    Raises:
        ValueError: No arms, too many, no such control, no sign, or a margin that is not finite.
        TypeError: The arms are of different families.
    """
    _check(posteriors, control=control, sign=sign, margin=margin)
    best = _best(posteriors, sign)
    lifts = [
        None if arm == control else Lift(variant=posterior, control=posteriors[control], sign=sign)
        for arm, posterior in enumerate(posteriors)
    ]
    return Comparison(
        control=control,
        sign=sign,
        margin=margin,
        p_best=best.p_best,
        expected_loss=best.expected_loss,
        means=tuple(posterior.mean for posterior in posteriors),
        p_better=best.p_better_than(control),
        p_lift=tuple(
            float(margin <= 0) if lift is None else lift.at_least(margin) for lift in lifts
        ),
        lift=tuple(0.0 if lift is None else lift.point() for lift in lifts),
        lift_interval=None
        if mass is None
        else tuple((0.0, 0.0) if lift is None else lift.interval(mass) for lift in lifts),
    )


def monte_carlo(
    posteriors: Sequence[Posterior],
    *,
    control: int,
    sign: int,
    margin: float,
    draws: int = DRAWS,
    generator: np.random.Generator,
) -> Drawn:
    """Draw from every arm's posterior and count; standard errors are never 0.

    Raises:
        ValueError: As `compare`, or fewer than 2 draws.
    """
    _check(posteriors, control=control, sign=sign, margin=margin)
    if draws < 2:
        raise ValueError("at least 2 draws are needed")
    values = np.array([sign * posterior.draw(generator, draws) for posterior in posteriors])
    best = values.max(axis=0)
    is_best: Array = np.bincount(values.argmax(axis=0), minlength=len(values)) / draws
    wanted = values[control] + margin * np.abs(values[control])
    is_lifted = (values >= wanted).mean(axis=1)
    losses = best - values
    return Drawn(
        draws=draws,
        p_best=tuple(is_best.tolist()),
        p_lift=tuple(is_lifted.tolist()),
        expected_loss=tuple(losses.mean(axis=1).tolist()),
        best_mean=float(best.mean()),
        p_best_error=_share_errors(is_best, draws),
        p_lift_error=_share_errors(is_lifted, draws),
        expected_loss_error=tuple((losses.std(axis=1, ddof=1) / sqrt(draws)).tolist()),
        best_mean_error=float(best.std(ddof=1) / sqrt(draws)),
    )


def disagreement(comparison: Comparison, drawn: Drawn) -> float:
    """Return by how many standard errors exact and drawn figures differ at most.

    For a probability it is the normal deviate of the exact binomial tail: with a probability of
    1e-6 one hit in 10,000 draws is 10 standard errors, and yet happens. Losses are compared by the
    mean of the best arm, whose standard error is that of a posterior and never 0. Of an arm that
    is far behind, mean and loss cancel, and leave what rounding makes of them.
    """
    pairs = [
        *zip(comparison.p_best, drawn.p_best, strict=True),
        *zip(comparison.p_lift, drawn.p_lift, strict=True),
    ]
    shares = [_deviate(exact, share, drawn.draws) for exact, share in pairs]
    means = [
        abs(drawn.best_mean - (loss + comparison.sign * mean))
        / hypot(drawn.best_mean_error, _EXACTNESS * abs(loss))
        for loss, mean in zip(comparison.expected_loss, comparison.means, strict=True)
    ]
    return max(*shares, *means)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Best:
    """Figures of all arms, and what they were integrated from."""

    p_best: tuple[float, ...]
    expected_loss: tuple[float, ...]
    masses: Array
    worse: Array

    def p_better_than(self, control: int) -> tuple[float, ...]:
        shares = self.masses @ self.worse[control]
        shares[control] = 0.0
        return tuple(np.clip(shares, 0, 1).tolist())


def _best(posteriors: Sequence[Posterior], sign: int) -> _Best:
    """Integrate P(all others are worse) over each arm, and P(arm is worse than t < best) over t."""
    first = posteriors[0].law
    law = type(first).stacked([posterior.law for posterior in posteriors])
    grid = law.grid()
    density = law.density(grid.nodes)
    total = density @ grid.weights
    assert np.all(np.abs(total - 1) < _MASS_TOLERANCE), "a density was missed by the panels"
    density /= total[:, None]
    worse, _ = grid.running(density)[::sign]
    others = _product_of_others(worse)
    masses = density * grid.weights
    p_best = (masses * others).sum(axis=1)
    loss = (worse * (1 - others)) @ (grid.weights * law.slope(grid.nodes))
    return _Best(
        p_best=tuple((p_best / p_best.sum()).tolist()),
        expected_loss=tuple(loss.tolist()),
        masses=masses,
        worse=worse,
    )


def _product_of_others(worse: Array) -> Array:
    """Return at each node the product over all other arms; it underflows only to what is 0."""
    ones = np.ones((1, worse.shape[1]))
    before: Array = np.cumprod(np.vstack([ones, worse[:-1]]), axis=0, dtype=np.float64)
    after = np.cumprod(np.vstack([ones, worse[:0:-1]]), axis=0, dtype=np.float64)[::-1]
    return before * after


def _share_errors(shares: Array, draws: int) -> tuple[float, ...]:
    """Return binomial standard errors, as if one more draw had gone either way."""
    smoothed = (shares * draws + 1) / (draws + 2)
    return tuple(np.sqrt(smoothed * (1 - smoothed) / draws).tolist())


def _deviate(exact: float, share: float, draws: int) -> float:
    """Return the two-sided normal deviate of as many hits, or of more unlikely ones."""
    hits = round(share * draws)
    if hits == exact * draws:
        return 0.0
    if hits > exact * draws:
        tail = float(special.betainc(hits, draws - hits + 1, exact))
    else:
        tail = float(special.betaincc(hits + 1, draws - hits, exact))
    return max(0.0, min(_FARTHEST, -float(special.ndtri(tail))))


_MASS_TOLERANCE: Final = 1e-6
_EXACTNESS: Final = 1e-9
"""Share of itself to which an integral is exact."""


def _check(
    posteriors: Sequence[Posterior], *, control: int, sign: int, margin: float = 0.0
) -> None:
    if not 1 <= len(posteriors) <= ARMS_LIMIT:
        raise ValueError(f"1 to {ARMS_LIMIT} arms can be compared")
    if not 0 <= control < len(posteriors):
        raise ValueError("the control is not one of the arms")
    if sign not in (1, -1):
        raise ValueError("the sign is 1 or -1")
    if not np.isfinite(margin):
        raise ValueError("the margin must be finite")
