"""Shares that follow the data: closed forms, limits, and what they are for."""

from collections.abc import Sequence

import numpy as np
import pytest

from tollkeeper.shadow.bandit import (
    LEAST_UNITS,
    Policy,
    adapted_weights,
    choose,
    discounted,
    thompson_weights,
    top_two_weights,
    with_floor,
)
from tollkeeper.shadow.bayes import probability_best
from tollkeeper.shadow.model import MICRO, MetricKind
from tollkeeper.shadow.posterior import BetaPosterior, posterior_of
from tollkeeper.shadow.statistics import NO_STATISTICS, ArmStatistics

EVEN = (0.25, 0.25, 0.25, 0.25)


def test_top_two_of_two_arms_is_even() -> None:
    assert pytest.approx((0.5, 0.5)) == top_two_weights((0.99, 0.01))


def test_top_two_follows_russo() -> None:
    p = (0.5, 0.3, 0.2)
    expected = tuple(
        p[i] * (0.6 + 0.4 * sum(p[j] / (1 - p[j]) for j in range(3) if j != i)) for i in range(3)
    )

    assert pytest.approx(expected) == top_two_weights(p, 0.6)


def test_top_two_is_what_drawing_twice_gives() -> None:
    generator = np.random.default_rng(0)
    p = (0.55, 0.3, 0.15)
    chosen = np.zeros(3)
    for first, second, leads in zip(
        generator.choice(3, 20_000, p=p),
        (generator.choice(3, 200, p=p) for _ in range(20_000)),
        generator.random(20_000) < 0.5,
        strict=True,
    ):
        chosen[first if leads else second[second != first][0]] += 1

    assert pytest.approx(top_two_weights(p), abs=0.01) == tuple(chosen / chosen.sum())


@pytest.mark.parametrize("arms", [2, 3, 50])
def test_a_sure_leader_leaves_the_rest_to_all_others(arms: int) -> None:
    sure = (1.0, *[0.0] * (arms - 1))
    nearly = (1 - 1e-300 * (arms - 1), *[1e-300] * (arms - 1))
    expected = pytest.approx((0.5, *[0.5 / (arms - 1)] * (arms - 1)))

    assert expected == top_two_weights(sure)
    assert expected == top_two_weights(nearly)
    assert pytest.approx((0.5, 0.25, 0.25)) == top_two_weights((1.0, 1e-310, 0.0))
    assert (1.0,) == top_two_weights((1.0,))


def test_a_floor_lifts_everybody_and_leaves_the_rest_in_proportion() -> None:
    assert pytest.approx((0.1, 0.1 + 0.7 * 0.25, 0.1 + 0.7 * 0.75)) == with_floor(
        (0.0, 0.25, 0.75), 0.1
    )
    assert pytest.approx(EVEN) == with_floor((1.0, 0.0, 0.0, 0.0), 0.25)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="floor"):
        with_floor(EVEN, 0.3)
    with pytest.raises(ValueError, match="floor"):
        with_floor(EVEN, -0.1)
    with pytest.raises(ValueError, match="probabilities"):
        thompson_weights((0.0, 0.0))
    with pytest.raises(ValueError, match="probabilities"):
        thompson_weights((1.5, -0.5))
    with pytest.raises(ValueError, match="share"):
        top_two_weights(EVEN, 1.5)
    with pytest.raises(ValueError, match="discount"):
        discounted([NO_STATISTICS], 0.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("floor", -0.1), ("top_two", 1.0), ("discount", 0.0), ("discount", 1.1), ("least_units", -1)],
)
def test_a_policy_outside_its_ranges_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=r"is|are"):
        Policy(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("sign", [1, -1])
def test_one_draw_chooses_as_often_as_an_arm_is_best(sign: int) -> None:
    generator = np.random.default_rng(0)
    arms = [BetaPosterior(alpha=a, beta=b) for a, b in ((30.0, 70.0), (35.0, 65.0), (3.0, 9.0))]
    counts = np.bincount(
        [choose(arms, sign=sign, generator=generator) for _ in range(10_000)], minlength=3
    )

    assert pytest.approx(probability_best(arms, sign=sign), abs=0.02) == tuple(counts / 10_000)


def test_a_unit_of_an_epoch_is_worth_the_discount_in_the_next_one() -> None:
    epochs = [ArmStatistics.of_successes(100, 40), ArmStatistics.of_successes(10, 1)]

    assert 60.0 == discounted(epochs, 0.5).units
    assert 21.0 == discounted(epochs, 0.5).total
    assert (epochs[0] + epochs[1]).moments == discounted(epochs, 1.0)
    assert NO_STATISTICS.moments == discounted([], 0.5)


def adapted(
    arms: Sequence[Sequence[ArmStatistics]],
    *,
    policy: Policy | None = None,
    kind: MetricKind = MetricKind.BINARY,
    sign: int = 1,
) -> tuple[float, ...]:
    return adapted_weights(
        (0.3, 0.7), arms, kind=kind, prior=None, sign=sign, policy=policy or Policy()
    )


def test_weights_stand_until_every_arm_has_its_units() -> None:
    full, short = ArmStatistics.of_successes(500, 50), ArmStatistics.of_successes(99, 40)

    assert (0.3, 0.7) == adapted([[full], [short]])
    assert (0.3, 0.7) != adapted([[full], [short, ArmStatistics.of_successes(1, 0)]])


def test_weights_stand_where_there_is_no_posterior() -> None:
    same = ArmStatistics.of_values([MICRO] * LEAST_UNITS)

    assert (0.3, 0.7) == adapted([[same], [same]], kind=MetricKind.CONTINUOUS)


def test_weights_are_the_probabilities_above_the_floor() -> None:
    arms = [ArmStatistics.of_successes(500, 50), ArmStatistics.of_successes(500, 60)]
    p_best = probability_best([posterior_of("binary", None, each) for each in arms], sign=1)
    by_epoch = [[each] for each in arms]

    assert with_floor(p_best, 0.05) == pytest.approx(adapted(by_epoch))
    assert tuple(reversed(adapted(by_epoch, policy=Policy(floor=0.0)))) == pytest.approx(
        adapted(by_epoch, policy=Policy(floor=0.0), sign=-1)
    )
    assert pytest.approx((0.5, 0.5)) == adapted(by_epoch, policy=Policy(top_two=0.5))


def test_a_discount_forgets_what_was_true_before() -> None:
    """The first arm was better for long, and the second one has been for an epoch."""
    arms = [
        [ArmStatistics.of_successes(2000, 500), ArmStatistics.of_successes(500, 50)],
        [ArmStatistics.of_successes(2000, 400), ArmStatistics.of_successes(500, 100)],
    ]

    assert adapted(arms)[0] > 0.8
    assert adapted(arms, policy=Policy(discount=0.05))[1] > 0.8


def test_a_weight_is_needed_for_each_arm() -> None:
    with pytest.raises(ValueError, match="weight"):
        adapted([[NO_STATISTICS]])
