"""Pictures of an experiment: densities, P(best), lift. Needs matplotlib, the extra `report`.

Every picture is drawn for print and screen, light and dark: lines differ in dash as well as in
colour (Okabe and Ito's palette), and what is not data takes the text's colour. The same report
gives the same bytes.
"""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from textwrap import fill
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tollkeeper.kernel.errors import ConfigurationError
from tollkeeper.shadow.history import Report
from tollkeeper.shadow.model import Direction, MetricKind
from tollkeeper.shadow.posterior import Posterior, posterior_of
from tollkeeper.shadow.wording import (
    NOTHING,
    condition_text,
    headline_of,
    number_text,
    probability_text,
    promise_of,
    share_text,
    shortened,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS: Final = ("#7a7a7a", "#0072b2", "#d55e00", "#009e73", "#b3589a", "#c28e00")
"""By place in the picture: the control, then the others."""

DASHES: Final = (
    "solid",
    "solid",
    (0, (5, 1.5)),
    (0, (1.5, 1.2)),
    (0, (6, 1.5, 1.5, 1.5)),
    "dashed",
)

INK: Final = "#010203"
"""Stands for the page's own text colour in an SVG."""

_GOOD, _BAD = "#00795a", "#b84a00"
_RC: Final = {
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "figure.dpi": 100,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "grid.alpha": 0.25,
    "grid.color": "#7a7a7a",
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "savefig.transparent": False,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # a name is a name, whatever dollars are in it
    "xtick.color": INK,
    "ytick.color": INK,
}
_POINTS: Final = 400

_TALL, _HEAD, _GAP, _STEP, _ROW = 3.4, 1.35, 1.4, 0.42, 0.24
"""Inches: a picture, the heading, between pictures, a condition, a row of the variants."""


def png_of(report: Report) -> bytes:
    """Return one figure with all pictures and the gate's conditions.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    with _drawing("#1c1c1c"):
        listed = 0.75 + _ROW * len(report.shown)
        below = max(_TALL + listed, _STEP * len(report.analysis.conditions))
        figure = _figure(12.4, _HEAD + _TALL + below + 2 * _GAP + 0.1)
        _draw_heading(_place(figure, 0.95, 0.25, 11.2, _HEAD - 0.25), report)
        top = _HEAD + 0.9
        draw_densities(_place(figure, 0.95, top, 4.9, _TALL), report)
        draw_best(_place(figure, 7.0, top, 5.0, _TALL), report)
        top += _TALL + _GAP
        draw_lift(_place(figure, 0.95, top, 4.9, _TALL), report)
        _draw_variants(_place(figure, 0.4, top + _TALL + 0.75, 5.5, listed - 0.75), report)
        _draw_conditions(_place(figure, 6.4, top, 5.65, below), report)
        return _saved(figure, "png")


def svgs_of(report: Report) -> dict[str, str]:
    """Return each picture as an SVG that stands in a page, by its name.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    drawers: dict[str, Callable[[Axes, Report], None]] = {
        "densities": draw_densities,
        "best": draw_best,
        "lift": draw_lift,
    }
    pictures = {}
    for name, draw in drawers.items():
        with _drawing(INK, salt=name):
            figure = _figure(6.4, 4.0)
            draw(figure.add_axes((0.14, 0.13, 0.8, 0.68)), report)
            pictures[name] = _inline(_saved(figure, "svg").decode())
    return pictures


def draw_densities(axes: "Axes", report: Report) -> None:
    """Draw what is believed of each variant's mean, with its 95 % interval."""
    analysis = report.analysis
    better = "higher" if analysis.direction is Direction.HIGHER else "lower"
    axes.set_title(f"What is believed of {shortened(analysis.metric)}")
    axes.set_xlabel(f"mean per unit, {better} is better")
    axes.set_yticks([])
    axes.set_ylabel("density")
    if not analysis.posteriors:
        _say_nothing(axes, analysis.not_yet or "there is no data yet")
        axes.set_xticks([])
        return
    posteriors = [
        posterior_of(analysis.kind, analysis.posteriors[no].parameters) for no in report.shown
    ]
    low, high = _reach(posteriors)
    x = np.linspace(low, high, _POINTS)
    for place, (no, posterior) in enumerate(zip(report.shown, posteriors, strict=True)):
        # A prior's density may be infinite at its border: what is there is drawn as far as it goes.
        density = np.nan_to_num(np.exp(posterior.logpdf(x)), posinf=0.0)
        axes.plot(
            x, density, color=COLOURS[place], linestyle=DASHES[place], label=_label(report, no)
        )
        first, last = posterior.ppf(np.array([0.025, 0.975]))
        inside = (x >= first) & (x <= last)
        axes.fill_between(x[inside], density[inside], color=COLOURS[place], alpha=0.15, lw=0)
    axes.set_ylim(bottom=0)
    axes.set_xlim(low, high)
    if analysis.kind is MetricKind.BINARY:
        axes.xaxis.set_major_formatter(lambda value, _: share_text(value))
    _legend(axes)


def draw_best(axes: "Axes", report: Report) -> None:
    """Draw P(best) at each look, and the share of units that each variant gets."""
    axes.set_title("Probability of being best, and share of units")
    axes.set_ylabel("thick: P(best), thin: share")
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(lambda value, _: share_text(value))
    _units_axis(axes, report)
    axes.axhline(0.95, color=INK, lw=0.9, ls=(0, (2, 2)))
    axes.annotate(
        "95 %", (1.0, 0.95), xycoords=("axes fraction", "data"), ha="right", va="top",
        xytext=(0, -2), textcoords="offset points", fontsize=8,
    )  # fmt: skip
    is_known = False
    for place, no in enumerate(report.shown):
        course = report.course(no)
        best = [(p.units, p.arm.probability_best) for p in course if p.arm.units]
        known = [(units, value) for units, value in best if value is not None]
        shares = [(p.units, p.arm.share) for p in course if p.arm.share is not None]
        if known:
            is_known = True
            axes.plot(
                *zip(*known, strict=True), color=COLOURS[place], linestyle=DASHES[place],
                marker="o", ms=3.2, label=_label(report, no),
            )  # fmt: skip
        if shares:
            axes.plot(*zip(*shares, strict=True), color=COLOURS[place], lw=0.9, alpha=0.75)
    if not is_known:
        _say_nothing(axes, "no look has been taken yet")
        return
    _legend(axes)


def draw_lift(axes: "Axes", report: Report) -> None:
    """Draw each variant's lift at each look, with its 95 % interval."""
    margin = report.analysis.margin
    axes.set_title("Lift over the control, with 95 % interval")
    axes.set_ylabel("relative, above 0 is better")
    axes.yaxis.set_major_formatter(lambda value, _: _lift_text(value))
    _units_axis(axes, report)
    axes.axhline(0, color=INK, lw=0.9)
    bounds: list[float] = [0.0, margin]
    is_known = False
    for place, no in enumerate(report.shown):
        points = [
            (p.units, p.arm.lift, *p.arm.lift_interval)
            for p in report.course(no)
            if p.arm.lift is not None and p.arm.lift_interval is not None and p.arm.units
        ]
        if not points:
            continue
        is_known = True
        units, lifts, lows, highs = map(list, zip(*points, strict=True))
        axes.plot(
            units,
            lifts,
            color=COLOURS[place],
            linestyle=DASHES[place],
            marker="o",
            ms=3.2,
            label=_label(report, no),
        )
        axes.fill_between(units, lows, highs, color=COLOURS[place], alpha=0.13, lw=0)
        if len(points) == 1:
            axes.plot(units * 2, [*lows, *highs], color=COLOURS[place], lw=1.2)
        tail = -(-len(points) // 4)  # the first looks know little and would hide the rest
        settled = slice(min(tail, len(points) - 1), None)
        bounds += [*lows[settled], *highs[settled]]
    if not is_known:
        _say_nothing(axes, "no lift can be told yet")
        return
    room = 0.08 * (max(bounds) - min(bounds)) or 0.1
    axes.set_ylim(min(bounds) - room, max(bounds) + room)
    if margin > 0:
        axes.axhline(margin, color=INK, lw=0.9, ls=(0, (2, 2)))
        axes.annotate(
            f"margin {share_text(margin)}", (1.0, margin), xycoords=("axes fraction", "data"),
            ha="right", va="bottom", xytext=(0, 1), textcoords="offset points", fontsize=8,
        )  # fmt: skip
    _legend(axes)


def _lift_text(lift: float) -> str:
    if abs(lift) < 1e-9:
        return "0 %"
    return f"{lift:+,.0%}".replace("%", " %") if abs(lift) >= 1 else f"{100 * lift:+.3g} %"


def _draw_heading(axes: "Axes", report: Report) -> None:
    axes.axis("off")
    headline = headline_of(report)
    tone = {"good": _GOOD, "bad": _BAD}.get(headline.tone, "#1c1c1c")
    name = shortened(report.analysis.experiment_id, 60)
    axes.text(0, 1.0, f"Experiment {name}", fontsize=17, weight="bold", va="top")
    said = shortened(headline.text, 110)
    axes.text(0, 0.64, said, fontsize=12.5, color=tone, weight="bold", va="top")
    axes.text(0, 0.34, fill(promise_of(report), 150), fontsize=9.5, va="top", linespacing=1.4)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)


def _draw_conditions(axes: "Axes", report: Report) -> None:
    axes.axis("off")
    axes.set_title("The gate's conditions, now", pad=10)
    height = _inches(axes)[1]
    for number, each in enumerate(report.analysis.conditions):
        y = 1 - number * _STEP / height
        mark, colour = ("✓", _GOOD) if each.holds else ("✗", _BAD)
        axes.text(0.0, y, mark, fontsize=12, color=colour, weight="bold", va="top")
        axes.text(0.045, y, condition_text(each.name), fontsize=9.5, weight="bold", va="top")
        axes.text(0.045, y - 0.18 / height, shortened(each.reason, 86), fontsize=8.3, va="top")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)


