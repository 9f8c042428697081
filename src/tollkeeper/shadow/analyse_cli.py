"""`tollkeeper shadow analyse`: what an experiment shows now, and what the last look said.

Conditions are of this moment and decide nothing where looks are planned: the verdict is the last
look's, and stands below them, with how often the gate errs.
"""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Final

import msgspec
import typer

from tollkeeper.kernel.errors import TollkeeperError
from tollkeeper.shadow.cli import AsJson, ExperimentId, moment_text, terminal_of
from tollkeeper.shadow.deployment_cli import app
from tollkeeper.shadow.remote import ExperimentView, Fact, Remote, Terminal
from tollkeeper.shadow.tables import (
    ARM_COLUMNS,
    CONDITION_COLUMNS,
    VERDICT_TONES,
    ArmItem,
    ConditionItem,
    RatesItem,
    arm_rows,
    condition_rows,
    interval_text,
    probability_text,
    rate_text,
    value_text,
)

__all__ = ["app"]

WATCH_S: Final = 2.0
"""Seconds between two looks of `--watch`, unless others are asked for."""


class LooksItem(msgspec.Struct, frozen=True, kw_only=True):
    """The plan, and how far it is used up."""

    units: int
    counted: int
    planned: int | None
    used: int
    next_due_at: int | None


class TimeLeftItem(msgspec.Struct, frozen=True, kw_only=True):
    """How long it takes if units keep coming as they did."""

    units_per_day: float | None = None
    next_look_s: float | None = None
    plan_s: float | None = None


class LastLookItem(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict that counts."""

    look: int
    verdict: str
    variant: str | None
    why: str
    decided_at: datetime
    is_expired: bool
    expires_at: datetime | None = None


class SampleRatioItem(msgspec.Struct, frozen=True, kw_only=True):
    """Units by variant against what the weights say."""

    of: str
    observed: tuple[int, ...]
    expected: tuple[float, ...]
    p: float | None


class CrossCheckItem(msgspec.Struct, frozen=True, kw_only=True):
    """Monte Carlo beside the exact figures."""

    draws: int
    largest_disagreement: float


class GuardrailItem(msgspec.Struct, frozen=True, kw_only=True):
    """A variant in a metric that does not decide."""

    metric: str
    variant: str
    units: int
    mean: float | None
    control_mean: float | None
    tolerance: float
    probability_worse: float | None


class CorrectionItem(msgspec.Struct, frozen=True, kw_only=True):
    """An arm's mean by the weights that its units were assigned with."""

    variant: str
    plain: float
    corrected: float
    is_alarm: bool


class AnalysisDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What is printed of an analysis."""

    experiment_id: str
    as_of: datetime
    metric: str
    kind: str
    direction: str
    control: str
    margin: float
    profile: str
    arms: tuple[ArmItem, ...]
    candidate: str | None
    conditions: tuple[ConditionItem, ...]
    verdict_now: str | None
    not_yet: str | None
    last_look: LastLookItem | None
    looks: LooksItem
    time_left: TimeLeftItem
    sample_ratios: tuple[SampleRatioItem, ...] = ()
    cross_check: CrossCheckItem | None = None
    guardrails: tuple[GuardrailItem, ...] = ()
    corrections: tuple[CorrectionItem, ...] = ()
    weights: tuple[float, ...] = ()
    rates: RatesItem = RatesItem()


class AnalysisUnreadable(TollkeeperError):
    """The service's analysis is not of the kind that is known here."""

    def message(self) -> str:
        """Say what may be the cause."""
        return "the analysis cannot be read; is the service of another version? --json prints it"


@app.command()
def analyse(
    context: typer.Context,
    experiment_id: ExperimentId,
    watch: Annotated[
        bool, typer.Option("--watch", help="Again and again, until Ctrl-C or the end.")
    ] = False,
    every: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.2, max=3_600, help="With --watch.")
    ] = WATCH_S,
    as_json: AsJson = False,
) -> None:
    """Show what is known of an experiment now, and what the gate said at its last look."""
    terminal = terminal_of(context)

    async def work(remote: Remote) -> None:
        while True:
            raw = await remote.analysis(experiment_id)
            experiment = await remote.experiment(experiment_id)
            if watch:
                terminal.clear()
            if as_json:
                terminal.json(msgspec.json.decode(raw))
            else:
                _print(terminal, _document_of(raw), experiment)
            if not watch or experiment.state == "ended":
                return
            await asyncio.sleep(every)

    terminal.call_shadow(work)


def _document_of(raw: bytes) -> AnalysisDocument:
    try:
        return msgspec.json.decode(raw, type=AnalysisDocument)
    except msgspec.DecodeError as error:
        raise AnalysisUnreadable from error


