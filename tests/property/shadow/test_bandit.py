"""Any probabilities: weights are shares, and nobody is overtaken on the way."""

from fractions import Fraction
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.shadow.allocation import choose_variant
from tollkeeper.shadow.bandit import thompson_weights, top_two_weights, with_floor

shares = st.lists(st.floats(0, 1), min_size=1, max_size=50).filter(lambda each: sum(each) > 1e-6)


def is_ordered(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    """Whether no arm that is clearly ahead in the first is behind in the second."""
    pairs = list(zip(first, second, strict=True))
    return all(
        here[1] >= there[1] - 1e-12 for here in pairs for there in pairs if here[0] > there[0]
    )


@given(shares, st.floats(0, 1))
def test_a_floor_keeps_the_order_and_the_sum(p_best: list[float], part: float) -> None:
    weights = thompson_weights(p_best)
    floor = part / len(weights)
    lifted = with_floor(weights, floor)

    assert pytest.approx(1) == sum(lifted)
    assert min(lifted) >= floor
    assert is_ordered(weights, lifted)


@given(shares)
def test_top_two_sums_to_one_and_keeps_the_order(p_best: list[float]) -> None:
    weights = top_two_weights(p_best)

    assert pytest.approx(1) == sum(weights)
    assert min(weights) >= 0
    assert is_ordered(thompson_weights(p_best), weights)


@given(st.integers(0, 2**53 - 1), shares)
def test_a_chosen_variant_has_weight_and_holds_the_position(
    place: int, weights: list[float]
) -> None:
    total = sum(weights)
    normal = [weight / total for weight in weights]
    chosen = choose_variant(place / 2**53, normal)
    bounds = [Fraction(0), *accumulate(Fraction(weight) for weight in normal)]

    assert normal[chosen] > 0
    assert bounds[chosen] - Fraction(1, 10**12) <= Fraction(place, 2**53)
    assert Fraction(place, 2**53) <= bounds[chosen + 1] + Fraction(1, 10**12)
