"""Posteriors of each family: against SciPy's laws and integrals, at borders and at extremes."""

from dataclasses import fields
from itertools import pairwise
from math import inf, isfinite
from typing import Protocol

import numpy as np
import pytest
from scipy import integrate, stats

from tollkeeper.shadow.errors import NotEnoughData
from tollkeeper.shadow.model import MICRO, MetricKind
from tollkeeper.shadow.posterior import (
    BetaPosterior,
    GammaPosterior,
    NormalPosterior,
    Posterior,
    highest_density_interval,
    interval,
    posterior_of,
)
from tollkeeper.shadow.quadrature import Array
from tollkeeper.shadow.statistics import ArmStatistics


class SciPyLaw(Protocol):
    """What these tests ask of a frozen distribution."""

    def mean(self) -> float: ...
    def std(self) -> float: ...
    def cdf(self, x: Array) -> Array: ...
    def sf(self, x: Array) -> Array: ...
    def pdf(self, x: Array) -> Array: ...
    def logpdf(self, x: Array) -> Array: ...
    def ppf(self, share: Array) -> Array: ...


BETA = BetaPosterior(alpha=14.0, beta=88.5)
GAMMA = GammaPosterior(shape=31.0, rate=12.5)
STUDENT = NormalPosterior(mean=3.0, kappa=9.0, alpha=4.5, beta=20.0)
LAWS = [
    (BETA, stats.beta(14.0, 88.5)),
    (GAMMA, stats.gamma(31.0, scale=1 / 12.5)),
    (STUDENT, stats.t(9.0, loc=3.0, scale=(20.0 / (4.5 * 9.0)) ** 0.5)),
]
FAMILIES = [BETA, GAMMA, STUDENT]


@pytest.mark.parametrize(("posterior", "law"), LAWS)
def test_a_posterior_is_the_law_of_its_family(posterior: Posterior, law: SciPyLaw) -> None:
    x = np.linspace(posterior.mean - 4 * posterior.sd, posterior.mean + 4 * posterior.sd, 41)
    shares = np.array([0.001, 0.3, 0.5, 0.975])

    assert pytest.approx(law.mean(), rel=1e-13) == posterior.mean
    assert pytest.approx(law.std(), rel=1e-13) == posterior.sd
    assert pytest.approx(law.cdf(x), abs=1e-13) == posterior.cdf(x)
    assert pytest.approx(law.sf(x), abs=1e-13) == posterior.sf(x)
    assert pytest.approx(law.ppf(shares), rel=1e-12) == posterior.ppf(shares)
    inside = x[law.pdf(x) > 0]
    assert pytest.approx(law.logpdf(inside), abs=1e-11) == posterior.logpdf(inside)


@pytest.mark.parametrize(("posterior", "law"), LAWS)
def test_draws_follow_the_law(posterior: Posterior, law: SciPyLaw) -> None:
    draws = posterior.draw(np.random.default_rng(0), 20_000)

    one = posterior.draw_one(np.random.default_rng(0))

    assert (20_000,) == draws.shape
    assert draws[0] == one
    assert stats.kstest(draws, law.cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    ("posterior", "x", "expected"),
    [
        (BetaPosterior(alpha=1.0, beta=3.0), 0.0, np.log(3)),
        (BetaPosterior(alpha=1.0, beta=1.0), 1.0, 0.0),
        (BetaPosterior(alpha=2.0, beta=3.0), 0.0, -inf),
        (BetaPosterior(alpha=0.5, beta=3.0), 0.0, inf),
        (BETA, 1.5, -inf),
        (BETA, -0.5, -inf),
        (GammaPosterior(shape=1.0, rate=2.0), 0.0, np.log(2)),
        (GammaPosterior(shape=0.5, rate=2.0), 0.0, inf),
        (GAMMA, 0.0, -inf),
        (GAMMA, -1.0, -inf),
    ],
)
def test_the_density_at_a_border_is_that_of_the_law(
    posterior: Posterior, x: float, expected: float
) -> None:
    assert pytest.approx(expected) == float(posterior.logpdf(x))


@pytest.mark.parametrize(
    "posterior",
    [
        BetaPosterior(alpha=1e8, beta=9e8),
        BetaPosterior(alpha=2.0, beta=1e9),
        GammaPosterior(shape=1e9, rate=1e9),
        NormalPosterior(mean=10.0, kappa=1e9, alpha=5e8, beta=5e8),
    ],
)
def test_a_density_of_a_thousand_million_units_integrates_to_one(posterior: Posterior) -> None:
    def density(x: float) -> float:
        return float(np.exp(posterior.logpdf(x)))

    edges = [posterior.mean + k * posterior.sd for k in (-38, -12, -6, -3, 0, 3, 6, 12, 38)]
    low, high = posterior.support
    kept = [low, *(edge for edge in edges if low < edge < high), high]
    mass = sum(
        integrate.quad(density, *ends, epsabs=1e-13)[0]
        for ends in pairwise(edge for edge in kept if isfinite(edge))
    )

    assert pytest.approx(1, abs=1e-9) == mass


