"""The instruments of the schema's life, every label set present from the start."""

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

PARTITIONED: Final = ("credit_transactions", "holds", "idempotency_keys")

REFRESHES: Final = ("refreshed", "unchanged", "fresh", "busy")
"""How a round of the summary ends: `unchanged` when it says what the accounts say, `fresh` when
another worker saw to it a moment ago, `busy` when one is at it."""


class PartitionMetrics:
    """How far partitions reach; `credits_partitions_*` in the exposition."""

    def __init__(self, registry: CollectorRegistry) -> None:
        ends = Gauge(
            "credits_partitions_end_timestamp_seconds",
            "Up to when a table has partitions without a gap from now on; 0: none for now.",
            ("table",),
            registry=registry,
        )
        self._ends = {table: ends.labels(table) for table in PARTITIONED}

    def reach(self, ends: Mapping[str, datetime | None]) -> None:
        """Show up to when each table has partitions."""
        for table, end in ends.items():
            self._ends[table].set(0 if end is None else end.timestamp())


class SummaryMetrics:
    """How the summary of balances is kept; `credits_summary_*` in the exposition."""

    def __init__(self, registry: CollectorRegistry) -> None:
        rounds = Counter(
            "credits_summary_rounds",
            "Rounds of the summary of balances, by result.",
            ("result",),
            registry=registry,
        )
        self._rounds = {result: rounds.labels(result) for result in REFRESHES}
        self._as_of = Gauge(
            "credits_summary_as_of_timestamp_seconds",
            "When the summary of balances was last known to be what the accounts say; 0: never.",
            registry=registry,
        )

    def ended(self, result: str) -> None:
        """Count a round."""
        self._rounds[result].inc()

    def as_of(self, moment: datetime | None) -> None:
        """Show when the summary was last true."""
        if moment is not None:
            self._as_of.set(moment.timestamp())


class ArchiveMetrics:
    """What the archive holds; `credits_archive*` and `credits_seal*` in the exposition."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._archived = Counter(
            "credits_archived_partitions", "Partitions moved to the archive.", registry=registry
        )
        self._postponed = Counter(
            "credits_archive_postponements",
            "Times a partition stayed where it was because somebody kept a lock on it.",
            registry=registry,
        )
        checks = Counter(
            "credits_seal_checks", "Archived partitions read again.", ("result",), registry=registry
        )
        self._checks = {result: checks.labels(result) for result in ("intact", "broken")}
        self._partitions = Gauge(
            "credits_archive_partitions", "Partitions in the archive.", registry=registry
        )
        self._broken = Gauge(
            "credits_broken_seals",
            "Archived partitions that are gone, or are not what their seal says.",
            registry=registry,
        )

    def archived(self) -> None:
        """Count a partition that was moved."""
        self._archived.inc()

    def postponed(self) -> None:
        """Count a partition that could not be moved yet."""
        self._postponed.inc()

    def checked(self, *, is_intact: bool) -> None:
        """Count a partition that was compared with its seal."""
        self._checks["intact" if is_intact else "broken"].inc()

    def archive_stands(self, *, partitions: int, broken: int) -> None:
        """Show how many partitions there are, and how many are not what they were."""
        self._partitions.set(partitions)
        self._broken.set(broken)
