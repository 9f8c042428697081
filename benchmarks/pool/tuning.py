"""The pool's size over time under simulated loads: how often it turns round, where it settles.

Callers arrive at random, take a connection or queue for one, and keep it for a random time, which
grows when more connections are busy than the server has capacity for. Only the clock is simulated:
every size is what `tollkeeper.database.tuning` decides. `python -m benchmarks.pool.tuning` prints
the table and draws the curves.
"""

import argparse
import heapq
import random
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from benchmarks.bench import Bench
from benchmarks.figures import Figure
from tollkeeper.database.tuning import (
    WINDOW_S,
    Decision,
    Direction,
    History,
    Reason,
    TuningLimits,
    Window,
    decide,
)

HOUR_S = 3_600.0
MINUTE_S = 60.0
MOST_REVERSALS_PER_HOUR = 2
PATIENCE_S = 10.0
"""A caller gives up after so long in the queue."""

OWN_REASONS = (Reason.WAITS, Reason.IDLE)
"""Changes the tuner makes of its own will; what the server forces is no oscillation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a pool is put under."""

    name: str
    arrivals_per_s: Callable[[float], float]
    """Of the second since the start."""
    query_s: Callable[[float], float] = lambda _: 1.0
    """Mean time per query on a server that is not overloaded. Slow, so that few events make a
    day: what the tuner sees depends on how many are busy, not on how short they are."""
    capacity: Callable[[float], int] = lambda _: 1_000
    """So many connections the server works for at full speed; more share it."""
    slots: Callable[[float], int] = lambda _: 1_000
    """So many connections the server grants us before it answers 53300."""
    size: int = 10
    limits: TuningLimits = field(default_factory=lambda: TuningLimits(minimum=2, budget=80))
    hours: float = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What came of it: a window and its decision, in order."""

    load: Load
    windows: tuple[Window, ...]
    decisions: tuple[Decision, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The size after each window."""
        return tuple(decision.size for decision in self.decisions)

    def changes(self) -> list[tuple[float, Direction]]:
        """Return when the tuner changed the size of its own will, and which way."""
        return [
            (window.at_s, Direction.UP if decision.size > window.size else Direction.DOWN)
            for window, decision in zip(self.windows, self.decisions, strict=True)
            if decision.size != window.size and decision.reason in OWN_REASONS
        ]

    def reversals(self) -> list[float]:
        """Return when a change went the other way than the one before."""
        changes = self.changes()
        return [at_s for (_, before), (at_s, way) in pairwise(changes) if way is not before]

    def reversals_in_worst_hour(self) -> int:
        """Return the most reversals in any hour."""
        turned = self.reversals()
        return max((sum(at <= t < at + HOUR_S for t in turned) for at in turned), default=0)

    def waits_per_window(self, last_hours: float) -> float:
        """Return the mean of waits a window towards the end."""
        count = int(last_hours * HOUR_S / WINDOW_S)
        return statistics.fmean(window.waits for window in self.windows[-count:])


@dataclass(slots=True)
class _Pool:
    """The state of the queueing model: callers in order, and when those served will be done."""

    load: Load
    rng: random.Random
    size: int
    queue: deque[float] = field(default_factory=deque)
    ends_s: list[float] = field(default_factory=list)
    opened: int = 0
    waits: int = 0
    refusals: int = 0
    query_times_s: list[float] = field(default_factory=list)

    def arrive(self, now_s: float) -> None:
        self.finish(now_s)
        self.queue.append(now_s)
        self.serve(now_s)
        if self.queue:
            self.waits += 1

    def finish(self, now_s: float) -> None:
        while self.ends_s and self.ends_s[0] <= now_s:
            self.serve(heapq.heappop(self.ends_s))

    def serve(self, now_s: float) -> None:
        while self.queue and len(self.ends_s) < self.size:
            if now_s - self.queue[0] > PATIENCE_S:
                self.queue.popleft()
                continue
            if len(self.ends_s) >= self.opened and not self.connect(now_s):
                return
            self.queue.popleft()
            crowd = max(1.0, (len(self.ends_s) + 1) / self.load.capacity(now_s))
            mean_s = self.load.query_s(now_s) * crowd
            query_s = self.rng.expovariate(1.0 / mean_s)
            self.query_times_s.append(query_s)
            heapq.heappush(self.ends_s, now_s + query_s)

    def connect(self, now_s: float) -> bool:
        if self.opened >= self.load.slots(now_s):
            self.refusals += 1
            return False
        self.opened += 1
        return True

    def resize(self, size: int, now_s: float) -> None:
        self.size = size
        self.opened = max(len(self.ends_s), min(self.opened, size, self.load.slots(now_s)))
        self.serve(now_s)


