"""Comparisons of arms: against closed forms, adaptive integrals, and figures from elsewhere."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, product
from math import inf, isfinite
from pathlib import Path

import numpy as np
import pytest
from scipy import integrate

from tollkeeper.shadow.bayes import (
    ARMS_LIMIT,
    DISAGREEMENT_LIMIT,
    Comparison,
    Drawn,
    compare,
    disagreement,
    monte_carlo,
    probability_best,
)
from tollkeeper.shadow.model import MICRO
from tollkeeper.shadow.posterior import (
    BetaPosterior,
    GammaPosterior,
    NormalPosterior,
    Posterior,
    highest_density_interval,
    interval,
    posterior_of,
)
from tollkeeper.shadow.statistics import ArmStatistics

Pair = tuple[float, float]
TwoArms = tuple[Pair, Pair, float, Pair, float, Pair]
SHARED = Path(__file__).parents[4] / "shared" / "data" / "experiments" / "beta-reference.json"

# Beta arms and what is exact of them to 1e-12: control, variant, P(variant is better), losses of
# both, P(lift >= 5 %), the variant's 95 % interval. Composite Gauss-Legendre of 64 nodes in another
# program, checked by the closed form.
TWO_ARMS: list[TwoArms] = [
    (
        (121, 881), (146, 856), 0.950196907617, (0.0252659387273, 0.000315838926943),
        0.888643797175, (0.124556010405, 0.168200436466),
    ),
    (
        (11, 91), (16, 86), 0.853283789934, (0.0525976959738, 0.00357808813071),
        0.820198108919, (0.0933466194684, 0.233096903853),
    ),
    (
        (51, 51), (61, 41), 0.921426248506, (0.100507662384, 0.00246844669747),
        0.848345045083, (0.501744078493, 0.69069148431),
    ),
]  # fmt: skip
# The same of several arms: P(best), and the losses.
MANY_ARMS: list[tuple[list[Pair], list[float], list[float]]] = [
    (
        [(101, 901), (121, 881), (111, 891)],
        [0.0462083149894, 0.726886497833, 0.226905187178],
        [0.0222527306093, 0.00229265076902, 0.0122726906892],
    ),
    (
        [(11, 91), (16, 86), (13, 89), (9, 93)],
        [0.092675866835, 0.648275186127, 0.230006321977, 0.0290426250611],
        [0.0596854127532, 0.01066580491, 0.0400775696159, 0.0792932558904],
    ),
    ([(51, 451)] * 5, [0.2] * 5, [0.0160649104831] * 5),
]

BETAS = [BetaPosterior(alpha=float(a), beta=float(b)) for a, b in ((30, 70), (36, 66), (4, 8))]
GAMMAS = [GammaPosterior(shape=a, rate=b) for a, b in ((101.0, 50.0), (121.0, 51.0), (3.0, 1.5))]
STUDENTS = [
    NormalPosterior(mean=mean, kappa=kappa, alpha=alpha, beta=beta)
    for mean, kappa, alpha, beta in (
        (-0.2, 10.0, 2.0, 9.0),
        (0.3, 40.0, 20.0, 30.0),
        (0.1, 9, 4, 1),
    )
]
FAMILIES = [BETAS, GAMMAS, STUDENTS]


def beta(pair: Pair) -> BetaPosterior:
    return BetaPosterior(alpha=pair[0], beta=pair[1])


def exact(posteriors: Sequence[Posterior], *, control: int = 0, sign: int = 1) -> Comparison:
    return compare(posteriors, control=control, sign=sign, margin=0.05)


@pytest.mark.parametrize("case", TWO_ARMS)
def test_two_rates_are_compared_to_nine_digits(case: TwoArms) -> None:
    control, variant, p_better, losses, p_lift, ends = case
    found = exact([beta(control), beta(variant)])

    assert pytest.approx(p_better, abs=1e-9) == found.p_better[1]
    assert pytest.approx((1 - p_better, p_better), abs=1e-9) == found.p_best
    assert pytest.approx(losses, abs=1e-9) == found.expected_loss
    assert pytest.approx(p_lift, abs=1e-9) == found.p_lift[1]
    assert pytest.approx(ends, abs=1e-9) == interval(beta(variant))


@pytest.mark.parametrize(("arms", "p_best", "losses"), MANY_ARMS)
def test_many_rates_are_compared_to_nine_digits(
    arms: list[Pair], p_best: list[float], losses: list[float]
) -> None:
    found = exact([beta(arm) for arm in arms])

    assert pytest.approx(tuple(p_best), abs=1e-9) == found.p_best
    assert pytest.approx(tuple(losses), abs=1e-9) == found.expected_loss


def test_the_shared_reference_is_met_where_it_is() -> None:
    """It lies beside the project; a checkout alone has the figures above."""
    reference = json.loads(SHARED.read_text(encoding="utf-8")) if SHARED.exists() else {}
    for case in reference.get("two_arm", []):
        found = exact([beta(case["control"]), beta(case["variant"])])
        figures = (
            found.p_better[1],
            *found.expected_loss,
            found.p_lift[1],
            *interval(beta(case["variant"])),
        )
        expected = (
            case["p_variant_beats_control"],
            case["expected_loss_control"],
            case["expected_loss_variant"],
            case["p_lift_at_least_5_percent"],
            *case["credible_interval_95_variant"],
        )
        assert pytest.approx(expected, abs=1e-9) == figures
    for case in reference.get("many_arm", []):
        found = exact([beta(arm) for arm in case["arms"]])
        assert pytest.approx(tuple(case["p_best"]), abs=1e-9) == found.p_best
        assert pytest.approx(tuple(case["expected_loss"]), abs=1e-9) == found.expected_loss


@pytest.mark.parametrize(
    ("control", "variant"),
    [
        ((1.0, 1.0), (1.0, 1.0)),
        ((101.0, 1.0), (101.0, 1.0)),
        ((1.0, 101.0), (30.0, 500.0)),
        ((1001.0, 9001.0), (16.0, 86.0)),
        ((100_000_001.0, 900_000_001.0), (13.0, 89.0)),
        ((0.5, 0.5), (20.0, 20.0)),
    ],
)
def test_the_probability_of_a_better_rate_is_the_closed_form(control: Pair, variant: Pair) -> None:
    """Miller (2015): a sum over the variant's successes, here without factorials."""
    (a, b), (c, d) = control, variant
    steps = np.arange(int(c) - 1)
    ratios = (a + steps) / (a + b + d + steps) * (d + steps) / (1 + steps)
    first = np.prod((b + np.arange(int(d))) / (a + b + np.arange(int(d))))
    expected = first * (1 + np.cumprod(ratios).sum())

    found = exact([beta(control), beta(variant)])

    assert pytest.approx(expected, abs=1e-9) == found.p_better[1]


