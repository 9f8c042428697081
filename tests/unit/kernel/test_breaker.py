"""The breaker, by example: what opens it, who may probe, how long it stays open."""

import asyncio
from dataclasses import dataclass, field

import pytest
from tests.clocks import SetClock

from tollkeeper.kernel.breaker import Breaker, BreakerRules, BreakerState, Permit

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


@dataclass(slots=True)
class Bench:
    """A breaker, its clock, its jitter, and what it told of its changes."""

    rules: BreakerRules = field(default_factory=BreakerRules)
    clock: SetClock = field(default_factory=SetClock)
    jitter: float = 0.0
    heard: list[BreakerState] = field(default_factory=list)
    breaker: Breaker = field(init=False)

    def __post_init__(self) -> None:
        self.breaker = Breaker(
            self.rules,
            monotonic_s=self.clock.monotonic_s,
            jitter=lambda: self.jitter,
            on_change=self.heard.append,
        )

    def permit(self) -> Permit:
        permit = self.breaker.permit()
        assert permit is not None
        return permit

    def fail(self, times: int) -> None:
        for _ in range(times):
            self.breaker.failed(self.permit())

    def open_times_s(self, count: int) -> list[float]:
        """Open it, and let so many probes fail; how long it was open each time."""
        self.fail(self.rules.failures)
        times_s = [self.breaker.retry_after_s]
        while len(times_s) < count:
            self.clock.advance(times_s[-1])
            self.fail(1)
            times_s.append(self.breaker.retry_after_s)
        return times_s


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_new_breaker_is_closed(bench: Bench) -> None:
    assert CLOSED is bench.breaker.state
    assert bench.breaker.is_closed
    assert 0.0 == bench.breaker.retry_after_s
    assert 0 == bench.breaker.opened_total
    assert not bench.permit().is_probe


def test_failures_in_a_row_open_it(bench: Bench) -> None:
    bench.fail(2)

    assert CLOSED is bench.breaker.state

    bench.fail(1)

    assert OPEN is bench.breaker.state
    assert not bench.breaker.is_closed
    assert bench.breaker.permit() is None
    assert 30.0 == bench.breaker.retry_after_s
    assert 1 == bench.breaker.opened_total


def test_a_success_ends_the_row_of_failures(bench: Bench) -> None:
    bench.fail(2)
    bench.breaker.succeeded(bench.permit())
    bench.fail(2)

    assert CLOSED is bench.breaker.state


def test_what_is_dropped_neither_adds_to_the_row_nor_ends_it(bench: Bench) -> None:
    bench.fail(2)
    bench.breaker.dropped(bench.permit())

    assert CLOSED is bench.breaker.state

    bench.fail(1)

    assert OPEN is bench.breaker.state


def test_only_taking_a_permit_half_opens_it(bench: Bench) -> None:
    bench.fail(3)
    bench.clock.advance(29.9)

    assert bench.breaker.permit() is None

    bench.clock.advance(0.1)

    assert OPEN is bench.breaker.state
    assert 0.0 == bench.breaker.retry_after_s
    assert bench.permit().is_probe
    assert HALF_OPEN is bench.breaker.state
    assert 10.0 == bench.breaker.retry_after_s


def test_a_probe_that_succeeds_closes_it(bench: Bench) -> None:
    bench.fail(3)
    bench.clock.advance(30)
    bench.breaker.succeeded(bench.permit())

    assert CLOSED is bench.breaker.state
    assert 0.0 == bench.breaker.retry_after_s
    assert [OPEN, HALF_OPEN, CLOSED] == bench.heard

    bench.fail(2)

    assert CLOSED is bench.breaker.state


def test_open_times_double_up_to_the_ceiling(bench: Bench) -> None:
    assert [30.0, 60.0, 120.0, 240.0, 300.0, 300.0] == bench.open_times_s(6)
    assert 1 == bench.breaker.opened_total  # probes that fail open nothing that was closed


def test_jitter_is_added_to_every_open_time_and_beyond_the_ceiling() -> None:
    bench = Bench(jitter=0.5)

    assert [33.0, 66.0, 132.0, 264.0, 330.0, 330.0] == pytest.approx(bench.open_times_s(6))


def test_after_a_success_the_open_time_starts_over(bench: Bench) -> None:
    bench.open_times_s(4)
    bench.clock.advance(240)
    bench.breaker.succeeded(bench.permit())
    bench.fail(3)

    assert 30.0 == bench.breaker.retry_after_s


