"""The instruments of the checkpoints' maker, every label set present from the start."""

from datetime import datetime
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

RESULTS: Final = ("made", "unchanged", "busy", "failed")
"""How a round ends: `unchanged` when no account moved, `busy` when another worker is at it."""

TARGETS: Final = ("file", "http")

LEAVES_BUCKETS: Final = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)


class CheckpointMetrics:
    """What the maker reports; `credits_checkpoint*` in the exposition."""

    def __init__(self, registry: CollectorRegistry) -> None:
        rounds = Counter(
            "credits_checkpoints", "Rounds of the maker, by result.", ("result",), registry=registry
        )
        self._rounds = {result: rounds.labels(result) for result in RESULTS}
        publications = Counter(
            "credits_checkpoint_publications",
            "Notes that a target took, and rounds in which it did not take what there was.",
            ("target", "result"),
            registry=registry,
        )
        self._publications = {
            (target, result): publications.labels(target, result)
            for target in TARGETS
            for result in ("ok", "failed")
        }
        self._last_success = Gauge(
            "credits_checkpoint_last_success_timestamp_seconds",
            "When all that was committed was last known to be covered; 0 before.",
            registry=registry,
        )
        self._leaves = Histogram(
            "credits_checkpoint_leaves",
            "Accounts that a checkpoint covers.",
            buckets=LEAVES_BUCKETS,
            registry=registry,
        )

    def made(self, leaves: int, now: datetime) -> None:
        """Count a checkpoint over so many accounts."""
        self._rounds["made"].inc()
        self._leaves.observe(leaves)
        self._last_success.set(now.timestamp())

    def unchanged(self, now: datetime) -> None:
        """Count a round in which everything was covered already."""
        self._rounds["unchanged"].inc()
        self._last_success.set(now.timestamp())

    def busy(self) -> None:
        """Count a round in which another worker held the lock."""
        self._rounds["busy"].inc()

    def failed(self) -> None:
        """Count a round that made nothing although it should have."""
        self._rounds["failed"].inc()

    def published(self, target: str, notes: int) -> None:
        """Count notes that a target took."""
        self._publications[target, "ok"].inc(notes)

    def publication_failed(self, target: str) -> None:
        """Count a round in which a target did not take what there was."""
        self._publications[target, "failed"].inc()
