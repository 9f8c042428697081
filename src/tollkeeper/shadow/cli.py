"""What all commands of `tollkeeper shadow ...` share: pages, options, an experiment on the screen.

The commands are in the modules `*_cli.py`, each of which adds its own to those before it; every
command is one call of the public API, or a few.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, TypeVar

import typer

from tollkeeper.shadow.remote import ExperimentView, Fact, PageView, Remote, Terminal

PAGE_DEFAULT = 50
"""Items that a command shows at a time."""

PAGE_LIMIT = 1_000
"""Most items that the service puts into a page."""

EXIT_REFUSED = 3
"""The service refused it, or a part of it."""

STATE_TONES = {"running": "good", "paused": "warn"}

_Item = TypeVar("_Item")


app = typer.Typer(
    name="shadow",
    help="Run experiments, and deploy what they prove, over the HTTP API.",
    no_args_is_help=True,
)

ExperimentId = Annotated[
    str, typer.Argument(metavar="EXPERIMENT", help="Id of the experiment.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Limit = Annotated[
    int | None, typer.Option(min=1, max=PAGE_LIMIT, help="Per page; 50, or 1000 with --all.")
]
After = Annotated[str | None, typer.Option(help="Cursor printed by the page before.")]
Everything = Annotated[bool, typer.Option("--all", help="All pages; with --json, one item a line.")]


def print_experiment(
    terminal: Terminal, experiment: ExperimentView, *, as_json: bool, remark: str = ""
) -> None:
    """Print what an experiment is, and how it stands."""
    if as_json:
        terminal.json(experiment)
        return
    state = experiment.state
    facts: list[Fact] = [("state", f"{state}{remark}", STATE_TONES.get(state, "warn"))]
    if experiment.deployed is not None:
        facts.append(("deployed", f"{experiment.deployed}: everybody gets it", "good"))
    if experiment.description:
        facts.append(("about", experiment.description))
    facts += [("tenant", experiment.tenant_id), ("plan", plan_text(experiment))]
    facts += [(name, value) for name, value in _terms_of(experiment)]
    for name, moment in (
        ("created (UTC)", experiment.created_at),
        ("started (UTC)", experiment.started_at),
        ("ended (UTC)", experiment.ended_at),
    ):
        if moment is not None:
            facts.append((name, moment_text(moment)))
    terminal.facts(f"Experiment {experiment.experiment_id}", facts)
    terminal.table(
        "Variants",
        ("variant", "#share of new units", "role"),
        [
            (each.name, f"{each.weight:.2%}", "control" if each.name == experiment.control else "")
            for each in experiment.variants
        ],
    )
    terminal.table(
        "Metrics",
        ("metric", "kind", "better", "#window", "of a unit", "without outcome", "role"),
        [
            (
                each.name, each.kind, each.direction, f"{each.window_s:,} s", each.per_unit,
                "not counted" if each.missing == "exclude" else "counts as 0",
                "decides" if place == 0 else f"guardrail, {each.tolerance:.1%} tolerated",
            )
            for place, each in enumerate(experiment.metrics)
        ],
    )  # fmt: skip


def plan_text(experiment: ExperimentView) -> str:
    """Return the plan of an experiment in a line."""
    looks = "no planned looks" if experiment.looks is None else f"{experiment.looks:,} looks"
    return (
        f"{experiment.units:,} units, {looks}, a lift of {experiment.margin:.1%} or more, "
        f"profile {experiment.profile}"
    )


def _terms_of(experiment: ExperimentView) -> list[tuple[str, str]]:
    found = []
    if experiment.adaptive is not None:
        floor = f"{experiment.adaptive.floor:.1%}"
        found.append(("adaptive", f"weights follow the evidence, {floor} each at least"))
    if experiment.epoch is not None:
        found.append(("epoch", f"{experiment.epoch:,} of the weights"))
    if experiment.holdout is not None:
        share = f"{experiment.holdout.share:.1%}"
        found.append(("holdout", f"{share} of all units, with group {experiment.holdout.group}"))
    space = experiment.namespace
    if space is not None:
        found.append(("namespace", f"{space.name}, from {space.start:g} until {space.end:g}"))
    return found


def print_pages(
    terminal: Terminal,
    read: Callable[[Remote, str | None], Awaitable[PageView[_Item]]],
    show: Callable[[Sequence[_Item]], None],
    *,
    after: str | None,
    everything: bool,
    as_json: bool,
) -> None:
    """Print the page behind a cursor, or all pages: as they come, there may be more than memory."""
    if as_json and not everything:
        terminal.json(terminal.call_shadow(lambda remote: read(remote, after)))
        return
    shown = terminal.json_lines if as_json else show

    async def each(remote: Remote) -> str | None:
        page = await read(remote, after)
        shown(page.items)
        while everything and page.next is not None:
            page = await read(remote, page.next)
            shown(page.items)
        return page.next

    cursor = terminal.call_shadow(each)
    if cursor is not None:
        terminal.facts("There is more", (("next page", f"--after {cursor}"),))


def terminal_of(context: typer.Context) -> Terminal:
    """Return what a command prints with and calls through."""
    terminal: Terminal = context.obj
    return terminal


def share_of(text: str) -> float | None:
    """Return a share from 0 to 1 that somebody wrote, or None."""
    try:
        share = float(text)
    except ValueError:
        return None
    return share if 0 <= share <= 1 else None


def moment_text(moment: datetime) -> str:
    """Return a moment as people read it: UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
