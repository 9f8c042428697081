"""The gate's conditions: what each requires, its figure, and what it says. Pure.

Each is a function of a `Case` and answers a `Condition`. A figure that cannot be had is a condition
that does not hold, with the reason: never an exception, never NaN.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cache
from statistics import NormalDist
from typing import Final

from scipy import special

from tollkeeper.shadow.bayes import disagreement
from tollkeeper.shadow.errors import NotEnoughData
from tollkeeper.shadow.evidence import Arm, Evidence
from tollkeeper.shadow.model import MetricKind, Missing
from tollkeeper.shadow.profiles import Profile

MICROS_PER_S: Final = 1_000_000

RESOLUTION: Final = 1e-9
"""Probabilities are exact to this: a boundary that is nearer to 1 cannot be crossed yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One condition of the gate; `figure` is None when it cannot be computed yet."""

    name: str
    required: str
    figure: float | None
    holds: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is judged: a candidate at a look. No candidate: nobody can tell yet which it is."""

    evidence: Evidence
    profile: Profile
    look: int
    candidate: int | None

    @property
    def control(self) -> Arm:
        """The control in the primary metric."""
        return self.evidence.primary[self.evidence.control_no]

    @property
    def challenger(self) -> Arm:
        """The candidate in the primary metric; empty without one."""
        return Arm() if self.candidate is None else self.evidence.primary[self.candidate]

    def name(self, variant_no: int | None) -> str:
        """Return a variant's name as it stands in a sentence."""
        if variant_no is None:
            return "the best variant"
        return self.evidence.definition.variants[variant_no].name


def planned_looks(case: Case) -> Condition:
    """Only planned looks decide: so many, each with so many counted units."""
    definition, counted = case.evidence.definition, case.evidence.counted
    looks = definition.looks
    if looks is None:
        return Condition(
            name="planned_looks", required="a plan of looks", figure=None, holds=False,
            reason="the experiment plans no looks, and this profile needs them",
        )  # fmt: skip
    needed = math.ceil(Fraction(case.look * definition.units, looks))
    holds = 1 <= case.look <= looks and counted >= needed
    if holds:
        reason = f"look {case.look} of {looks}, with {_count(counted)} units counted"
    elif case.look < 1:
        first = math.ceil(Fraction(definition.units, looks))
        reason = f"no look is due before {_count(first)} units; {_count(counted)} are counted"
    elif case.look > looks:
        reason = f"all {looks} looks are used up"
    else:
        reason = f"look {case.look} is due at {_count(needed)} units; {_count(counted)} are counted"
    return Condition(
        name="planned_looks", required=f"one of {looks} planned looks, when it is due",
        figure=float(case.look), holds=holds, reason=reason,
    )  # fmt: skip


def units_per_arm(case: Case) -> Condition:
    """Every arm has its least number of counted units."""
    needed = case.profile.least_units
    least_no, least = min(
        enumerate(arm.statistics.units for arm in case.evidence.primary), key=lambda pair: pair[1]
    )
    holds = least >= needed
    reason = (
        f"every arm has {_count(least)} units or more"
        if holds
        else f"{case.name(least_no)} has {_count(least)} units of {needed}"
    )
    return Condition(
        name="units_per_arm", required=f"at least {needed} units in every arm",
        figure=float(least), holds=holds, reason=reason,
    )  # fmt: skip


def successes_per_arm(case: Case) -> Condition:
    """Candidate and control have successes and failures enough for a binary metric's posterior."""
    needed, failures = case.profile.least_successes or 0, case.profile.least_failures
    counts = [
        (case.name(no), arm.statistics.successes, arm.statistics.units)
        for no, arm in ((case.evidence.control_no, case.control), (case.candidate, case.challenger))
    ]
    least = min(successes for _, successes, _ in counts)
    short = [
        f"{name} has {_count(successes)} successes and {_count(units - successes)} failures"
        for name, successes, units in counts
        if successes < needed or units - successes < failures
    ]
    return Condition(
        name="successes_per_arm",
        required=f"at least {needed} successes and {failures} failures in candidate and control",
        figure=float(least), holds=not short,
        reason="; ".join(short) or f"{_count(least)} successes or more in candidate and control",
    )  # fmt: skip


def lift(case: Case) -> Condition:
    """The candidate's sample mean is better by the margin: whole numbers, as in the database."""
    least = max(_exact(case.profile.least_lift), _exact(case.evidence.definition.margin))
    required = f"a lift of {_percent(float(least))} or more in the sample"
    sign = case.evidence.sign
    v, c = case.challenger.statistics, case.control.statistics
    name = case.name(case.candidate)
    if v.units == 0 or c.units == 0:
        reason = f"{name} or the control has no units yet"
    elif c.total == 0:
        reason = "the control's mean is 0, and nothing is relative to it"
    else:
        gain, base = sign * (v.total * c.units - c.total * v.units), abs(c.total) * v.units
        figure = float(Fraction(gain, base))
        holds = gain * least.denominator >= base * least.numerator
        reason = f"{name} is {_signed(figure)} against the control in the sample"
        return Condition(name="lift", required=required, figure=figure, holds=holds, reason=reason)
    return Condition(name="lift", required=required, figure=None, holds=False, reason=reason)


