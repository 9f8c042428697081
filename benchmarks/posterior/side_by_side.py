"""Exact probabilities, draws and choices beside gbstats, bayesian-testing and MABWiser.

All compute on the same arms, on this machine, in the same run, in alternate rounds. What is exact
is ours; the others' error is the distance to it.
"""

import gc
import json
import statistics
import subprocess
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench import Bench
from benchmarks.figures import Figure, load_note
from benchmarks.measure import Sample, sample_of
from benchmarks.posterior.environment import contestants_python
from tollkeeper.shadow.allocation import Allocation, allocate
from tollkeeper.shadow.bandit import choose
from tollkeeper.shadow.bayes import compare, monte_carlo, probability_best
from tollkeeper.shadow.posterior import Posterior, posterior_of
from tollkeeper.shadow.statistics import ArmStatistics

COUNTS = (2, 4, 10)
DRAWS = 10_000
ARMS: dict[int, list[tuple[int, int]]] = {
    count: [(1_000 + 10 * arm, 100 + 3 * arm) for arm in range(count)] for count in COUNTS
}
"""Units and successes: rates of 10 to 12 %, so that no arm is sure to be best."""

WANTED_EXACT_MS = 5.0
WANTED_DRAWS_MS = 10.0
WANTED_CHOICE_US = 50.0
WANTED_BYTES = 2_048
SEED = 0


def measure(bench: Bench) -> list[Figure]:
    """Return latencies beside the contestants', ratios, errors, and memory per arm."""
    python = contestants_python()
    repeats = 100 if bench.quick else 400
    theirs: list[dict[str, Any]] = []
    ours: list[dict[str, Sample]] = []
    for number in range(bench.rounds):
        if number % 2:
            theirs.append(_contestants(python, repeats))
        ours.append(_ours(repeats))
        if not number % 2:
            theirs.append(_contestants(python, repeats))
        exact = ours[-1]["exact 4"]
        bench.say(f"exact P(best) of 4 arms: P50 {exact.p50_ms:.3f}, P99 {exact.p99_ms:.3f} ms")
    return [
        *(figure for count in COUNTS for figure in _probabilities(count, ours, theirs)),
        *_draws(ours, theirs),
        *_choices(ours, theirs),
        Figure(
            what="state of an arm, in process", value=_bytes_per_arm(), unit=" bytes",
            target=WANTED_BYTES, at_most=True, note="statistics and posterior, tracemalloc",
        ),
    ]  # fmt: skip


def _ours(repeats: int) -> dict[str, Sample]:
    arms = {count: _posteriors(count) for count in COUNTS}
    generator = np.random.default_rng(SEED)
    allocation = Allocation(salt="checkout", weights=(0.25, 0.25, 0.25, 0.25))
    units = iter([f"user-{number}" for number in range(22 * repeats)])
    samples = {
        f"exact {count}": _timed(partial(probability_best, arms[count], sign=1), repeats)
        for count in COUNTS
    }
    samples |= {
        f"all {count}": _timed(
            partial(compare, arms[count], control=0, sign=1, margin=0.05), repeats // 10
        )
        for count in COUNTS
    }
    samples["draws"] = _timed(
        lambda: monte_carlo(
            arms[4], control=0, sign=1, margin=0.05, draws=DRAWS, generator=generator
        ),
        repeats,
    )
    samples["sticky"] = _timed(lambda: allocate(allocation, next(units)), 20 * repeats)
    samples["choice"] = _timed(lambda: choose(arms[4], sign=1, generator=generator), 20 * repeats)
    return samples


def _posteriors(count: int) -> list[Posterior]:
    return [
        posterior_of("binary", None, ArmStatistics.of_successes(units, won))
        for units, won in ARMS[count]
    ]


