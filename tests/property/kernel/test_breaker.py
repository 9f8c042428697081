"""Any interleaving of asks, results, losses and time, against a reference and against promises."""

from dataclasses import dataclass, field
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st
from tests.clocks import SetClock

from tollkeeper.kernel.breaker import Breaker, BreakerRules, BreakerState, Permit

RULES = BreakerRules(failures=2, open_s=8.0, ceiling_s=24.0, jitter=0.5, probe_s=4.0)
CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(1, 20)),
        st.tuples(st.sampled_from(["succeed", "fail", "drop"]), st.integers(-6, -1)),
        st.tuples(st.just("pass"), st.sampled_from([1, 3, 4, 8, 12, 40])),
        st.tuples(st.sampled_from(["trip", "look"]), st.just(0)),
    ),
    max_size=120,
)
"""What to do and with what: so many ask; the permit given out so many before; seconds."""


@dataclass(slots=True)
class Reference:
    """The rules as one would explain them: every state has a number, a permit bears its number."""

    jitters: list[float]
    now_s: float = 1_000.0
    number: int = 0
    state: BreakerState = CLOSED
    is_probe_out: bool = False
    row: int = 0
    failed_probes: int = 0
    until_s: float = 0.0
    opened: int = 0
    """How often it opened that was closed."""
    drawn: int = 0
    """How many open times were drawn."""
    states: list[BreakerState] = field(default_factory=list)

    def ask(self) -> int | None:
        self.overdue()
        if self.state is CLOSED:
            return self.number
        if self.is_probe_out or (self.state is OPEN and self.now_s < self.until_s):
            return None
        self.become(HALF_OPEN)
        self.is_probe_out, self.until_s = True, self.now_s + RULES.probe_s
        return self.number

    def tell(self, what: str, number: int) -> None:
        self.overdue()
        if number != self.number:
            return
        match what, self.state:
            case "succeed", BreakerState.HALF_OPEN:
                self.become(CLOSED)
                self.row = 0
            case "succeed", _:
                self.row = 0
            case "fail", BreakerState.HALF_OPEN:
                self.open(self.now_s)
            case "fail", _:
                self.row += 1
                if self.row == RULES.failures:
                    self.open(self.now_s)
            case "drop", BreakerState.HALF_OPEN:
                self.number += 1
                self.is_probe_out = False

    def trip(self) -> None:
        self.overdue()
        if self.state is not OPEN:
            self.open(self.now_s)

    def overdue(self) -> None:
        if self.is_probe_out and self.now_s >= self.until_s:
            self.open(self.until_s)

    def open(self, at_s: float) -> None:
        self.failed_probes = self.failed_probes + 1 if self.state is HALF_OPEN else 0
        length_s = min(RULES.open_s * 2**self.failed_probes, RULES.ceiling_s)
        self.until_s = at_s + length_s * (1 + RULES.jitter * self.jitters[self.drawn])
        self.drawn += 1
        self.opened += self.state is CLOSED
        self.row = 0
        self.become(OPEN)

    def become(self, state: BreakerState) -> None:
        self.number += 1
        self.is_probe_out = False
        if state is not self.state:
            self.states.append(state)
        self.state = state

    def retry_after_s(self) -> float:
        self.overdue()
        is_waiting = self.state is OPEN or self.is_probe_out
        return max(0.0, self.until_s - self.now_s) if is_waiting else 0.0


