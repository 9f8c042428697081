"""A stored evaluation: made from inputs and a seed, and made anew by whoever doubts it. Pure.

Invariant: the same inputs, seed and code give the same bytes, in any process. Floats are rounded
to ten digits, so that another processor's last bit does not matter.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Final

import msgspec

from tollkeeper.kernel.errors import TollkeeperError
from tollkeeper.shadow.bandit import TOP_TWO_SHARE, Policy, adapted_weights
from tollkeeper.shadow.evidence import Evidence, parse
from tollkeeper.shadow.figures import arm_figures
from tollkeeper.shadow.gate import GATE_VERSION, Judgement, Kind, judge
from tollkeeper.shadow.model import Decision, Verdict
from tollkeeper.shadow.profiles import Characteristics, Profile, profile_of

DIGITS: Final = 10

TEMPER: Final = 0.25
"""What P(best) is tempered by at the end of the plan (`Policy.temper`). Thall and Wathen use 0.5;
power for a lift of 20 % at a rate of 10 % is then 79 %, with this 82 %, with fixed weights 84 %."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_IN_UNITS: Final = ("mean", "posterior_mean", "posterior_sd", "interval", "density_interval")
"""Figures in the metric's unit, beside the expected loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """What the gate said; `document` is canonical JSON with every figure and reason."""

    verdict: Verdict
    variant_no: int | None
    document: str
    judgement: Judgement
    weights_next: tuple[float, ...] | None
    """The shares that an adaptive experiment goes on with; None: it is not adaptive."""
    lifetime: timedelta
    """How long a verdict to deploy holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recomputation:
    """A stored decision against the same made anew."""

    differences: tuple[str, ...]
    document: str
    """As it is made now; empty if the inputs cannot be read."""

    @property
    def matches(self) -> bool:
        """Whether every byte is what it was."""
        return not self.differences


def code_version(*, tollkeeper: str, numpy: str, scipy: str) -> str:
    """Return what a decision was made by."""
    return f"tollkeeper {tollkeeper}; gate {GATE_VERSION}; numpy {numpy}; scipy {scipy}"


def decide(inputs: str, *, look: int, kind: Kind | str, seed: int, code: str) -> Decided:
    """Judge the inputs of a decision.

    Raises:
        InputsUnreadable: they are of another format.
        ProfileUnknown: the experiment's gate is none of this version.
    """
    evidence = parse(inputs, seed=seed)
    profile = profile_of(evidence.definition.profile)
    judgement = judge(evidence, profile, look, kind=Kind(kind))
    weights = weights_after(evidence)
    document = {
        "format": 1,
        "code": code,
        "seed": seed,
        "kind": str(Kind(kind)),
        "look": look,
        "experiment_id": evidence.experiment_id,
        "as_of": evidence.as_of_us,
        "inputs_sha256": evidence.digest.hex(),
        "profile": profile.name,
        "verdict": str(judgement.verdict),
        "why": judgement.why,
        "candidate": _name(evidence, judgement.candidate),
        "conditions": [
            {
                "name": each.name,
                "required": each.required,
                "figure": None if each.figure is None else rounded(each.figure),
                "holds": each.holds,
                "reason": each.reason,
            }
            for each in judgement.conditions
        ],
        "arms": _arms(evidence),
        "weights_next": None if weights is None else [rounded(weight) for weight in weights],
        "rates": rates_of(profile),
    }
    return Decided(
        verdict=judgement.verdict,
        variant_no=judgement.candidate,
        document=canonical(document),
        judgement=judgement,
        weights_next=weights,
        lifetime=profile.lifetime,
    )


def weights_after(evidence: Evidence) -> tuple[float, ...] | None:
    """Return the shares that an adaptive experiment goes on with; None: it is not adaptive."""
    adaptive, metric = evidence.definition.adaptive, evidence.definition.metrics[0]
    if adaptive is None:
        return None
    current = evidence.epochs[-1].weights if evidence.epochs else evidence.definition.weights
    return adapted_weights(
        current,
        evidence.statistics_by_epoch,
        kind=metric.kind,
        prior=metric.prior or None,
        sign=evidence.sign,
        policy=Policy(
            floor=adaptive.floor,
            top_two=TOP_TWO_SHARE if adaptive.top_two else None,
            discount=adaptive.discount,
            temper=TEMPER * evidence.plan_share,
        ),
    )


