"""The gate: deploy, hold or reject, with every condition and its figure. Pure.

The specified conditions are necessary in every profile; ours come on top. `is_deployable` asks the
same functions as `judge`, the cheapest first, and stops at the first that does not hold: so the
operating characteristics of a profile are measured with the gate itself.

Invariant: `judge` says `deploy` if and only if `is_deployable`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tollkeeper.shadow import conditions
from tollkeeper.shadow.conditions import Case, Condition
from tollkeeper.shadow.errors import NotEnoughData
from tollkeeper.shadow.evidence import Evidence
from tollkeeper.shadow.model import MetricKind, Verdict
from tollkeeper.shadow.profiles import Profile

GATE_VERSION: Final = 1
"""Moves when the same inputs may get another document."""


class Kind(StrEnum):
    """Why the gate was asked."""

    LOOK = "look"
    """A planned look is due."""
    CONFIRMATION = "confirmation"
    """Somebody deploys on the verdict of a look: it is asked once more, of what is there now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A verdict; `candidate` is the challenger that is most probably best."""

    verdict: Verdict
    candidate: int | None
    conditions: tuple[Condition, ...]
    why: str
    """The verdict in a sentence."""

    @property
    def failures(self) -> tuple[Condition, ...]:
        """The conditions that do not hold."""
        return tuple(each for each in self.conditions if not each.holds)


def judge(evidence: Evidence, profile: Profile, look: int, *, kind: Kind = Kind.LOOK) -> Judgement:
    """Return the verdict at a look, with all conditions."""
    case = Case(evidence=evidence, profile=profile, look=look, candidate=candidate_of(evidence))
    found = {each.name: each for each in (*_cheap(case), *_costly(case))}
    shown = tuple(sorted(found.values(), key=lambda each: _place(each.name)))
    failures = [each for each in shown if not each.holds]
    name = case.name(case.candidate)
    if not failures:
        verdict, why = Verdict.DEPLOY, f"{name} may be deployed: every condition holds"
    elif (reason := _hopeless(case) or _used_up(case, kind)) is not None:
        verdict, why = Verdict.REJECT, reason
    else:
        count = len(failures)
        verdict = Verdict.HOLD
        why = f"{count} of {len(shown)} conditions {'does' if count == 1 else 'do'} not hold yet"
    return Judgement(verdict=verdict, candidate=case.candidate, conditions=shown, why=why)


def is_deployable(evidence: Evidence, profile: Profile, look: int) -> bool:
    """Whether `judge` says `deploy`, for as little computing as possible."""
    cases = (
        Case(evidence=evidence, profile=profile, look=look, candidate=challenger)
        for challenger in evidence.challengers
    )
    passing = [case for case in cases if all(each.holds for each in _cheap(case))]
    if not passing:
        return False
    candidate = candidate_of(evidence)
    case = next((case for case in passing if case.candidate == candidate), None)
    return case is not None and all(each.holds for each in _costly(case))


def is_hopeless(evidence: Evidence, profile: Profile, look: int) -> bool:
    """Whether `judge` says `reject` though the plan is not used up."""
    if len(evidence.definition.metrics) == 1 and not _is_behind(evidence):
        return False
    case = Case(evidence=evidence, profile=profile, look=look, candidate=candidate_of(evidence))
    return _hopeless(case) is not None and not is_deployable(evidence, profile, look)


def candidate_of(evidence: Evidence) -> int | None:
    """Return the challenger with the highest P(best); None while nobody knows it."""
    if len(evidence.challengers) == 1:
        return evidence.challengers[0]
    try:
        p_best = evidence.p_best
    except NotEnoughData:
        return None
    return max(evidence.challengers, key=lambda no: (p_best[no], -no))


def _cheap(case: Case) -> Iterator[Condition]:
    """Yield the conditions that need counts only."""
    profile = case.profile
    if profile.plans_looks:
        yield conditions.planned_looks(case)
    yield conditions.units_per_arm(case)
    yield conditions.lift(case)
    kind = case.evidence.definition.metrics[0].kind
    if profile.least_successes is not None and kind is MetricKind.BINARY:
        yield conditions.successes_per_arm(case)
    if profile.most_dispersion is not None and kind is MetricKind.COUNT:
        yield conditions.dispersion(case)
    if profile.fresh is not None:
        yield conditions.data_fresh(case)
    if profile.least_answered is not None:
        yield conditions.data_complete(case)
    if profile.least_ratio_p is not None:
        yield conditions.sample_ratio(case)
        yield conditions.sample_ratio_counted(case)


def _costly(case: Case) -> Iterator[Condition]:
    """Yield the conditions that need posteriors, those that fail most often first."""
    profile = case.profile
    if profile.false_deploys is not None:
        yield conditions.sequential_boundary(case)
    if profile.least_lift_probability is not None:
        yield conditions.probability_lift(case)
    yield conditions.probability_best(case)
    if profile.caring is not None:
        yield conditions.expected_loss(case)
    if profile.guardrail_doubt is not None:
        for metric_no in range(1, len(case.evidence.definition.metrics)):
            yield conditions.guardrail(case, metric_no)
    if profile.most_disagreement is not None:
        yield conditions.cross_check(case)


_ORDER: Final = (
    "probability_best", "units_per_arm", "successes_per_arm", "dispersion", "lift",
    "probability_lift", "expected_loss", "sequential_boundary", "planned_looks", "sample_ratio",
    "sample_ratio_counted", "guardrail", "data_fresh", "data_complete", "cross_check",
)  # fmt: skip
"""As people read them: the specified ones first."""


def _place(name: str) -> int:
    return _ORDER.index(name.partition(":")[0])


def _hopeless(case: Case) -> str | None:
    """Return why waiting longer is of no use; None: it may be."""
    if case.profile.guardrail_doubt is not None:
        for metric_no in range(1, len(case.evidence.definition.metrics)):
            figure, _ = conditions.harm_of(case, metric_no)
            if figure is not None and figure > case.profile.guardrail_harm:
                metric = case.evidence.definition.metrics[metric_no]
                return f"{case.name(case.candidate)} harms {metric.name}: {figure:.1%} probable"
    is_early = case.evidence.plan_share < case.profile.hopeless_share
    if case.candidate is None or is_early or not _is_behind(case.evidence):
        return None
    if not conditions.units_per_arm(case).holds:
        return None
    try:
        p_better = case.evidence.p_lift(case.candidate, 0.0)
    except NotEnoughData:
        return None
    if p_better >= case.profile.hopeless:
        return None
    return f"{case.name(case.candidate)} is better than the control with {p_better:.1%} only"


def _is_behind(evidence: Evidence) -> bool:
    """Whether every challenger is worse than the control in the sample."""
    sign, arms = evidence.sign, evidence.primary
    c = arms[evidence.control_no].statistics
    rivals = (arms[no].statistics for no in evidence.challengers)
    return all(sign * v.total * c.units < sign * c.total * v.units for v in rivals)


def _used_up(case: Case, kind: Kind) -> str | None:
    looks = case.evidence.definition.looks
    is_last = case.profile.plans_looks and looks is not None and case.look >= looks
    if kind is Kind.LOOK and is_last:
        return f"all {looks} looks are used up without a proof"
    return None
