"""What is known of an experiment at this moment, for people and programs. Pure.

Conditions are shown with their figures of now, but a profile with planned looks gives no verdict of
now: whoever acts on one looks as often as they like, and then one in four is a false one. Only the
verdict of the last look counts.

Means, intervals and losses are in the metric's own unit; lifts are relative to the control, and
positive when the variant is better, whatever the metric's direction.
"""

import json
import math
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from tollkeeper.shadow.bayes import disagreement
from tollkeeper.shadow.conditions import MICROS_PER_S, Case, Condition, harm_of, ratio_p
from tollkeeper.shadow.decision import weights_after
from tollkeeper.shadow.errors import NotEnoughData
from tollkeeper.shadow.evidence import Evidence, parse
from tollkeeper.shadow.figures import ArmFigures, arm_figures
from tollkeeper.shadow.gate import judge
from tollkeeper.shadow.looks import next_look_at
from tollkeeper.shadow.model import Decision, Direction, MetricKind, Verdict
from tollkeeper.shadow.posterior import (
    BetaPosterior,
    GammaPosterior,
    NormalPosterior,
    Posterior,
)
from tollkeeper.shadow.profiles import Characteristics, Profile, profile_of
from tollkeeper.shadow.statistics import NO_STATISTICS

ALARM_Z: Final = 3.0
"""Standard errors between two estimates of an arm's mean that are not chance any more."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class ConditionView(msgspec.Struct, frozen=True, kw_only=True):
    """A condition of the gate; `figure` is null when it cannot be computed yet."""

    name: str
    required: str
    figure: float | None
    holds: bool
    reason: str


class DrawnArm(msgspec.Struct, frozen=True, kw_only=True):
    """A variant's figures by Monte Carlo, each with its standard error."""

    variant: str
    probability_best: float
    probability_best_error: float
    expected_loss: float
    expected_loss_error: float
    probability_lift: float | None
    """Null for the control."""
    probability_lift_error: float | None


class PosteriorView(msgspec.Struct, frozen=True, kw_only=True):
    """What is believed of a variant's mean.

    Parameters are `alpha, beta` of a Beta (binary), `shape, rate` of a Gamma (count), or `mean,
    kappa, alpha, beta` of a Normal-inverse-gamma (continuous).
    """

    variant: str
    parameters: tuple[float, ...]


class CrossCheck(msgspec.Struct, frozen=True, kw_only=True):
    """Monte Carlo beside the exact figures; beyond 5 standard errors the gate is closed."""

    draws: int
    arms: tuple[DrawnArm, ...]
    largest_disagreement: float
    """In standard errors."""


class SampleRatio(msgspec.Struct, frozen=True, kw_only=True):
    """Units by variant against what the weights say; null p: there are none yet."""

    of: str
    """`exposed` units, or those that are `counted` in the primary metric."""
    observed: tuple[int, ...]
    expected: tuple[float, ...]
    p: float | None
    """Of Pearson's chi-squared test."""


class Looks(msgspec.Struct, frozen=True, kw_only=True):
    """The plan, and how far it is used up."""

    units: int
    """Planned units."""
    counted: int
    planned: int | None
    """Planned looks; null: this experiment plans none."""
    used: int
    """Number of the last look."""
    next_due_at: int | None
    """Counted units at which the next look is due; null: there is none."""


class TimeLeft(msgspec.Struct, frozen=True, kw_only=True):
    """How long it takes if units keep coming as they did; null: nobody can say."""

    units: int
    """Planned units that are not counted yet."""
    units_per_day: float | None
    next_look_s: float | None
    plan_s: float | None
    """Until the plan is used up: the latest end of the experiment."""