def recompute(decision: Decision) -> Recomputation:
    """Make a decision anew from its inputs and seed, and compare every byte of it."""
    differences = []
    if sha256(decision.inputs.encode()).digest() != decision.input_digest:
        differences.append("the inputs have another SHA-256 than the decision names")
    if chain_hash(decision) != decision.hash:
        differences.append("the hash is not that of the decision and the one before it")
    try:
        made = decide(
            decision.inputs,
            look=decision.look,
            kind=decision.kind,
            seed=decision.seed,
            code=decision.code,
        )
    except (TollkeeperError, ValueError) as error:
        return Recomputation(differences=(*differences, str(error)), document="")
    if made.verdict != decision.verdict:
        differences.append(f"the verdict is {made.verdict}, and {decision.verdict} is kept")
    if made.variant_no != decision.variant_no:
        differences.append("the candidate is another variant")
    differences += _document_differences(decision.document, made.document)
    return Recomputation(differences=tuple(differences), document=made.document)


def chain_hash(decision: Decision) -> bytes:
    """Return the hash of a decision, as the database makes it (`record_decision`)."""
    fields = [
        decision.experiment_no, decision.sequence, decision.kind, decision.look,
        micros(decision.decided_at), micros(decision.as_of), str(decision.verdict),
        decision.variant_no, decision.seed, decision.code, decision.document,
    ]  # fmt: skip
    # As PostgreSQL writes jsonb: a space after each comma, and no escapes beyond ASCII.
    text = json.dumps(fields, ensure_ascii=False, separators=(", ", ": "))
    inner = sha256(text.encode()).digest()
    return sha256(decision.prev_hash + decision.input_digest + inner).digest()


def micros(moment: datetime) -> int:
    """Return a moment in microseconds since 1970."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def canonical(document: Mapping[str, object]) -> str:
    """Return JSON that is always written alike: sorted keys, no spaces, no NaN."""
    return json.dumps(
        document, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
    )


def rounded(value: float, scale: float = 1.0) -> float:
    """Round to ten digits of a number's size, or of the scale that it is small against."""
    size = max(abs(value), scale)
    if size == 0 or not math.isfinite(size):
        return 0.0 if size == 0 else value
    digits = DIGITS - 1 - math.floor(math.log10(size))
    return float(f"{round(value, digits):.{DIGITS}g}") + 0.0  # not -0.0


def rates_of(profile: Profile) -> dict[str, object]:
    """Return how often a profile errs, as it stands beside each verdict."""
    worst = profile.false_deploy
    return {
        "false_deploy": None if worst is None else _rate(worst),
        "power": [_rate(each) for each in profile.powers],
        "warning": profile.warning or None,
    }


def _rate(each: Characteristics) -> dict[str, object]:
    return {
        "rate": rounded(each.deploy_rate),
        "interval": [rounded(bound) for bound in each.interval],
        "runs": each.runs,
        "setting": each.setting,
    }


def _name(evidence: Evidence, variant_no: int | None) -> str | None:
    return None if variant_no is None else evidence.definition.variants[variant_no].name


def _arms(evidence: Evidence) -> list[dict[str, object]]:
    arms = []
    for figures in arm_figures(evidence):
        found: dict[str, object] = msgspec.to_builtins(figures)
        unit = max(abs(figures.posterior_mean or 0.0), figures.posterior_sd or 0.0)
        for name, value in found.items():
            if isinstance(value, bool | int | str | None):
                continue
            scale = unit if name in {*_IN_UNITS, "expected_loss"} else 1.0
            if isinstance(value, float):
                found[name] = rounded(value, scale)
            elif isinstance(value, Sequence):
                found[name] = [rounded(bound, scale) for bound in value]
        arms.append(found)
    return arms


def _document_differences(kept: str, made: str) -> list[str]:
    """Return the names of the parts that differ, or that only the writing does."""
    if kept == made:
        return []
    try:
        before, after = json.loads(kept), json.loads(made)
    except ValueError:
        return ["the document is not JSON"]
    if not isinstance(before, dict):
        return ["the document is not an object"]
    names = sorted(
        name for name in {*before, *after} if before.get(name, _NONE) != after.get(name, _NONE)
    )
    if not names:
        return ["the document is written otherwise"]
    return [f"the document says otherwise of {', '.join(names)}"]


_NONE: Final = object()
