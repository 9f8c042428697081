"""Each condition of the gate can fail alone, and says why; verdicts follow from all of them."""

import math
from dataclasses import replace
from datetime import timedelta

import pytest
from tests.evidence import HOUR_US, Part, evidence_of, inputs_of, part
from tests.experiments import definition

from tollkeeper.shadow.errors import ProfileUnknown
from tollkeeper.shadow.evidence import Evidence, parse
from tollkeeper.shadow.gate import Judgement, Kind, is_deployable, is_hopeless, judge
from tollkeeper.shadow.model import (
    Definition,
    Direction,
    Metric,
    MetricKind,
    Missing,
    Variant,
    Verdict,
)
from tollkeeper.shadow.profiles import AS_SPECIFIED, DEFAULT, Profile, profile_of
from tollkeeper.shadow.statistics import ArmStatistics

SUCCESS = Metric(name="success", kind=MetricKind.BINARY)
LATENCY = Metric(name="latency", kind=MetricKind.CONTINUOUS, direction=Direction.LOWER)
PLAN = definition(units=10_000, looks=50)
GOOD = ((5_000, 500), (5_000, 650))


def judged(
    evidence: Evidence, profile: Profile = DEFAULT, look: int | None = None, **changes: Kind
) -> Judgement:
    return judge(evidence, profile, evidence.looks_due if look is None else look, **changes)


def failing(judgement: Judgement) -> set[str]:
    return {each.name for each in judgement.failures}


def with_guardrail(control: float, candidate: float) -> Evidence:
    """Return good evidence with a latency of 1,000 units each around these means."""
    wanted = definition(units=10_000, looks=50, metrics=(SUCCESS, LATENCY))
    more = [
        Part(statistics=values(mean), variant=no, metric=1)
        for no, mean in enumerate((control, candidate))
    ]
    return evidence_of(*GOOD, definition=wanted, more=more)


def values(mean: float) -> ArmStatistics:
    """Return 1,000 values around a mean, half of them 10 % below it and half above."""
    return ArmStatistics.of_values(
        round(mean * factor * 1_000_000) for factor in (0.9, 1.1) for _ in range(500)
    )


def test_good_evidence_is_let_through_with_every_condition_holding() -> None:
    judgement = judged(evidence_of(*GOOD, definition=PLAN))

    assert Verdict.DEPLOY == judgement.verdict
    assert 1 == judgement.candidate
    assert () == judgement.failures
    assert "b may be deployed: every condition holds" == judgement.why


def stale(evidence: Evidence) -> Evidence:
    return replace(evidence, as_of_us=evidence.as_of_us + 48 * HOUR_US)


def sparse() -> Evidence:
    parts = [part(0, 5_000, 500), part(1, 5_000, 650, mature=8_000, answered=5_000)]
    return parse(inputs_of(parts, definition=PLAN))


def lopsided() -> Evidence:
    parts = [part(0, 5_000, 500, exposed=5_000), part(1, 5_000, 650, exposed=5_500)]
    return parse(inputs_of(parts, definition=PLAN))


def lost() -> Evidence:
    parts = [part(0, 5_000, 500, exposed=5_500), part(1, 5_500, 715, exposed=5_500)]
    return parse(inputs_of(parts, definition=PLAN))


def third_wheel(successes: int) -> Evidence:
    wanted = definition(
        variants=tuple(Variant(name=name, weight=1 / 3) for name in ("a", "b", "c")),
        units=15_000,
        looks=50,
    )
    return evidence_of((5_000, 500), (5_000, 700), (5_000, successes), definition=wanted)


def tight(least: float) -> Definition:
    return definition(units=10_000, looks=50, margin=least)


@pytest.mark.parametrize(
    ("name", "evidence"),
    [
        ("data_fresh", stale(evidence_of(*GOOD, definition=PLAN))),
        ("data_complete", sparse()),
        ("sample_ratio", lopsided()),
        ("sample_ratio_counted", lost()),
        ("guardrail:latency", with_guardrail(100.0, 102.0)),
        ("probability_lift", evidence_of((5_000, 500), (5_000, 575), definition=PLAN)),
        ("sequential_boundary", evidence_of((1_000, 100), (1_000, 145), definition=PLAN)),
        (
            "successes_per_arm",
            evidence_of((1_500, 15), (1_500, 60), definition=definition(units=3_000)),
        ),
    ],
)
def test_a_condition_that_fails_alone_is_enough_to_hold(name: str, evidence: Evidence) -> None:
    judgement = judged(evidence)

    assert {name} == failing(judgement)
    assert Verdict.DEPLOY != judgement.verdict
    assert not is_deployable(evidence, DEFAULT, evidence.looks_due)


