"""Operating characteristics are those of the gate itself, in however many processes."""

import pytest

from tollkeeper.shadow.errors import DefinitionInvalid, ProfileUnknown
from tollkeeper.shadow.model import Adaptive
from tollkeeper.shadow.profiles import AS_SPECIFIED, DEFAULT, wilson
from tollkeeper.shadow.simulation import (
    Chunk,
    Outcome,
    Run,
    Setting,
    chunks_of,
    simulate,
    simulate_run,
    summarise,
)


def outcome_of(setting: Setting, lift_no: int = 0) -> Outcome:
    return summarise(setting, lift_no, simulate(setting, Chunk(lift_no, 0, setting.runs)))


@pytest.mark.parametrize("adaptive", [None, Adaptive()])
def test_the_default_profile_rarely_deploys_what_is_no_better(adaptive: Adaptive | None) -> None:
    outcome = outcome_of(Setting(lifts=(0.0,), runs=60, adaptive=adaptive))

    assert outcome.deploys == outcome.wrong
    assert outcome.interval[0] < 0.05
    assert outcome.deploys <= 5


def test_the_specified_conditions_alone_deploy_often_what_is_no_better() -> None:
    outcome = outcome_of(Setting(lifts=(0.0,), runs=150, profile=AS_SPECIFIED.name))

    assert outcome.deploy_rate > 0.15


def test_a_lift_of_a_fifth_is_found_mostly() -> None:
    outcome = outcome_of(Setting(lifts=(0.2,), runs=60))

    assert outcome.power > 0.7
    assert 0 == outcome.wrong


def test_a_run_depends_on_its_seed_lift_and_number_alone() -> None:
    setting = Setting(lifts=(0.0, 0.2), looks=4, units=2_000, runs=45)
    chunks = chunks_of(setting)
    together = [run for chunk in chunks for run in simulate(setting, chunk)]
    alone = Setting(lifts=(0.2,), looks=4, units=2_000, runs=3)
    other = Setting(lifts=(0.2,), looks=4, units=2_000, runs=20, seed=1)

    assert [20, 20, 5, 20, 20, 5] == [chunk.size for chunk in chunks]
    assert together[45:48] == [simulate_run(alone, 0, run) for run in range(3)]
    assert together[45:65] != list(simulate(other, Chunk(0, 0, 20)))


def test_runs_are_summarised_by_their_first_decision() -> None:
    setting = Setting(arms=3, lifts=(0.2,), units=1_000, runs=4)
    runs = (Run(600, 2, 0), Run(800, 1, 400), Run(0, 0, 0), Run(0, 0, 500))

    assert Outcome(
        lift=0.2, runs=4, deploys=2, deploys_after_reject=1, wrong=1, rejects=3, mean_units=625.0
    ) == summarise(setting, 0, runs)  # fmt: skip
    assert (0.5, 0.25, 0.75) == (
        (outcome := summarise(setting, 0, runs)).deploy_rate, outcome.power, outcome.reject_rate
    )  # fmt: skip


def test_units_are_split_over_looks_to_the_unit() -> None:
    assert (4, 3, 3) == Setting(units=10, looks=3).sizes


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"runs": 0}, ValueError),
        ({"lifts": ()}, ValueError),
        ({"rate": 0.6, "lifts": (0.7,)}, ValueError),
        ({"rate": 0.0}, ValueError),
        ({"seed": -1}, ValueError),
        ({"arms": 51}, DefinitionInvalid),
        ({"looks": 0}, DefinitionInvalid),
        ({"margin": 2.0}, DefinitionInvalid),
        ({"profile": "mine@1"}, ProfileUnknown),
    ],
)
def test_experiments_that_cannot_be_are_refused(
    changes: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        Setting(**changes)  # type: ignore[arg-type]  # tests say what they mean


def test_the_interval_of_a_rate_is_wilsons() -> None:
    assert (0.0, 1.0) == wilson(0, 0)
    assert [0.0, 0.2775] == pytest.approx(wilson(0, 10), abs=1e-4)
    assert [0.2366, 0.7634] == pytest.approx(wilson(5, 10), abs=1e-4)
    assert DEFAULT.name == Setting().profile