@pytest.mark.parametrize(
    ("deviation", "expected"),
    [
        (-6.0, 9.843482805854135e-10),
        (-4.6, 2.110300582626488e-06),
        (4.6, 2.1146105476746375e-06),
        (6.0, 9.888314630939455e-10),
    ],
)
def test_tails_of_a_thousand_million_counts_are_not_lost(deviation: float, expected: float) -> None:
    """SciPy's series ends before it has converged there; expected with 40 digits."""
    posterior = GammaPosterior(shape=1e9, rate=1.0)
    x = 1e9 + deviation * 1e9**0.5
    tail = posterior.cdf(x) if deviation < 0 else posterior.sf(x)

    assert pytest.approx(expected, rel=1e-9) == float(tail)


def test_the_posterior_of_a_rate_counts_successes_and_failures() -> None:
    posterior = posterior_of("binary", (2.0, 3.0), ArmStatistics.of_successes(10, 4))

    assert BetaPosterior(alpha=6.0, beta=9.0) == posterior


def test_the_posterior_of_a_count_adds_events_and_units() -> None:
    statistics = ArmStatistics.of_values([MICRO, 4 * MICRO])

    assert GammaPosterior(shape=6.0, rate=2.5) == posterior_of("count", (1.0, 0.5), statistics)


def test_the_default_interval_of_a_mean_is_the_classical_one() -> None:
    values = np.array([3.0, 4.5, 2.25, 8.0, 5.5])
    posterior = posterior_of(
        "continuous", None, ArmStatistics.of_values(round(value * MICRO) for value in values)
    )
    error = values.std(ddof=1) / 5**0.5

    expected = stats.t.interval(0.95, 4, loc=values.mean(), scale=error)
    assert pytest.approx(expected, rel=1e-12) == interval(posterior)


@pytest.mark.parametrize("values", [[], [1], [1, 2, 3], [7] * 500, [10**11] * 500 + [10**11 + 1]])
def test_a_mean_without_spread_or_units_is_refused(values: list[int]) -> None:
    statistics = ArmStatistics.of_values(value * MICRO for value in values)

    with pytest.raises(NotEnoughData, match="wait for"):
        posterior_of("continuous", None, statistics)


@pytest.mark.parametrize(
    ("kind", "prior"),
    [
        ("binary", (0.01, 1.0)),
        ("count", (0.01, 1.0)),
        ("count", (1.0, 1e-300)),
        ("count", (5e19, 1e9)),
    ],
)
def test_a_posterior_that_no_double_can_hold_is_refused(
    kind: str, prior: tuple[float, ...]
) -> None:
    with pytest.raises(NotEnoughData):
        posterior_of(kind, prior)


def test_negative_counts_are_refused() -> None:
    with pytest.raises(NotEnoughData):
        posterior_of("count", None, ArmStatistics.of_values([-5 * MICRO]))


@pytest.mark.parametrize("kind", ["binary", "count"])
def test_no_data_is_the_prior(kind: str) -> None:
    low, high = interval(posterior_of(kind, None))

    assert 0 < low < high < inf


@pytest.mark.parametrize("kind", MetricKind)
def test_a_prior_counts_as_the_same_data_would(kind: MetricKind) -> None:
    first = ArmStatistics.of_values([0, MICRO, MICRO, 0, MICRO])
    second = ArmStatistics.of_values([MICRO, 0, 0, MICRO])
    before = posterior_of(kind, None, first)
    names = [field.name for field in fields(before)]  # type: ignore[arg-type]  # all are
    prior = tuple(getattr(before, name) for name in names)

    at_once = posterior_of(kind, None, first + second)
    one_by_one = posterior_of(kind, prior, second)

    for name in names:
        expected = pytest.approx(getattr(at_once, name), rel=1e-13)
        assert expected == getattr(one_by_one, name)


@pytest.mark.parametrize(
    "posterior",
    [*FAMILIES, BetaPosterior(alpha=3.0, beta=1.5), GammaPosterior(shape=1.2, rate=3.0)],
)
@pytest.mark.parametrize("mass", [0.5, 0.95])
def test_the_highest_density_interval_is_the_shortest(posterior: Posterior, mass: float) -> None:
    low, high = highest_density_interval(posterior, mass)
    tails = np.linspace(0, 1 - mass, 2001)[1:-1]
    shortest = float((posterior.ppf(tails + mass) - posterior.ppf(tails)).min())

    assert pytest.approx(mass, abs=1e-9) == float(posterior.cdf(high) - posterior.cdf(low))
    assert high - low <= shortest + 1e-9 * posterior.sd
    assert pytest.approx(shortest, rel=1e-3) == high - low


@pytest.mark.parametrize(
    ("posterior", "expected"),
    [
        (BetaPosterior(alpha=101.0, beta=1.0), (0.05 ** (1 / 101), 1.0)),
        (BetaPosterior(alpha=1.0, beta=101.0), (0.0, 1 - 0.05 ** (1 / 101))),
        (BetaPosterior(alpha=1e9 + 1, beta=1.0), (0.05 ** (1 / (1e9 + 1)), 1.0)),
        (BetaPosterior(alpha=1.0, beta=1.0), (0.025, 0.975)),
        (GammaPosterior(shape=1.0, rate=2.0), (0.0, -np.log(0.05) / 2)),
    ],
)
def test_where_the_density_falls_from_a_border_the_interval_begins_there(
    posterior: Posterior, expected: tuple[float, float]
) -> None:
    assert pytest.approx(expected, rel=1e-12) == highest_density_interval(posterior)


def test_between_two_poles_the_interval_is_the_equal_tailed() -> None:
    posterior = BetaPosterior(alpha=0.5, beta=0.7)

    assert interval(posterior) == highest_density_interval(posterior)