def test_a_look_that_is_not_due_decides_nothing() -> None:
    evidence = evidence_of((2_500, 250), (2_500, 400), definition=PLAN)

    assert set() == failing(judged(evidence, look=25))
    for look in (0, 26, 51):
        assert {"planned_looks"} == failing(judged(evidence, look=look))


def test_a_plan_without_looks_needs_another_profile() -> None:
    evidence = evidence_of(*GOOD, definition=definition(units=10_000, looks=None))

    assert {"planned_looks"} == failing(judged(evidence, look=1))
    assert set() == failing(judged(evidence, AS_SPECIFIED, look=1))


def test_a_minimum_per_arm_refuses_ten_thousand_against_a_hundred() -> None:
    wanted = definition(
        variants=(Variant(name="a", weight=0.99), Variant(name="b", weight=0.01)), units=10_000
    )
    evidence = evidence_of((10_000, 1_000), (99, 17), definition=wanted)
    specified = judged(evidence, AS_SPECIFIED)

    assert evidence.p_best[1] > 0.95
    assert {"units_per_arm"} == failing(specified)
    assert "b has 99 units of 100" in [each.reason for each in specified.failures]
    assert {"units_per_arm", "successes_per_arm"} <= failing(judged(evidence))


@pytest.mark.parametrize(
    ("successes", "fails"), [(524, {"probability_best", "lift"}), (525, {"probability_best"})]
)
def test_the_sample_lift_is_compared_without_rounding(successes: int, fails: set[str]) -> None:
    evidence = evidence_of((5_000, 500), (5_000, successes), definition=PLAN)

    assert fails == failing(judged(evidence, AS_SPECIFIED))


def test_a_margin_above_the_specified_lift_is_asked_for_instead() -> None:
    evidence = evidence_of(*GOOD, definition=tight(0.31))

    assert {"lift", "probability_lift"} == failing(judged(evidence))


def test_a_second_good_variant_withholds_the_proof_of_the_best() -> None:
    judgement = judged(third_wheel(690))

    assert {"probability_best", "expected_loss"} == failing(judgement)
    assert set() == failing(judged(third_wheel(500)))


def test_the_boundary_is_shared_by_the_challengers_and_falls_with_the_plan() -> None:
    two = judged(evidence_of((1_000, 100), (1_000, 145), definition=PLAN))
    figures = {each.name: each for each in two.conditions}

    assert "P(better than the control) of more than 99.99 % at 20 % of plan" == (
        figures["sequential_boundary"].required
    )
    done = judged(evidence_of(*GOOD, definition=PLAN)).conditions
    assert "P(better than the control) of 97.50 % at 100 % of plan" in [
        each.required for each in done
    ]
    three = judged(third_wheel(500)).conditions
    assert "P(better than the control) of 98.75 % at 100 % of plan" in [
        each.required for each in three
    ]


def test_a_harmed_guardrail_rejects_and_one_without_data_holds() -> None:
    harmed = judged(with_guardrail(100.0, 104.0))
    wanted = definition(units=10_000, looks=50, metrics=(SUCCESS, LATENCY))
    unknown = judged(evidence_of(*GOOD, definition=wanted), look=49)

    assert Verdict.REJECT == harmed.verdict
    assert "harms latency" in harmed.why
    assert (Verdict.HOLD, {"guardrail:latency"}) == (unknown.verdict, failing(unknown))
    assert "latency: a has no data" in [each.reason for each in unknown.failures]
    assert Verdict.DEPLOY == judged(with_guardrail(100.0, 99.0)).verdict


def test_a_candidate_that_is_worse_is_rejected_once_enough_is_known() -> None:
    worse = evidence_of((2_500, 250), (2_500, 200), definition=PLAN)
    early = evidence_of((1_000, 100), (1_000, 60), definition=PLAN)

    assert Verdict.REJECT == judged(worse).verdict
    assert is_hopeless(worse, DEFAULT, worse.looks_due)
    assert Verdict.HOLD == judged(early).verdict
    assert not is_hopeless(early, DEFAULT, early.looks_due)