class LastLook(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict that counts."""

    look: int
    verdict: Verdict
    variant: str | None
    why: str
    reasons: tuple[str, ...]
    """Of each condition that did not hold."""
    decided_at: datetime
    expires_at: datetime | None
    is_expired: bool
    decision_no: int


class Correction(msgspec.Struct, frozen=True, kw_only=True):
    """An arm's mean where every unit counts by the weight it was assigned with.

    When weights and outcomes both change over time, the plain mean mistakes one for the other; the
    mean by inverse weights does not (Hajek's estimator). A difference beyond 3 standard errors is
    an alarm (Hausman, 1978, Econometrica 46:1251).
    """

    variant: str
    plain: float
    corrected: float
    difference: float
    difference_z: float
    """The difference in its standard errors."""
    is_alarm: bool


class Guardrail(msgspec.Struct, frozen=True, kw_only=True):
    """A variant in a metric that does not decide."""

    metric: str
    variant: str
    units: int
    mean: float | None
    control_mean: float | None
    tolerance: float
    probability_worse: float | None
    """P(worse than the control by the tolerance, or more); null: nobody can say yet."""


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """How often the profile said `deploy` in simulated experiments, with its 95 % interval."""

    rate: float
    interval: tuple[float, float]
    runs: int
    setting: str


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """How often the profile errs."""

    false_deploy: Rate | None
    """Of settings without a difference, the one where it errs most often."""
    power: tuple[Rate, ...]
    """Of settings with a true lift."""
    warning: str | None


class Analysis(msgspec.Struct, frozen=True, kw_only=True):
    """An experiment at a moment."""

    experiment_id: str
    as_of: datetime
    metric: str
    kind: MetricKind
    direction: Direction
    control: str
    margin: float
    profile: str
    arms: tuple[ArmFigures, ...]
    posteriors: tuple[PosteriorView, ...]
    """Of every variant, in order; empty when there are none yet."""
    candidate: str | None
    """The challenger that is most probably best."""
    conditions: tuple[ConditionView, ...]
    """Figures of now, without the plan: they tell how far it is, and decide nothing."""
    verdict_now: Verdict | None
    """Null where looks are planned: only they decide."""
    not_yet: str | None
    """Why there are no posteriors yet; null: there are."""
    last_look: LastLook | None
    looks: Looks
    time_left: TimeLeft
    sample_ratios: tuple[SampleRatio, ...]
    cross_check: CrossCheck | None
    guardrails: tuple[Guardrail, ...]
    corrections: tuple[Correction, ...]
    """Of experiments whose weights have changed; else empty."""
    weights: tuple[float, ...]
    """By which units are assigned now."""
    weights_next: tuple[float, ...] | None
    """What an adaptive experiment would go on with; null: it is not adaptive."""
    rates: Rates


def analyse(inputs: str, *, seed: int, last_look: Decision | None) -> Analysis:
    """Return what is known by the inputs, and the verdict of the last look.

    Raises:
        InputsUnreadable: they are of another format.
        ProfileUnknown: the experiment's gate is none of this version.
    """
    evidence = parse(inputs, seed=seed)
    definition, profile = evidence.definition, profile_of(evidence.definition.profile)
    used = last_look.look if last_look is not None else 0
    judgement = judge(evidence, profile, max(used, evidence.looks_due))
    metric = definition.metrics[0]
    looks = _looks(evidence, used)
    return Analysis(
        experiment_id=evidence.experiment_id,
        as_of=_moment(evidence.as_of_us),
        metric=metric.name,
        kind=metric.kind,
        direction=metric.direction,
        control=definition.control,
        margin=definition.margin,
        profile=profile.name,
        arms=arm_figures(evidence),
        posteriors=_posteriors(evidence),
        candidate=None if judgement.candidate is None else definition.names[judgement.candidate],
        conditions=tuple(
            _condition(each) for each in judgement.conditions if each.name != "planned_looks"
        ),
        verdict_now=None if profile.plans_looks else judgement.verdict,
        not_yet=_not_yet(evidence),
        last_look=None if last_look is None else _last(evidence, last_look),
        looks=looks,
        time_left=_time_left(evidence, looks),
        sample_ratios=_sample_ratios(evidence),
        cross_check=_cross_check(evidence),
        guardrails=_guardrails(evidence, profile),
        corrections=corrections_of(evidence),
        weights=evidence.epochs[-1].weights if evidence.epochs else definition.weights,
        weights_next=weights_after(evidence),
        rates=rates_view(profile),
    )


def rates_view(profile: Profile) -> Rates:
    """Return how often a profile errs."""
    worst = profile.false_deploy
    return Rates(
        false_deploy=None if worst is None else _rate(worst),
        power=tuple(map(_rate, profile.powers)),
        warning=profile.warning or None,
    )


def corrections_of(evidence: Evidence) -> tuple[Correction, ...]:
    """Return every arm's mean by inverse weights; nothing while weights have not changed."""
    if len(evidence.epochs) < 2:
        return ()
    found = (_correction(evidence, no) for no in range(len(evidence.primary)))
    return tuple(each for each in found if each is not None)


def _correction(evidence: Evidence, variant_no: int) -> Correction | None:
    pooled = evidence.primary[variant_no].statistics
    parts = [
        (stretch.weights[variant_no], statistics)
        for stretch, statistics in zip(
            evidence.epochs, evidence.statistics_by_epoch[variant_no], strict=True
        )
        if stretch.weights[variant_no] > 0 and statistics != NO_STATISTICS
    ]
    if not parts:
        return None
    scale = math.fsum(part.units / weight for weight, part in parts)
    corrected = math.fsum(part.units / weight * part.mean for weight, part in parts) / scale
    # Under no drift both are of one variance a unit, and the plain one is the efficient one.
    excess = math.fsum(part.units / weight**2 for weight, part in parts) / scale**2
    error = math.sqrt(max(0.0, excess - 1 / pooled.units) * pooled.variance)
    difference = corrected - pooled.mean
    z = difference / error if error > 1e-9 * abs(pooled.mean) else 0.0
    return Correction(
        variant=evidence.definition.names[variant_no],
        plain=pooled.mean,
        corrected=corrected,
        difference=difference,
        difference_z=z,
        is_alarm=abs(z) > ALARM_Z,
    )


def _condition(each: Condition) -> ConditionView:
    return ConditionView(
        name=each.name,
        required=each.required,
        figure=each.figure,
        holds=each.holds,
        reason=each.reason,
    )


def _posteriors(evidence: Evidence) -> tuple[PosteriorView, ...]:
    try:
        posteriors = evidence.posteriors(0)
    except NotEnoughData:
        return ()
    return tuple(
        PosteriorView(variant=name, parameters=_parameters(posterior))
        for name, posterior in zip(evidence.definition.names, posteriors, strict=True)
    )


def _parameters(posterior: Posterior) -> tuple[float, ...]:
    match posterior:
        case BetaPosterior():
            return posterior.alpha, posterior.beta
        case GammaPosterior():
            return posterior.shape, posterior.rate
        case NormalPosterior():
            return posterior.mean, posterior.kappa, posterior.alpha, posterior.beta
    raise AssertionError("there is no other family")


def _not_yet(evidence: Evidence) -> str | None:
    try:
        evidence.posteriors(0)
    except NotEnoughData as error:
        return error.reason
    return None


def _last(evidence: Evidence, decision: Decision) -> LastLook:
    document = json.loads(decision.document)
    no = decision.variant_no
    return LastLook(
        look=decision.look,
        verdict=decision.verdict,
        variant=None if no is None else evidence.definition.names[no],
        why=str(document["why"]),
        reasons=tuple(each["reason"] for each in document["conditions"] if not each["holds"]),
        decided_at=decision.decided_at,
        expires_at=decision.expires_at,
        is_expired=decision.expires_at is not None
        and _moment(evidence.as_of_us) >= decision.expires_at,
        decision_no=decision.decision_no,
    )


def _looks(evidence: Evidence, used: int) -> Looks:
    return Looks(
        units=evidence.definition.units,
        counted=evidence.counted,
        planned=evidence.definition.looks,
        used=used,
        next_due_at=next_look_at(evidence.definition, max(used, evidence.looks_due)),
    )


def _time_left(evidence: Evidence, looks: Looks) -> TimeLeft:
    begun = evidence.started_at_us
    elapsed_s = 0.0 if begun is None else (evidence.as_of_us - begun) / MICROS_PER_S
    left = max(0, looks.units - looks.counted)
    per_s = looks.counted / elapsed_s if elapsed_s > 0 else 0.0
    to_next = None if looks.next_due_at is None else max(0, looks.next_due_at - looks.counted)
    return TimeLeft(
        units=left,
        units_per_day=per_s * 86_400 if per_s else None,
        next_look_s=to_next / per_s if per_s and to_next is not None else None,
        plan_s=left / per_s if per_s else None,
    )


def _sample_ratios(evidence: Evidence) -> tuple[SampleRatio, ...]:
    exposed = tuple(arm.exposed for arm in evidence.primary)
    counted = tuple(arm.statistics.units for arm in evidence.primary)
    pairs = (
        ("exposed", exposed, evidence.expected),
        ("counted", counted, evidence.expected_counted),
    )
    return tuple(
        SampleRatio(of=of, observed=found, expected=due, p=ratio_p(found, due))
        for of, found, due in pairs
    )


def _cross_check(evidence: Evidence) -> CrossCheck | None:
    try:
        comparison, drawn = evidence.comparison, evidence.drawn
    except NotEnoughData:
        return None
    arms = []
    for no, name in enumerate(evidence.definition.names):
        is_control = no == evidence.control_no
        arms.append(
            DrawnArm(
                variant=name,
                probability_best=drawn.p_best[no],
                probability_best_error=drawn.p_best_error[no],
                expected_loss=drawn.expected_loss[no],
                expected_loss_error=drawn.expected_loss_error[no],
                probability_lift=None if is_control else drawn.p_lift[no],
                probability_lift_error=None if is_control else drawn.p_lift_error[no],
            )
        )
    return CrossCheck(
        draws=drawn.draws,
        arms=tuple(arms),
        largest_disagreement=disagreement(comparison, drawn),
    )


def _guardrails(evidence: Evidence, profile: Profile) -> tuple[Guardrail, ...]:
    return tuple(
        _guardrail(evidence, profile, metric_no, variant_no)
        for metric_no in range(1, len(evidence.definition.metrics))
        for variant_no in evidence.challengers
    )


def _guardrail(evidence: Evidence, profile: Profile, metric_no: int, variant_no: int) -> Guardrail:
    metric, arms = evidence.definition.metrics[metric_no], evidence.arms[metric_no]
    case = Case(evidence=evidence, profile=profile, look=0, candidate=variant_no)
    found, control = arms[variant_no].statistics, arms[evidence.control_no].statistics
    return Guardrail(
        metric=metric.name,
        variant=evidence.definition.names[variant_no],
        units=found.units,
        mean=found.mean if found.units else None,
        control_mean=control.mean if control.units else None,
        tolerance=metric.tolerance,
        probability_worse=harm_of(case, metric_no)[0],
    )


def _rate(each: Characteristics) -> Rate:
    return Rate(rate=each.deploy_rate, interval=each.interval, runs=each.runs, setting=each.setting)


def _moment(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)
