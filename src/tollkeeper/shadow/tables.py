"""Arms, conditions and rates of decisions as a person reads them, in words and tables. Pure.

Takes a decision's document, as it was stored: what cannot be read in it is left out.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

CONDITION_COLUMNS: Final = ("", "condition", "what is known")
ARM_COLUMNS: Final = (
    "variant", "#units", "#mean", "95 % interval", "#P(best)", "#P(better)", "#lift",
    "95 % interval",
)  # fmt: skip
VERDICT_TONES: Final = {"deploy": "good", "hold": "warn", "reject": "bad"}


class ConditionItem(msgspec.Struct, frozen=True, kw_only=True):
    """A condition, as documents have it."""

    name: str
    required: str
    holds: bool
    reason: str
    figure: float | None = None


class ArmItem(msgspec.Struct, frozen=True, kw_only=True):
    """A variant in the primary metric, as documents have it."""

    variant: str
    is_control: bool = False
    units: int = 0
    mean: float | None = None
    interval: tuple[float, float] | None = None
    probability_best: float | None = None
    probability_better: float | None = None
    lift: float | None = None
    lift_interval: tuple[float, float] | None = None


class RateItem(msgspec.Struct, frozen=True, kw_only=True):
    """How often a profile says deploy, in simulated experiments of one setting."""

    rate: float
    interval: tuple[float, float]
    runs: int
    setting: str


class RatesItem(msgspec.Struct, frozen=True, kw_only=True):
    """How often a profile errs, and how often it finds what is there."""

    false_deploy: RateItem | None = None
    power: tuple[RateItem, ...] = ()
    warning: str | None = None


class DecisionDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What a decision says of itself."""

    verdict: str
    why: str
    profile: str
    candidate: str | None = None
    conditions: tuple[ConditionItem, ...] = ()
    arms: tuple[ArmItem, ...] = ()
    rates: RatesItem = RatesItem()


def document_of(document: str | Mapping[str, object]) -> DecisionDocument | None:
    """Read a decision's document; None: it is of another format."""
    try:
        if isinstance(document, str):
            return msgspec.json.decode(document, type=DecisionDocument)
        return msgspec.convert(document, DecisionDocument)
    except msgspec.MsgspecError:
        return None


def condition_rows(
    conditions: Sequence[ConditionItem], *, is_plain: bool, is_whole: bool = False
) -> tuple[list[tuple[str, ...]], list[str]]:
    """Return the rows of conditions, and their tones.

    What is required is said of those that do not hold, or of all if it `is_whole`.
    """
    yes, no = ("yes", "NO") if is_plain else ("✓", "✗")
    rows: list[tuple[str, ...]] = []
    for each in conditions:
        required = f"; required: {each.required}" if is_whole or not each.holds else ""
        rows.append((yes if each.holds else no, title_of(each.name), f"{each.reason}{required}"))
    return rows, ["" if each.holds else "bad" for each in conditions]


def title_of(name: str) -> str:
    """Return a condition's name as people read it."""
    return name.replace("_", " ", 2) if ":" not in name else name


def why_text(document: DecisionDocument) -> str:
    """Return why a decision is as it is: the conditions that do not hold, where it says hold."""
    failing = [title_of(each.name) for each in document.conditions if not each.holds]
    if document.verdict != "hold" or not failing:
        return document.why
    more = f" and {len(failing) - 3} more" if len(failing) > 3 else ""
    return f"not yet: {', '.join(failing[:3])}{more}"


def arm_rows(
    arms: Sequence[ArmItem], *, kind: str | None, candidate: str | None
) -> tuple[list[tuple[str, ...]], list[str]]:
    """Return the rows of arms, and their tones; `kind` is the primary metric's."""
    rows: list[tuple[str, ...]] = [
        (
            arm_name(arm),
            f"{arm.units:,}",
            value_text(arm.mean, kind),
            interval_text(arm.interval, kind),
            probability_text(arm.probability_best),
            probability_text(arm.probability_better),
            lift_text(arm.lift),
            "-"
            if arm.lift_interval is None
            else " to ".join(lift_text(bound) for bound in arm.lift_interval),
        )
        for arm in arms
    ]
    return rows, ["good" if arm.variant == candidate else "" for arm in arms]


def arm_name(arm: ArmItem) -> str:
    """Return a variant's name, and that it is the control where the name does not say so."""
    is_said = not arm.is_control or arm.variant == "control"
    return arm.variant if is_said else f"{arm.variant} (control)"


def rate_text(rates: RatesItem, profile: str) -> str:
    """Return how often a profile errs, in a sentence."""
    rate = rates.false_deploy
    if rate is None:
        return f"{profile}: nobody has measured how often it errs"
    low, high = rate.interval
    return (
        f"{profile} deploys {rate.rate:.1%} of variants that are no better "
        f"({low:.1%} to {high:.1%}, {rate.runs:,} simulated experiments: {rate.setting})"
    )


def value_text(value: float | None, kind: str | None) -> str:
    """Return a value of a metric: a share of units, or a number to five digits."""
    if value is None:
        return "-"
    return f"{value:.2%}" if kind == "binary" else f"{value:,.5g}"


def interval_text(interval: tuple[float, float] | None, kind: str | None) -> str:
    """Return an interval of values."""
    if interval is None:
        return "-"
    return " to ".join(value_text(bound, kind) for bound in interval)


def probability_text(probability: float | None) -> str:
    """Return a probability so that one below 1 does not read as 1, nor one above 0 as 0."""
    if probability is None:
        return "-"
    text = f"{probability:.2%}"
    if text == "100.00%" and probability < 1:
        return ">99.99%"
    if text == "0.00%" and probability > 0:
        return "<0.01%"
    return text


def lift_text(lift: float | None) -> str:
    """Return a relative lift, with its sign."""
    return "-" if lift is None else f"{lift:+.1%}"
