"""The instruments of reconciliation, every label set present from the start."""

from datetime import datetime
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

PASSES: Final = ("recent", "thorough")
"""`recent` checks what changed since it last looked, `thorough` all chains, again and again."""


class ReconciliationMetrics:
    """What the reconciler reports; `credits_*` in the exposition."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._broken = Gauge(
            "credits_audit_chain_integrity_errors",
            "Accounts that are not what their transactions say: frozen until an operator lifts it, "
            "gone, or found beyond the limit of freezes.",
            registry=registry,
        )
        self._negative = Gauge(
            "credits_negative_balance_accounts",
            "Accounts with less than nothing, in the balance or available.",
            registry=registry,
        )
        self._behind = Gauge(
            "credits_reconciliation_behind_accounts",
            "Accounts that have changed and are not reconciled yet.",
            registry=registry,
        )
        accounts = Counter(
            "credits_reconciled_accounts", "Accounts checked.", ("pass",), registry=registry
        )
        self._accounts = {name: accounts.labels(name) for name in PASSES}
        transactions = Counter(
            "credits_reconciled_transactions", "Transactions checked.", ("pass",), registry=registry
        )
        self._transactions = {name: transactions.labels(name) for name in PASSES}
        freezes = Counter(
            "credits_account_freezes", "Accounts frozen.", ("pass",), registry=registry
        )
        self._freezes = {name: freezes.labels(name) for name in PASSES}
        self._unwritten = Counter(
            "credits_evidence_failures",
            "Freezes whose evidence could not be written to a file.",
            registry=registry,
        )
        failures = Counter(
            "credits_reconciliation_failures",
            "Pieces, slices and accounts that could not be looked at.",
            ("pass",),
            registry=registry,
        )
        self._failures = {name: failures.labels(name) for name in PASSES}
        ended = Gauge(
            "credits_reconciliation_last_end_timestamp_seconds",
            "When all that had changed, or all chains, were last checked to the end; 0 before.",
            ("pass",),
            registry=registry,
        )
        self._ended = {name: ended.labels(name) for name in PASSES}

    def stand(self, *, broken: int, negative: int) -> None:
        """Set how many accounts are broken and below zero."""
        self._broken.set(broken)
        self._negative.set(negative)

    def behind(self, accounts: int) -> None:
        """Set how many accounts have changed and are not reconciled yet."""
        self._behind.set(accounts)

    def checked(self, name: str, *, accounts: int, transactions: int) -> None:
        """Count what a pass has checked."""
        self._accounts[name].inc(accounts)
        self._transactions[name].inc(transactions)

    def ended(self, name: str, now: datetime) -> None:
        """Remember when a pass came to its end."""
        self._ended[name].set(now.timestamp())

    def failed(self, name: str) -> None:
        """Count something that a pass could not look at."""
        self._failures[name].inc()

    def frozen(self, name: str, *, has_evidence: bool) -> None:
        """Count a freeze."""
        self._freezes[name].inc()
        if not has_evidence:
            self._unwritten.inc()
