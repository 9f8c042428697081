"""Measures other libraries on the arms it is given; run by their own Python, not by ours.

They need numpy below 2. Reads JSON from the standard input: `arms` as pairs of units and successes
for each number of arms, `repeats`, `draws`. Writes latencies in seconds, and what was computed.

* gbstats (GrowthBook): the chance to win of each variant over the control, by its normal
  approximation on sample statistics; of two arms that is P(best).
* bayesian-testing: P(best), losses and intervals of all arms from draws.
* MABWiser: one choice by Thompson sampling on the same successes and failures.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from bayesian_testing.metrics import eval_bernoulli_agg
from gbstats.bayesian.tests import EffectBayesianABTest, EffectBayesianConfig
from gbstats.models.statistics import ProportionStatistic
from mabwiser.mab import MAB, LearningPolicy

Arms = Sequence[tuple[int, int]]


def main() -> None:
    """Measure all, and print the result."""
    wanted = json.load(sys.stdin)
    results: dict[str, object] = {}
    for count, arms in wanted["arms"].items():
        results[count] = {
            "chance_to_win": timed(partial(chances, arms), wanted["repeats"]),
            "draws": timed(partial(drawn, arms, wanted["draws"]), wanted["repeats"]),
            "gbstats": chances(arms),
            "bayesian-testing": drawn(arms, wanted["draws"]),
        }
    results["choice"] = timed(bandit(wanted["arms"]["4"]).predict, 20 * wanted["repeats"])
    json.dump(results, sys.stdout)


def timed(function: Callable[[], object], repeats: int) -> list[float]:
    """Return latencies in seconds, after a tenth of the repeats to warm up."""
    latencies = []
    for number in range(repeats + repeats // 10):
        started = time.perf_counter()
        function()
        if number >= repeats // 10:
            latencies.append(time.perf_counter() - started)
    return latencies


def chances(arms: Arms) -> list[float]:
    """Return each variant's chance to win over the first arm."""
    control, *variants = (ProportionStatistic(n=units, sum=won) for units, won in arms)
    config = EffectBayesianConfig()
    return [
        float(EffectBayesianABTest(control, each, config).compute_result().chance_to_win)
        for each in variants
    ]


def drawn(arms: Arms, draws: int) -> list[float]:
    """Return each arm's share of the draws in which it was best."""
    p_best, _, _ = eval_bernoulli_agg(
        [units for units, _ in arms],
        [won for _, won in arms],
        [1.0] * len(arms),
        [1.0] * len(arms),
        sim_count=draws,
    )
    return [float(each) for each in p_best]


def bandit(arms: Arms) -> MAB:
    """Return a bandit that has seen these units."""
    decisions = np.repeat(np.arange(len(arms)), [units for units, _ in arms])
    rewards = np.concatenate([np.arange(units) < won for units, won in arms]).astype(int)
    learner = MAB(list(range(len(arms))), LearningPolicy.ThompsonSampling())
    learner.fit(decisions, rewards)
    return learner


if __name__ == "__main__":
    main()
