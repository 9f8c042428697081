"""`tollkeeper shadow simulate`: how often a gate profile deploys what is better, and what is not.

Needs no service: it draws experiments and lets the gate judge them, on all processors. Every run
has its own seed, so the result is the same in however many processes.
"""

import asyncio
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

if TYPE_CHECKING:
    from tollkeeper.shadow.simulation import Chunk, Outcome, Run, Setting

_COLUMNS = (
    "#true lift", "what it is", "#deployed", "95 % interval", "#rejected", "#mean units"
)  # fmt: skip


class SimulationScreen(Protocol):
    """Where the command prints."""

    def json(self, document: object) -> None:
        """Print one JSON document to standard output."""
        ...

    def warn(self, text: str) -> None:
        """Say something that must not be overlooked, on standard error."""
        ...

    def facts(self, title: str, facts: Sequence[tuple[str, str]]) -> None:
        """Print named facts below each other."""
        ...

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print rows; a column whose name starts with `#` holds numbers."""
        ...

    def progress(
        self, title: str, *, total: int | None, done: Callable[[], int]
    ) -> AbstractAsyncContextManager[None]:
        """Show a bar on standard error while the block runs."""
        ...


class SimulationTerminal(Protocol):
    """What `tollkeeper.cli` puts into the context."""

    def screen(self, *, as_json: bool = False) -> SimulationScreen:
        """Return where output goes."""
        ...


def register(app: typer.Typer) -> None:
    """Add the command to `tollkeeper shadow`."""
    app.command("simulate")(simulate)


def simulate(
    context: typer.Context,
    arms: Annotated[int, typer.Option(min=2, max=50, help="Variants, with the control.")] = 2,
    rate: Annotated[float, typer.Option(min=0, max=1, help="The control's true rate.")] = 0.10,
    lift: Annotated[
        str,
        typer.Option(help="True relative lifts of the last variant, as 0,0.05,0.2; 0 is an A/A."),
    ] = "0,0.05,0.2",
    looks: Annotated[int, typer.Option(min=1, help="Planned looks.")] = 50,
    units: Annotated[int, typer.Option(min=1, help="Planned units of all variants.")] = 10_000,
    runs: Annotated[int, typer.Option(min=1, help="Experiments for each lift.")] = 2_000,
    adaptive: Annotated[
        bool, typer.Option("--adaptive", help="Weights follow the evidence at each look.")
    ] = False,
    floor: Annotated[
        float, typer.Option(min=0, max=0.5, help="Least share of a variant, with --adaptive.")
    ] = 0.05,
    profile: Annotated[str, typer.Option(help="The gate's profile.")] = "default@1",
    margin: Annotated[
        float, typer.Option(min=0, max=1, help="Least lift that is worth a deployment.")
    ] = 0.05,
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws other experiments.")] = 0,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes; one for each processor by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Measure a gate profile: how often it deploys by mistake, and how often it finds a lift."""
    from tollkeeper.shadow.model import Adaptive
    from tollkeeper.shadow.simulation import Setting

    try:
        setting = Setting(
            arms=arms,
            rate=rate,
            lifts=_lifts_of(lift),
            looks=looks,
            units=units,
            runs=runs,
            adaptive=Adaptive(floor=floor) if adaptive else None,
            profile=profile,
            margin=margin,
            seed=seed,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    terminal: SimulationTerminal = context.obj
    screen = terminal.screen(as_json=as_json)
    outcomes = asyncio.run(measure(setting, screen, processes or os.cpu_count() or 1))
    if as_json:
        screen.json(document_of(setting, outcomes))
    else:
        _print(screen, setting, outcomes)


async def measure(
    setting: "Setting", screen: SimulationScreen, processes: int
) -> tuple["Outcome", ...]:
    """Make all runs in so many processes, with a progress bar; cancelled, it leaves none behind."""
    from tollkeeper.shadow.simulation import chunks_of, summarise

    chunks = chunks_of(setting)
    made: dict[Chunk, tuple[Run, ...]] = {}

    def done() -> int:
        return sum(map(len, made.values()))

    total = setting.runs * len(setting.lifts)
    async with (
        _pool(processes) as pool,
        screen.progress("experiments", total=total, done=done),
    ):
        await _make(setting, chunks, made, pool)
    return tuple(
        summarise(
            setting,
            lift_no,
            [run for chunk in chunks if chunk.lift_no == lift_no for run in made[chunk]],
        )
        for lift_no in range(len(setting.lifts))
    )


async def _make(
    setting: "Setting",
    chunks: Sequence["Chunk"],
    made: dict["Chunk", tuple["Run", ...]],
    pool: ProcessPoolExecutor,
) -> None:
    from tollkeeper.shadow.simulation import simulate as make

    loop = asyncio.get_running_loop()

    async def one(chunk: "Chunk") -> None:
        made[chunk] = await loop.run_in_executor(pool, partial(make, setting, chunk))

    await asyncio.gather(*map(one, chunks))


@asynccontextmanager
async def _pool(processes: int) -> AsyncIterator[ProcessPoolExecutor]:
    """Lend a pool that is empty afterwards: Ctrl-C waits for the chunks that are being made."""
    pool = ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),  # a terminal's Ctrl-C goes to all of them
    )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def document_of(setting: "Setting", outcomes: Sequence["Outcome"]) -> dict[str, object]:
    """Return what `--json` prints."""
    return {
        "profile": setting.profile,
        "arms": setting.arms,
        "rate": setting.rate,
        "looks": setting.looks,
        "units": setting.units,
        "runs": setting.runs,
        "margin": setting.margin,
        "adaptive": setting.adaptive is not None,
        "floor": None if setting.adaptive is None else setting.adaptive.floor,
        "seed": setting.seed,
        "lifts": [
            {
                "lift": outcome.lift,
                "is_false": outcome.lift <= 0,
                "deploys": outcome.deploys,
                "deploy_rate": outcome.deploy_rate,
                "interval": outcome.interval,
                "power": outcome.power,
                "wrong": outcome.wrong,
                "reject_rate": outcome.reject_rate,
                "mean_units": outcome.mean_units,
            }
            for outcome in outcomes
        ],
    }


def _print(screen: SimulationScreen, setting: "Setting", outcomes: Sequence["Outcome"]) -> None:
    weights = "fixed" if setting.adaptive is None else f"adaptive, {setting.adaptive.floor:g} least"
    screen.facts(
        f"Gate profile {setting.profile}",
        (
            ("experiments", f"{setting.runs:,} for each lift, seed {setting.seed}"),
            ("variants", f"{setting.arms}, weights {weights}, the control's rate {setting.rate:g}"),
            ("plan", f"{setting.units:,} units, {setting.looks} looks, margin {setting.margin:g}"),
        ),
    )
    screen.table("", _COLUMNS, [_row(outcome) for outcome in outcomes])
    if setting.gate.warning:
        screen.warn(f"{setting.profile}: {setting.gate.warning}")


def _row(outcome: "Outcome") -> tuple[str, ...]:
    low, high = outcome.interval
    return (
        f"{outcome.lift:+.1%}",
        "false deployments" if outcome.lift <= 0 else "power",
        f"{outcome.deploy_rate:.2%}",
        f"{low:.2%} to {high:.2%}",
        f"{outcome.reject_rate:.2%}",
        f"{outcome.mean_units:,.0f}",
    )


def _lifts_of(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is no list of numbers as 0,0.05,0.2", param_hint="--lift"
        ) from error
