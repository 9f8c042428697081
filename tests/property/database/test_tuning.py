"""Whatever windows come, the size keeps its bounds, and every change is explained."""

from dataclasses import dataclass
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from tollkeeper.database.tuning import (
    COOLDOWN_S,
    FREEZE_S,
    GROW_STEP,
    GROW_WAITS,
    MAXIMUM,
    SHRINK_STEP,
    SLOW_FACTOR,
    WINDOW_S,
    Decision,
    History,
    Reason,
    TuningLimits,
    Window,
    decide,
)

HOUR_S = 3_600.0
KEEPING = set(Reason) - {Reason.WAITS, Reason.IDLE, Reason.REFUSED, Reason.BOUNDS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Windows alike."""

    windows: int
    waits: int
    in_use_share: float
    query_mean_s: float
    refusals: int
    limits: TuningLimits


LIMITS = st.builds(
    lambda minimum, more: TuningLimits(minimum=minimum, budget=minimum + more),
    minimum=st.integers(1, 30),
    more=st.sampled_from([0, 5, 40, 500]),
)
STRETCHES = st.builds(
    Stretch,
    windows=st.sampled_from([1, 2, 3, 5, 20, 119, 120, 125, 250]),
    waits=st.sampled_from([0, 0, 0, 50, 101, 1_000, 1_000]),
    in_use_share=st.sampled_from([0.0, 0.0, 0.3, 0.6, 1.0]),
    query_mean_s=st.sampled_from([0.01, 0.01, 0.01, 0.02, 1.0]),
    refusals=st.sampled_from([0] * 9 + [1]),
    limits=st.one_of(st.just(TuningLimits(minimum=2, budget=100)), LIMITS),
)
DAYS = st.lists(STRETCHES, min_size=1, max_size=8)

Seen = tuple[Window, TuningLimits, Decision]


def tuned(day: list[Stretch]) -> list[Seen]:
    at_s, size, history = 0.0, 10, History()
    seen: list[Seen] = []
    for stretch in day:
        for _ in range(stretch.windows):
            at_s += WINDOW_S
            window = Window(
                at_s=at_s,
                size=size,
                waits=stretch.waits,
                idle_median=size - int(size * stretch.in_use_share),
                queries=1_000,
                query_mean_s=stretch.query_mean_s,
                refusals=stretch.refusals,
                history=history,
            )
            decision = decide(window, stretch.limits)
            seen.append((window, stretch.limits, decision))
            size, history = decision.size, decision.history
    return seen


@given(DAYS)
@settings(max_examples=50)
def test_the_size_is_within_its_bounds(day: list[Stretch]) -> None:
    assert all(
        limits.minimum <= decision.size <= min(MAXIMUM, limits.budget)
        for _, limits, decision in tuned(day)
    )


@given(DAYS)
@settings(max_examples=50)
def test_the_reason_explains_the_change(day: list[Stretch]) -> None:
    for window, limits, decision in tuned(day):
        change = decision.size - window.size
        is_inside = limits.minimum <= window.size <= limits.ceiling
        explained = {
            Reason.WAITS: 0 < change <= GROW_STEP and window.waits > GROW_WAITS,
            Reason.IDLE: -SHRINK_STEP <= change < 0 and window.idle_median > window.size / 2,
            Reason.REFUSED: window.refusals > 0 and (change < 0 or decision.size == limits.minimum),
            Reason.BOUNDS: not is_inside and decision.size in {limits.minimum, limits.ceiling},
            Reason.FULL: window.size == limits.ceiling,
        }

        assert change == 0 if decision.reason in KEEPING else explained[decision.reason]
        assert explained.get(decision.reason, True)
        assert is_inside or decision.reason in {Reason.BOUNDS, Reason.REFUSED}
        assert decision.detail


@given(DAYS)
@settings(max_examples=50)
def test_by_its_own_will_it_turns_round_at_most_twice_in_any_hour(day: list[Stretch]) -> None:
    changes = [
        (window.at_s, decision.reason)
        for window, _, decision in tuned(day)
        if decision.reason in {Reason.WAITS, Reason.IDLE}
    ]
    turned_s = [at_s for (_, one), (at_s, other) in pairwise(changes) if one is not other]

    assert all(
        third - first >= HOUR_S for first, third in zip(turned_s, turned_s[2:], strict=False)
    )


@given(DAYS)
@settings(max_examples=50)
def test_it_pauses_after_every_change(day: list[Stretch]) -> None:
    changes = [
        (window.at_s, decision.reason)
        for window, _, decision in tuned(day)
        if decision.size != window.size
    ]

    assert all(
        after_s - before_s >= COOLDOWN_S
        for (before_s, _), (after_s, reason) in pairwise(changes)
        if reason in {Reason.WAITS, Reason.IDLE}
    )


@given(DAYS)
@settings(max_examples=50)
def test_it_does_not_grow_while_frozen_nor_while_the_server_is_slow(day: list[Stretch]) -> None:
    refused_s = -FREEZE_S
    for window, _, decision in tuned(day):
        if decision.reason is Reason.WAITS:
            usual_s = window.history.long_average_s
            assert window.at_s - refused_s >= FREEZE_S
            assert usual_s is None or window.query_mean_s <= SLOW_FACTOR * usual_s
        if window.refusals:
            refused_s = window.at_s
