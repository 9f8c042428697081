"""How many connections a pool should have, decided anew from every window of 30 s. Pure.

The rule (SPEC D3): more than 100 waits in the window and fewer than 200 connections: 10 more; over
half of the pool idle in the median: 5 fewer. Around it, what keeps the rule from doing harm: a
budget under the server's `max_connections`, a pause after each change, more evidence for turning
round than for going on, no growth while the server is slow, retreat when it refuses connections.

Invariants: the size is never above the budget, never below the minimum; all waits are those of the
window. By its own will (a budget that shrank and refusals are the server's) the size turns round at
most twice in any hour, whatever the load does: it shrinks no sooner than an hour after it grew.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import ceil, exp, sqrt

WINDOW_S = 30.0
GROW_WAITS = 100
"""More waits than this in a window ask for growth (SPEC D3)."""
GROW_STEP = 10
SHRINK_STEP = 5
MAXIMUM = 200

QUIET_WAITS = 10
"""With more waits than this, a window is no evidence that connections are too many."""

COOLDOWN_S = 60.0
"""Nothing is changed for so long after a change."""
TURN_UP_WINDOWS = 2
"""Growth after a shrink wants so many windows of waits in a row; further growth wants one."""
TURN_UP_S = 2 * COOLDOWN_S
RECENT_S = 1_200.0
"""Time constant in which the room for what was in use a while ago is given up."""
SHRINK_WINDOWS = 2
"""A first or further shrink wants so many idle windows in a row."""
TURN_DOWN_S = 3_600.0
"""A shrink after growth wants idle windows for so long: a load that comes back within the hour
finds what it needed. Doubled up to `TURN_DOWN_CEILING_S` as long as such a shrink is undone within
`REGRET_S`; else a load too uneven for the rule would be served badly once an hour for ever."""
TURN_DOWN_CEILING_S = 24 * 3_600.0
REGRET_S = 3_600.0

SLOW_FACTOR = 1.5
"""No growth while the server's time per query is above this multiple of its long average."""
LONG_AVERAGE_S = 4 * 3_600.0
"""Time constant of the long average: it remembers the working day through a quiet night."""
LONG_AVERAGE_WAITING_S = 24 * 3_600.0
"""The same for a rise while callers wait: growth itself may have made the server slow, and what
got used to that would let the pool creep up to its budget on a server that is full."""
SLOW_QUERIES = 20
"""Fewer queries than this in a window are no evidence that the server is slow."""

FREEZE_S = 300.0
"""No growth for so long after the server refused a connection (53300)."""
FREEZE_CEILING_S = 3_600.0
"""Each refusal within `FREEZE_MEMORY_S` after a freeze ended doubles the next, up to this."""
FREEZE_MEMORY_S = 3_600.0


class Reason(StrEnum):
    """Why the size is what it is; the first four change it."""

    WAITS = "waits"
    """Callers waited: grown."""
    IDLE = "idle"
    """Half of the pool was idle: shrunk."""
    REFUSED = "refused"
    """The server has no connections left (53300): shrunk, if that was possible."""
    BOUNDS = "bounds"
    """The budget or the minimum moved past the size."""
    STEADY = "steady"
    """Nothing asks for a change."""
    FULL = "full"
    """Callers wait, but the budget or the maximum is reached."""
    FROZEN = "frozen"
    """Callers wait, but the server refused a connection a short while ago."""
    SLOW_SERVER = "slow_server"
    """Callers wait, but the server is slow, and more connections would make it slower."""
    COOLDOWN = "cooldown"
    """A change is wanted soon after the last."""
    UNPROVEN = "unproven"
    """A change is wanted, but the evidence is too young to turn round."""


