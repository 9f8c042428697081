"""The report as one HTML page: pictures, and every number beside them. It loads nothing. Pure."""

from collections.abc import Callable

from tollkeeper.shadow.analysis import Analysis
from tollkeeper.shadow.figures import ArmFigures
from tollkeeper.shadow.history import Past, Report
from tollkeeper.shadow.model import Direction
from tollkeeper.shadow.pictures import svgs_of
from tollkeeper.shadow.wording import (
    NOTHING,
    condition_text,
    headline_of,
    number_text,
    probability_text,
    promise_of,
)

_DAY_S = 86_400


def html_of(report: Report) -> str:
    """Return the page; the same report gives the same bytes.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.PackageLoader("tollkeeper.shadow"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    analysis = report.analysis
    pictures = svgs_of(report)
    page: str = environment.get_template("report.html").render(
        analysis=analysis,
        report=report,
        headline=headline_of(report),
        promise=promise_of(report),
        better="higher" if analysis.direction is Direction.HIGHER else "lower",
        # Made by matplotlib, which escapes the names in them.
        pictures={name: Markup(svg) for name, svg in pictures.items()},  # noqa: S704
        arms=[_arm_row(analysis, arm) for arm in analysis.arms],
        conditions=[(condition_text(each.name), each) for each in analysis.conditions],
        guardrails=_guardrail_rows(analysis),
        ratios=_ratio_rows(analysis),
        corrections=_correction_rows(analysis),
        left=_left(analysis),
        hidden=max(0, len(analysis.arms) - len(report.shown)),
        past=[_past_row(past) for past in report.past],
    )
    return page


def _arm_row(analysis: Analysis, arm: ArmFigures) -> tuple[str, ...]:
    kind = analysis.kind
    loss = number_text(arm.expected_loss, kind)
    mean = number_text(arm.mean, kind)
    return (
        f"{arm.exposed:,}",
        f"{arm.units:,}",
        NOTHING if arm.share is None else f"{arm.share:.1%}",
        mean,
        _range(arm.interval, lambda bound: number_text(bound, kind)),
        probability_text(arm.probability_best),
        loss,
        NOTHING if arm.lift is None else f"{arm.lift:+.1%}",
        _range(arm.lift_interval, lambda bound: f"{bound:+.1%}"),
        probability_text(arm.probability_lift),
    )


def _range(pair: tuple[float, float] | None, write: Callable[[float], str]) -> str:
    return NOTHING if pair is None else f"{write(pair[0])} to {write(pair[1])}"


def _guardrail_rows(analysis: Analysis) -> list[tuple[str, ...]]:
    return [
        (
            each.metric,
            each.variant,
            f"{each.units:,}",
            NOTHING if each.mean is None else f"{each.mean:,.5g}",
            NOTHING if each.control_mean is None else f"{each.control_mean:,.5g}",
            f"{each.tolerance:.3g}",
            probability_text(each.probability_worse),
        )
        for each in analysis.guardrails
    ]


def _ratio_rows(analysis: Analysis) -> list[tuple[str, ...]]:
    return [
        (
            each.of,
            " : ".join(f"{found:,}" for found in each.observed),
            " : ".join(f"{due:,.0f}" for due in each.expected),
            NOTHING if each.p is None else f"{each.p:.3g}",
        )
        for each in analysis.sample_ratios
    ]


def _correction_rows(analysis: Analysis) -> list[tuple[str, ...]]:
    return [
        (
            each.variant,
            number_text(each.plain, analysis.kind),
            number_text(each.corrected, analysis.kind),
            f"{each.difference_z:+.1f}",
            "alarm: time and weights are mixed up" if each.is_alarm else "within chance",
        )
        for each in analysis.corrections
    ]


def _past_row(past: Past) -> tuple[str, ...]:
    return (
        f"{past.decided_at:%Y-%m-%d %H:%M}",
        f"{past.kind} {past.look}",
        f"{past.units:,}",
        str(past.verdict),
        past.document.why,
    )


def _left(analysis: Analysis) -> str | None:
    seconds = analysis.time_left.plan_s
    if not seconds:
        return None
    if seconds < 2 * _DAY_S:
        return f"{seconds / 3_600:.1f} hours"
    return f"{seconds / _DAY_S:.1f} days"
