"""The rules for a pool's size, each by example."""

from dataclasses import dataclass, field
from itertools import islice

import pytest

from tollkeeper.database.tuning import (
    FREEZE_S,
    TURN_DOWN_S,
    WINDOW_S,
    Decision,
    History,
    Reason,
    TuningLimits,
    Window,
    budget_of,
    decide,
    room_for,
)

HOUR_S = 3_600.0
LIMITS = TuningLimits(minimum=2, budget=200)


@dataclass(slots=True)
class Tuned:
    """A pool's size through windows that follow each other."""

    size: int = 40
    limits: TuningLimits = LIMITS
    at_s: float = 1_000.0
    window_s: float = WINDOW_S
    history: History = field(default_factory=History)

    def pass_window(
        self,
        *,
        waits: int = 0,
        in_use: float = 30,
        queries: int = 3_000,
        query_mean_s: float = 0.01,
        refusals: int = 0,
    ) -> Decision:
        self.at_s += self.window_s
        window = Window(
            at_s=self.at_s,
            size=self.size,
            waits=waits,
            idle_median=self.size - in_use,
            queries=queries,
            query_mean_s=query_mean_s,
            refusals=refusals,
            history=self.history,
        )
        decision = decide(window, self.limits)
        self.size, self.history = decision.size, decision.history
        return decision

    def busy(self, *, query_mean_s: float = 0.01, refusals: int = 0) -> Decision:
        return self.pass_window(
            waits=500, in_use=self.size, query_mean_s=query_mean_s, refusals=refusals
        )

    def idle(self, in_use: float = 2) -> Decision:
        return self.pass_window(in_use=in_use)

    def grown(self) -> None:
        assert Reason.WAITS is self.busy().reason

    def shrunk(self) -> None:
        """Let it shrink for the first time."""
        assert Reason.UNPROVEN is self.idle().reason
        assert Reason.IDLE is self.idle().reason


@pytest.fixture
def tuned() -> Tuned:
    return Tuned()


@pytest.mark.parametrize(("waits", "size"), [(100, 40), (101, 50)])
def test_more_than_a_hundred_waits_grow_it_by_ten(tuned: Tuned, waits: int, size: int) -> None:
    decision = tuned.pass_window(waits=waits, in_use=40)

    assert size == decision.size
    assert (Reason.STEADY if size == 40 else Reason.WAITS) is decision.reason
    assert f"{waits} waits" in decision.detail


@pytest.mark.parametrize(("budget", "size"), [(45, 45), (200, 50)])
def test_growth_ends_at_the_budget(tuned: Tuned, budget: int, size: int) -> None:
    tuned.limits = TuningLimits(minimum=2, budget=budget)

    assert size == tuned.busy().size


@pytest.mark.parametrize(("budget", "full"), [(40, 40), (1_000, 200)])
def test_a_pool_at_its_budget_or_at_200_is_full(budget: int, full: int) -> None:
    tuned = Tuned(size=full, limits=TuningLimits(minimum=2, budget=budget))

    decision = tuned.busy()

    assert full == decision.size
    assert Reason.FULL is decision.reason


@pytest.mark.parametrize(("in_use", "size"), [(20, 40), (19, 35)])
def test_more_than_half_idle_shrinks_it_by_five(tuned: Tuned, in_use: int, size: int) -> None:
    tuned.idle(in_use)
    decision = tuned.idle(in_use)

    assert size == decision.size
    assert (Reason.STEADY if size == 40 else Reason.IDLE) is decision.reason


def test_a_pool_in_which_some_wait_is_not_too_large(tuned: Tuned) -> None:
    decisions = [tuned.pass_window(in_use=5, waits=11) for _ in range(5)]

    assert {Reason.STEADY} == {decision.reason for decision in decisions}


def test_it_shrinks_to_the_minimum_and_not_below() -> None:
    tuned = Tuned(size=20, limits=TuningLimits(minimum=12, budget=80))
    sizes = [tuned.idle(0).size for _ in range(20)]

    assert [12, 15, 20] == sorted(set(sizes))
    assert 12 == sizes[-1]


