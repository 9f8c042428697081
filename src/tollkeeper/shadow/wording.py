"""How a report says things: one sentence for the verdict, one for the profile's promise. Pure."""

from typing import Final, NamedTuple

from tollkeeper.shadow.analysis import LastLook
from tollkeeper.shadow.history import Report
from tollkeeper.shadow.model import MetricKind, Verdict

NAME_WIDTH: Final = 28
"""Characters of a name in a picture."""

NOTHING: Final = "\u2013"
"""Stands where there is no number."""


class Headline(NamedTuple):
    """The verdict in a sentence; `tone` is `good`, `bad` or `plain`."""

    text: str
    tone: str


def headline_of(report: Report) -> Headline:
    """Say what counts: what is deployed, or what the last look said."""
    look = report.analysis.last_look
    if report.deployed is not None:
        return Headline(f"Deployed: everybody gets {shortened(report.deployed)}.", "good")
    if look is None:
        return Headline("No look has been taken yet: nothing is decided.", "plain")
    if report.state == "ended":
        said = f"It has ended, and nothing is deployed: look {look.look} said {look.verdict}."
        return Headline(said, "plain")
    if look.is_expired:
        return Headline(f"The verdict of look {look.look} to {look.verdict} has expired.", "plain")
    return _standing(look)


def _standing(look: LastLook) -> Headline:
    """Say what a look said that stands."""
    match look.verdict:
        case Verdict.DEPLOY:
            name = shortened(look.variant or "no variant")
            until = (
                "" if look.expires_at is None else f" until {look.expires_at:%d %b %Y %H:%M} UTC"
            )
            return Headline(f"Look {look.look}: {name} may be deployed{until}.", "good")
        case Verdict.REJECT:
            return Headline(f"Look {look.look} rejects: {look.why}.", "bad")
        case _:
            return Headline(f"Look {look.look} holds back: {look.why}.", "plain")


def promise_of(report: Report) -> str:
    """Say how far the plan is, and how often the profile errs."""
    analysis = report.analysis
    looks = analysis.looks
    planned = "" if looks.planned is None else f", look {looks.used} of {looks.planned}"
    said = (
        f"{looks.counted:,} of {looks.units:,} planned units{planned}. Profile {analysis.profile}"
    )
    rate = analysis.rates.false_deploy
    if rate is None:
        return f"{said}."
    low, high = rate.interval
    return (
        f"{said}: deploys {rate.rate:.1%} of variants that are no better "
        f"({low:.1%} to {high:.1%}; {rate.setting})."
    )


def condition_text(name: str) -> str:
    """Return a condition's name in words."""
    kind, _, metric = name.partition(":")
    return f"guardrail {shortened(metric)}" if metric else kind.replace("_", " ")


def share_text(share: float) -> str:
    """Return a share as per cent, with as many digits as it needs."""
    return f"{100 * share:.4g} %"


def number_text(number: float | None, kind: MetricKind) -> str:
    """Return a figure in the metric's unit: a share as per cent."""
    if number is None:
        return NOTHING
    return f"{100 * number:.3f} %" if kind is MetricKind.BINARY else f"{number:,.5g}"


def probability_text(probability: float | None) -> str:
    """Return a probability so that one below 1 does not read as 1."""
    if probability is None:
        return NOTHING
    if 0.9999 < probability < 1:
        return "> 99.99 %"
    if 0 < probability < 0.0001:
        return "< 0.01 %"
    return f"{100 * probability:.2f} %"


def shortened(name: str, width: int = NAME_WIDTH) -> str:
    """Return a name that fits on a line: its end is left out when it is long."""
    name = "".join(each if each.isprintable() else " " for each in name)
    return name if len(name) <= width else name[: width - 1] + "…"