def _timed(function: Callable[[], object], repeats: int) -> Sample:
    """Return the sample of calls, after a tenth of the repeats to warm up."""
    latencies: list[float] = []
    for number in range(repeats + repeats // 10):
        started = time.perf_counter()
        function()
        if number >= repeats // 10:
            latencies.append(time.perf_counter() - started)
    return _sample(latencies)


def _sample(latencies_s: list[float]) -> Sample:
    return sample_of(latencies_s, duration_s=sum(latencies_s), operations=len(latencies_s))


def _contestants(python: Path, repeats: int) -> dict[str, Any]:
    """Measure the others in their own process."""
    script = Path(__file__).with_name("contestants.py")
    done = subprocess.run(
        [str(python), "-W", "ignore", str(script)],
        input=json.dumps({"arms": ARMS, "repeats": repeats, "draws": DRAWS}),
        capture_output=True,
        text=True,
        check=True,
    )
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def _probabilities(
    count: int, ours: list[dict[str, Sample]], theirs: list[dict[str, Any]]
) -> list[Figure]:
    exact = tuple(each[f"exact {count}"] for each in ours)
    everything = tuple(each[f"all {count}"] for each in ours)
    drawn = tuple(_sample(each[str(count)]["draws"]) for each in theirs)
    chances = tuple(_sample(each[str(count)]["chance_to_win"]) for each in theirs)
    p_best = probability_best(_posteriors(count), sign=1)
    drawn_error = max(
        float(np.abs(np.subtract(each[str(count)]["bayesian-testing"], p_best)).max())
        for each in theirs
    )
    better = compare(_posteriors(count), control=0, sign=1, margin=0.05, mass=None).p_better[1:]
    chance_error = float(np.abs(np.subtract(theirs[0][str(count)]["gbstats"], better)).max())
    return [
        Figure(
            what=f"P(best) of {count} arms, exact", value=_p50(exact), unit="ms",
            target=WANTED_EXACT_MS, at_most=True, samples=exact, note=f"P50; {load_note(exact)}",
        ),
        Figure(
            what=f"{count} arms, all figures and intervals", value=_p50(everything), unit="ms",
            samples=everything, note="losses, lift, P(lift >= margin), intervals",
        ),
        Figure(
            what=f"{count} arms, against bayesian-testing", value=_p50(drawn) / _p50(exact),
            unit="x", samples=exact, compared=drawn,
            note=f"10,000 draws in {_p50(drawn):.2f} ms, off by {drawn_error:.1e}; ours exact",
        ),
        Figure(
            what=f"{count} arms, against gbstats", value=_p50(chances) / _p50(exact),
            unit="x", samples=exact, compared=chances,
            note=f"{count - 1} chances to win in {_p50(chances):.2f} ms, off by {chance_error:.1e}",
        ),
    ]  # fmt: skip


def _draws(ours: list[dict[str, Sample]], theirs: list[dict[str, Any]]) -> list[Figure]:
    drawn = tuple(each["draws"] for each in ours)
    others = tuple(_sample(each["4"]["draws"]) for each in theirs)
    return [
        Figure(
            what="10,000 draws of 4 arms", value=_p50(drawn), unit="ms", target=WANTED_DRAWS_MS,
            at_most=True, samples=drawn, note="P50; with losses, lift and standard errors",
        ),
        Figure(
            what="10,000 draws, against bayesian-testing", value=_p50(others) / _p50(drawn),
            unit="x", samples=drawn, compared=others, note=f"theirs {_p50(others):.2f} ms",
        ),
    ]  # fmt: skip


def _choices(ours: list[dict[str, Sample]], theirs: list[dict[str, Any]]) -> list[Figure]:
    sticky = tuple(each["sticky"] for each in ours)
    chosen = tuple(each["choice"] for each in ours)
    others = tuple(_sample(each["choice"]) for each in theirs)
    return [
        Figure(
            what="sticky choice of a variant, in process", value=_p99(sticky) * 1_000, unit="µs",
            target=WANTED_CHOICE_US, at_most=True, samples=sticky, note="P99",
        ),
        Figure(
            what="choice by Thompson sampling, 4 arms", value=_p99(chosen) * 1_000, unit="µs",
            target=WANTED_CHOICE_US, at_most=True, samples=chosen, note="P99; one draw of each",
        ),
        Figure(
            what="choice, against MABWiser", value=_p50(others) / _p50(chosen), unit="x",
            samples=chosen, compared=others, note=f"theirs {_p50(others) * 1_000:.1f} µs",
        ),
    ]  # fmt: skip


def _p50(samples: tuple[Sample, ...]) -> float:
    return statistics.median(sample.p50_ms for sample in samples)


def _p99(samples: tuple[Sample, ...]) -> float:
    return statistics.median(sample.p99_ms for sample in samples)


def _bytes_per_arm() -> float:
    """Return what an arm's statistics and posterior take; of 1,000 arms."""
    arms = 1_000
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    kept = []
    for number in range(arms):
        counted = ArmStatistics.of_successes(10**6 + number, 10**5 + number)
        kept.append((counted, posterior_of("binary", None, counted)))
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (after - before) / len(kept)