def test_a_plan_that_is_used_up_without_a_proof_is_a_rejection_but_no_confirmation_is() -> None:
    evidence = evidence_of((5_000, 500), (5_000, 540), definition=PLAN)

    assert Verdict.REJECT == judged(evidence, look=50).verdict
    assert Verdict.HOLD == judged(evidence, look=49).verdict
    assert Verdict.HOLD == judged(evidence, look=50, kind=Kind.CONFIRMATION).verdict


def test_a_confirmation_asks_for_the_same_conditions() -> None:
    evidence = evidence_of(*GOOD, definition=PLAN)

    assert judged(evidence).conditions == judged(evidence, kind=Kind.CONFIRMATION).conditions


def test_lower_is_better_is_judged_by_the_same_figures() -> None:
    failures = replace_direction(PLAN)
    higher = judged(evidence_of(*GOOD, definition=PLAN))
    # As many failures as there were successes.
    mirrored = [(units, units - found) for units, found in GOOD]
    lower = judged(evidence_of(*mirrored, definition=failures))
    figures = {each.name: each.figure for each in lower.conditions}

    assert {"lift", "probability_lift"} == failing(lower)  # 3 of 90 points are no 5 %
    for name in ("probability_best", "sequential_boundary", "units_per_arm"):
        figure = next(each.figure for each in higher.conditions if each.name == name)
        assert figure == pytest.approx(figures[name], abs=1e-9)


def replace_direction(wanted: Definition) -> Definition:
    metric = Metric(name="success", kind=MetricKind.BINARY, direction=Direction.LOWER)
    return definition(units=wanted.units, looks=wanted.looks, metrics=(metric,))


def test_a_latency_that_falls_is_let_through() -> None:
    parts = [Part(statistics=values(mean), variant=no) for no, mean in enumerate((100.0, 80.0))]
    evidence = parse(inputs_of(parts, definition=definition(metrics=(LATENCY,))))

    assert Verdict.DEPLOY == judged(evidence).verdict


@pytest.mark.parametrize("looks", [1, 10])
@pytest.mark.parametrize(
    ("metric", "counts"),
    [
        (SUCCESS, [(0, 0), (0, 0)]),
        (SUCCESS, [(1_000, 0), (1_000, 0)]),
        (SUCCESS, [(1_000, 1_000), (1_000, 1_000)]),
        (SUCCESS, [(1_000, 0), (1_000, 1_000)]),
        (SUCCESS, [(10**9, 10**8), (10**9, 10**8 + 10**6)]),
        (Metric(name="clicks", kind=MetricKind.COUNT), [(0, 0), (1_000, 0)]),
        (LATENCY, [(3, 1), (3, 2)]),
        (LATENCY, [(1_000, 1_000), (1_000, 1_000)]),
    ],
)
def test_extreme_inputs_have_a_verdict_and_no_figure_is_nan(
    metric: Metric, counts: list[tuple[int, int]], looks: int
) -> None:
    evidence = evidence_of(*counts, definition=definition(metrics=(metric,), looks=looks))
    for profile in (DEFAULT, AS_SPECIFIED):
        judgement = judged(evidence, profile)

        assert [] == [
            each.name
            for each in judgement.conditions
            if each.figure is not None and not math.isfinite(each.figure)
        ]
        assert is_deployable(evidence, profile, evidence.looks_due) == (
            judgement.verdict is Verdict.DEPLOY
        )


def test_fifty_variants_have_a_verdict() -> None:
    names = [f"v{no}" for no in range(50)]
    wanted = definition(
        variants=tuple(Variant(name=name, weight=0.02) for name in names), control="v7"
    )
    counts = [(200, 20 + 60 * (no == 31)) for no in range(50)]
    judgement = judged(evidence_of(*counts, definition=wanted))

    assert (31, Verdict.DEPLOY) == (judgement.candidate, judgement.verdict)