@dataclass(slots=True)
class Pair:
    """A breaker and its reference, moved in step."""

    jitters: list[float]
    clock: SetClock = field(default_factory=SetClock)
    heard: list[BreakerState] = field(default_factory=list)
    breaker: Breaker = field(init=False)
    reference: Reference = field(init=False)
    permits: list[tuple[Permit, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reference = Reference(self.jitters)
        self.breaker = Breaker(
            RULES,
            monotonic_s=self.clock.monotonic_s,
            jitter=iter(self.jitters).__next__,
            on_change=self.heard.append,
        )

    def act(self, action: str, argument: int) -> None:
        match action:
            case "ask":
                for _ in range(argument):
                    self.ask()
            case "pass":
                self.clock.advance(argument)
                self.reference.now_s += argument
            case "trip":
                self.breaker.trip()
                self.reference.trip()
            case "look":
                assert self.reference.retry_after_s() == self.breaker.retry_after_s
                assert self.reference.state is self.breaker.state
            case _ if -argument <= len(self.permits):
                self.tell(action, *self.permits[argument])
            case _:
                pass
        assert self.reference.states == self.heard
        assert self.reference.opened == self.breaker.opened_total
        assert (self.reference.state is CLOSED) == self.breaker.is_closed

    def ask(self) -> None:
        permit, number = self.breaker.permit(), self.reference.ask()
        assert (number is None) == (permit is None)
        if permit is not None and number is not None:
            assert permit.is_probe == (self.reference.state is HALF_OPEN)
            self.permits.append((permit, number))

    def tell(self, what: str, permit: Permit, number: int) -> None:
        match what:
            case "succeed":
                self.breaker.succeeded(permit)
            case "fail":
                self.breaker.failed(permit)
            case _:
                self.breaker.dropped(permit)
        self.reference.tell(what, number)


JITTERS = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75]), min_size=121, max_size=121)


@given(STEPS, JITTERS)
@example([("trip", 0), ("pass", 8), ("ask", 3), ("fail", -1), ("look", 0)], [0.5] * 121)
def test_it_does_what_the_reference_does(
    steps: list[tuple[str, int]], jitters: list[float]
) -> None:
    pair = Pair(jitters)
    for action, argument in steps:
        pair.act(action, argument)


@given(STEPS)
def test_no_state_is_skipped(steps: list[tuple[str, int]]) -> None:
    pair = Pair([0.0] * 121)
    for action, argument in steps:
        pair.act(action, argument)
    followers = {CLOSED: {OPEN}, OPEN: {HALF_OPEN}, HALF_OPEN: {CLOSED, OPEN}}

    path = [CLOSED, *pair.heard]

    assert all(after in followers[before] for before, after in pairwise(path))


@given(STEPS)
def test_at_most_one_probe_is_out(steps: list[tuple[str, int]]) -> None:
    """A probe is out from its permit until it is told of, gives way to a trip, or is overdue."""
    pair, out = Pair([0.0] * 121), dict[Permit, float]()
    for action, argument in [("trip", 0), ("pass", 8), *steps]:
        known = len(pair.permits)
        told = pair.permits[argument][0] if argument < 0 and -argument <= known else None
        pair.act(action, argument)
        if told is not None:
            out.pop(told, None)
        if action == "trip":
            out.clear()
        out = {probe: s for probe, s in out.items() if pair.clock.monotonic_s() < s + RULES.probe_s}
        for permit, _ in pair.permits[known:]:
            if permit.is_probe:
                out[permit] = pair.clock.monotonic_s()

        assert len(out) <= 1


@given(STEPS)
def test_looking_changes_nothing_that_happens_later(steps: list[tuple[str, int]]) -> None:
    """Whether somebody watches, as metrics do, makes no difference to whom asks."""
    watched, alone = Pair([0.0] * 121), Pair([0.0] * 121)
    for action, argument in steps:
        if action != "look":
            watched.act("look", 0)
            watched.act(action, argument)
            alone.act(action, argument)

    assert [number for _, number in alone.permits] == [number for _, number in watched.permits]


@given(STEPS)
def test_dropping_moves_no_counter(steps: list[tuple[str, int]]) -> None:
    """A run with drops while closed is the run without them."""
    with_drops, without = Pair([0.0] * 121), Pair([0.0] * 121)
    for action, argument in steps:
        if action == "drop":
            if not with_drops.breaker.is_closed:
                continue
            with_drops.act(action, argument)
        else:
            with_drops.act(action, argument)
            without.act(action, argument)

    assert without.heard == with_drops.heard
    assert without.breaker.opened_total == with_drops.breaker.opened_total
