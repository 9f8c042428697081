"""What is believed of an arm after its data: one posterior per arm and metric. Pure.

A rate is Beta, a count per unit is Gamma, and the mean of a continuous value is Student's t, the
margin of a Normal-inverse-gamma. A posterior is proper, or it is refused: nothing here is NaN.

Default priors, all equivariant, so that units of measurement do not matter more than data:

* rate: Beta(1, 1), uniform; as one success and one failure seen before.
* count: Gamma(1, 0.01), an exponential of mean 100; it weighs a hundredth of a unit, and is nearly
  flat over what one unit may count. The family takes the variance of a count for its mean: where
  `ArmStatistics.variance` is well above the mean, use a continuous metric.
* continuous: the reference prior 1/sigma**2, as Normal-inverse-gamma(0, 0, -1/2, 0), whose
  intervals are the classical t intervals; it needs 4 units that are not all the same.

Source: Gelman et al., "Bayesian Data Analysis", 3rd edition, sections 2.4, 2.6 and 3.2-3.3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Final, Protocol

import numpy as np
from scipy import special

from tollkeeper.shadow.errors import NotEnoughData
from tollkeeper.shadow.laws import BetaLaw, GammaLaw, Law, StudentLaw, lower_tail, upper_tail
from tollkeeper.shadow.model import MetricKind
from tollkeeper.shadow.quadrature import Array
from tollkeeper.shadow.roots import root_between
from tollkeeper.shadow.statistics import NO_STATISTICS, ArmStatistics, Moments

Prior = tuple[float, ...]
"""`alpha, beta`, or `shape, rate`, or `mean, kappa, alpha, beta`, by the metric's kind."""

DEFAULT_PRIORS: Final[Mapping[MetricKind, Prior]] = {
    MetricKind.BINARY: (1.0, 1.0),
    MetricKind.COUNT: (1.0, 0.01),
    MetricKind.CONTINUOUS: (0.0, 0.0, -0.5, 0.0),
}

LEAST_SHAPE: Final = 0.1
"""Least parameter of a Beta or Gamma: below, all mass is where no double is."""

LEAST_RATE: Final = 1e-12
"""Least rate of a Gamma: a count of 10**12 is the largest value there is."""

LARGEST_SHAPE: Final = 1e16
"""Largest shape of a Gamma: beyond, its width is lost in the digits of its place on an axis."""

LEAST_FREEDOM: Final = 3.0
"""Least degrees of freedom of a Student posterior: mean and variance exist above 2."""

LEAST_RELATIVE_SCALE: Final = 1e-9
"""Below this share of its mean, the scale of a posterior is lost in a double's digits."""


