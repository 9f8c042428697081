"""The rows of alerts: runs the blocks of `alerts.sql` on a given connection.

Decides nothing. What a commit does to alerts is in the ledger's own `commit` (`store.py`), in the
form that `rows_of` gives it.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from uuid import UUID

from tollkeeper.credits.alert_model import (
    Alert,
    AlertChanges,
    AlertId,
    AlertState,
    Fired,
    ShownThreshold,
    Threshold,
)
from tollkeeper.credits.alerts import Setting
from tollkeeper.credits.model import Account
from tollkeeper.database.driver import Connection, Row
from tollkeeper.database.queries import load_queries
from tollkeeper.kernel.ids import AccountId, TenantId, TransactionId, shard_of

Rows = list[tuple[object, ...]]


class AlertStore:
    """Reads and writes of alerts; every method is one statement."""

    def __init__(self) -> None:
        self._sql = load_queries("tollkeeper.credits")

    async def thresholds(
        self, connection: Connection, places: Sequence[tuple[int, AccountId]]
    ) -> dict[AccountId, tuple[Threshold, ...]]:
        """Return the thresholds of every account in `places`, also where there is none."""
        found: dict[AccountId, list[Threshold]] = {account_id: [] for _, account_id in places}
        for row in await connection.fetch(self._sql["thresholds"], places):
            found[AccountId(row["account_id"])].append(_threshold(row))
        return {account_id: tuple(thresholds) for account_id, thresholds in found.items()}

    async def lock_account(
        self, connection: Connection, account_id: AccountId, shard: int
    ) -> tuple[Account, datetime] | None:
        """Lock an account in the caller's unit of work; return it and the time, None: no account.

        No commit lands meanwhile; one that was planned before lands afterwards only if nothing
        was set.
        """
        row = await connection.fetchrow(self._sql["account_for_alerts"], shard, account_id)
        if row is None:
            return None
        now: datetime = row["now"]
        return watched_account_of(row), now

    async def account(
        self, connection: Connection, account_id: AccountId, shard: int
    ) -> Account | None:
        """Return an account as it stands, None when there is none."""
        row = await connection.fetchrow(self._sql["watched_account"], shard, account_id)
        return None if row is None else watched_account_of(row)

    async def shown(
        self, connection: Connection, account_id: AccountId, shard: int
    ) -> tuple[ShownThreshold, ...]:
        """Return the thresholds of an account, lowest first, each with when it last fired."""
        rows = await connection.fetch(self._sql["shown_thresholds"], shard, account_id)
        return tuple(ShownThreshold(_threshold(row), row["fired_at"]) for row in rows)

    async def set_thresholds(
        self, connection: Connection, account: Account, setting: Setting, now: datetime
    ) -> None:
        """Write what setting an account's thresholds does; its row is locked."""
        await connection.execute(
            self._sql["set_thresholds"],
            account.shard,
            account.account_id,
            setting.alert_at,
            setting.alert_revision,
            now,
            [_threshold_row(account.account_id, account.shard, t) for t in setting.thresholds],
            *rows_of(setting.changes)[1:],
        )

    async def alerts(
        self,
        connection: Connection,
        tenant_id: TenantId | None,
        state: AlertState | None,
        *,
        after: UUID,
        limit: int,
    ) -> tuple[Alert, ...]:
        """Return up to `limit` alerts with an id above `after`: of a tenant (None: of all)."""
        if tenant_id is not None:
            rows = await connection.fetch(
                self._sql["alerts_of_tenant"], tenant_id, after, state, limit
            )
        elif state in {AlertState.OPEN, AlertState.ACKNOWLEDGED}:
            is_acknowledged = state is AlertState.ACKNOWLEDGED
            rows = await connection.fetch(
                self._sql["alerts_standing"], after, is_acknowledged, limit
            )
        else:
            is_rearmed = state is AlertState.REARMED
            rows = await connection.fetch(self._sql["alerts_of_all"], after, is_rearmed, limit)
        return tuple(map(_alert, rows))

    async def alerts_of_account(
        self,
        connection: Connection,
        account_id: AccountId,
        tenant_id: TenantId | None,
        state: AlertState | None,
        *,
        after: UUID,
        limit: int,
    ) -> tuple[Alert, ...]:
        """Return up to `limit` alerts of an account with an id above `after`."""
        rows = await connection.fetch(
            self._sql["alerts_of_account"], shard_of(account_id), account_id, tenant_id, after,
            state, limit,
        )  # fmt: skip
        return tuple(map(_alert, rows))

    async def alert(
        self, connection: Connection, alert_id: AlertId, tenant_id: TenantId | None
    ) -> Alert | None:
        """Return an alert, None when there is none or it is another tenant's."""
        row = await connection.fetchrow(self._sql["alert"], alert_id.bytes[-1], alert_id, tenant_id)
        return None if row is None else _alert(row)

    async def acknowledge(
        self,
        connection: Connection,
        alert_id: AlertId,
        tenant_id: TenantId | None,
        *,
        by: UUID,
        note: str | None,
    ) -> Alert | None:
        """Acknowledge an alert and return it; None: there is none, or it was before."""
        row = await connection.fetchrow(
            self._sql["acknowledge_alert"], alert_id.bytes[-1], alert_id, tenant_id, by, note
        )
        return None if row is None else _alert(row)

    async def count_open(self, connection: Connection) -> int:
        """Return how many alerts stand that nobody has acknowledged."""
        count: int = await connection.fetchval(self._sql["count_open_alerts"])
        return count


