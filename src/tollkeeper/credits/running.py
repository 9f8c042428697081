"""An account while a batch is decided: the state after the operations so far. Pure."""

from datetime import datetime

from tollkeeper.credits.alerts import Watch
from tollkeeper.credits.model import Account


class Running:
    """An account while a batch is decided: the state after the operations so far."""

    __slots__ = (
        "account", "balance", "expected", "frozen_at", "head", "next_expiry", "reserved", "version",
        "watch",
    )  # fmt: skip

    def __init__(
        self, account: Account, *, expected: int | None, watch: Watch | None = None
    ) -> None:
        self.account = account
        self.balance = account.balance
        self.reserved = account.reserved
        self.version = account.version
        self.head = account.head_hash
        self.next_expiry = account.next_expiry
        self.frozen_at = account.frozen_at
        self.expected = expected  # None: opened by this batch
        self.watch = watch  # None: it has no thresholds

    @property
    def has_changed(self) -> bool:
        """Whether there is anything to commit."""
        return self.version != self.expected or (self.watch is not None and self.watch.has_changes)

    @property
    def available(self) -> int:
        """What may be spent now, in minor units."""
        return self.balance - self.reserved

    def expect_expiry(self, expires_at: datetime) -> None:
        """Keep `next_expiry` at or before the expiry of every open hold."""
        if self.next_expiry is None or expires_at < self.next_expiry:
            self.next_expiry = expires_at

    def current(self) -> Account:
        """Return the account as it is now."""
        account = self.account
        return Account(
            account_id=account.account_id, tenant_id=account.tenant_id, shard=account.shard,
            balance=self.balance, reserved=self.reserved, version=self.version,
            head_hash=self.head, created_at=account.created_at, next_expiry=self.next_expiry,
            frozen_at=self.frozen_at, alert_at=account.alert_at,
            alert_revision=account.alert_revision,
        )  # fmt: skip