class Posterior(Protocol):
    """A posterior of one arm; `x` is in the metric's unit, of any shape."""

    @property
    def mean(self) -> float:
        """Expected value."""

    @property
    def sd(self) -> float:
        """Standard deviation."""

    @property
    def mode(self) -> float:
        """Where the density is highest; at a border if it falls, or rises, all the way."""

    @property
    def support(self) -> tuple[float, float]:
        """Least and largest value."""

    @property
    def law(self) -> Law:
        """The same as a law of one row."""

    def logpdf(self, x: Array | float) -> Array:
        """Return the logarithm of the density; -inf outside the support."""

    def cdf(self, x: Array | float) -> Array:
        """Return the probability of at most `x`."""

    def sf(self, x: Array | float) -> Array:
        """Return the probability of more than `x`."""

    def ppf(self, share: Array | float) -> Array:
        """Return the quantile of a probability."""

    def draw(self, generator: np.random.Generator, count: int) -> Array:
        """Draw values, shape `(count,)`."""

    def draw_one(self, generator: np.random.Generator) -> float:
        """Draw one value, in two thirds of the time that an array of one takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BetaPosterior:
    """Of a rate: Beta(alpha, beta).

    Raises:
        NotEnoughData: A parameter is below `LEAST_SHAPE`.
    """

    alpha: float
    beta: float

    def __post_init__(self) -> None:
        _check_parameters(alpha=self.alpha, beta=self.beta)

    @classmethod
    def from_moments(cls, prior: Prior, moments: Moments) -> "BetaPosterior":
        """Add successes and failures to a prior."""
        alpha, beta = prior
        failures = max(0.0, moments.units - moments.total)
        return cls(alpha=alpha + moments.total, beta=beta + failures)

    @classmethod
    def from_statistics(cls, prior: Prior, statistics: ArmStatistics) -> "BetaPosterior":
        """Add successes and failures to a prior."""
        return cls.from_moments(prior, statistics.moments)

    @property
    def mean(self) -> float:
        """Expected rate."""
        return self.alpha / (self.alpha + self.beta)

    @property
    def sd(self) -> float:
        """Standard deviation of the rate."""
        units = self.alpha + self.beta
        return sqrt(self.alpha / units * (self.beta / units) / (units + 1))

    @property
    def mode(self) -> float:
        """Most likely rate; at 0 or 1 when the density is monotone, 1/2 when it is flat."""
        if self.alpha <= 1 or self.beta <= 1:
            return 0.5 if self.alpha == self.beta else float(self.alpha > self.beta)
        return (self.alpha - 1) / (self.alpha + self.beta - 2)

    @property
    def support(self) -> tuple[float, float]:
        """A rate is 0 to 1."""
        return 0.0, 1.0

    @property
    def law(self) -> BetaLaw:
        """The same as a law of one row."""
        return BetaLaw(alpha=np.array([self.alpha]), beta=np.array([self.beta]))

    def logpdf(self, x: Array | float) -> Array:
        """Return the logarithm of the density; -inf outside 0 to 1."""
        rate = np.asarray(x, dtype=np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            axis = special.logit(rate)
            inside = self.law.log_density(axis.ravel())[0].reshape(rate.shape)
            density = inside - np.log(rate) - np.log1p(-rate)
        border = special.xlogy(self.alpha - 1, rate) + special.xlog1py(self.beta - 1, -rate)
        border = border - special.betaln(self.alpha, self.beta)
        density = np.where((rate > 0) & (rate < 1), density, border)
        return np.where((rate >= 0) & (rate <= 1), density, -np.inf)

    def cdf(self, x: Array | float) -> Array:
        """Return the probability of at most `x`."""
        value: Array = special.betainc(self.alpha, self.beta, np.clip(x, 0, 1))
        return value

    def sf(self, x: Array | float) -> Array:
        """Return the probability of more than `x`."""
        value: Array = special.betaincc(self.alpha, self.beta, np.clip(x, 0, 1))
        return value

    def ppf(self, share: Array | float) -> Array:
        """Return the quantile of a probability."""
        value: Array = special.betaincinv(self.alpha, self.beta, share)
        return value

    def draw(self, generator: np.random.Generator, count: int) -> Array:
        """Draw rates, shape `(count,)`."""
        return generator.beta(self.alpha, self.beta, count)

    def draw_one(self, generator: np.random.Generator) -> float:
        """Draw one rate."""
        return generator.beta(self.alpha, self.beta)


@dataclass(frozen=True, slots=True, kw_only=True)
class GammaPosterior:
    """Of a count per unit: Gamma(shape, rate).

    Raises:
        NotEnoughData: The shape is below `LEAST_SHAPE` or above `LARGEST_SHAPE`, or the rate below
            `LEAST_RATE`.
    """

    shape: float
    rate: float

    def __post_init__(self) -> None:
        _check_parameters(shape=self.shape)
        if self.shape > LARGEST_SHAPE:
            raise NotEnoughData(
                reason=f"more than {LARGEST_SHAPE:g} are counted; count in thousands, or define "
                "the metric as continuous"
            )
        if not (isfinite(self.rate) and self.rate >= LEAST_RATE):
            raise NotEnoughData(
                reason=f"a posterior needs a rate of {LEAST_RATE} or more; count a unit first"
            )

    @classmethod
    def from_moments(cls, prior: Prior, moments: Moments) -> "GammaPosterior":
        """Add events and units to a prior.

        Raises:
            NotEnoughData: Counts are negative in total.
        """
        shape, rate = prior
        return cls(shape=shape + moments.total, rate=rate + moments.units)

    @classmethod
    def from_statistics(cls, prior: Prior, statistics: ArmStatistics) -> "GammaPosterior":
        """Add events and units to a prior."""
        return cls.from_moments(prior, statistics.moments)

    @property
    def mean(self) -> float:
        """Expected count."""
        return self.shape / self.rate

    @property
    def sd(self) -> float:
        """Standard deviation of the count."""
        return sqrt(self.shape) / self.rate

    @property
    def mode(self) -> float:
        """Most likely count."""
        return max(0.0, (self.shape - 1) / self.rate)

    @property
    def support(self) -> tuple[float, float]:
        """A count is 0 or more."""
        return 0.0, np.inf

    @property
    def law(self) -> GammaLaw:
        """The same as a law of one row."""
        return GammaLaw(shape=np.array([self.shape]), rate=np.array([self.rate]))

    def logpdf(self, x: Array | float) -> Array:
        """Return the logarithm of the density; -inf below 0."""
        count = np.asarray(x, dtype=np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            axis = np.log(count)
            density = self.law.log_density(axis.ravel())[0].reshape(count.shape) - axis
        at_zero = np.log(self.rate) if self.shape == 1 else np.inf * (1 - self.shape)
        density = np.where(count == 0, at_zero, density)
        return np.where(count >= 0, density, -np.inf)

    def cdf(self, x: Array | float) -> Array:
        """Return the probability of at most `x`."""
        return lower_tail(self.shape, self.rate * np.maximum(x, 0))

    def sf(self, x: Array | float) -> Array:
        """Return the probability of more than `x`."""
        return upper_tail(self.shape, self.rate * np.maximum(x, 0))

    def ppf(self, share: Array | float) -> Array:
        """Return the quantile of a probability."""
        value: Array = special.gammaincinv(self.shape, share) / self.rate
        return value

    def draw(self, generator: np.random.Generator, count: int) -> Array:
        """Draw counts, shape `(count,)`."""
        return generator.gamma(self.shape, 1 / self.rate, count)

    def draw_one(self, generator: np.random.Generator) -> float:
        """Draw one count."""
        return generator.gamma(self.shape, 1 / self.rate)


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalPosterior:
    """Of the mean of a continuous value, its variance unknown: Normal-inverse-gamma, by its margin.

    The mean is Student's t with 2 alpha degrees of freedom, and scale sqrt(beta / (alpha kappa)).

    Raises:
        NotEnoughData: It has no mean and variance, or no spread at all.
    """

    mean: float
    kappa: float
    alpha: float
    beta: float

    def __post_init__(self) -> None:
        if not all(map(isfinite, (self.mean, self.kappa, self.alpha, self.beta))):
            raise NotEnoughData(reason="values are too large for a posterior")
        if self.kappa <= 0 or self.freedom < LEAST_FREEDOM:
            raise NotEnoughData(
                reason="a continuous metric needs 4 units in each variant, or a prior; wait for "
                "more units"
            )
        if self.beta <= 0 or self.scale <= LEAST_RELATIVE_SCALE * abs(self.mean):
            raise NotEnoughData(
                reason="all units of a variant have the same value, or nearly: nothing is known of "
                "the spread; wait for others, or give the metric a prior"
            )

    @classmethod
    def from_moments(cls, prior: Prior, moments: Moments) -> "NormalPosterior":
        """Add values to a prior."""
        mean, kappa, alpha, beta = prior
        weight = kappa + moments.units
        if weight <= 0:
            return cls(mean=mean, kappa=0.0, alpha=alpha, beta=beta)
        shift = kappa * moments.units / weight * (moments.mean - mean) ** 2
        return cls(
            mean=(kappa * mean + moments.total) / weight,
            kappa=weight,
            alpha=alpha + moments.units / 2,
            beta=beta + (moments.spread + shift) / 2,
        )

    @classmethod
    def from_statistics(cls, prior: Prior, statistics: ArmStatistics) -> "NormalPosterior":
        """Add values to a prior."""
        return cls.from_moments(prior, statistics.moments)

    @property
    def freedom(self) -> float:
        """Degrees of freedom."""
        return 2 * self.alpha

    @property
    def scale(self) -> float:
        """Scale of Student's t."""
        return sqrt(self.beta / self.alpha / self.kappa)

    @property
    def sd(self) -> float:
        """Standard deviation of the mean."""
        return self.scale * sqrt(self.freedom / (self.freedom - 2))

    @property
    def mode(self) -> float:
        """The mean."""
        return self.mean

    @property
    def support(self) -> tuple[float, float]:
        """Any number."""
        return -np.inf, np.inf

    @property
    def law(self) -> StudentLaw:
        """The same as a law of one row."""
        return StudentLaw(
            center=np.array([self.mean]),
            scale=np.array([self.scale]),
            freedom=np.array([self.freedom]),
        )

    def logpdf(self, x: Array | float) -> Array:
        """Return the logarithm of the density."""
        value = np.asarray(x, dtype=np.float64)
        density: Array = self.law.log_density(value.ravel())[0].reshape(value.shape)
        return density

    def cdf(self, x: Array | float) -> Array:
        """Return the probability of at most `x`."""
        deviate = (np.asarray(x) - self.mean) / self.scale
        value: Array = special.stdtr(self.freedom, deviate)
        return value

    def sf(self, x: Array | float) -> Array:
        """Return the probability of more than `x`."""
        value: Array = special.stdtr(self.freedom, (self.mean - np.asarray(x)) / self.scale)
        return value

    def ppf(self, share: Array | float) -> Array:
        """Return the quantile of a probability."""
        value: Array = self.mean + self.scale * special.stdtrit(self.freedom, share)
        return value

    def draw(self, generator: np.random.Generator, count: int) -> Array:
        """Draw means, shape `(count,)`."""
        deviates: Array = generator.standard_t(self.freedom, count)
        return self.mean + self.scale * deviates

    def draw_one(self, generator: np.random.Generator) -> float:
        """Draw one mean."""
        return self.mean + self.scale * generator.standard_t(self.freedom)


