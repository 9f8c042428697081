"""`tollkeeper shadow list|show|start|pause|end|weights`: experiments as they stand, and changed."""

from collections.abc import Sequence
from datetime import UTC
from enum import StrEnum
from typing import Annotated

import typer

from tollkeeper.shadow.cli import (
    PAGE_DEFAULT,
    PAGE_LIMIT,
    STATE_TONES,
    After,
    AsJson,
    Everything,
    ExperimentId,
    Limit,
    print_experiment,
    print_pages,
    share_of,
    terminal_of,
)
from tollkeeper.shadow.create_cli import app
from tollkeeper.shadow.remote import ExperimentView, PageView, Remote, Terminal

__all__ = ["app"]

_EXPERIMENT_COLUMNS = (
    "experiment", "state", "variants", "metric", "#units", "#looks", "created (UTC)",
)  # fmt: skip


class State(StrEnum):
    """What an experiment does."""

    DRAFT = "draft"
    RUNNING = "running"
    PAUSED = "paused"
    ENDED = "ended"


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
            tones = [STATE_TONES.get(each.state, "") for each in items]
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
        typer.Argument(metavar="VARIANT=SHARE", help="One for every variant; they sum to 1."),
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