def test_it_shrinks_to_what_a_random_load_needs(tuned: Tuned) -> None:
    """One more in use than on average is nothing unusual: at half of 40 idle the rule ends."""
    sizes = [tuned.idle(4).size for _ in range(60)]

    assert room_for(4) == sizes[-1]


@pytest.mark.parametrize(("in_use", "room"), [(0, 1), (1, 5), (4, 11), (16, 29), (100, 131)])
def test_the_room_for_a_random_load(in_use: int, room: int) -> None:
    assert room == room_for(in_use)


def test_what_was_in_use_a_while_ago_still_has_room(tuned: Tuned) -> None:
    """A short calm between busy times does not cost what they need."""
    tuned.pass_window(in_use=20)
    sizes = [tuned.idle(2).size for _ in range(10)]

    assert min(sizes) >= room_for(15)


def test_nothing_changes_within_a_minute_of_a_change(tuned: Tuned) -> None:
    tuned.grown()

    assert Reason.COOLDOWN is tuned.busy().reason
    assert Reason.WAITS is tuned.busy().reason
    assert 60 == tuned.size


def test_growth_after_a_shrink_wants_two_windows_of_waits_and_two_minutes(tuned: Tuned) -> None:
    tuned.shrunk()
    reasons = [tuned.busy().reason for _ in range(4)]

    assert [Reason.COOLDOWN, Reason.UNPROVEN, Reason.UNPROVEN, Reason.WAITS] == reasons


def test_growth_after_an_old_shrink_wants_two_windows_in_a_row(tuned: Tuned) -> None:
    tuned.shrunk()
    for _ in range(10):
        tuned.pass_window()
    reasons = [tuned.busy().reason, tuned.pass_window().reason]
    reasons += [tuned.busy().reason, tuned.busy().reason]

    assert [Reason.UNPROVEN, Reason.STEADY, Reason.UNPROVEN, Reason.WAITS] == reasons


def idle_windows_until_it_shrinks(tuned: Tuned) -> int:
    before = tuned.size
    for count in islice(range(1, 10_000), 5_000):
        if tuned.idle().size < before:
            return count
    raise AssertionError("it never shrank")


def test_a_shrink_after_growth_wants_an_hour_of_idle_windows(tuned: Tuned) -> None:
    tuned.grown()

    assert TURN_DOWN_S / WINDOW_S == idle_windows_until_it_shrinks(tuned)


def test_the_hour_is_an_hour_when_windows_are_shorter(tuned: Tuned) -> None:
    tuned.grown()
    tuned.window_s = 10.0

    assert TURN_DOWN_S / 10.0 == idle_windows_until_it_shrinks(tuned)


def test_one_window_that_is_not_idle_starts_the_hour_again(tuned: Tuned) -> None:
    tuned.grown()
    for _ in range(100):
        tuned.idle()
    tuned.pass_window(in_use=30)

    assert TURN_DOWN_S / WINDOW_S == idle_windows_until_it_shrinks(tuned)


def test_a_further_shrink_wants_no_more_than_the_pause(tuned: Tuned) -> None:
    tuned.grown()
    idle_windows_until_it_shrinks(tuned)

    assert 2 == idle_windows_until_it_shrinks(tuned)


def test_a_shrink_that_is_undone_within_an_hour_doubles_the_wait_for_the_next(
    tuned: Tuned,
) -> None:
    waits_h = []
    for _ in range(7):
        tuned.grown()
        waits_h.append(idle_windows_until_it_shrinks(tuned) * WINDOW_S / HOUR_S)
        for _ in range(3):
            tuned.busy()

    assert [1.0, 2.0, 4.0, 8.0, 16.0, 24.0, 24.0] == waits_h


