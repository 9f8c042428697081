"""`simulate` prints the same in however many processes, and leaves none behind."""

import asyncio
import json
import multiprocessing
from collections.abc import Callable

import pytest
import typer
from typer.testing import CliRunner

from tollkeeper.client.terminal import Screen
from tollkeeper.shadow.simulate_cli import measure, register
from tollkeeper.shadow.simulation import Chunk, Setting, simulate, summarise


class Terminal:
    """What the command line puts into the context."""

    def screen(self, *, as_json: bool = False) -> Screen:
        return Screen(as_json=as_json)


@pytest.fixture
def run() -> Callable[..., str]:
    app = typer.Typer()

    @app.callback()
    def into_context(context: typer.Context) -> None:
        context.obj = Terminal()

    register(app)

    def run(*words: str, exit_code: int = 0) -> str:
        result = CliRunner().invoke(app, ["simulate", *words])
        assert exit_code == result.exit_code, result.output
        return result.output

    return run


def test_two_processes_find_what_one_finds_here() -> None:
    setting = Setting(lifts=(0.0, 0.3), looks=4, units=2_000, runs=30)
    here = tuple(summarise(setting, no, simulate(setting, Chunk(no, 0, 30))) for no in (0, 1))

    assert here == asyncio.run(measure(setting, Screen(as_json=True), 2))
    assert [] == multiprocessing.active_children()


def test_json_holds_rates_with_their_intervals(run: Callable[..., str]) -> None:
    words = "--lift 1 --looks 2 --units 1000 --runs 5 --processes 1 --profile as-specified@1"
    document = json.loads(run(*words.split(), "--json"))
    (lift,) = document["lifts"]

    assert ("as-specified@1", 5, False) == (
        document["profile"], document["runs"], document["adaptive"]
    )  # fmt: skip
    assert (1.0, False, 5) == (lift["lift"], lift["is_false"], lift["deploys"])
    assert lift["interval"][0] < 1.0 == lift["interval"][1]


def test_people_read_a_table_and_a_warning(run: Callable[..., str]) -> None:
    words = "--lift 0,0.5 --looks 2 --units 1000 --runs 5 --processes 1 --profile as-specified@1"
    text = run(*words.split())

    assert "false deployments" in text
    assert "power" in text
    assert "use default@1" in " ".join(text.split())


@pytest.mark.parametrize("words", ["--lift ten", "--lift 20", "--rate 0", "--arms 1"])
def test_what_cannot_be_simulated_is_wrong_usage(words: str, run: Callable[..., str]) -> None:
    assert "Invalid value" in run(*words.split(), exit_code=2)
