"""Statistics checked by simulation: what is said with 95 % is true in 95 % of the worlds."""

from collections.abc import Callable
from math import sqrt

import numpy as np
import pytest

from tollkeeper.shadow.bandit import choose
from tollkeeper.shadow.bayes import compare, probability_best
from tollkeeper.shadow.model import MICRO
from tollkeeper.shadow.posterior import (
    BetaPosterior,
    Posterior,
    highest_density_interval,
    interval,
    posterior_of,
)
from tollkeeper.shadow.quadrature import Array
from tollkeeper.shadow.statistics import ArmStatistics

WORLDS = 800
UNITS = 60
PRIORS: dict[str, tuple[float, float]] = {"binary": (3.0, 12.0), "count": (4.0, 2.0)}


def worlds(kind: str, arms: int, generator: np.random.Generator) -> Array:
    """Draw what is true of each arm, from the prior."""
    if kind == "binary":
        alpha, beta = PRIORS[kind]
        return generator.beta(alpha, beta, (WORLDS, arms))
    if kind == "count":
        shape, rate = PRIORS[kind]
        return generator.gamma(shape, 1 / rate, (WORLDS, arms))
    return generator.normal(5, 2, (WORLDS, arms))


def observed(kind: str, truth: float, generator: np.random.Generator) -> Posterior:
    """Draw data of one arm, and return what is believed after them."""
    draws: dict[str, Callable[[], Array]] = {
        "binary": lambda: generator.binomial(1, truth, UNITS).astype(np.float64),
        "count": lambda: generator.poisson(truth, UNITS).astype(np.float64),
        "continuous": lambda: generator.normal(truth, 3, UNITS),
    }
    values = draws[kind]()
    micro = (round(value * MICRO) for value in values.tolist())
    return posterior_of(kind, PRIORS.get(kind), ArmStatistics.of_values(micro))


def band(share: float) -> float:
    """Return four standard errors of a share of `WORLDS`."""
    return 4 * sqrt(share * (1 - share) / WORLDS)


@pytest.mark.parametrize("kind", ["binary", "count", "continuous"])
def test_intervals_hold_the_truth_as_often_as_they_say(kind: str) -> None:
    generator = np.random.default_rng(0)
    equal_tailed, shortest = 0, 0
    for truth in worlds(kind, 1, generator)[:, 0].tolist():
        posterior = observed(kind, truth, generator)
        low, high = interval(posterior, 0.9)
        equal_tailed += low <= truth <= high
        low, high = highest_density_interval(posterior, 0.9)
        shortest += low <= truth <= high

    assert pytest.approx(0.9, abs=band(0.9)) == equal_tailed / WORLDS
    assert pytest.approx(0.9, abs=band(0.9)) == shortest / WORLDS


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("kind", ["binary", "count"])
def test_an_arm_is_best_as_often_as_its_probability_says(kind: str, sign: int) -> None:
    generator = np.random.default_rng(0)
    said, true, lifts, lifted = [], [], [], []
    for truths in worlds(kind, 3, generator).tolist():
        arms = [observed(kind, truth, generator) for truth in truths]
        found = compare(arms, control=0, sign=sign, margin=0.05, mass=None)
        said.append(found.p_best)
        true.append([sign * truth == max(sign * each for each in truths) for truth in truths])
        lifts.append(found.p_lift[1])
        lifted.append(sign * truths[1] >= sign * truths[0] + 0.05 * truths[0])

    for low, high in ((0, 0.1), (0.1, 0.4), (0.4, 0.7), (0.7, 0.95), (0.95, 1.01)):
        chosen = (low <= np.array(said)) & (np.array(said) < high)
        expected = float(np.array(said)[chosen].mean())
        error = 4 * sqrt(expected * (1 - expected) / chosen.sum())
        assert pytest.approx(expected, abs=error) == np.array(true)[chosen].mean()
    assert pytest.approx(np.mean(lifts), abs=band(0.5)) == np.mean(lifted)


def test_lift_intervals_hold_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for control, variant in worlds("binary", 2, generator)[:250].tolist():
        arms = [observed("binary", truth, generator) for truth in (control, variant)]
        found = compare(arms, control=0, sign=1, margin=0.05, mass=0.9)
        assert found.lift_interval is not None
        low, high = found.lift_interval[1]
        held += low <= variant / control - 1 <= high

    assert pytest.approx(0.9, abs=4 * sqrt(0.9 * 0.1 / 250)) == held / 250


def test_thompson_sampling_loses_less_than_an_even_split() -> None:
    """Regret is what was lost against always giving the best arm, over runs of 2,000 units."""
    rates = np.array([0.10, 0.13, 0.18])
    generator = np.random.default_rng(0)
    regrets = []
    for _ in range(20):
        successes, units, regret = np.zeros(3), np.zeros(3), 0.0
        for _ in range(40):
            arms = [
                BetaPosterior(alpha=1 + won, beta=1 + all_units - won)
                for won, all_units in zip(successes.tolist(), units.tolist(), strict=True)
            ]
            split = generator.multinomial(50, probability_best(arms, sign=1))
            successes += generator.binomial(split, rates)
            units += split
            regret += float(split @ (rates.max() - rates))
        regrets.append(regret)
    even = 2_000 * float((rates.max() - rates).mean())

    assert np.mean(regrets) < 0.5 * even


def test_a_choice_for_each_request_learns_as_well() -> None:
    rates = np.array([0.1, 0.4])
    generator = np.random.default_rng(0)
    successes, units = [0.0, 0.0], [0.0, 0.0]
    for _ in range(500):
        arms = [
            BetaPosterior(alpha=1 + won, beta=1 + all_units - won)
            for won, all_units in zip(successes, units, strict=True)
        ]
        chosen = choose(arms, sign=1, generator=generator)
        units[chosen] += 1
        successes[chosen] += float(generator.random() < rates[chosen])

    assert units[1] > 400
