"""When an account's alerts fire and re-arm. Pure.

An armed threshold fires when less than it is available after a transaction, and is armed again when
its hysteresis more is available. That follows from what is available alone, not from the way there:
whatever was missed (a commit of a version that knows no alerts) is made up for before the next
transaction that comes near. So a threshold fires once for each time that its account comes down
from at least `threshold + hysteresis`, and no oftener.
"""

import hashlib
from collections.abc import Iterable, Sequence

import msgspec

from tollkeeper.credits.alert_model import (
    AlertChanges,
    AlertId,
    Ended,
    Fired,
    Switched,
    Threshold,
)
from tollkeeper.credits.model import NO_ALERTS, Account, Transaction
from tollkeeper.kernel.amounts import MAX_AMOUNT_MINOR
from tollkeeper.kernel.ids import ENTROPY_BITS, AccountId, TransactionId, compose_id

HYSTERESIS_SHARE = 10
"""A threshold that says nothing else re-arms at a tenth of it above it, at least one unit."""

_ENTROPY_MASK = (1 << ENTROPY_BITS) - 1


def default_hysteresis(threshold: int) -> int:
    """Return a tenth of a threshold, at least 1 and so that their sum is still an amount."""
    return min(max(1, threshold // HYSTERESIS_SHARE), MAX_AMOUNT_MINOR - threshold)


def alert_at(thresholds: Iterable[Threshold]) -> int | None:
    """Return how much available leaves nothing to fire or re-arm; None: there is no threshold."""
    return max((each.rearms_at for each in thresholds), default=None)


class Watch:
    """The thresholds of one account while its transactions are decided.

    Without thresholds (None: they were not read) it only tells whether they are needed.
    """

    __slots__ = (
        "_account", "_alert_at", "_before", "_ended", "_fired", "_now_ms", "_switched",
        "_thresholds", "is_unread",
    )  # fmt: skip

    def __init__(
        self, account: Account, thresholds: Sequence[Threshold] | None, now_ms: int
    ) -> None:
        self._account = account
        self._alert_at = account.alert_at
        self._thresholds = None if thresholds is None else list(thresholds)
        self._now_ms = now_ms
        self._before: int | None = account.available  # until it was looked at
        self._switched: set[int] = set()
        self._fired: dict[AlertId, Fired] = {}
        self._ended: list[Ended] = []
        self.is_unread = False

    @property
    def account_id(self) -> AccountId:
        """Whose thresholds they are."""
        return self._account.account_id

    @property
    def has_changes(self) -> bool:
        """Whether a threshold fired or was armed again, or may have and was not read."""
        return self.is_unread or bool(self._switched)

    def forget_before(self) -> None:
        """Make nothing up for: what the account's row said before is not to be trusted."""
        self._before = None

    def stand(self, sequence: int) -> None:
        """Bring the thresholds up to date with the account as it was read, at `sequence`."""
        before, self._before = self._before, None
        if before is not None:
            self._look(before, sequence, None)

    def see(self, transaction: Transaction) -> None:
        """Look at what a transaction leaves available."""
        available = transaction.balance - transaction.reserved
        if self._thresholds is None:
            least = available if self._before is None else min(available, self._before)
            self._before = None
            if self._alert_at is not None and least < self._alert_at:
                self.is_unread = True
            return
        self.stand(transaction.sequence - 1)
        self._look(available, transaction.sequence, transaction.transaction_id)

    def thresholds(self) -> tuple[Threshold, ...]:
        """Return the thresholds as they are now."""
        return tuple(self._thresholds or ())

    def changes(self) -> AlertChanges:
        """Return what was done."""
        account, now = self._account, self.thresholds()
        return AlertChanges(
            [Switched(account.account_id, account.shard, now[at]) for at in sorted(self._switched)],
            tuple(self._fired.values()),
            self._ended,
        )

    def _look(self, available: int, sequence: int, transaction_id: TransactionId | None) -> None:
        thresholds = self._thresholds or []
        for at, threshold in enumerate(thresholds):
            if threshold.armed:
                if available < threshold.threshold:
                    fired = self._fire(threshold, available, sequence, transaction_id)
                    thresholds[at] = msgspec.structs.replace(
                        threshold, armed=False, last_alert=fired.alert_id
                    )
                    self._switched.add(at)
            elif available >= threshold.rearms_at:
                self._end(threshold.last_alert, sequence)
                thresholds[at] = msgspec.structs.replace(threshold, armed=True)
                self._switched.add(at)

    def _fire(
        self,
        threshold: Threshold,
        available: int,
        sequence: int,
        transaction_id: TransactionId | None,
    ) -> Fired:
        account = self._account
        named = (account.account_id, account.alert_revision, sequence, threshold.threshold)
        digest = hashlib.sha256(f"alert {named}".encode()).digest()
        entropy = int.from_bytes(digest, "big") & _ENTROPY_MASK
        fired = Fired(
            alert_id=AlertId(compose_id(self._now_ms, entropy, account.shard)),
            account_id=account.account_id, tenant_id=account.tenant_id, shard=account.shard,
            threshold=threshold.threshold, hysteresis=threshold.hysteresis, available=available,
            sequence=sequence, transaction_id=transaction_id,
        )  # fmt: skip
        self._fired[fired.alert_id] = fired
        return fired

    def _end(self, alert_id: AlertId | None, sequence: int) -> None:
        if alert_id is None:
            return
        fired = self._fired.get(alert_id)
        if fired is not None:
            self._fired[alert_id] = msgspec.structs.replace(fired, rearmed_sequence=sequence)
            return
        account = self._account
        self._ended.append(
            Ended(
                alert_id=alert_id,
                account_id=account.account_id,
                shard=account.shard,
                sequence=sequence,
            )
        )


def joined(watches: Sequence[Watch]) -> tuple[AlertChanges, tuple[AccountId, ...]]:
    """Return what becomes of the alerts of a batch, and the accounts that must be read first."""
    done = [watch.changes() for watch in watches if watch.has_changes]
    if not done:
        return NO_ALERTS, ()
    return (
        AlertChanges(
            [switched for each in done for switched in each.switched],
            [fired for each in done for fired in each.fired],
            [ended for each in done for ended in each.ended],
        ),
        tuple(watch.account_id for watch in watches if watch.is_unread),
    )


class Setting(msgspec.Struct, frozen=True):
    """What setting thresholds does: the account's new columns and thresholds, and the alerts.

    `changes.switched` is empty: all thresholds are written.
    """

    alert_at: int | None
    alert_revision: int
    thresholds: tuple[Threshold, ...]
    changes: AlertChanges


def set_thresholds(
    account: Account,
    current: Sequence[Threshold],
    wanted: Sequence[Threshold],
    now_ms: int,
) -> Setting | None:
    """Put `wanted` in the place of an account's `current` thresholds; None: nothing changes.

    One that was there keeps its state. What is crossed already fires at once, unless the account is
    frozen: its row is not to be trusted, and the lifting looks. Alerts of thresholds that are
    taken away end.
    """
    known = {each.threshold: each for each in current}
    merged = [
        msgspec.structs.replace(known.get(each.threshold, each), hysteresis=each.hysteresis)
        for each in sorted(wanted, key=lambda each: each.threshold)
    ]
    revision = (account.alert_revision or 0) + 1
    highest = alert_at(merged)
    changed = msgspec.structs.replace(account, alert_at=highest, alert_revision=revision)
    watch = Watch(changed, merged, now_ms)
    if account.frozen_at is None:
        watch.stand(account.version)
    thresholds = watch.thresholds()
    if thresholds == tuple(sorted(current, key=lambda each: each.threshold)):
        return None
    kept = {each.threshold for each in merged}
    removed = [
        Ended(
            alert_id=each.last_alert,
            account_id=account.account_id,
            shard=account.shard,
            sequence=None,
        )
        for each in current
        if each.threshold not in kept and not each.armed and each.last_alert is not None
    ]
    done = watch.changes()
    changes = AlertChanges((), done.fired, [*done.ended, *removed])
    return Setting(highest, revision, thresholds, changes)
