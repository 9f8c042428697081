"""Acknowledging an alert is nothing that a payment waits for."""

import asyncio
from uuid import UUID

from prometheus_client import CollectorRegistry
from tests.alerts import OPERATOR, alerts_of, at, fired_of, set_alerts
from tests.ledger import Ledger, consume, topup, words_of

from tollkeeper.credits.alert_model import Alert, AlertId
from tollkeeper.credits.alert_service import AlertService
from tollkeeper.credits.alert_store import AlertStore
from tollkeeper.credits.metrics import CreditsMetrics
from tollkeeper.database.driver import Connection
from tollkeeper.kernel.ids import TenantId


class PausedStore(AlertStore):
    """A store of a process that is paused as soon as its statement is done."""

    def __init__(self, meeting: asyncio.Barrier) -> None:
        super().__init__()
        self._meeting = meeting

    async def acknowledge(
        self,
        connection: Connection,
        alert_id: AlertId,
        tenant_id: TenantId | None,
        *,
        by: UUID,
        note: str | None,
    ) -> Alert | None:
        done = await super().acknowledge(connection, alert_id, tenant_id, by=by, note=note)
        await self._meeting.wait()  # acknowledged
        await self._meeting.wait()  # the payment is done
        return done


async def test_who_is_paused_while_acknowledging_keeps_no_payment_waiting(
    ledger: Ledger,
) -> None:
    """The payment re-arms the threshold, and so writes to the alert that is acknowledged."""
    await ledger.open_with(100, "ann")
    await set_alerts(ledger, "ann", at(50))
    await ledger.execute(consume("ann", 60))
    (alert,) = await alerts_of(ledger, "ann")
    meeting = asyncio.Barrier(2)
    service = AlertService(
        PausedStore(meeting), writes=ledger.pool, reads=ledger.pool,
        metrics=CreditsMetrics(CollectorRegistry()),
    )  # fmt: skip
    call = asyncio.ensure_future(service.acknowledge(alert.alert_id, None, by=OPERATOR))
    await meeting.wait()
    paid = await ledger.execute(topup("ann", 60))
    await meeting.wait()
    acknowledged, is_new = await call

    assert ["posted"] == words_of(paid)
    assert 0 == ledger.retries("database")
    assert is_new
    assert acknowledged.acknowledged_by == OPERATOR.key_id
    assert [(50, 2, 40, "rearmed")] == await fired_of(ledger, "ann")