def data_fresh(case: Case) -> Condition:
    """The last outcome is recent: an experiment that gets none proves nothing of today."""
    limit_s = case.profile.fresh.total_seconds() if case.profile.fresh else 0.0
    required = f"an outcome in the last {limit_s / 3600:g} hours"
    received = [
        arm.last_received_us for arm in case.evidence.primary if arm.last_received_us is not None
    ]
    if not received:
        return Condition(
            name="data_fresh", required=required, figure=None, holds=False,
            reason="no outcome has come yet",
        )  # fmt: skip
    age_s = max(0, case.evidence.as_of_us - max(received)) / MICROS_PER_S
    return Condition(
        name="data_fresh", required=required, figure=age_s, holds=age_s <= limit_s,
        reason=f"the last outcome is {_age(age_s)} old",
    )  # fmt: skip


def data_complete(case: Case) -> Condition:
    """Nearly all units whose window has closed have an outcome, where those without do not count.

    A conversion whose misses are not reported would look like a rate of 100 %.
    """
    least = case.profile.least_answered or 0.0
    required = f"an outcome of at least {_percent(least)} of the units whose window has closed"
    shares = [
        (arm.answered / arm.mature, no)
        for no, arm in enumerate(case.evidence.primary)
        if arm.mature > 0
    ]
    if case.evidence.definition.metrics[0].missing is Missing.ZERO:
        figure, holds, reason = None, True, "units without an outcome count as 0"
    elif not shares:
        figure, holds, reason = None, True, "no window has closed yet"
    else:
        share, no = min(shares)
        figure, holds = share, share >= least
        reason = f"{case.name(no)} has outcomes of {_percent(share)} of its units"
        if not holds:
            reason += (
                "; report misses as 0, or define the metric with missing = zero, "
                "if no outcome means 0"
            )
    return Condition(
        name="data_complete", required=required, figure=figure, holds=holds, reason=reason
    )


def dispersion(case: Case) -> Condition:
    """Counts vary as those of a Poisson law do: its posterior takes the variance for the mean.

    `figure` is the largest variance over mean of candidate and control; three standard errors of
    it, sqrt(2 / (n - 1)) each, are granted to chance.
    """
    limit = case.profile.most_dispersion or 0.0
    figure, holds, reason = None, True, "no arm has counted anything yet"
    for no, arm in ((case.evidence.control_no, case.control), (case.candidate, case.challenger)):
        units, mean = arm.statistics.units, arm.statistics.mean
        if units < 2 or mean <= 0:
            continue
        index = arm.statistics.variance / mean
        holds = holds and index - 3 * math.sqrt(2 / (units - 1)) <= limit
        if figure is None or index > figure:
            figure = index
            reason = f"the variance of {case.name(no)} is {index:.3g} times its mean"
    if not holds:
        reason += "; define the metric as continuous"
    return Condition(
        name="dispersion", required=f"a variance of at most {limit:g} times the mean",
        figure=figure, holds=holds, reason=reason,
    )  # fmt: skip


def sample_ratio(case: Case) -> Condition:
    """Units were assigned in the ratio of the weights."""
    observed = [arm.exposed for arm in case.evidence.primary]
    return _ratio(case, "sample_ratio", "assigned", (observed, case.evidence.expected))


def sample_ratio_counted(case: Case) -> Condition:
    """Units count in the ratio of the weights: no arm loses more of them than another."""
    observed = [arm.statistics.units for arm in case.evidence.primary]
    return _ratio(
        case, "sample_ratio_counted", "counted", (observed, case.evidence.expected_counted)
    )


def sequential_boundary(case: Case) -> Condition:
    """P(better than the control) is beyond a boundary that falls as the plan is used up.

    The standardized difference of a true null is a Brownian motion over the share t of the plan;
    by the reflection principle it ever exceeds c with probability 2 (1 - Phi(c)). At t it is
    sqrt(t) z, so z >= c / sqrt(t) is asked for: however often one looks, false deploys stay below
    the level, which is shared by the challengers. Source: O'Brien and Fleming, 1979, Biometrics
    35:549, in continuous time.

    Of a metric with a long tail, a small arm that has seen none of it has a better mean and a small
    variance at once; and counts may vary more than their posterior believes. So the variance of
    both arms together must do as well. Where weights have changed, arms differ by when their units
    came: then only units of the same epoch are compared (Simpson's paradox).
    """
    level = (case.profile.false_deploys or 1.0) / len(case.evidence.challengers)
    share = case.evidence.plan_share
    doubt = 0.0 if share == 0 else _tail(_boundary(level) / math.sqrt(share))
    required = f"P(better than the control) of {_certain(1 - doubt)} at {_percent(share)} of plan"

    def judge(candidate: int) -> tuple[float, bool, str]:
        believed, tested = case.evidence.p_lift(candidate, 0.0), _tested(case, candidate)
        figure = min(believed, tested)
        holds = doubt > RESOLUTION and 1 - figure <= doubt
        how = " by a t test within epochs" if tested < believed else ""
        reason = f"{case.name(candidate)} is better with probability {_certain(figure)}{how}"
        return figure, holds, reason

    return _exactly(case, "sequential_boundary", required, judge)


