"""Watches a pool and gives it the size that `tuning.py` decides on, once in a window.

Owns no rule and no task: whoever watches the database calls `tick` once a second. Until the
server's limits are known the pool keeps its size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import structlog

from tollkeeper.database.histogram import Histogram
from tollkeeper.database.pool import Pool
from tollkeeper.database.tuning import (
    WINDOW_S,
    Decision,
    History,
    Reason,
    TuningLimits,
    Window,
    budget_of,
    decide,
)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningPlan:
    """What an operator says about the size of a pool."""

    pool: str
    """Its name."""
    floor: int
    """The size it starts with and shrinks back to."""
    least: int
    """What is left to it if the server has no room for the floor."""
    most: int
    """The size it may grow to if the server has room."""
    replicas: int
    """Processes that share the server, at their most."""
    others: int
    """Connections that this process keeps beside the pool."""
    spare: int
    """Connections of the server that are left to other programs."""


@dataclass(frozen=True, slots=True)
class _Totals:
    """Counters at the beginning of a window."""

    waits: int
    refusals: int
    queries: int
    query_time_s: float


class Tuner:
    """The tuning of one pool."""

    def __init__(
        self,
        pool: Pool,
        plan: TuningPlan,
        *,
        operations: Histogram,
        refusals: Callable[[], int],
        now_s: float,
    ) -> None:
        self.last: Decision | None = None
        """The last decision; None before the first window has ended."""
        self.budget: int | None = None
        """Most connections the pool may have; None before the server was asked."""
        self._pool = pool
        self._plan = plan
        self._operations = operations
        self._refusals = refusals
        self._history = History()
        self._idle: list[int] = []
        self._began_s = now_s
        self._before = self._totals()

    @property
    def said(self) -> str | None:
        """The last decision in words."""
        return None if self.last is None else f"{self.last.reason.value}: {self.last.detail}"

    def learn(self, max_connections: int, reserved: int) -> None:
        """Take note of how many connections the server takes."""
        plan = self._plan
        allowed = budget_of(
            max_connections=max_connections,
            reserved=reserved + plan.spare,
            replicas=plan.replicas,
            others=plan.others,
            minimum=plan.least,
        )
        if allowed < plan.floor and self.budget != allowed:
            _log.warning(
                "database.pool_exceeds_server", pool=plan.pool, size=plan.floor, budget=allowed,
                max_connections=max_connections, replicas=plan.replicas,
            )  # fmt: skip
        self.budget = min(allowed, max(plan.most, plan.least))

    def tick(self, now_s: float) -> None:
        """Take a sample; at the end of a window, decide and resize."""
        status = self._pool.status()
        self._idle.append(status.size - status.in_use)
        if now_s - self._began_s < WINDOW_S:
            return
        if self.budget is None:  # the server could not be asked: nothing is decided on its outage
            self._began_s, self._idle, self._before = now_s, [], self._totals()
            return
        window = self._window(now_s, status.size)
        limits = TuningLimits(minimum=min(self._plan.floor, self.budget), budget=self.budget)
        decision = self.last = decide(window, limits)
        self._history = decision.history
        self._began_s, self._idle, self._before = now_s, [], self._totals()
        if decision.size != window.size or decision.reason not in {Reason.STEADY, Reason.COOLDOWN}:
            _log.info(
                "database.pool_tuned", pool=self._pool.name, reason=decision.reason.value,
                detail=decision.detail, size=decision.size, former=window.size,
            )  # fmt: skip
        if decision.size != window.size:
            self._pool.resize(decision.size, min(status.minimum, decision.size))

    def _window(self, now_s: float, size: int) -> Window:
        before, after = self._before, self._totals()
        queries = after.queries - before.queries
        time_s = after.query_time_s - before.query_time_s
        return Window(
            at_s=now_s,
            size=size,
            waits=after.waits - before.waits,
            idle_median=median(self._idle),
            queries=queries,
            query_mean_s=time_s / queries if queries else 0.0,
            refusals=after.refusals - before.refusals,
            history=self._history,
        )

    def _totals(self) -> _Totals:
        status = self._pool.status()
        return _Totals(
            waits=status.waited_total + status.refused_total,
            refusals=self._refusals(),
            queries=self._operations.total,
            query_time_s=self._operations.sum_s,
        )