def test_a_shrink_that_stood_for_an_hour_ends_the_doubling(tuned: Tuned) -> None:
    tuned.grown()
    idle_windows_until_it_shrinks(tuned)
    for _ in range(3):
        tuned.busy()
    tuned.grown()
    idle_windows_until_it_shrinks(tuned)
    for _ in range(121):
        tuned.pass_window(in_use=tuned.size)
    tuned.busy()
    tuned.grown()

    assert TURN_DOWN_S / WINDOW_S == idle_windows_until_it_shrinks(tuned)


def test_waits_of_earlier_windows_do_not_count(tuned: Tuned) -> None:
    """On a counter since the start this would be a ratchet up to the maximum."""
    tuned.grown()
    sizes = {tuned.pass_window().size for _ in range(20)}

    assert {50} == sizes


def test_a_slow_server_stops_growth(tuned: Tuned) -> None:
    for _ in range(10):
        tuned.pass_window()
    at_the_limit = tuned.busy(query_mean_s=0.0149)
    tuned.busy()
    decision = tuned.busy(query_mean_s=0.016)

    assert Reason.WAITS is at_the_limit.reason
    assert Reason.SLOW_SERVER is decision.reason
    assert 50 == decision.size
    assert "a query takes 16 ms, usually 10 ms" in decision.detail
    assert Reason.WAITS is tuned.busy().reason


def test_a_few_slow_queries_are_no_slow_server(tuned: Tuned) -> None:
    tuned.pass_window()

    assert (
        Reason.WAITS is tuned.pass_window(waits=101, in_use=40, queries=19, query_mean_s=1.0).reason
    )


def long_average_s(tuned: Tuned) -> float:
    average_s = tuned.history.long_average_s
    assert average_s is not None
    return average_s


def test_one_slow_window_hardly_moves_the_long_average(tuned: Tuned) -> None:
    tuned.pass_window()
    tuned.pass_window(query_mean_s=60.0)

    assert 0.01 < long_average_s(tuned) < 0.01 * 1.002


def test_quiet_windows_hardly_move_the_long_average(tuned: Tuned) -> None:
    """Queries are faster at night; the morning must not look slow for it."""
    for _ in range(960):
        tuned.pass_window(query_mean_s=0.01)
    for _ in range(960):
        tuned.pass_window(queries=30, query_mean_s=0.004)

    assert long_average_s(tuned) > 0.009


def test_a_window_without_queries_leaves_the_long_average_alone(tuned: Tuned) -> None:
    tuned.pass_window()
    before = long_average_s(tuned)
    for _ in range(1_000):
        tuned.pass_window(queries=0, query_mean_s=0.0)

    assert before == long_average_s(tuned)


def test_a_server_that_got_faster_is_believed_whether_callers_wait_or_not() -> None:
    calm, busy = Tuned(), Tuned(size=200)
    for tuned in (calm, busy):
        tuned.pass_window()
    for _ in range(480):
        calm.pass_window(query_mean_s=0.001)
        busy.busy(query_mean_s=0.001)

    assert long_average_s(calm) == long_average_s(busy) < 0.01 / 2


def hours_until_usual(tuned: Tuned, query_mean_s: float, *, waits: int) -> float:
    tuned.pass_window()
    for count in range(1, 20_000):
        tuned.pass_window(query_mean_s=query_mean_s, waits=waits)
        if query_mean_s <= 1.5 * long_average_s(tuned):
            return count * WINDOW_S / HOUR_S
    raise AssertionError("never")


@pytest.mark.parametrize(("times", "waits", "hours"), [(2, 0, 2.3), (10, 0, 15.2), (2, 500, 13.8)])
def test_a_lasting_slowness_is_usual_in_the_end(times: int, waits: int, hours: float) -> None:
    assert hours == pytest.approx(hours_until_usual(Tuned(), 0.01 * times, waits=waits), rel=0.02)