def _draw_variants(axes: "Axes", report: Report) -> None:
    axes.axis("off")
    kind, height = report.analysis.kind, _inches(axes)[1]
    ends = (0.09, 0.56, 0.72, 0.86, 1.0)
    rows = [("variant", "units", "mean", "P(best)", "lift")]
    for no in report.shown:
        arm = report.analysis.arms[no]
        lift = NOTHING if arm.lift is None else f"{arm.lift:+.1%}"
        mean, best = number_text(arm.mean, kind), probability_text(arm.probability_best)
        rows.append((_label(report, no), f"{arm.units:,}", mean, best, lift))
    for number, row in enumerate(rows):
        weight = "normal" if number else "bold"
        for place, (end, cell) in enumerate(zip(ends, row, strict=True)):
            axes.text(
                end, 1 - number * _ROW / height, cell, fontsize=8.8, va="top", weight=weight,
                ha="right" if place else "left",
            )  # fmt: skip
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)


def _units_axis(axes: "Axes", report: Report) -> None:
    looks = report.analysis.looks
    axes.set_xlabel(f"units counted, of {looks.units:,} planned")
    axes.set_xlim(0, max(looks.units, looks.counted, 1))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.locator_params(axis="x", nbins=6)


def _reach(posteriors: list[Posterior]) -> tuple[float, float]:
    """Return where densities are, of all variants together."""
    ends = np.array([posterior.ppf(np.array([0.0005, 0.9995])) for posterior in posteriors])
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    return (low, high) if high > low else (low - 1, high + 1)


