"""Any arms: what must hold of a comparison whatever the data, and catches a wrong sign."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tollkeeper.shadow.bayes import Comparison, compare, probability_best
from tollkeeper.shadow.model import MICRO, MetricKind
from tollkeeper.shadow.posterior import (
    BetaPosterior,
    NormalPosterior,
    Posterior,
    highest_density_interval,
    interval,
    posterior_of,
)
from tollkeeper.shadow.statistics import ArmStatistics

EXACT = 1e-9

successes = st.integers(0, 10**6).flatmap(
    lambda units: st.builds(ArmStatistics.of_successes, st.just(units), st.integers(0, units))
)
counts = st.lists(st.integers(0, 30).map(lambda count: count * MICRO), min_size=1, max_size=20)
rates = successes.map(lambda each: posterior_of("binary", None, each))
per_unit = counts.map(lambda values: posterior_of("count", None, ArmStatistics.of_values(values)))
values = (
    st.lists(st.integers(-(10**9), 10**9), min_size=4, max_size=20, unique=True)
    .map(ArmStatistics.of_values)
    .map(lambda each: posterior_of("continuous", None, each))
)
arms = st.one_of(*(st.lists(each, min_size=1, max_size=5) for each in (rates, per_unit, values)))
pairs = st.one_of(*(st.tuples(each, each) for each in (rates, per_unit, values)))
signs = st.sampled_from([1, -1])
margins = st.floats(-0.5, 1)


def figures(
    posteriors: Sequence[Posterior], *, sign: int = 1, margin: float = 0.05, control: int = 0
) -> Comparison:
    return compare(posteriors, control=control, sign=sign, margin=margin, mass=None)


def size(posteriors: Sequence[Posterior]) -> float:
    return max(each.sd for each in posteriors) + max(abs(each.mean) for each in posteriors)


@given(arms, signs)
@settings(max_examples=150)
def test_one_of_the_arms_is_best(posteriors: list[Posterior], sign: int) -> None:
    found = figures(posteriors, sign=sign)

    assert pytest.approx(1, abs=1e-10) == sum(found.p_best)
    assert found.p_best == probability_best(posteriors, sign=sign)
    assert all(0 <= each <= 1 for each in (*found.p_best, *found.p_lift, *found.p_better))


@given(arms, signs)
@settings(max_examples=100)
def test_losses_differ_as_the_means_do(posteriors: list[Posterior], sign: int) -> None:
    found = figures(posteriors, sign=sign)
    scale = size(posteriors)

    for mean, loss in zip(found.means, found.expected_loss, strict=True):
        assert loss >= 0
        assert (
            pytest.approx(sign * (mean - found.means[0]), abs=EXACT * scale)
            == found.expected_loss[0] - loss
        )


@given(arms, signs, st.randoms(use_true_random=False))
@settings(max_examples=100)
def test_the_order_of_the_arms_does_not_matter(
    posteriors: list[Posterior], sign: int, shuffler: object
) -> None:
    order = list(range(len(posteriors)))
    shuffler.shuffle(order)  # type: ignore[attr-defined]
    found = figures(posteriors, sign=sign)
    shuffled = figures([posteriors[arm] for arm in order], sign=sign, control=order.index(0))

    for name in ("p_best", "expected_loss", "p_better", "p_lift"):
        expected = [getattr(found, name)[arm] for arm in order]
        assert pytest.approx(expected, abs=EXACT * max(1, size(posteriors))) == list(
            getattr(shuffled, name)
        )


@given(pairs, signs)
@settings(max_examples=100)
def test_swapped_arms_have_swapped_figures(pair: tuple[Posterior, Posterior], sign: int) -> None:
    found, swapped = figures(pair, sign=sign), figures(pair[::-1], sign=sign)

    assert pytest.approx(1 - found.p_better[1], abs=EXACT) == swapped.p_better[1]
    assert pytest.approx(found.expected_loss[::-1], abs=EXACT * size(pair)) == swapped.expected_loss


@given(st.lists(rates, min_size=1, max_size=4))
@settings(max_examples=50)
def test_fewer_failures_are_more_successes(posteriors: list[BetaPosterior]) -> None:
    """Minimising a rate is maximising its complement, whose parameters are swapped."""
    mirrored = [BetaPosterior(alpha=each.beta, beta=each.alpha) for each in posteriors]
    found, other = figures(posteriors), figures(mirrored, sign=-1)

    assert pytest.approx(found.p_best, abs=EXACT) == other.p_best
    assert pytest.approx(found.expected_loss, abs=EXACT) == other.expected_loss


@given(st.lists(values, min_size=1, max_size=4), margins)
@settings(max_examples=50)
def test_less_of_a_value_is_more_of_its_negative(
    posteriors: list[NormalPosterior], margin: float
) -> None:
    negated = [replace(each, mean=-each.mean) for each in posteriors]
    found, other = figures(posteriors, margin=margin), figures(negated, sign=-1, margin=margin)

    for name in ("p_best", "expected_loss", "p_better", "p_lift", "lift"):
        expected = getattr(found, name)
        assert pytest.approx(expected, abs=EXACT * max(1, size(posteriors))) == getattr(other, name)


@given(
    st.lists(
        st.lists(st.integers(-(10**9), 10**9), min_size=4, max_size=9, unique=True),
        min_size=2,
        max_size=3,
    ),
    st.sampled_from([2, 1_000, 10**6]),
    signs,
)
@settings(max_examples=50)
def test_units_of_measurement_do_not_matter(
    samples: list[list[int]], factor: int, sign: int
) -> None:
    def found(by: int) -> Comparison:
        statistics = [ArmStatistics.of_values(value * by for value in sample) for sample in samples]
        return figures(
            [posterior_of(MetricKind.CONTINUOUS, None, each) for each in statistics], sign=sign
        )

    small, large = found(1), found(factor)

    for name in ("p_best", "p_better", "p_lift", "lift"):
        assert pytest.approx(getattr(small, name), abs=1e-8) == getattr(large, name)
    scaled = [loss * factor for loss in small.expected_loss]
    assert pytest.approx(scaled, rel=1e-6, abs=1e-9 * factor) == list(large.expected_loss)


@given(successes, successes, margins)
@settings(max_examples=60)
def test_another_success_never_harms(
    control: ArmStatistics, variant: ArmStatistics, margin: float
) -> None:
    def found(statistics: ArmStatistics) -> Comparison:
        posteriors = [posterior_of("binary", None, each) for each in (control, statistics)]
        return figures(posteriors, margin=margin)

    before = found(variant)
    after = found(variant + ArmStatistics.of_successes(1, 1))

    assert after.p_best[1] >= before.p_best[1] - 1e-12
    assert after.p_better[1] >= before.p_better[1] - 1e-12
    assert after.p_lift[1] >= before.p_lift[1] - 1e-12


@given(pairs, signs, margins, st.floats(0, 0.5))
@settings(max_examples=60)
def test_more_lift_is_less_likely(
    pair: tuple[Posterior, Posterior], sign: int, margin: float, more: float
) -> None:
    wanted = figures(pair, sign=sign, margin=margin).p_lift[1]

    assert figures(pair, sign=sign, margin=margin + more).p_lift[1] <= wanted + EXACT
    assert (
        pytest.approx(figures(pair, sign=sign).p_better[1], abs=EXACT)
        == (figures(pair, sign=sign, margin=0.0).p_lift[1])
    )


@given(st.one_of(rates, per_unit, values), st.floats(0.05, 0.99))
@settings(max_examples=100)
def test_the_shortest_interval_is_not_longer_and_holds_its_mass(
    posterior: Posterior, mass: float
) -> None:
    low, high = interval(posterior, mass)
    first, last = highest_density_interval(posterior, mass)

    assert last - first <= (high - low) * (1 + 1e-9)
    assert pytest.approx(mass, abs=1e-8) == float(posterior.cdf(last) - posterior.cdf(first))


@given(
    st.lists(st.integers(-(10**12), 10**12), max_size=8),
    st.lists(st.integers(-(10**12), 10**12), max_size=8),
)
def test_statistics_add_in_any_order(first: list[int], second: list[int]) -> None:
    one, other = ArmStatistics.of_values(first), ArmStatistics.of_values(second)

    assert ArmStatistics.of_values(first + second) == one + other
    assert one + other == other + one
