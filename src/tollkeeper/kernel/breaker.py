"""A circuit breaker: leaves alone, for a while, what has failed several times in a row. Pure.

Closed, everybody gets a permit. Open, nobody does. Its time over, the first to ask gets the only
permit (half-open), whose result decides. Time counts when somebody asks, looks or tells.

Invariants: at most one probe is out; closed -> open -> half-open -> closed or open, no state left
out; a result counts only while its permit is in force: what began before a change of state moves
nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class BreakerState(StrEnum):
    """Whether calls go through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"  # one call is trying, or may


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerRules:
    """When it opens, and for how long."""

    failures: int = 3  # so many in a row open it
    open_s: float = 30.0  # the first time; doubled by each failed probe until one succeeds
    ceiling_s: float = 300.0  # doubled up to this; jitter comes on top, or replicas would meet
    jitter: float = 0.2  # share of the open time that may be added
    probe_s: float = 10.0  # a probe that has told nothing by then has failed

    def __post_init__(self) -> None:
        is_possible = self.failures >= 1 and self.jitter >= 0.0 and self.probe_s > 0.0
        if not (is_possible and 0.0 < self.open_s <= self.ceiling_s):
            raise ValueError(
                "needs failures > 0, jitter >= 0, probe_s > 0, ceiling_s >= open_s > 0"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Permit:
    """Leave to try. Whoever takes one tells what came of it: succeeded, failed or dropped."""

    is_probe: bool


class Breaker:
    """One breaker, in one event loop; `jitter` draws from [0, 1), `on_change` hears new states."""

    __slots__ = (
        "_failures", "_in_force", "_jitter", "_monotonic_s", "_on_change",
        "_open_s", "_rules", "_state", "_until_s", "is_closed", "opened_total",
    )  # fmt: skip

    def __init__(
        self,
        rules: BreakerRules,
        *,
        monotonic_s: Callable[[], float],
        jitter: Callable[[], float],
        on_change: Callable[[BreakerState], None] | None = None,
    ) -> None:
        self.is_closed = True  # to be read; an attribute, because every query looks at it
        self.opened_total = 0
        self._rules = rules
        self._monotonic_s = monotonic_s
        self._jitter = jitter
        self._on_change = on_change
        self._state = BreakerState.CLOSED
        self._in_force: Permit | None = Permit(is_probe=False)
        self._failures = 0
        self._open_s = rules.open_s
        self._until_s = monotonic_s()  # open: a probe may go then; half-open: it is overdue then

    @property
    def state(self) -> BreakerState:
        """The state; looking opens it if a probe is overdue; only taking a permit half-opens it."""
        self._settle()
        return self._state

    @property
    def retry_after_s(self) -> float:
        """Seconds until asking may help; while a probe is out, until it is overdue."""
        self._settle()
        return max(0.0, self._until_s - self._monotonic_s())

    def permit(self) -> Permit | None:
        """Return leave to try, or None; what is not None must be told of."""
        if self.is_closed:
            return self._in_force
        self._settle()
        now_s = self._monotonic_s()
        is_waiting = self._state is BreakerState.OPEN and now_s < self._until_s
        if is_waiting or self._in_force is not None:
            return None
        probe = self._in_force = Permit(is_probe=True)
        self._until_s = now_s + self._rules.probe_s
        self._enter(BreakerState.HALF_OPEN)
        return probe

    def succeeded(self, permit: Permit) -> None:
        """Tell that it worked: a probe closes the breaker, any other ends a row of failures."""
        if not self._counts(permit):
            return
        self._failures = 0
        if permit.is_probe:
            self._in_force, self._until_s = Permit(is_probe=False), self._monotonic_s()
            self._enter(BreakerState.CLOSED)

    def failed(self, permit: Permit) -> None:
        """Tell that the other side failed."""
        if not self._counts(permit):
            return
        self._failures += 1
        if permit.is_probe or self._failures >= self._rules.failures:
            self._open(self._monotonic_s())

    def dropped(self, permit: Permit) -> None:
        """Tell that nothing was learned (cancelled, the caller's own fault): another may probe."""
        if self._counts(permit) and permit.is_probe:
            self._in_force, self._until_s = None, self._monotonic_s()

    def trip(self) -> None:
        """Open at once: the other side's loss is proven. While open, nothing changes."""
        self._settle()
        if self._state is not BreakerState.OPEN:
            self._open(self._monotonic_s())

    def _counts(self, permit: Permit) -> bool:
        self._settle()
        return permit is self._in_force

    def _settle(self) -> None:
        """Let a probe that is overdue have failed, at the moment it became so."""
        is_probing = self._state is BreakerState.HALF_OPEN and self._in_force is not None
        if is_probing and self._monotonic_s() >= self._until_s:
            self._open(self._until_s)

    def _open(self, at_s: float) -> None:
        rules, doubled_s = self._rules, min(self._rules.ceiling_s, 2.0 * self._open_s)
        self._open_s = rules.open_s if self.is_closed else doubled_s
        self._until_s = at_s + self._open_s * (1.0 + rules.jitter * self._jitter())
        self._in_force = None
        self.opened_total += self.is_closed  # a probe that failed opens nothing that was closed
        self._enter(BreakerState.OPEN)

    def _enter(self, state: BreakerState) -> None:
        is_change = state is not self._state
        self._state = state
        self.is_closed = state is BreakerState.CLOSED
        if is_change and self._on_change is not None:
            self._on_change(state)