def integrated(posteriors: Sequence[Posterior], sign: int) -> tuple[list[float], list[float]]:
    """Return P(best) and losses by adaptive integration over the metric itself."""
    means = [each.mean for each in posteriors]
    low, high = posteriors[0].support
    places = {m + k * p.sd for m, p in zip(means, posteriors, strict=True) for k in range(-8, 9)}
    edges = sorted({low, high, *(place for place in places if low < place < high)})

    def worse(arm: int, x: float) -> float:
        each = posteriors[arm]
        return float((each.cdf if sign > 0 else each.sf)(x))

    def all_others(arm: int, x: float) -> float:
        return float(np.prod([worse(each, x) for each in range(len(means)) if each != arm]))

    def best(arm: int, x: float) -> float:
        return float(np.exp(posteriors[arm].logpdf(x))) * all_others(arm, x)

    def lost(arm: int, x: float) -> float:
        return worse(arm, x) * (1 - all_others(arm, x))

    def total(function: object, arm: int) -> float:
        return sum(
            integrate.quad(lambda x: function(arm, x), *ends, epsabs=1e-11)[0]  # type: ignore[operator]
            for ends in pairwise(edges)
        )

    arms = range(len(means))
    return [total(best, arm) for arm in arms], [total(lost, arm) for arm in arms]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("posteriors", FAMILIES)