def simulate(load: Load, *, seed: int = 0) -> Run:
    """Return what the tuner does under a load."""
    pool = _Pool(load, random.Random(seed), load.size)
    windows: list[Window] = []
    decisions: list[Decision] = []
    history = History()
    for number in range(int(load.hours * HOUR_S / WINDOW_S)):
        window = _pass_window(pool, number * WINDOW_S, history)
        decision = decide(window, load.limits)
        history = decision.history
        pool.resize(decision.size, window.at_s)
        windows.append(window)
        decisions.append(decision)
    return Run(load=load, windows=tuple(windows), decisions=tuple(decisions))


def _pass_window(pool: _Pool, start_s: float, history: History) -> Window:
    pool.waits = pool.refusals = 0
    pool.query_times_s.clear()
    idle: list[int] = []
    for second in range(int(WINDOW_S)):
        now_s = start_s + second
        rate = pool.load.arrivals_per_s(now_s)
        while rate and (now_s := now_s + pool.rng.expovariate(rate)) < start_s + second + 1:
            pool.arrive(now_s)
        pool.finish(start_s + second + 1)
        idle.append(max(0, pool.size - len(pool.ends_s)))
    return Window(
        at_s=start_s + WINDOW_S,
        size=pool.size,
        waits=pool.waits,
        idle_median=statistics.median(idle),
        queries=len(pool.query_times_s),
        query_mean_s=statistics.fmean(pool.query_times_s) if pool.query_times_s else 0.0,
        refusals=pool.refusals,
        history=history,
    )


def constant(value: float) -> Callable[[float], float]:
    """Return a rate that stays."""
    return lambda _: value


def square_wave(low: float, high: float, period_s: float) -> Callable[[float], float]:
    """Return a rate that is high in the first half of each period, low in the second."""
    return lambda at_s: high if at_s % period_s < period_s / 2 else low


def step(before: float, after: float, at_s: float) -> Callable[[float], float]:
    """Return a rate that changes once."""
    return lambda now_s: before if now_s < at_s else after


PERIODS_MIN = (1, 2, 5, 10, 15, 30, 60, 150)


def wave(minutes: int) -> Load:
    """Return a load that is high for half of so many minutes, then low."""
    return Load(
        name=f"5 to 40/s, square wave of {minutes} min",
        arrivals_per_s=square_wave(5.0, 40.0, minutes * MINUTE_S),
        hours=6.0,
    )