def test_units_without_an_outcome_are_no_gap_where_they_count_as_zero() -> None:
    metric = Metric(name="success", kind=MetricKind.BINARY, missing=Missing.ZERO)
    parts = [part(0, 5_000, 500, answered=500), part(1, 5_000, 650, answered=650)]
    wanted = definition(units=10_000, looks=50, metrics=(metric,))

    assert Verdict.DEPLOY == judged(parse(inputs_of(parts, definition=wanted))).verdict


@pytest.mark.parametrize(("crowd", "fails"), [(1, set()), (4, {"dispersion"})])
def test_counts_that_come_in_crowds_need_another_family(crowd: int, fails: set[str]) -> None:
    wanted = definition(metrics=(Metric(name="clicks", kind=MetricKind.COUNT),))
    parts = [
        # Of every 12 units, `each` have one crowd of clicks and the others none: nearly Poisson.
        Part(statistics=ArmStatistics.of_values([crowd * 1_000_000] * each * 80
             + [0] * (12 - each) * 80), variant=no)
        for no, each in enumerate((4, 6))
    ]  # fmt: skip

    assert fails == failing(judged(parse(inputs_of(parts, definition=wanted))))


@pytest.mark.parametrize(("planned", "fails"), [(3_000, set()), (15_000, {"sequential_boundary"})])
def test_a_small_arm_that_has_seen_little_of_a_long_tail_needs_more_proof(
    planned: int, fails: set[str]
) -> None:
    """By its own variance 5.6 standard errors, by both 3.7; a fifth of the plan asks 4.4."""
    weighted = (Variant(name="a", weight=0.9), Variant(name="b", weight=0.1))
    wanted = definition(variants=weighted, units=planned, looks=50, metrics=(LATENCY,))
    parts = [
        Part(
            statistics=ArmStatistics.of_values([20_000_000] * slow + [1_000_000] * (units - slow)),
            variant=no,
        )
        for no, (units, slow) in enumerate(((2_700, 270), (300, 10)))
    ]
    evidence = parse(inputs_of(parts, definition=wanted))

    assert fails == failing(judged(evidence)) & {"sequential_boundary", "probability_lift"}


def test_a_ramp_while_the_rate_moves_is_no_lift() -> None:
    """Both arms have 10 % in the first epoch and 15 % in the second, where b gets half: Simpson."""
    parts = [
        replace(part(variant, units, successes), epoch=epoch)
        for epoch, variant, units, successes in (
            (1, 0, 2_700, 270), (1, 1, 300, 30), (2, 0, 3_500, 525), (2, 1, 3_500, 525)
        )
    ]  # fmt: skip
    evidence = parse(inputs_of(parts, definition=PLAN, weights=[(0.9, 0.1), (0.5, 0.5)]))

    judgement = judged(evidence)

    assert evidence.p_lift(1, 0.0) > 0.99
    [boundary] = [each for each in judgement.conditions if each.name == "sequential_boundary"]
    assert (False, 0.5) == (boundary.holds, boundary.figure)
    assert boundary.reason == "b is better with probability 50.00 % by a t test within epochs"


def test_a_difference_between_draws_and_exact_figures_closes_the_gate() -> None:
    strict = replace(DEFAULT, name="strict@1", most_disagreement=0.0)

    assert {"cross_check"} == failing(judged(evidence_of(*GOOD, definition=PLAN), strict))


def test_an_unknown_profile_is_refused_by_the_names_of_the_known() -> None:
    with pytest.raises(ProfileUnknown, match="default@1, as-specified@1"):
        profile_of("default@2")


def test_published_rates_keep_what_the_default_profile_promises() -> None:
    promised = [each for each in DEFAULT.characteristics if (each.rate, each.arms) == (0.1, 2)]
    false = [each for each in promised if each.lift == 0]
    found = [each for each in promised if each.lift == 0.2]

    assert {True, False} == {each.adaptive for each in false}
    assert all(each.runs >= 2_000 and each.interval[1] <= 0.05 for each in false)
    assert {True, False} == {each.adaptive for each in found}
    assert all(each.runs >= 2_000 and each.interval[0] >= 0.80 for each in found)
    assert AS_SPECIFIED.false_deploy is not None
    assert AS_SPECIFIED.false_deploy.deploy_rate > 0.15
    assert AS_SPECIFIED.warning
    assert timedelta(hours=24) == DEFAULT.lifetime
