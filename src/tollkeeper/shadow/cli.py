"""`tollkeeper shadow list|show|start|pause|end|weights`: experiments over the HTTP API.

The other commands of `shadow` are in the modules `*_cli.py`, each of which adds its own; every
command is one call of the public API, or a few.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, TypeVar

import typer

from tollkeeper.shadow.remote import ExperimentView, Fact, PageView, Remote, Terminal

PAGE_DEFAULT = 50
"""Items that a command shows at a time."""

PAGE_LIMIT = 1_000
"""Most items that the service puts into a page."""

EXIT_REFUSED = 3
"""The service refused it, or a part of it."""

_EXPERIMENT_COLUMNS = (
    "experiment", "state", "variants", "metric", "#units", "#looks", "created (UTC)",
)  # fmt: skip
_TONES = {"running": "good", "paused": "warn"}

_Item = TypeVar("_Item")


class State(StrEnum):
    """What an experiment does."""

    DRAFT = "draft"
    RUNNING = "running"
    PAUSED = "paused"
    ENDED = "ended"


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


@app.command("list")
def list_experiments(
    context: typer.Context,
    state: Annotated[State | None, typer.Option(help="Of this state alone.")] = None,
    limit: Limit = None,
    after: After = None,
    everything: Everything = False,
    as_json: AsJson = False,
) -> None:
    """List experiments, oldest first."""
    terminal = terminal_of(context)
    size = limit or (PAGE_LIMIT if everything else PAGE_DEFAULT)

    async def read(remote: Remote, behind: str | None) -> PageView[ExperimentView]:
        return await remote.experiments(state=state, after=behind, limit=size)

    title = "Experiments" if state is None else f"Experiments that are {state}"
    listing = terminal.listing(title, _EXPERIMENT_COLUMNS)

    def show(items: Sequence[ExperimentView]) -> None:
        if items:
            tones = [_TONES.get(each.state, "") for each in items]
            listing.add([_row(each) for each in items], tones)
        elif after is None:
            which = "no experiment" if state is None else f"no experiment that is {state}"
            terminal.say(f"There is {which}; `tollkeeper shadow create` makes one.")

    print_pages(terminal, read, show, after=after, everything=everything, as_json=as_json)


@app.command("show")
def show_experiment(
    context: typer.Context, experiment_id: ExperimentId, as_json: AsJson = False
) -> None:
    """Show what an experiment is, and how it stands."""
    terminal = terminal_of(context)
    experiment = terminal.call_shadow(lambda remote: remote.experiment(experiment_id))
    print_experiment(terminal, experiment, as_json=as_json)


@app.command()
def start(context: typer.Context, experiment_id: ExperimentId, as_json: AsJson = False) -> None:
    """Start an experiment, or go on with one that is paused."""
    _move(terminal_of(context), experiment_id, State.RUNNING, as_json=as_json)


@app.command()
def pause(context: typer.Context, experiment_id: ExperimentId, as_json: AsJson = False) -> None:
    """Pause an experiment: who has a variant keeps it, nobody else is assigned."""
    _move(terminal_of(context), experiment_id, State.PAUSED, as_json=as_json)


@app.command()
def end(context: typer.Context, experiment_id: ExperimentId, as_json: AsJson = False) -> None:
    """End an experiment for good: everybody gets the control, or what is deployed."""
    _move(terminal_of(context), experiment_id, State.ENDED, as_json=as_json)


@app.command()
def weights(
    context: typer.Context,
    experiment_id: ExperimentId,
    shares: Annotated[
        list[str],
        typer.Argument(metavar="VARIANT=SHARE...", help="One for every variant; they sum to 1."),
    ],
    as_json: AsJson = False,
) -> None:
    """Assign new units by other shares from now on; who has a variant keeps it."""
    terminal = terminal_of(context)
    wanted: dict[str, float] = {}
    for word in shares:
        name, _, text = word.rpartition("=")
        share = share_of(text)
        if not name or share is None or name in wanted:
            raise typer.BadParameter(
                f"{word!r} is not VARIANT=SHARE, each variant once", param_hint="VARIANT=SHARE"
            )
        wanted[name] = share
    experiment = terminal.call_shadow(lambda remote: remote.change(experiment_id, weights=wanted))
    print_experiment(terminal, experiment, as_json=as_json)


def _move(terminal: Terminal, experiment_id: str, state: State, *, as_json: bool) -> None:
    experiment = terminal.call_shadow(lambda remote: remote.change(experiment_id, state=state))
    print_experiment(terminal, experiment, as_json=as_json)


def print_experiment(
    terminal: Terminal, experiment: ExperimentView, *, as_json: bool, remark: str = ""
) -> None:
    """Print what an experiment is, and how it stands."""
    if as_json:
        terminal.json(experiment)
        return
    state = experiment.state
    facts: list[Fact] = [("state", f"{state}{remark}", _TONES.get(state, "warn"))]
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


def _row(experiment: ExperimentView) -> tuple[str, ...]:
    names = [share.name for share in experiment.variants]
    shown = ", ".join(names[:4]) + (f", {len(names) - 4} more" if len(names) > 4 else "")
    deployed = f", {experiment.deployed} deployed" if experiment.deployed is not None else ""
    return (
        experiment.experiment_id, f"{experiment.state}{deployed}", shown,
        experiment.metrics[0].name, f"{experiment.units:,}",
        "-" if experiment.looks is None else f"{experiment.looks:,}",
        experiment.created_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M"),
    )  # fmt: skip


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
