"""What can be asked of alerts: set thresholds, list what fired, acknowledge.

Firing is none of it: the planner decides it and the engine commits it. Setting thresholds takes the
account's row lock and counts its `alert_revision` up, so a commit either was there before and is
seen here, or misses and is planned anew.

Every method may be repeated: the same thresholds again change nothing, and
an alert is acknowledged once.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

import structlog

from tollkeeper.credits import alerts
from tollkeeper.credits.alert_model import (
    Alert,
    AlertId,
    AlertState,
    ShownThreshold,
    Threshold,
)
from tollkeeper.credits.alert_store import AlertStore
from tollkeeper.credits.errors import AccountNotFound, AlertNotFound, LedgerUnavailable
from tollkeeper.credits.metrics import CreditsMetrics
from tollkeeper.credits.model import Account
from tollkeeper.database.connect import is_retryable
from tollkeeper.database.driver import Connection
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.ids import AccountId, TenantId, milliseconds_since_epoch, shard_of
from tollkeeper.kernel.principal import Principal

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertFilter:
    """Which alerts are listed; None does not narrow."""

    state: AlertState | None = None
    account_id: AccountId | None = None
    tenant_id: TenantId | None = None


class AlertService:
    """The methods of alerts. A caller bound to a tenant sees that tenant's alone."""

    def __init__(
        self, store: AlertStore, *, writes: Pool, reads: Pool, metrics: CreditsMetrics
    ) -> None:
        self._store = store
        self._writes = writes
        self._reads = reads
        self._metrics = metrics

    async def set_thresholds(
        self, account_id: AccountId, wanted: tuple[Threshold, ...], *, by: Principal
    ) -> tuple[Account, tuple[ShownThreshold, ...]]:
        """Put thresholds in the place of an account's; what is crossed already fires at once.

        Raises:
            AccountNotFound: there is none, or it is another tenant's.
            LedgerUnavailable: try again.
        """
        shard, setting = shard_of(account_id), None
        async with self._lent() as connection, connection.transaction():
            found = await self._store.lock_account(connection, account_id, shard)
            account = _visible(None if found is None else found[0], account_id, by.tenant_id)
            assert found is not None
            now, place = found[1], (shard, account_id)
            current = (await self._store.thresholds(connection, [place]))[account_id]
            setting = alerts.set_thresholds(account, current, wanted, milliseconds_since_epoch(now))
            if setting is not None:
                await self._store.set_thresholds(connection, account, setting, now)
            shown = await self._store.shown(connection, account_id, shard)
        if setting is not None:
            self._metrics.alerts_fired(len(setting.changes.fired))
            _log.info(
                "credits.alerts_set", account=account_id, tenant=account.tenant_id,
                actor=str(by.key_id), thresholds=[each.threshold for each in wanted],
                fired=len(setting.changes.fired),
            )  # fmt: skip
        return account, shown

    async def thresholds(
        self, account_id: AccountId, tenant_id: TenantId | None
    ) -> tuple[Account, tuple[ShownThreshold, ...]]:
        """Return an account and its thresholds, lowest first.

        Raises:
            AccountNotFound: there is none, or it is another tenant's.
        """
        shard = shard_of(account_id)
        async with (
            self._reads.connection() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            found = await self._store.account(connection, account_id, shard)
            account = _visible(found, account_id, tenant_id)
            return account, await self._store.shown(connection, account_id, shard)

    async def alerts(self, wanted: AlertFilter, *, after: UUID, limit: int) -> tuple[Alert, ...]:
        """Return up to `limit` alerts with an id above `after`, oldest first."""
        async with self._reads.connection() as connection:
            if wanted.account_id is None:
                return await self._store.alerts(
                    connection, wanted.tenant_id, wanted.state, after=after, limit=limit
                )
            return await self._store.alerts_of_account(
                connection, wanted.account_id, wanted.tenant_id, wanted.state,
                after=after, limit=limit,
            )  # fmt: skip

    async def alert(self, alert_id: AlertId, tenant_id: TenantId | None) -> Alert:
        """Return an alert.

        Raises:
            AlertNotFound: there is none, or it is another tenant's.
        """
        async with self._reads.connection() as connection:
            return await self._found(connection, alert_id, tenant_id)

    async def acknowledge(
        self, alert_id: AlertId, note: str | None, *, by: Principal
    ) -> tuple[Alert, bool]:
        """Note that somebody knows of an alert; return it, and whether that is news.

        One that was acknowledged before is returned as it is: the first word stands.

        Raises:
            AlertNotFound: there is none, or it is another tenant's.
            LedgerUnavailable: try again.
        """
        # One statement by itself: kept in a unit of work, its row would keep the commit that ends
        # this alert, a payment, for as long as this process is paused.
        async with self._lent() as connection:
            done = await self._store.acknowledge(
                connection, alert_id, by.tenant_id, by=by.key_id, note=note
            )
            alert = done or await self._found(connection, alert_id, by.tenant_id)
        if done is not None:
            _log.info(
                "credits.alert_acknowledged", alert=str(alert_id), account=alert.account_id,
                tenant=alert.tenant_id, actor=str(by.key_id),
            )  # fmt: skip
        return alert, done is not None

    async def _found(
        self, connection: Connection, alert_id: AlertId, tenant_id: TenantId | None
    ) -> Alert:
        alert = await self._store.alert(connection, alert_id, tenant_id)
        if alert is None:
            raise AlertNotFound(alert_id=alert_id)
        return alert

    @asynccontextmanager
    async def _lent(self) -> AsyncIterator[Connection]:
        """Lend a connection; what may succeed when it is tried again is the caller's to repeat."""
        try:
            async with self._writes.connection() as connection:
                yield connection
        except Exception as error:
            if not is_retryable(error):
                raise
            reason = str(error) or type(error).__name__
            raise LedgerUnavailable(attempts=1, reason=reason) from error


def _visible(account: Account | None, account_id: AccountId, tenant_id: TenantId | None) -> Account:
    if account is None or (tenant_id is not None and account.tenant_id != tenant_id):
        raise AccountNotFound(account_id=account_id)
    return account
