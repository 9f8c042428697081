"""Arms, conditions and rates of decisions as a person reads them, in words and tables. Pure.

Takes a decision's document, as it was stored: what cannot be read in it is left out.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

CONDITION_COLUMNS: Final = ("", "condition", "what is known", "required")
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
    conditions: Sequence[ConditionItem], *, is_plain: bool
) -> tuple[list[tuple[str, ...]], list[str]]:
    """Return the rows of conditions, and their tones."""
    yes, no = ("yes", "NO") if is_plain else ("✓", "✗")
    rows: list[tuple[str, ...]] = [
        (yes if each.holds else no, each.name.replace("_", " "), each.reason, each.required)
        for each in conditions
    ]
    return rows, ["" if each.holds else "bad" for each in conditions]


def arm_rows(
    arms: Sequence[ArmItem], *, kind: str | None, candidate: str | None
) -> tuple[list[tuple[str, ...]], list[str]]:
    """Return the rows of arms, and their tones; `kind` is the primary metric's."""
    rows: list[tuple[str, ...]] = [
        (
            f"{arm.variant} (control)" if arm.is_control else arm.variant,
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