def watched_account_of(row: Row) -> Account:
    """Return the account in a row that has all its columns, those of alerts too."""
    return Account(
        account_id=AccountId(row["account_id"]), tenant_id=TenantId(row["tenant_id"]),
        shard=row["shard"], balance=row["balance"], reserved=row["reserved"],
        version=row["version"], head_hash=row["head_hash"], created_at=row["created_at"],
        next_expiry=row["next_expiry"], frozen_at=row["frozen_at"],
        alert_at=row["alert_at"], alert_revision=row["alert_revision"],
    )  # fmt: skip


def rows_of(changes: AlertChanges) -> tuple[Rows, Rows, Rows]:
    """Return thresholds, fired and ended alerts as the statements take them."""
    return (
        [_threshold_row(s.account_id, s.shard, s.threshold) for s in changes.switched],
        [_fired_row(fired) for fired in changes.fired],
        [(e.shard, e.alert_id, e.account_id, e.sequence) for e in changes.ended],
    )


def low_accounts(accounts: Iterable[Account]) -> list[tuple[int, AccountId]]:
    """Return the accounts that may have an alert to fire or to re-arm as they stand."""
    return [
        (a.shard, a.account_id)
        for a in accounts
        if a.alert_at is not None and a.available < a.alert_at
    ]


def _threshold_row(account_id: AccountId, shard: int, threshold: Threshold) -> tuple[object, ...]:
    return (
        shard, account_id, threshold.threshold, threshold.hysteresis, threshold.armed,
        threshold.last_alert,
    )  # fmt: skip


def _fired_row(fired: Fired) -> tuple[object, ...]:
    return (
        fired.shard, fired.alert_id, fired.account_id, fired.tenant_id, fired.threshold,
        fired.hysteresis, fired.available, fired.transaction_id, fired.sequence,
        fired.rearmed_sequence,
    )  # fmt: skip


def _threshold(row: Row) -> Threshold:
    last = row["last_alert"]
    return Threshold(
        threshold=row["threshold"],
        hysteresis=row["hysteresis"],
        armed=row["armed"],
        last_alert=None if last is None else AlertId(last),
    )


def _alert(row: Row) -> Alert:
    transaction_id = row["transaction_id"]
    return Alert(
        alert_id=AlertId(row["alert_id"]), account_id=AccountId(row["account_id"]),
        tenant_id=TenantId(row["tenant_id"]), threshold=row["threshold"],
        hysteresis=row["hysteresis"], available=row["available"], sequence=row["sequence"],
        transaction_id=None if transaction_id is None else TransactionId(transaction_id),
        fired_at=row["fired_at"], rearmed_at=row["rearmed_at"],
        rearmed_sequence=row["rearmed_sequence"], acknowledged_at=row["acknowledged_at"],
        acknowledged_by=row["acknowledged_by"], note=row["note"],
    )  # fmt: skip
