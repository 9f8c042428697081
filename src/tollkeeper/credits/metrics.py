"""The ledger's instruments, every label set present from the start."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tollkeeper.credits import errors
from tollkeeper.credits.model import Opened, Outcome, Posted, Swept
from tollkeeper.kernel.errors import TollkeeperError
from tollkeeper.telemetry.metrics import LATENCY_BUCKETS_S

OPERATION_KINDS = (
    "open", "topup", "consume", "hold", "capture", "release", "extend", "expire", "refund",
    "unfreeze",
)  # fmt: skip
BATCH_SIZE_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000)

RESULTS: dict[type[TollkeeperError], str] = {
    errors.AccountNotFound: "account_not_found",
    errors.AccountTaken: "account_taken",
    errors.InsufficientCredits: "insufficient_credits",
    errors.BalanceTooLarge: "balance_too_large",
    errors.HoldNotFound: "hold_not_found",
    errors.HoldClosed: "hold_closed",
    errors.CaptureTooLarge: "capture_too_large",
    errors.TransactionNotFound: "transaction_not_found",
    errors.NotRefundable: "not_refundable",
    errors.RefundTooLarge: "refund_too_large",
    errors.AccountFrozen: "account_frozen",
    errors.NotFrozen: "not_frozen",
    errors.UnfreezeUnsafe: "unfreeze_unsafe",
    errors.KeyReused: "key_reused",
    errors.TransactionVanished: "transaction_vanished",
    errors.KeyExpired: "key_expired",
    errors.LedgerUnavailable: "unavailable",
    errors.OperationFailed: "failed",
}
"""Label of each way an operation can end without effect."""


REJECTIONS = ("queue_full", "draining", "database_down")
"""Why operations are not even accepted."""


class CreditsMetrics:
    """What the engine and the service report; `credits_*` in the exposition."""

    def __init__(self, registry: CollectorRegistry) -> None:
        operations = Counter(
            "credits_operations", "Operations decided.", ("kind", "result"), registry=registry
        )
        results = ("ok", "replayed", *RESULTS.values())
        self._operations = {
            (kind, result): operations.labels(kind, result)
            for kind in OPERATION_KINDS
            for result in results
        }
        latency = Histogram(
            "credits_operation_duration_seconds",
            "From acceptance into the queue to the outcome; kind `batch` is a whole batch request.",
            ("kind",),
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self._latency = {kind: latency.labels(kind) for kind in (*OPERATION_KINDS, "batch")}
        self._batch_size = Histogram(
            "credits_batch_size",
            "Operations committed together.",
            buckets=BATCH_SIZE_BUCKETS,
            registry=registry,
        )
        retries = Counter(
            "credits_retries", "Operations put back, by reason.", ("reason",), registry=registry
        )
        self._retries = {reason: retries.labels(reason) for reason in ("contention", "database")}
        rejected = Counter(
            "credits_rejected", "Operations not accepted.", ("reason",), registry=registry
        )
        self._rejected = {reason: rejected.labels(reason) for reason in REJECTIONS}
        self._queue_depth = Gauge(
            "credits_queue_depth", "Operations accepted and not yet decided.", registry=registry
        )

        self._alerts_fired = Counter(
            "credits_alerts_fired", "Alerts fired by this process.", registry=registry
        )

    def watch_queue(self, depth: Callable[[], int]) -> None:
        """Read the queue's depth from `depth` whenever the metrics are scraped."""
        self._queue_depth.set_function(depth)

    def batch_decided(self, counts: dict[tuple[str, str], int]) -> None:
        """Count a decided batch: (kind, result) to operations."""
        for labels, count in counts.items():
            self._operations[labels].inc(count)

    def batch_taken(self, size: int) -> None:
        """Record how many operations are committed together."""
        self._batch_size.observe(size)

    def answered(self, kind: str, duration_s: float) -> None:
        """Record how long a caller waited for the engine."""
        self._latency[kind].observe(duration_s)

    def retried(self, reason: str, count: int) -> None:
        """Count operations put back for `contention` or `database`."""
        self._retries[reason].inc(count)

    def alerts_fired(self, count: int) -> None:
        """Count alerts that were committed."""
        self._alerts_fired.inc(count)

    def rejected(self, reason: str, count: int) -> None:
        """Count operations refused for one of `REJECTIONS`."""
        self._rejected[reason].inc(count)


def result_of(outcome: Outcome | errors.LedgerUnavailable | errors.OperationFailed) -> str:
    """Return the `result` label of an outcome."""
    if type(outcome) is Posted:
        return "replayed" if outcome.replayed else "ok"
    if type(outcome) is Opened:
        return "ok" if outcome.created else "replayed"
    if type(outcome) is Swept:
        return "ok"
    assert isinstance(outcome, errors.CreditsError | errors.OperationFailed)
    return RESULTS[type(outcome)]