def test_a_refused_connection_shrinks_by_a_quarter_and_freezes_growth(tuned: Tuned) -> None:
    decision = tuned.busy(refusals=3)
    reasons = [tuned.busy().reason for _ in range(10)]

    assert 30 == decision.size
    assert Reason.REFUSED is decision.reason
    assert "3 connections refused (53300)" in decision.detail
    assert [Reason.FROZEN] * 9 + [Reason.WAITS] == reasons


@pytest.mark.parametrize(("size", "after"), [(2, 2), (3, 2), (4, 3), (200, 150)])
def test_a_quarter_is_at_least_one_and_never_below_the_minimum(size: int, after: int) -> None:
    decision = Tuned(size=size).busy(refusals=1)

    assert after == decision.size
    assert Reason.REFUSED is decision.reason


def test_a_refusal_does_not_wait_for_the_pause(tuned: Tuned) -> None:
    tuned.grown()

    assert 38 == tuned.busy(refusals=1).size


def freeze_s(decision: Decision, tuned: Tuned) -> float:
    assert decision.history.frozen_until_s is not None
    return decision.history.frozen_until_s - tuned.at_s


def test_refusals_soon_after_a_freeze_double_the_next(tuned: Tuned) -> None:
    """A server that stays full is asked less and less often."""
    freezes_s = []
    for _ in range(6):
        freezes_s.append(freeze_s(tuned.busy(refusals=1), tuned))
        while tuned.busy().reason is not Reason.WAITS:
            pass

    assert [300, 600, 1_200, 2_400, 3_600, 3_600] == freezes_s


def test_refusals_within_a_freeze_prolong_it_without_doubling(tuned: Tuned) -> None:
    freezes_s = [freeze_s(tuned.busy(refusals=1), tuned) for _ in range(4)]

    assert [FREEZE_S] * 4 == freezes_s


def test_a_refusal_long_after_a_freeze_is_a_first_one(tuned: Tuned) -> None:
    tuned.busy(refusals=1)
    while tuned.busy().reason is not Reason.WAITS:
        pass
    tuned.busy(refusals=1)
    for _ in range(140):
        tuned.pass_window()

    assert FREEZE_S == freeze_s(tuned.busy(refusals=1), tuned)


def test_a_budget_that_shrank_shrinks_the_pool_at_once(tuned: Tuned) -> None:
    tuned.grown()
    tuned.limits = TuningLimits(minimum=2, budget=23)
    decision = tuned.pass_window()

    assert 23 == decision.size
    assert Reason.BOUNDS is decision.reason
    assert "from 50 to stay within 2 to 23" in decision.detail


def test_a_refusal_together_with_a_smaller_budget_ends_within_the_budget(tuned: Tuned) -> None:
    tuned.limits = TuningLimits(minimum=2, budget=23)
    decision = tuned.busy(refusals=1)

    assert 23 == decision.size
    assert Reason.REFUSED is decision.reason


def test_a_minimum_that_grew_grows_the_pool_at_once(tuned: Tuned) -> None:
    tuned.limits = TuningLimits(minimum=60, budget=80)
    decision = tuned.pass_window()

    assert 60 == decision.size
    assert Reason.BOUNDS is decision.reason


@pytest.mark.parametrize(
    ("budget", "replicas", "others", "max_connections"),
    [
        (90, 1, 0, 100),
        (22, 4, 0, 100),
        (19, 4, 3, 100),
        (5, 80, 0, 100),
        (5, 1, 0, 8),
        (90, 0, 0, 100),
    ],
)
def test_the_budget_is_a_replicas_share(
    budget: int, replicas: int, others: int, max_connections: int
) -> None:
    assert budget == budget_of(
        max_connections=max_connections, reserved=10, replicas=replicas, others=others, minimum=5
    )


@pytest.mark.parametrize(("minimum", "budget"), [(0, 10), (11, 10), (201, 300)])
def test_impossible_limits_are_refused(minimum: int, budget: int) -> None:
    with pytest.raises(ValueError, match="minimum <= budget"):
        TuningLimits(minimum=minimum, budget=budget)