def _label(report: Report, variant_no: int) -> str:
    arm = report.analysis.arms[variant_no]
    is_said = arm.variant.casefold().startswith("control")
    # What begins with an underscore would not be in a legend.
    name = f" {arm.variant}" if arm.variant.startswith("_") else arm.variant
    return shortened(name) + (" (control)" if arm.is_control and not is_said else "")


def _legend(axes: "Axes") -> None:
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        wide = max(map(len, labels)) > 16
        axes.legend(
            handles, labels, loc="lower left", bbox_to_anchor=(-0.01, 0.985),
            ncols=2 if wide else 3, borderaxespad=0, columnspacing=1.2, handlelength=2.4,
        )  # fmt: skip
        rows = -(-len(labels) // (2 if wide else 3))
        axes.set_title(axes.get_title(loc="left"), pad=8 + 14 * rows)


def _say_nothing(axes: "Axes", why: str) -> None:
    axes.text(0.5, 0.5, fill(why, 44), transform=axes.transAxes, ha="center", va="center")
    axes.grid(visible=False)
    axes.set_yticks([])


@contextmanager
def _drawing(ink: str, salt: str = "") -> Iterator[None]:
    """Draw with our settings, whatever the process has."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ConfigurationError(
            problem="pictures need matplotlib: pip install 'tollkeeper[report]'"
        ) from error
    settings: dict[Any, Any] = {key: ink if value == INK else value for key, value in _RC.items()}
    with mpl.rc_context(), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; the page's tables have it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        mpl.rcdefaults()
        mpl.rcParams.update({**settings, "svg.hashsalt": f"tollkeeper-{salt}"})
        yield


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def _place(figure: "Figure", left: float, top: float, width: float, height: float) -> "Axes":  # noqa: PLR0917
    """Return axes at a place in inches, from the upper left corner."""
    across, down = figure.get_size_inches()
    return figure.add_axes(
        (left / across, 1 - (top + height) / down, width / across, height / down)
    )


def _inches(axes: "Axes") -> tuple[float, float]:
    figure = axes.get_figure(root=True)
    assert figure is not None
    across, down = figure.get_size_inches()
    box = axes.get_position()
    return float(box.width * across), float(box.height * down)


def _saved(figure: "Figure", form: str) -> bytes:
    target = BytesIO()
    if form == "png":
        figure.savefig(target, format="png", dpi=110, metadata={"Software": None})
    else:
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(target, format="svg", transparent=True, metadata=metadata)
    return target.getvalue()


def _inline(svg: str) -> str:
    """Return an SVG as a part of a page: its ink is the text's colour, ids do not collide."""
    body = svg[svg.index("<svg") :].replace(INK, "currentColor")
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', body))
    return re.sub(
        r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", body
    ).strip()
