"""The instruments of usage."""

from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge


class UsageMetrics:
    """What the roller reports; `credits_usage_*` in the exposition."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._transactions = Counter(
            "credits_usage_transactions", "Transactions rolled up into usage.", registry=registry
        )
        self._not_whole = Gauge(
            "credits_usage_accounts_not_whole",
            "Accounts that lack transactions, or have too many: their usage is counted from rows.",
            registry=registry,
        )
        self._ended = Gauge(
            "credits_usage_last_end_timestamp_seconds",
            "When all that was committed was last rolled up; 0 before.",
            registry=registry,
        )

    def rolled_up(self, transactions: int) -> None:
        """Count transactions."""
        self._transactions.inc(transactions)

    def ended(self, now: datetime, *, not_whole: int) -> None:
        """Remember when all there was had been looked at, and how many accounts were left alone."""
        self._not_whole.set(not_whole)
        self._ended.set(now.timestamp())
