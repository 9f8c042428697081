"""What is known now is shown in the metric's unit; only a look's verdict counts."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from tests.evidence import AS_OF_US, Part, inputs_of, part
from tests.experiments import definition
from tests.unit.shadow.test_decision import decision_of

from tollkeeper.shadow.analysis import Analysis, analyse
from tollkeeper.shadow.model import Adaptive, Direction, Metric, MetricKind, Verdict
from tollkeeper.shadow.statistics import ArmStatistics

AS_OF = datetime(2026, 1, 1, tzinfo=UTC)
GOOD = inputs_of([part(0, 600, 60), part(1, 600, 120)])


def analysed(inputs: str = GOOD) -> Analysis:
    return analyse(inputs, seed=7, last_look=None)


def test_figures_stand_in_the_metrics_own_unit() -> None:
    latency = Metric(name="latency", kind=MetricKind.CONTINUOUS, direction=Direction.LOWER)
    parts = [
        Part(statistics=ArmStatistics.of_values(each * 1_000_000 for each in values), variant=no)
        for no, values in enumerate(([90, 110] * 300, [75, 85] * 300))
    ]
    analysis = analysed(inputs_of(parts, definition=definition(metrics=(latency,))))
    control, candidate = analysis.arms

    assert (100.0, 80.0) == (control.mean, candidate.mean)
    assert candidate.interval is not None
    assert candidate.interval[0] < 80.0 < candidate.interval[1]
    assert candidate.lift == pytest.approx(0.2)  # better, though the number is lower
    assert candidate.lift_interval is not None
    assert 0.18 < candidate.lift_interval[0] < 0.2 < candidate.lift_interval[1] < 0.22
    assert control.expected_loss == pytest.approx(20.0, rel=1e-6)
    assert (None, None) == (control.lift, control.probability_better)
    assert (Direction.LOWER, "latency") == (analysis.direction, analysis.metric)


def test_a_planned_profile_gives_no_verdict_of_now() -> None:
    specified = inputs_of(
        [part(0, 600, 60), part(1, 600, 120)], definition=definition(profile="as-specified@1")
    )

    assert analysed().verdict_now is None
    assert "planned_looks" not in [each.name for each in analysed().conditions]
    assert all(each.holds for each in analysed().conditions)
    assert Verdict.DEPLOY == analysed(specified).verdict_now
    assert analysed(specified).rates.warning


def test_the_last_look_says_what_counts_why_and_until_when() -> None:
    decided = decision_of(expires_at=AS_OF + timedelta(hours=1), decided_at=AS_OF)
    analysis = analyse(GOOD, seed=7, last_look=decided)
    later = inputs_of([part(0, 600, 60), part(1, 600, 120)], as_of=AS_OF_US + 2 * 3_600_000_000)
    expired = analyse(later, seed=7, last_look=decided)
    look = analysis.last_look

    assert look is not None
    assert (6, Verdict.DEPLOY, "b", ()) == (look.look, look.verdict, look.variant, look.reasons)
    assert not look.is_expired
    assert expired.last_look is not None
    assert expired.last_look.is_expired


def test_looks_and_the_time_that_is_left_follow_from_the_rate_so_far() -> None:
    analysis = analyse(GOOD, seed=7, last_look=decision_of())

    assert (6, 10, 1_400) == (
        analysis.looks.used, analysis.looks.planned, analysis.looks.next_due_at
    )  # fmt: skip
    assert 800 == analysis.time_left.units
    assert analysis.time_left.units_per_day == pytest.approx(1_200)
    assert analysis.time_left.next_look_s == pytest.approx(4 * 3_600)
    assert analysis.time_left.plan_s == pytest.approx(16 * 3_600)


def test_nothing_is_known_of_an_experiment_without_units() -> None:
    revenue = Metric(name="revenue", kind=MetricKind.CONTINUOUS)
    analysis = analysed(inputs_of([], definition=definition(metrics=(revenue,))))

    assert analysis.not_yet is not None
    assert "4 units" in analysis.not_yet
    assert (None, None, None) == (
        analysis.cross_check, analysis.candidate and None, analysis.arms[0].posterior_mean
    )  # fmt: skip
    assert (None, None) == (analysis.time_left.plan_s, analysis.sample_ratios[0].p)
    assert b"NaN" not in msgspec.json.encode(analysis)


def test_monte_carlo_stands_beside_the_exact_figures() -> None:
    analysis = analysed()
    check = analysis.cross_check

    assert check is not None
    assert (10_000, ["a", "b"]) == (check.draws, [arm.variant for arm in check.arms])
    assert check.largest_disagreement < 5
    for exact, drawn in zip(analysis.arms, check.arms, strict=True):
        assert exact.probability_best is not None
        error = 5 * drawn.probability_best_error
        assert exact.probability_best == pytest.approx(drawn.probability_best, abs=error)


def test_sample_ratios_of_assigned_and_of_counted_units_are_tested() -> None:
    parts = [part(0, 600, 60, exposed=700), part(1, 600, 120, exposed=600)]
    exposed, counted = analysed(inputs_of(parts)).sample_ratios

    assert ("exposed", (700, 600), (650.0, 650.0)) == (
        exposed.of, exposed.observed, exposed.expected
    )  # fmt: skip
    assert exposed.p == pytest.approx(0.005546, rel=1e-3)
    assert ("counted", 1.0) == (counted.of, counted.p)


def test_a_drift_under_changing_weights_raises_the_alarm_of_the_corrected_mean() -> None:
    wanted = definition(adaptive=Adaptive(), units=20_000)
    weights = [(0.5, 0.5), (0.1, 0.9)]
    # Both arms are alike at any time; the second epoch is better, and b has most of it.
    drifting = [
        part(0, 2_000, 200), part(1, 2_000, 200),
        part(0, 400, 160, epoch=2), part(1, 3_600, 1_440, epoch=2),
    ]  # fmt: skip
    steady = [
        part(0, 2_000, 200), part(1, 2_000, 240),
        part(0, 400, 40, epoch=2), part(1, 3_600, 432, epoch=2),
    ]  # fmt: skip
    found = analysed(inputs_of(drifting, definition=wanted, weights=weights)).corrections
    calm = analysed(inputs_of(steady, definition=wanted, weights=weights)).corrections

    assert [0.25, 0.25] == pytest.approx([each.corrected for each in found])
    assert [0.15, 1_640 / 5_600] == pytest.approx([each.plain for each in found])
    assert [True, True] == [each.is_alarm for each in found]
    assert [False, False] == [each.is_alarm for each in calm]
    assert () == analysed().corrections


def test_guardrails_stand_beside_for_every_variant() -> None:
    errors = Metric(name="errors", kind=MetricKind.BINARY, direction=Direction.LOWER)
    success = Metric(name="success", kind=MetricKind.BINARY)
    parts = [
        part(0, 600, 60), part(1, 600, 120), part(0, 600, 6, metric=1), part(1, 600, 30, metric=1)
    ]  # fmt: skip
    (guardrail,) = analysed(
        inputs_of(parts, definition=definition(metrics=(success, errors)))
    ).guardrails

    assert ("errors", "b", 0.05, 0.01) == (
        guardrail.metric, guardrail.variant, guardrail.mean, guardrail.control_mean
    )  # fmt: skip
    assert guardrail.probability_worse is not None
    assert guardrail.probability_worse > 0.99


def test_an_analysis_is_one_json_document() -> None:
    analysis = analysed()

    assert analysis == msgspec.json.decode(msgspec.json.encode(analysis), type=Analysis)