def test_a_dropped_probe_lets_another_try_and_its_open_time_is_not_doubled(bench: Bench) -> None:
    bench.fail(3)
    bench.clock.advance(30)
    first = bench.permit()
    bench.breaker.dropped(first)

    assert HALF_OPEN is bench.breaker.state
    assert 0.0 == bench.breaker.retry_after_s

    second = bench.permit()
    bench.breaker.succeeded(first)

    assert HALF_OPEN is bench.breaker.state
    assert bench.breaker.permit() is None

    bench.breaker.failed(second)

    assert 60.0 == bench.breaker.retry_after_s
    assert [OPEN, HALF_OPEN, OPEN] == bench.heard


def test_a_probe_that_tells_nothing_has_failed_when_its_time_is_over(bench: Bench) -> None:
    bench.fail(3)
    bench.clock.advance(30)
    silent = bench.permit()
    bench.clock.advance(9.9)

    assert HALF_OPEN is bench.breaker.state

    bench.clock.advance(0.2)
    bench.breaker.succeeded(silent)

    assert OPEN is bench.breaker.state
    assert 59.9 == pytest.approx(bench.breaker.retry_after_s)  # from the moment it was overdue

    bench.clock.advance(60)

    assert bench.permit().is_probe


def test_results_of_an_earlier_state_are_ignored(bench: Bench) -> None:
    before = bench.permit()
    bench.fail(3)
    bench.breaker.succeeded(before)

    assert OPEN is bench.breaker.state

    bench.clock.advance(30)
    probe = bench.permit()
    for tell in (bench.breaker.succeeded, bench.breaker.failed, bench.breaker.dropped):
        tell(before)

    assert HALF_OPEN is bench.breaker.state

    bench.breaker.succeeded(probe)
    for _ in range(5):
        bench.breaker.dropped(probe)
        bench.breaker.failed(before)
        bench.breaker.failed(probe)

    assert CLOSED is bench.breaker.state


def test_a_proven_loss_opens_it_at_once(bench: Bench) -> None:
    bench.breaker.trip()

    assert OPEN is bench.breaker.state
    assert 30.0 == bench.breaker.retry_after_s


def test_one_failed_probe_opens_it_again_however_it_was_opened(bench: Bench) -> None:
    bench.breaker.trip()
    bench.clock.advance(30)
    bench.fail(1)

    assert OPEN is bench.breaker.state
    assert 60.0 == bench.breaker.retry_after_s


def test_a_loss_while_open_does_not_prolong_it(bench: Bench) -> None:
    bench.breaker.trip()
    bench.clock.advance(20)
    bench.breaker.trip()

    assert 10.0 == bench.breaker.retry_after_s
    assert 1 == bench.breaker.opened_total


def test_a_loss_while_half_open_is_a_failed_probe(bench: Bench) -> None:
    bench.breaker.trip()
    bench.clock.advance(30)
    probe = bench.permit()
    bench.breaker.trip()
    bench.breaker.succeeded(probe)

    assert OPEN is bench.breaker.state
    assert 60.0 == bench.breaker.retry_after_s


def test_who_hears_of_a_change_finds_it_done() -> None:
    seen: list[tuple[BreakerState, BreakerState, bool]] = []
    clock = SetClock()

    def look(state: BreakerState) -> None:
        seen.append((state, breaker.state, breaker.permit() is None))

    breaker = Breaker(
        BreakerRules(failures=1),
        monotonic_s=clock.monotonic_s,
        jitter=lambda: 0.0,
        on_change=look,
    )
    breaker.trip()
    clock.advance(30)
    probe = breaker.permit()
    assert probe is not None
    breaker.succeeded(probe)

    assert [(OPEN, OPEN, True), (HALF_OPEN, HALF_OPEN, True), (CLOSED, CLOSED, False)] == seen


async def test_half_open_admits_one_of_a_thousand_concurrent_callers(bench: Bench) -> None:
    bench.breaker.trip()
    bench.clock.advance(30)
    everybody_is_here = asyncio.Barrier(1_000)

    async def ask() -> Permit | None:
        await everybody_is_here.wait()
        return bench.breaker.permit()

    answers = await asyncio.gather(*(ask() for _ in range(1_000)))

    assert 1 == sum(permit is not None for permit in answers)


@pytest.mark.parametrize(
    "wrong",
    [
        {"failures": 0},
        {"open_s": 0.0},
        {"open_s": 301.0},
        {"jitter": -0.1},
        {"probe_s": 0.0},
    ],
)
def test_impossible_rules_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="needs failures > 0"):
        BreakerRules(**wrong)  # type: ignore[arg-type]  # names are those of the rules