LOADS: tuple[Load, ...] = (
    *(
        Load(name=f"{rate:g}/s, constant", arrivals_per_s=constant(rate))
        for rate in (1.0, 5.0, 20.0, 40.0)
    ),
    *(wave(minutes) for minutes in PERIODS_MIN),
    Load(
        name="bursts of 5 s every 30 s",
        arrivals_per_s=lambda at_s: 60.0 if at_s % 30.0 < 5.0 else 1.0,
        hours=12.0,
    ),
    Load(
        name="the server is full at 30",
        arrivals_per_s=constant(40.0),
        capacity=lambda _: 30,
        limits=TuningLimits(minimum=2, budget=200),
        hours=12.0,
    ),
    Load(
        name="the server is slow for an hour",
        arrivals_per_s=step(15.0, 30.0, 1.1 * HOUR_S),
        query_s=lambda at_s: 2.0 if HOUR_S <= at_s < 2 * HOUR_S else 1.0,
    ),
    Load(
        name="53300 above 30 for 30 min",
        arrivals_per_s=constant(40.0),
        slots=lambda at_s: 30 if HOUR_S <= at_s < 1.5 * HOUR_S else 1_000,
    ),
    Load(
        name="53300 above 30 for ever",
        arrivals_per_s=constant(40.0),
        slots=lambda _: 30,
        hours=12.0,
    ),
    Load(
        name="40/s, then 1/s",
        arrivals_per_s=step(40.0, 1.0, HOUR_S),
    ),
)


def measure(bench: Bench) -> list[Figure]:
    """Show the table of loads; return the most reversals any of them had in any hour."""
    studies = [study(load, seeds=1 if bench.quick else 3) for load in LOADS]
    for line in table(studies):
        bench.say(line)
    return [
        Figure(
            what="pool size: reversals in the worst hour, simulated",
            value=max(each.reversals_in_worst_hour for each in studies),
            unit="",
            target=MOST_REVERSALS_PER_HOUR,
            at_most=True,
            note=f"{len(LOADS)} loads, square waves of {PERIODS_MIN[0]} to {PERIODS_MIN[-1]} min",
        )
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A load with several seeds: the worst of them."""

    load: Load
    reversals_in_worst_hour: int
    changes: int
    last_sizes: tuple[int, int]
    """The smallest and the largest in the last hour."""
    waits_per_window: float
    """In the last hour, in the mean."""


def study(load: Load, *, seeds: int) -> Study:
    """Return what the tuner does under a load with so many seeds."""
    runs = [simulate(load, seed=seed) for seed in range(seeds)]
    last = [size for run in runs for size in run.sizes[-int(HOUR_S / WINDOW_S) :]]
    return Study(
        load=load,
        reversals_in_worst_hour=max(run.reversals_in_worst_hour() for run in runs),
        changes=max(len(run.changes()) for run in runs),
        last_sizes=(min(last), max(last)),
        waits_per_window=statistics.fmean(run.waits_per_window(1.0) for run in runs),
    )


def table(studies: Sequence[Study]) -> list[str]:
    """Return the lines of a table of loads: reversals, changes, sizes and waits in the end."""
    return [f"{'load':34}{'hours':>6}{'reversals/h':>12}{'changes':>8}{'size':>10}{'waits':>6}"] + [
        f"{each.load.name:34}{each.load.hours:6g}{each.reversals_in_worst_hour:12}{each.changes:8}"
        f"{'{}-{}'.format(*each.last_sizes):>10}{each.waits_per_window:6.0f}"
        for each in studies
    ]


def curve(run: Run, *, columns: int = 96) -> list[str]:
    """Return the size over time as text: a row for each ten connections, time to the right."""
    step_windows = max(1, len(run.sizes) // columns)
    columns_of = [
        max(run.sizes[start : start + step_windows])
        for start in range(0, len(run.sizes), step_windows)
    ]
    top = (max(columns_of) + 9) // 10 * 10
    return [f"{run.load.name}, {run.load.hours:g} h"] + [
        f"{level:4} |" + "".join("#" if size > level - 10 else " " for size in columns_of).rstrip()
        for level in range(top, 0, -10)
    ]


def main() -> None:
    """Print the table, and the curves where they are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--curves", action="store_true", help="draw the size over time")
    parser.add_argument("--seeds", type=int, default=3, help="simulate each load so many times")
    options = parser.parse_args()
    print("\n".join(table([study(load, seeds=options.seeds) for load in LOADS])))
    if options.curves:
        for load in LOADS:
            print("\n" + "\n".join(curve(simulate(load))))


if __name__ == "__main__":
    main()