def probability_lift(case: Case) -> Condition:
    """The candidate is better by the margin with high probability."""
    least, margin = case.profile.least_lift_probability or 0.0, case.evidence.definition.margin

    def judge(candidate: int) -> tuple[float, bool, str]:
        figure = case.evidence.p_lift(candidate, margin)
        name = case.name(candidate)
        reason = f"{name} is better by {_percent(margin)} with probability {_certain(figure)}"
        return figure, figure > least, reason

    required = f"P(lift of {_percent(margin)} or more) above {_percent(least)}"
    return _exactly(case, "probability_lift", required, judge)


def probability_best(case: Case) -> Condition:
    """The candidate is the best of all variants with high probability."""
    least = case.profile.least_probability

    def judge(candidate: int) -> tuple[float, bool, str]:
        figure = case.evidence.p_best[candidate]
        reason = f"{case.name(candidate)} is best with probability {_certain(figure)}"
        return figure, figure > least, reason

    return _exactly(case, "probability_best", f"P(best) above {_percent(least)}", judge)


def expected_loss(case: Case) -> Condition:
    """What the candidate loses on average, if another variant is the best, is of no interest."""
    share = case.profile.caring or 0.0

    def judge(candidate: int) -> tuple[float, bool, str]:
        loss = case.evidence.comparison.expected_loss[candidate]
        base = abs(case.evidence.posteriors(0)[case.evidence.control_no].mean)
        figure = loss / base if base > 0 else 0.0
        reason = f"{case.name(candidate)} loses {_small(figure)} of the control's mean on average"
        return figure, loss <= share * base, reason

    required = f"an expected loss of at most {_percent(share)} of the control's mean"
    return _exactly(case, "expected_loss", required, judge)


def guardrail(case: Case, metric_no: int) -> Condition:
    """A metric that does not decide is not harmed. Without data nobody knows, and it does not hold.

    `figure` is P(worse than the control by the metric's tolerance or more).
    """
    metric, doubt = case.evidence.definition.metrics[metric_no], case.profile.guardrail_doubt or 1.0
    tolerance, name = _percent(metric.tolerance), case.name(case.candidate)
    figure, reason = harm_of(case, metric_no)
    holds = figure is not None and figure < doubt
    if figure is not None:
        reason = (
            f"{metric.name} of {name} is worse by {tolerance} with probability {_certain(figure)}"
        )
    return Condition(
        name=f"guardrail:{metric.name}",
        required=f"P({metric.name} worse by {tolerance}) below {_percent(doubt)}",
        figure=figure, holds=holds, reason=reason,
    )  # fmt: skip


def harm_of(case: Case, metric_no: int) -> tuple[float | None, str]:
    """Return the probability that a guardrail is harmed, or None and why nobody knows it."""
    arms, metric = case.evidence.arms[metric_no], case.evidence.definition.metrics[metric_no]
    if case.candidate is None:
        return None, f"{metric.name}: there is no candidate yet"
    for no in (case.evidence.control_no, case.candidate):
        if arms[no].statistics.units == 0:
            return None, f"{metric.name}: {case.name(no)} has no data"
    try:
        return case.evidence.probability_worse(metric_no, case.candidate), ""
    except NotEnoughData as error:
        return None, f"{metric.name}: {error.reason}"


def cross_check(case: Case) -> Condition:
    """Draws from the posteriors agree with the exact figures."""
    limit = case.profile.most_disagreement or 0.0

    def judge(candidate: int) -> tuple[float, bool, str]:
        del candidate  # all figures of all variants are compared
        figure = disagreement(case.evidence.comparison, case.evidence.drawn)
        return figure, figure <= limit, f"draws are {figure:.2f} standard errors away at most"

    required = f"Monte Carlo within {limit:g} standard errors of the exact figures"
    return _exactly(case, "cross_check", required, judge)


_Judge = Callable[[int], tuple[float, bool, str]]


