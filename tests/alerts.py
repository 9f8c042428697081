"""What tests of alerts share: whose they are, and how they stand in few words."""

from uuid import UUID

from tests.ledger import TENANT, Ledger

from tollkeeper.credits.alert_model import Alert, ShownThreshold, Threshold
from tollkeeper.credits.alert_service import AlertFilter
from tollkeeper.kernel.ids import AccountId, TenantId
from tollkeeper.kernel.principal import Principal, Scope

OPERATOR = Principal(key_id=UUID(int=7), scopes=frozenset(Scope), tenant_id=None)
TENANTS_KEY = Principal(key_id=UUID(int=8), scopes=frozenset(Scope), tenant_id=TenantId(TENANT))
FIRST_ID = UUID(int=0)


def at(threshold: int, hysteresis: int = 10) -> Threshold:
    return Threshold(threshold=threshold, hysteresis=hysteresis)


async def set_alerts(
    ledger: Ledger, account_id: str, *wanted: Threshold
) -> tuple[ShownThreshold, ...]:
    _, shown = await ledger.alerts.set_thresholds(AccountId(account_id), wanted, by=OPERATOR)
    return shown


async def alerts_of(ledger: Ledger, account_id: str) -> tuple[Alert, ...]:
    wanted = AlertFilter(account_id=AccountId(account_id))
    return await ledger.alerts.alerts(wanted, after=FIRST_ID, limit=1_000)


async def fired_of(ledger: Ledger, account_id: str) -> list[tuple[int, int, int, str]]:
    """Return threshold, sequence, what was available, and state of an account's alerts."""
    return sorted(
        (each.threshold, each.sequence, each.available, each.state.value)
        for each in await alerts_of(ledger, account_id)
    )


def fired_by(ledger: Ledger) -> float | None:
    return ledger.registry.get_sample_value("credits_alerts_fired_total")
