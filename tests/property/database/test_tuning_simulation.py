"""The tuner on a queueing model of a pool and its server: it settles, and it does not swing."""

import pytest
from benchmarks.pool.tuning import (
    HOUR_S,
    MINUTE_S,
    MOST_REVERSALS_PER_HOUR,
    Load,
    constant,
    simulate,
    square_wave,
    step,
    study,
    table,
)

from tollkeeper.database.tuning import WINDOW_S, Reason, TuningLimits, room_for

WINDOWS_PER_HOUR = int(HOUR_S / WINDOW_S)
QUERY_S = 1.0


@pytest.mark.parametrize("rate", [1.0, 5.0, 20.0, 40.0])
@pytest.mark.parametrize("start", [2, 80])
def test_under_a_constant_load_it_settles_where_few_wait(rate: float, start: int) -> None:
    run = simulate(Load(name="", arrivals_per_s=constant(rate), size=start, hours=2.5))

    assert len(run.reversals()) <= 1
    assert len(set(run.sizes[-WINDOWS_PER_HOUR:])) <= 2
    assert run.waits_per_window(1.0) <= 100
    assert rate * QUERY_S < run.sizes[-1] <= max(2 * rate * QUERY_S, room_for(rate)) + 10


@pytest.mark.parametrize("minutes", [1, 2, 5, 10, 15, 30])
@pytest.mark.parametrize(("low", "high"), [(1.0, 30.0), (8.0, 24.0)])
def test_under_a_square_wave_it_does_not_swing(minutes: int, low: float, high: float) -> None:
    run = simulate(
        Load(name="", arrivals_per_s=square_wave(low, high, minutes * MINUTE_S), hours=2.5),
        seed=minutes,
    )

    assert run.reversals_in_worst_hour() == 0
    assert len(set(run.sizes[-WINDOWS_PER_HOUR:])) <= 2
    assert run.sizes[-1] >= high * QUERY_S


def test_under_a_wave_slower_than_its_memory_it_turns_twice_an_hour_at_most() -> None:
    run = simulate(Load(name="", arrivals_per_s=square_wave(1.0, 30.0, 150 * MINUTE_S), hours=10.0))

    assert 1 <= run.reversals_in_worst_hour() <= MOST_REVERSALS_PER_HOUR
    assert run.reversals()[-1] < 5 * HOUR_S  # it learned from the shrink that was undone


def test_after_the_load_is_gone_it_shrinks_an_hour_later_and_steadily() -> None:
    run = simulate(Load(name="", arrivals_per_s=step(40.0, 1.0, HOUR_S), hours=3.5))
    [turned_s] = run.reversals()

    assert 2 * HOUR_S <= turned_s <= 2.2 * HOUR_S
    assert run.sizes[-1] <= room_for(2.0)
    assert run.waits_per_window(0.5) < 10


def test_on_a_server_that_is_full_growth_stops() -> None:
    """Without the brake the waits, which no growth can end, would lead to the budget."""
    limits = TuningLimits(minimum=2, budget=200)
    run = simulate(
        Load(
            name="", arrivals_per_s=constant(40.0), capacity=lambda _: 30, limits=limits, hours=4.0
        )
    )
    second_hour = run.sizes[WINDOWS_PER_HOUR : 2 * WINDOWS_PER_HOUR]

    assert run.waits_per_window(1.0) > 100
    assert max(second_hour) <= 60
    assert run.sizes[-1] <= 70
    assert Reason.SLOW_SERVER is run.decisions[-1].reason


def test_growth_goes_on_when_a_slow_server_has_recovered() -> None:
    run = simulate(
        Load(
            name="",
            arrivals_per_s=step(15.0, 30.0, 1.1 * HOUR_S),
            query_s=lambda at_s: 2.0 if HOUR_S <= at_s < 2 * HOUR_S else 1.0,
            hours=2.5,
        )
    )
    before, slow = run.sizes[WINDOWS_PER_HOUR - 1], run.sizes[2 * WINDOWS_PER_HOUR - 1]

    assert before == slow
    assert run.sizes[-1] >= slow + 10
    assert run.waits_per_window(0.1) <= 100


def test_it_retreats_from_refusals_and_comes_back_when_they_end() -> None:
    run = simulate(
        Load(
            name="",
            arrivals_per_s=constant(40.0),
            slots=lambda at_s: 30 if HOUR_S <= at_s < 1.5 * HOUR_S else 1_000,
            hours=3.0,
        )
    )
    before, after = run.sizes[WINDOWS_PER_HOUR - 1], run.sizes[-1]
    refused = [window.at_s for window in run.windows if window.refusals]

    assert min(run.sizes[WINDOWS_PER_HOUR:]) <= before * 0.75
    assert max(refused) <= 1.5 * HOUR_S + WINDOW_S
    assert abs(after - before) <= 10
    assert run.waits_per_window(0.5) <= 100


def test_a_server_that_stays_full_of_others_is_asked_once_an_hour() -> None:
    run = simulate(Load(name="", arrivals_per_s=constant(40.0), slots=lambda _: 30, hours=4.5))
    refused = [
        window.at_s for window in run.windows if window.refusals and window.at_s >= 3 * HOUR_S
    ]

    assert 1 <= len(refused) <= 3
    assert max(run.sizes[-WINDOWS_PER_HOUR:]) <= 40


def test_the_table_shows_every_load() -> None:
    studies = [
        study(Load(name=name, arrivals_per_s=constant(1.0), hours=1.0), seeds=2)
        for name in ("one", "two")
    ]

    assert ["load", "one", "two"] == [line.split()[0] for line in table(studies)]