def posterior_of(
    kind: str, prior: Prior | None, statistics: ArmStatistics | Moments = NO_STATISTICS
) -> Posterior:
    """Return the posterior of a metric's kind; no prior, or an empty one, is the default.

    Raises:
        NotEnoughData: It would not be proper.
        ValueError: There is no such kind, or the prior has not as many numbers as its family.
    """
    family = MetricKind(kind)
    moments = statistics.moments if isinstance(statistics, ArmStatistics) else statistics
    chosen = prior or DEFAULT_PRIORS[family]
    return _FAMILIES[family].from_moments(chosen, moments)


def interval(posterior: Posterior, mass: float = 0.95) -> tuple[float, float]:
    """Return the equal-tailed credible interval."""
    tail = (1 - mass) / 2
    low, high = posterior.ppf(np.array([tail, 1 - tail])).tolist()
    return low, high


def highest_density_interval(posterior: Posterior, mass: float = 0.95) -> tuple[float, float]:
    """Return the shortest credible interval.

    It begins, or ends, at the border where the density is highest there. Where the density is flat
    or has a pole at both borders there is no one shortest interval: then it is the equal-tailed.
    """
    equal = interval(posterior, mass)
    if posterior.mode == posterior.mean:
        return equal
    if posterior.mode in posterior.support:
        return equal if _has_two_poles(posterior) else _beside(posterior, mass)

    def imbalance(tail: float) -> float:
        ends = posterior.logpdf(posterior.ppf(np.array([tail, min(1.0, tail + mass)])))
        return float(np.clip(ends[0] - ends[1], -_STEEP, _STEEP))

    tail = root_between(imbalance, 0.0, 1 - mass, tolerance=1e-13)
    low, high = posterior.ppf(np.array([tail, min(1.0, tail + mass)])).tolist()
    return low, high


_FAMILIES: Final[
    Mapping[MetricKind, type[BetaPosterior] | type[GammaPosterior] | type[NormalPosterior]]
] = {
    MetricKind.BINARY: BetaPosterior,
    MetricKind.COUNT: GammaPosterior,
    MetricKind.CONTINUOUS: NormalPosterior,
}
_STEEP: Final = 4.0
"""Bound on the logarithm of a ratio of densities, so that a secant is of use."""


def _has_two_poles(posterior: Posterior) -> bool:
    ends = [end for end in posterior.support if isfinite(end)]
    return len(ends) == 2 and bool(np.all(posterior.logpdf(np.array(ends)) == np.inf))


def _beside(posterior: Posterior, mass: float) -> tuple[float, float]:
    """Return the interval at the border where the mode is."""
    least, largest = posterior.support
    if posterior.mode == least:
        return least, float(posterior.ppf(mass))
    return float(posterior.ppf(1 - mass)), largest


def _check_parameters(**parameters: float) -> None:
    for name, value in parameters.items():
        if not (isfinite(value) and value >= LEAST_SHAPE):
            raise NotEnoughData(
                reason=f"a posterior needs {name} of {LEAST_SHAPE} or more; wait for more units, "
                "or give the metric another prior"
            )