class Direction(StrEnum):
    """Where the size went by its own will."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningLimits:
    """What the size must stay within; both bounds are allowed."""

    minimum: int
    budget: int
    """Most connections this process may have here: see `budget_of`."""

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.ceiling:
            raise ValueError(f"needs 1 <= minimum <= budget, and minimum <= {MAXIMUM}")

    @property
    def ceiling(self) -> int:
        """The most connections."""
        return min(MAXIMUM, self.budget)


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What a decision leaves to the next; times are monotonic seconds."""

    changed_at_s: float | None = None
    """The last change of any kind."""
    direction: Direction | None = None
    """Of the last change by its own will; what the server forced is none."""
    turned_at_s: float = 0.0
    """When the size last went that way."""
    waiting_windows: int = 0
    idle_windows: int = 0
    """Windows in a row in which the rule asked for more, for fewer."""
    turn_down_s: float = TURN_DOWN_S
    frozen_until_s: float | None = None
    freeze_s: float = FREEZE_S
    queries: float = 0.0
    query_time_s: float = 0.0
    """Queries of a window and their time, as weighted means: their quotient is the long average,
    in which a busy window weighs more than a quiet one."""
    recent_in_use: float = 0.0
    """The most connections in use in the median of a window, fading within `RECENT_S`."""

    @property
    def long_average_s(self) -> float | None:
        """The server's usual time per query; None before it is known."""
        return self.query_time_s / self.queries if self.queries and self.query_time_s else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What was measured in one window."""

    at_s: float
    """Its end, in monotonic seconds."""
    size: int
    waits: int
    """Acquires that had to wait, served or not."""
    idle_median: float
    """Median of samples of the size less the connections in use, open or not."""
    queries: int = 0
    query_mean_s: float = 0.0
    """The server's time per query, without the wait for a connection."""
    refusals: int = 0
    """Connections the server refused with 53300."""
    history: History = field(default_factory=History)

    @property
    def in_use_median(self) -> float:
        """Connections in use, in the median."""
        return max(0.0, self.size - self.idle_median)

    @property
    def is_waiting(self) -> bool:
        """Whether the rule asks for more connections."""
        return self.waits > GROW_WAITS

    @property
    def is_idle(self) -> bool:
        """Whether the rule asks for fewer, and nobody had to wait for it to be so."""
        return self.idle_median > self.size / 2 and self.waits <= QUIET_WAITS

    @property
    def is_slow(self) -> bool:
        """Whether the server's time per query is well above its long average."""
        usual_s = self.history.long_average_s
        if usual_s is None or self.queries < SLOW_QUERIES:
            return False
        return self.query_mean_s > SLOW_FACTOR * usual_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The size from now on, why, and what the next window has to bring along."""

    size: int
    reason: Reason
    detail: str
    """One sentence with the figures, for the log."""
    history: History


def budget_of(
    *, max_connections: int, reserved: int, replicas: int, others: int, minimum: int
) -> int:
    """Return how many connections one replica's pool may have, at least `minimum`.

    `reserved` counts the server's connections that are not ours to take (superusers, replication,
    other programs), `others` those this process holds outside the pool. A rolling deploy runs more
    replicas than it leaves: count them at their most.
    """
    return max(minimum, (max_connections - reserved) // max(1, replicas) - others)


def room_for(in_use: float) -> int:
    """Return how many connections let next to nobody wait when `in_use` are in use in the mean.

    Callers who come independently keep so many busy give or take the square root of it: three of
    these, and one for the mean's own error.
    """
    return ceil(in_use + 3.0 * sqrt(in_use)) + 1


def decide(window: Window, limits: TuningLimits) -> Decision:
    """Return the size for the next window."""
    history = window.history
    fading = max(0.0, history.recent_in_use - window.in_use_median) * exp(-WINDOW_S / RECENT_S)
    seen = replace(
        _with_queries(history, window),
        waiting_windows=history.waiting_windows + 1 if window.is_waiting else 0,
        idle_windows=history.idle_windows + 1 if window.is_idle else 0,
        recent_in_use=window.in_use_median + fading,
    )
    bounded = max(limits.minimum, min(limits.ceiling, window.size))
    if window.refusals:
        return _refused(window, limits, seen)
    if bounded != window.size:
        detail = f"from {window.size} to stay within {limits.minimum} to {limits.ceiling}"
        return _changed(window, seen, size=bounded, reason=Reason.BOUNDS, detail=detail)
    if window.is_waiting:
        return _wanting_more(window, limits, seen)
    if window.is_idle and window.size > _least(limits, seen):
        return _wanting_fewer(window, limits, seen)
    detail = f"{window.waits} waits, {window.idle_median:g} of {window.size} idle"
    return _kept(window, seen, Reason.STEADY, detail)


def _wanting_more(window: Window, limits: TuningLimits, seen: History) -> Decision:
    detail = f"{window.waits} waits in {WINDOW_S:g} s"
    if window.size >= limits.ceiling:
        return _kept(window, seen, Reason.FULL, f"{detail}, {limits.ceiling} is the most")
    if seen.frozen_until_s is not None and window.at_s < seen.frozen_until_s:
        left_s = seen.frozen_until_s - window.at_s
        return _kept(window, seen, Reason.FROZEN, f"{detail}, no growth for {left_s:.0f} s")
    if window.is_slow:
        usual_s = window.history.long_average_s or 0.0
        times = f"a query takes {1e3 * window.query_mean_s:.3g} ms, usually {1e3 * usual_s:.3g} ms"
        return _kept(window, seen, Reason.SLOW_SERVER, f"{detail}, but {times}")
    if _since_change_s(window) < COOLDOWN_S:
        return _kept(window, seen, Reason.COOLDOWN, f"{detail}, soon after the last change")
    is_turn = seen.direction is Direction.DOWN
    if is_turn and (
        seen.waiting_windows < TURN_UP_WINDOWS or window.at_s - seen.turned_at_s < TURN_UP_S
    ):
        return _kept(window, seen, Reason.UNPROVEN, f"{detail}, but it shrank a short while ago")
    if is_turn:
        is_regretted = window.at_s - seen.turned_at_s < REGRET_S
        longer_s = min(TURN_DOWN_CEILING_S, 2.0 * seen.turn_down_s)
        seen = replace(seen, turn_down_s=longer_s if is_regretted else TURN_DOWN_S)
    return _changed(
        window,
        replace(seen, direction=Direction.UP, turned_at_s=window.at_s),
        size=min(limits.ceiling, window.size + GROW_STEP),
        reason=Reason.WAITS,
        detail=detail,
    )


def _wanting_fewer(window: Window, limits: TuningLimits, seen: History) -> Decision:
    detail = f"{window.idle_median:g} of {window.size} idle in the median"
    if _since_change_s(window) < COOLDOWN_S:
        return _kept(window, seen, Reason.COOLDOWN, f"{detail}, soon after the last change")
    is_turn = seen.direction is Direction.UP
    quiet_s = seen.turn_down_s if is_turn else 0.0
    windows = max(SHRINK_WINDOWS, ceil(quiet_s / WINDOW_S))
    is_soon = is_turn and window.at_s - seen.turned_at_s < quiet_s
    if is_soon or seen.idle_windows < windows:
        seen_of = f"{seen.idle_windows} of {windows} windows in a row"
        return _kept(window, seen, Reason.UNPROVEN, f"{detail}, {seen_of}")
    return _changed(
        window,
        replace(seen, direction=Direction.DOWN, turned_at_s=window.at_s),
        size=max(_least(limits, seen), window.size - SHRINK_STEP),
        reason=Reason.IDLE,
        detail=detail,
    )


def _least(limits: TuningLimits, seen: History) -> int:
    """Return what idleness may shrink to: what soon had to grow again would be no gain."""
    return max(limits.minimum, room_for(seen.recent_in_use))


def _refused(window: Window, limits: TuningLimits, seen: History) -> Decision:
    """Retreat by a quarter, and freeze: longer each time that growth led to refusals again."""
    freeze_s = seen.freeze_s
    if seen.frozen_until_s is None or window.at_s >= seen.frozen_until_s + FREEZE_MEMORY_S:
        freeze_s = FREEZE_S
    elif window.at_s >= seen.frozen_until_s:
        freeze_s = min(FREEZE_CEILING_S, 2.0 * freeze_s)
    size = min(limits.ceiling, window.size - max(1, window.size // 4))
    return _changed(
        window,
        replace(seen, frozen_until_s=window.at_s + freeze_s, freeze_s=freeze_s),
        size=max(limits.minimum, size),
        reason=Reason.REFUSED,
        detail=f"{window.refusals} connections refused (53300), no growth for {freeze_s:.0f} s",
    )


def _with_queries(history: History, window: Window) -> History:
    """Move the long average; a slow window counts as one at the limit, so that it poisons nothing.

    A time that stays is usual in the end: twice as long after 2.3 hours, ten times after 15; six
    times later if callers wait all the while. A window without queries says nothing.
    """
    if not window.queries:
        return history
    usual_s = history.long_average_s
    if usual_s is None:
        total_s = window.queries * window.query_mean_s
        return replace(history, queries=float(window.queries), query_time_s=total_s)
    is_doubtful = window.is_waiting and window.query_mean_s > usual_s
    weight = 1.0 - exp(-WINDOW_S / (LONG_AVERAGE_WAITING_S if is_doubtful else LONG_AVERAGE_S))
    total_s = window.queries * min(window.query_mean_s, SLOW_FACTOR * usual_s)
    return replace(
        history,
        queries=history.queries + weight * (window.queries - history.queries),
        query_time_s=history.query_time_s + weight * (total_s - history.query_time_s),
    )


def _since_change_s(window: Window) -> float:
    changed_at_s = window.history.changed_at_s
    return COOLDOWN_S if changed_at_s is None else window.at_s - changed_at_s


def _kept(window: Window, seen: History, reason: Reason, detail: str) -> Decision:
    return Decision(size=window.size, reason=reason, detail=detail, history=seen)


def _changed(window: Window, seen: History, *, size: int, reason: Reason, detail: str) -> Decision:
    after = replace(seen, changed_at_s=window.at_s)
    return Decision(size=size, reason=reason, detail=detail, history=after)