def _exactly(case: Case, name: str, required: str, judge: _Judge) -> Condition:
    figure, holds, reason = None, False, "there is no candidate yet"
    try:
        if case.candidate is None:
            case.evidence.posteriors(0)  # says what is missing
        else:
            figure, holds, reason = judge(case.candidate)
    except NotEnoughData as error:
        reason = error.reason
    return Condition(name=name, required=required, figure=figure, holds=holds, reason=reason)


def ratio_p(observed: Sequence[int], expected: Sequence[float]) -> float | None:
    """Return p of Pearson's chi-squared test; None while there are no units, 0 if none may be."""
    if not sum(observed):
        return None
    if any(found and not due for found, due in zip(observed, expected, strict=True)):
        return 0.0
    pairs = [(found, due) for found, due in zip(observed, expected, strict=True) if due > 0]
    if len(pairs) < 2:
        return 1.0
    chi2 = math.fsum((found - due) ** 2 / due for found, due in pairs)
    return float(special.chdtrc(len(pairs) - 1, chi2))


def _ratio(
    case: Case, name: str, what: str, counts: tuple[Sequence[int], Sequence[float]]
) -> Condition:
    least = case.profile.least_ratio_p or 0.0
    figure = ratio_p(*counts)
    holds = figure is not None and figure >= least
    said = _ratio_text(case, what, counts)
    if figure is None:
        reason = f"no units are {what} yet"
    elif holds:
        reason = f"{said} (p = {figure:.3g})"
    else:
        reason = (
            f"{said} (p = {figure:.2g}): something loses or doubles units of a variant, and its "
            "figures cannot be trusted"
        )
    return Condition(
        name=name, required=f"units {what} as the weights say (p at least {least:g})",
        figure=figure, holds=holds, reason=reason,
    )  # fmt: skip


def _ratio_text(case: Case, what: str, counts: tuple[Sequence[int], Sequence[float]]) -> str:
    """Return both ratios; of many variants the one that is farthest off."""
    observed, expected = counts
    if len(observed) <= 3:
        shown = " : ".join(map(_count, observed))
        due = " : ".join(_count(round(each)) for each in expected)
        return f"{shown} are {what}, where {due} are expected"
    off = [abs(found - due) / math.sqrt(due or 1) for found, due in zip(*counts, strict=True)]
    no = off.index(max(off))
    due = _count(round(expected[no]))
    return f"{case.name(no)} has {_count(observed[no])} units {what}, where {due} are expected"


@cache
def _exact(share: float) -> Fraction:
    """Return the decimal that was written, not its nearest binary fraction."""
    return Fraction(Decimal(repr(share)))


@cache
def _boundary(level: float) -> float:
    return NormalDist().inv_cdf(1 - level / 2)


def _tested(case: Case, candidate: int) -> float:
    """Return P(better than the control) by a t test with one variance, stratified by epochs.

    A stratum counts by n_v n_c / (n_v + n_c), as one without a difference of variance should. 1 for
    a binary metric of one epoch: its rate tells its variance.
    """
    evidence = case.evidence
    if len(evidence.epochs) < 2 and evidence.definition.metrics[0].kind is MetricKind.BINARY:
        return 1.0
    arms = evidence.statistics_by_epoch
    strata = [
        (v.moments, c.moments)
        for v, c in zip(arms[candidate], arms[evidence.control_no], strict=True)
        if v.units and c.units
    ]
    weights = [v.units * c.units / (v.units + c.units) for v, c in strata]
    gain = evidence.sign * math.fsum(
        weight * (v.mean - c.mean) for weight, (v, c) in zip(weights, strata, strict=True)
    )
    freedom = math.fsum(v.units + c.units - 2 for v, c in strata)
    spread = math.fsum(v.spread + c.spread for v, c in strata)
    if freedom <= 0 or spread <= 0:
        return float(gain > 0)
    return float(special.stdtr(freedom, gain / math.sqrt(spread / freedom * math.fsum(weights))))


def _tail(z: float) -> float:
    """Return 1 - Phi(z), exact where Phi is nearly 1."""
    return 0.5 * math.erfc(z / math.sqrt(2))


def _count(number: int) -> str:
    return f"{number:,}"


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def _small(share: float) -> str:
    return "less than 0.001 %" if share < 1e-5 else _percent(share)


def _signed(share: float) -> str:
    return f"{100 * share:+.1f} %"


def _certain(probability: float) -> str:
    """Write a probability so that one below 1 does not read as 1, nor one above 0 as 0."""
    text = f"{100 * probability:.2f} %"
    if text == "100.00 %" and probability < 1:
        return "more than 99.99 %"
    if text == "0.00 %" and probability > 0:
        return "less than 0.01 %"
    return text


def _age(age_s: float) -> str:
    for unit, length_s in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if age_s >= 2 * length_s:
            return f"{age_s / length_s:.0f} {unit}"
    return f"{age_s:.0f} seconds"
