"""Statistics of an arm: sums that are exact, and refused when no values have them."""

from math import fsum

import pytest

from tollkeeper.shadow.model import MICRO
from tollkeeper.shadow.statistics import NO_STATISTICS, ArmStatistics, Moments, weighted


def test_statistics_add_as_their_values_do() -> None:
    first, second = [1_500_000, -200_000], [7, 0, 40 * MICRO]

    assert ArmStatistics.of_values(first + second) == (
        ArmStatistics.of_values(first) + ArmStatistics.of_values(second)
    )
    assert NO_STATISTICS + ArmStatistics.of_values(first) == ArmStatistics.of_values(first)


def test_successes_are_the_units_with_value_one() -> None:
    values = [MICRO] * 3 + [0] * 7

    assert ArmStatistics.of_values(values) == ArmStatistics.of_successes(10, 3)
    assert 3 == ArmStatistics.of_values(values).successes
    assert 0.3 == ArmStatistics.of_values(values).mean


@pytest.mark.parametrize(
    ("units", "total", "squares"), [(-1, 0, 0), (0, 1, 1), (0, 0, 1), (2, 0, -1), (2, 10, 49)]
)
def test_sums_that_no_values_have_are_refused(units: int, total: int, squares: int) -> None:
    with pytest.raises(ValueError, match=r"no|not"):
        ArmStatistics(units=units, total=total, squares=squares)


def test_more_successes_than_units_are_refused() -> None:
    with pytest.raises(ValueError, match="successes"):
        ArmStatistics.of_successes(3, 4)


def test_the_spread_of_a_thousand_million_units_is_exact() -> None:
    """Values of 10**12 and 10**12 + 1 micro: as floats their squares would be the same."""
    half = 500_000_000
    low, high = 10**18, 10**18 + 1
    statistics = ArmStatistics(
        units=2 * half, total=half * (low + high), squares=half * (low**2 + high**2)
    )

    assert half / 2 / MICRO**2 == statistics.moments.spread
    assert pytest.approx(0.25 / MICRO**2, rel=1e-8) == statistics.variance


def test_the_variance_of_fewer_than_two_units_is_zero() -> None:
    assert 0 == ArmStatistics.of_values([5]).variance
    assert 0 == NO_STATISTICS.variance


def test_weighted_moments_is_that_of_values_that_count_in_part() -> None:
    parts = [[1.0, 2.0, 4.0], [10.0, 11.0]]
    weights = [0.25, 1.0]
    pairs = [(value, weight) for part, weight in zip(parts, weights, strict=True) for value in part]
    units = fsum(weight for _, weight in pairs)
    mean = fsum(value * weight for value, weight in pairs) / units

    moments = weighted(
        [ArmStatistics.of_values(round(value * MICRO) for value in part).moments for part in parts],
        weights,
    )

    assert units == moments.units
    assert pytest.approx(mean) == moments.mean
    spread = fsum(weight * (value - mean) ** 2 for value, weight in pairs)
    assert pytest.approx(spread) == moments.spread


def test_moments_that_weighs_nothing_is_none() -> None:
    some = ArmStatistics.of_values([5, 7]).moments

    assert NO_STATISTICS.moments == weighted([some], [0.0])
    assert NO_STATISTICS.moments == weighted([], [])
    with pytest.raises(ValueError, match="weight"):
        weighted([some], [-1.0])


@pytest.mark.parametrize("moments", [(-1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (1.0, float("nan"), 0.0)])
def test_moments_that_cannot_be_is_refused(moments: tuple[float, float, float]) -> None:
    units, total, spread = moments
    with pytest.raises(ValueError, match=r"must|without"):
        Moments(units=units, total=total, spread=spread)
