"""Counts of durations by bucket: cheap enough for every acquire, read when scraped.

Not an instrument of the client library: observing costs one bisection and no lock, because a pool
lives in one thread.
"""

from bisect import bisect_left
from collections.abc import Sequence

DURATION_EDGES_S = (0.001, 0.005, 0.010, 0.050, 0.100, 0.500, 1.0, 5.0, 10.0)
"""OpenTelemetry's edges for `db.client.*` durations (semantic conventions, database metrics)."""


class Histogram:
    """How often a duration fell under each edge, and their sum, in seconds."""

    __slots__ = ("counts", "edges", "sum_s")

    def __init__(self, edges: Sequence[float] = DURATION_EDGES_S) -> None:
        self.edges = tuple(edges)
        self.counts = [0] * (len(self.edges) + 1)  # not cumulative; the last is beyond all edges
        self.sum_s = 0.0

    def observe(self, duration_s: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(self.edges, duration_s)] += 1
        self.sum_s += duration_s

    @property
    def total(self) -> int:
        """Durations counted so far."""
        return sum(self.counts)

    def mean_s(self) -> float:
        """Return the mean of all durations; 0 when there is none."""
        total = self.total
        return self.sum_s / total if total else 0.0
