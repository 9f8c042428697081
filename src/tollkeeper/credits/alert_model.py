"""Values of low-balance alerts: thresholds of accounts, and what fired; amounts in minor units.

Below `model.py`, whose plans carry them. When a threshold fires is in `alerts.py`.
"""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import NewType
from uuid import UUID

import msgspec

from tollkeeper.kernel.ids import AccountId, TenantId, TransactionId

THRESHOLDS_LIMIT = 20
"""Most thresholds of one account: all of them are looked at in a batch that comes near one."""

AlertId = NewType("AlertId", UUID)


class Threshold(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Less than `threshold` available fires an alert; `threshold + hysteresis` re-arms it.

    `last_alert` is what it fired last; while it is not `armed`, that alert stands.
    """

    threshold: int
    hysteresis: int
    armed: bool = True
    last_alert: AlertId | None = None

    @property
    def rearms_at(self) -> int:
        """What must be available for it to be armed again, in minor units."""
        return self.threshold + self.hysteresis


class ShownThreshold(msgspec.Struct, frozen=True):
    """A threshold, and when it last fired; None: never since it was set."""

    threshold: Threshold
    fired_at: datetime | None


class AlertState(StrEnum):
    """What is to be done about an alert: each is in exactly one of these."""

    OPEN = "open"
    """It stands, and nobody has acknowledged it."""
    ACKNOWLEDGED = "acknowledged"
    """It stands, and somebody knows."""
    REARMED = "rearmed"
    """Enough is available again, or its threshold was taken away."""


class Fired(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A threshold fired: after transaction `sequence`, `available` was less.

    Without a `transaction_id` the account was found below at `sequence`, its version then.
    `rearmed_sequence` is the transaction of the same batch that re-armed it, if one did.
    """

    alert_id: AlertId
    account_id: AccountId
    tenant_id: TenantId
    shard: int
    threshold: int
    hysteresis: int
    available: int
    sequence: int
    transaction_id: TransactionId | None
    rearmed_sequence: int | None = None


class Ended(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An alert ends: transaction `sequence` re-armed its threshold; None: that was taken away."""

    alert_id: AlertId
    account_id: AccountId
    shard: int
    sequence: int | None


class Switched(msgspec.Struct, frozen=True, gc=False):
    """A threshold of an account as it is after a batch that fired or re-armed it."""

    account_id: AccountId
    shard: int
    threshold: Threshold


class AlertChanges(msgspec.Struct, frozen=True, gc=False):
    """What a batch, or setting thresholds, does to alerts; all in their final state."""

    switched: Sequence[Switched] = ()
    fired: Sequence[Fired] = ()
    ended: Sequence[Ended] = ()


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """An alert as it is kept."""

    alert_id: AlertId
    account_id: AccountId
    tenant_id: TenantId
    threshold: int
    hysteresis: int
    available: int
    sequence: int
    transaction_id: TransactionId | None
    fired_at: datetime
    rearmed_at: datetime | None
    rearmed_sequence: int | None
    acknowledged_at: datetime | None
    acknowledged_by: UUID | None
    note: str | None

    @property
    def state(self) -> AlertState:
        """What is to be done about it."""
        if self.rearmed_at is not None:
            return AlertState.REARMED
        return AlertState.OPEN if self.acknowledged_at is None else AlertState.ACKNOWLEDGED