def test_every_family_is_compared_as_adaptive_integration_does(
    posteriors: Sequence[Posterior], sign: int
) -> None:
    p_best, losses = integrated(posteriors, sign)
    found = exact(posteriors, sign=sign)

    assert pytest.approx(tuple(p_best), abs=1e-9) == found.p_best
    assert pytest.approx(tuple(losses), abs=1e-9) == found.expected_loss


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("margin", [-0.3, 0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("posteriors", FAMILIES)
def test_the_probability_of_a_lift_is_that_of_adaptive_integration(
    posteriors: Sequence[Posterior], margin: float, sign: int
) -> None:
    control, variant = posteriors[:2]
    low, high = control.support
    places = [control.mean + k * control.sd for k in range(-8, 9)]
    inner = sorted({0.0, *places, 1 / (1 + margin)}) if high == 1 else sorted({0.0, *places})
    edges = [low, *(place for place in inner if low < place < high), high]

    def density(x: float) -> float:
        wanted = x + sign * margin * abs(x)
        lifted = (variant.sf if sign > 0 else variant.cdf)(wanted)
        return float(np.exp(control.logpdf(x)) * lifted)

    expected = sum(integrate.quad(density, *ends, epsabs=1e-12)[0] for ends in pairwise(edges))
    found = compare(posteriors[:2], control=0, sign=sign, margin=margin, mass=None)

    assert pytest.approx(expected, abs=1e-9) == found.p_lift[1]
    assert found.lift_interval is None


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("posteriors", FAMILIES)
def test_a_lift_is_in_its_interval_with_the_mass_asked_for(
    posteriors: Sequence[Posterior], sign: int
) -> None:
    found = compare(posteriors[:2], control=0, sign=sign, margin=0.0, mass=0.9)
    assert found.lift_interval is not None

    above = [
        compare(posteriors[:2], control=0, sign=sign, margin=end, mass=None).p_lift[1]
        for end in found.lift_interval[1]
    ]

    assert pytest.approx((0.95, 0.05), abs=1e-8) == tuple(above)


def test_the_lift_of_an_unknown_rate_has_the_quantiles_of_two_uniforms() -> None:
    """The ratio of two uniforms is below r with probability r / 2, up to 1."""
    found = exact([beta((1, 1)), beta((1, 1))])
    assert found.lift_interval is not None

    assert pytest.approx((-0.95, 19.0), abs=1e-8) == found.lift_interval[1]
    assert pytest.approx(1 / 2.1, abs=1e-12) == found.p_lift[1]


def test_the_point_lift_is_that_of_the_means_and_positive_when_better() -> None:
    rates = [beta((10, 90)), beta((12, 88))]

    assert pytest.approx(0.2) == exact(rates).lift[1]
    assert pytest.approx(-0.2) == exact(rates, sign=-1).lift[1]
    losing = [replace(STUDENTS[0], mean=-2.0), replace(STUDENTS[0], mean=-1.0)]
    assert pytest.approx(0.5) == exact(losing).lift[1]
    nothing = [replace(STUDENTS[0], mean=0.0), STUDENTS[1]]
    assert exact(nothing).lift[1] is None


def test_the_control_has_no_lift_over_itself() -> None:
    found = exact(BETAS, control=2)

    assert found.lift_interval is not None
    assert (0.0, 0.0, 0.0, (0.0, 0.0)) == (
        found.p_better[2],
        found.p_lift[2],
        found.lift[2],
        found.lift_interval[2],
    )
    assert 1.0 == compare(BETAS, control=2, sign=1, margin=0.0).p_lift[2]


def test_one_arm_is_the_best() -> None:
    found = exact(BETAS[:1])

    assert (1.0,) == found.p_best
    assert pytest.approx((0.0,), abs=1e-12) == found.expected_loss


@pytest.mark.parametrize("posterior", [BETAS[0], GAMMAS[0], STUDENTS[0]])
def test_fifty_equal_arms_share_evenly(posterior: Posterior) -> None:
    found = compare([posterior] * ARMS_LIMIT, control=0, sign=1, margin=0.05, mass=None)

    assert pytest.approx((1 / ARMS_LIMIT,) * ARMS_LIMIT, abs=1e-10) == found.p_best
    assert pytest.approx((0.5,) * (ARMS_LIMIT - 1), abs=1e-10) == found.p_better[1:]


RATES = [(0, 0), (1, 0), (1, 1), (100, 0), (100, 100), (10**9, 0), (10**9, 10**9), (10**9, 10**8)]
COUNTS = [(0, 0), (1, 0), (100, 0), (100, 300), (10**9, 0), (10**9, 10**9), (10**9, 10**13)]
VALUES = [
    ArmStatistics.of_values([-MICRO] * 99 + [-MICRO - 1]),
    ArmStatistics.of_values([10**12] * 99 + [10**12 + MICRO]),
    ArmStatistics.of_values([10**18, -(10**18), 5, 6, 7]),
    ArmStatistics.of_values([-MICRO, 0, MICRO, 2 * MICRO]),
    ArmStatistics(units=10**9, total=10**9 * 10**7, squares=2 * 10**9 * 10**14),
]
EXTREMES: list[list[Posterior]] = [
    [posterior_of("binary", None, ArmStatistics.of_successes(*each)) for each in RATES],
    [
        posterior_of(
            "count",
            None,
            ArmStatistics(units=n, total=t * MICRO, squares=(t * t // max(n, 1) + t) * MICRO**2),
        )
        for n, t in COUNTS
    ],
    [posterior_of("continuous", None, each) for each in VALUES],
]


def check_all_figures(posteriors: Sequence[Posterior], sign: int, mass: float | None) -> None:
    found = compare(posteriors, control=0, sign=sign, margin=0.05, mass=mass)
    scale = max(each.sd + abs(each.mean) for each in posteriors)
    shares = (*found.p_best, *found.p_better, *found.p_lift)
    gains = [sign * (each - found.means[0]) for each in found.means]
    saved = [found.expected_loss[0] - each for each in found.expected_loss]

    assert all(0 <= share <= 1 for share in shares)
    assert all(0 <= each < inf for each in found.expected_loss)
    assert pytest.approx(1, abs=1e-10) == sum(found.p_best)
    assert pytest.approx(gains, abs=1e-9 * scale) == saved
    for low, high in found.lift_interval or ():
        assert isfinite(low)
        assert isfinite(high)
        assert low <= high


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("arms", EXTREMES, ids=["rates", "counts", "values"])
def test_extreme_arms_are_compared_exactly_and_never_nan(arms: list[Posterior], sign: int) -> None:
    """No data, all successes, none, and 10**9 units, each beside each other, and all together."""
    for pair in product(arms, repeat=2):
        check_all_figures(pair, sign, None)
    check_all_figures(arms, sign, 0.95)


@pytest.mark.parametrize("arms", EXTREMES, ids=["rates", "counts", "values"])
def test_extreme_arms_have_intervals(arms: list[Posterior]) -> None:
    for posterior in arms:
        low, high = interval(posterior)
        shortest = highest_density_interval(posterior)

        assert all(map(isfinite, (low, high, *shortest)))
        assert shortest[1] - shortest[0] <= (high - low) * (1 + 1e-9)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("posteriors", FAMILIES)
def test_draws_agree_with_the_exact_figures(posteriors: Sequence[Posterior], sign: int) -> None:
    found = exact(posteriors, sign=sign)
    drawn = monte_carlo(
        posteriors, control=0, sign=sign, margin=0.05, generator=np.random.default_rng(0)
    )

    assert disagreement(found, drawn) < 4
    assert pytest.approx(found.p_best, abs=0.03) == drawn.p_best
    assert pytest.approx(found.p_lift, abs=0.03) == drawn.p_lift
    distances = np.abs(np.subtract(found.expected_loss, drawn.expected_loss))
    assert np.all(distances < 5 * np.array(drawn.expected_loss_error))


def test_the_same_seed_draws_the_same() -> None:
    def draw() -> Drawn:
        generator = np.random.default_rng(0)
        return monte_carlo(BETAS, control=0, sign=1, margin=0.05, draws=100, generator=generator)

    assert draw() == draw()


@pytest.mark.parametrize("field", ["p_best", "p_lift"])
def test_a_wrong_probability_disagrees(field: str) -> None:
    found = exact(BETAS[:2])
    drawn = monte_carlo(
        BETAS[:2], control=0, sign=1, margin=0.05, generator=np.random.default_rng(0)
    )
    wrong = {field: tuple(share * 0.9 + 0.05 for share in getattr(found, field))}

    assert disagreement(found, drawn) < DISAGREEMENT_LIMIT
    other = replace(found, **wrong)  # type: ignore[arg-type]  # a field of this type
    assert disagreement(other, drawn) > DISAGREEMENT_LIMIT


def test_a_wrong_direction_and_a_wrong_loss_disagree() -> None:
    found = exact(BETAS)
    drawn = monte_carlo(BETAS, control=0, sign=-1, margin=0.05, generator=np.random.default_rng(0))
    loss = tuple(each + 0.01 for each in found.expected_loss)
    right = monte_carlo(BETAS, control=0, sign=1, margin=0.05, generator=np.random.default_rng(0))

    assert disagreement(found, drawn) > DISAGREEMENT_LIMIT
    assert disagreement(replace(found, expected_loss=loss), right) > DISAGREEMENT_LIMIT


def test_an_arm_that_is_far_behind_is_no_disagreement() -> None:
    """Its mean and its loss are 4e9, and their sum is less than what a double keeps of them."""
    statistics = (
        ArmStatistics(
            units=172, total=-690042643822193280, squares=2768365930002486453415443935477475
        ),
        ArmStatistics(units=933_119, total=0, squares=933_119 * MICRO),
    )
    arms = [posterior_of("continuous", None, each) for each in statistics]
    drawn = monte_carlo(arms, control=0, sign=1, margin=0.05, generator=np.random.default_rng(0))

    assert disagreement(exact(arms), drawn) < DISAGREEMENT_LIMIT


def test_one_unlikely_draw_is_no_disagreement_and_no_draw_has_an_error() -> None:
    """One hit in 10,000 at a probability of 1e-6 is ten standard errors, and happens."""
    found = replace(exact(BETAS[:2]), p_best=(1e-6, 1 - 1e-6))
    drawn = replace(
        monte_carlo(BETAS[:2], control=0, sign=1, margin=0.05, generator=np.random.default_rng(0)),
        p_best=(1e-4, 1 - 1e-4),
    )
    sure = [beta((1e6, 1.0)), beta((1.0, 1e6))]
    certain = monte_carlo(sure, control=1, sign=1, margin=0.05, generator=np.random.default_rng(0))

    assert disagreement(found, drawn) < DISAGREEMENT_LIMIT
    assert (1.0, 0.0) == certain.p_best
    assert min(*certain.p_best_error, *certain.p_lift_error) > 0


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="arms"):
        probability_best([], sign=1)
    with pytest.raises(ValueError, match="arms"):
        probability_best(BETAS[:1] * (ARMS_LIMIT + 1), sign=1)
    with pytest.raises(ValueError, match="sign"):
        probability_best(BETAS, sign=0)
    with pytest.raises(ValueError, match="control"):
        exact(BETAS, control=3)
    with pytest.raises(ValueError, match="margin"):
        compare(BETAS, control=0, sign=1, margin=float("nan"))
    with pytest.raises(ValueError, match="draws"):
        monte_carlo(BETAS, control=0, sign=1, margin=0, draws=1, generator=np.random.default_rng(0))
    with pytest.raises(TypeError, match="families"):
        probability_best([BETAS[0], GAMMAS[0]], sign=1)