def _print(terminal: Terminal, found: AnalysisDocument, experiment: ExperimentView) -> None:
    better = "higher is better" if found.direction == "higher" else "lower is better"
    terminal.facts(
        f"Experiment {found.experiment_id}",
        [
            _state_fact(experiment),
            ("as of (UTC)", moment_text(found.as_of)),
            ("metric", f"{found.metric} ({found.kind}, {better}), margin {found.margin:.1%}"),
            ("counted", f"{found.looks.counted:,} of {found.looks.units:,} planned units"),
            *(() if experiment.state == "ended" else _time_facts(found)),
        ],
    )
    rows, tones = arm_rows(found.arms, kind=found.kind, candidate=found.candidate)
    terminal.table(f"Variants in {found.metric}", ARM_COLUMNS, rows, tones)
    if found.not_yet is not None:
        terminal.facts("No probabilities yet", (("because", found.not_yet, "warn"),))
    _print_guardrails(terminal, found.guardrails)
    plain = terminal.is_plain()
    rows, tones = condition_rows(found.conditions, is_plain=plain)
    is_planned = found.looks.planned is not None
    title = "Conditions now: they decide at planned looks only" if is_planned else "Conditions now"
    terminal.table(title, CONDITION_COLUMNS, rows, tones)
    terminal.facts("Trust", _trust_facts(found))
    terminal.facts("Verdict", _verdict_facts(found, is_over=experiment.state == "ended"))


def _state_fact(experiment: ExperimentView) -> Fact:
    if experiment.deployed is not None:
        return "state", f"{experiment.state}; {experiment.deployed} is deployed", "good"
    return "state", experiment.state, "good" if experiment.state == "running" else "warn"


def _time_facts(found: AnalysisDocument) -> list[Fact]:
    left = found.time_left
    if left.units_per_day is None:
        return []
    facts: list[Fact] = [("rate", f"{left.units_per_day:,.0f} units a day")]
    if left.plan_s is not None and left.plan_s > 0:
        facts.append(("plan used up in", f"about {duration_text(left.plan_s)}, at this rate"))
    return facts


def _print_guardrails(terminal: Terminal, guardrails: Sequence[GuardrailItem]) -> None:
    if not guardrails:
        return
    terminal.table(
        "Guardrails",
        ("metric", "variant", "#units", "#mean", "#control", "#tolerated", "#P(worse)"),
        [
            (
                each.metric, each.variant, f"{each.units:,}", value_text(each.mean, None),
                value_text(each.control_mean, None), f"{each.tolerance:.1%}",
                probability_text(each.probability_worse),
            )
            for each in guardrails
        ],
    )  # fmt: skip


def _trust_facts(found: AnalysisDocument) -> list[Fact]:
    facts: list[Fact] = []
    for ratio in found.sample_ratios:
        if ratio.p is not None:
            seen = " : ".join(f"{count:,}" for count in ratio.observed)
            due = " : ".join(f"{count:,.0f}" for count in ratio.expected)
            said = f"{seen}, expected {due} (p = {ratio.p:.3g})"
            facts.append((ratio.of, said, "good" if ratio.p >= 0.001 else "bad"))
    check = found.cross_check
    if check is not None:
        far = check.largest_disagreement
        said = f"{check.draws:,} draws, {far:.2f} standard errors from the exact figures"
        facts.append(("Monte Carlo", said, "good" if far <= 5 else "bad"))
    for each in found.corrections:
        if each.is_alarm:
            pair = (each.plain, each.corrected)
            said = f"{each.variant}: mean, and by assignment: {interval_text(pair, found.kind)}"
            facts.append(("drift", said, "bad"))
    facts.append(("the gate", rate_text(found.rates, found.profile)))
    if found.rates.warning is not None:
        facts.append(("warning", found.rates.warning, "bad"))
    return facts


def _verdict_facts(found: AnalysisDocument, *, is_over: bool) -> list[Fact]:
    looks, last = found.looks, found.last_look
    facts: list[Fact] = []
    if last is None:
        facts.append(("last look", "none was taken yet", "warn"))
    else:
        is_past = last.is_expired or is_over
        tone = "warn" if is_past else VERDICT_TONES.get(last.verdict, "warn")
        expired = " (expired: wait for the next look)" if last.is_expired else ""
        if is_over:
            expired = " (of then: the experiment has ended)"
        facts.append(("verdict", f"{last.verdict}: {last.why}{expired}", tone))
        number = (
            f"{last.look:,}" if looks.planned is None else f"{last.look:,} of {looks.planned:,}"
        )
        facts.append(("last look", f"{number}, at {moment_text(last.decided_at)}"))
        if last.expires_at is not None and not last.is_expired and not is_over:
            facts.append(("valid until (UTC)", moment_text(last.expires_at)))
    if is_over:
        return facts
    if last is not None and last.verdict == "deploy" and not last.is_expired:
        facts.append(("next look", "none while this verdict stands"))
    elif looks.next_due_at is not None:
        soon = found.time_left.next_look_s
        when = "" if soon is None else f", in about {duration_text(soon)}"
        facts.append(("next look", f"at {looks.next_due_at:,} counted units{when}"))
    elif looks.planned is not None:
        facts.append(("next look", "none: the plan is used up"))
    return facts


def duration_text(seconds: float) -> str:
    """Return a duration to its largest unit."""
    for unit, length_s in (("days", 86_400.0), ("hours", 3_600.0), ("minutes", 60.0)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:,.0f} {unit}"
    return f"{seconds:,.0f} seconds"
