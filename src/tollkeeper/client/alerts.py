"""Typed calls of alerts: thresholds of an account, what fired, acknowledging.

Every call may be sent again: thresholds are replaced as a whole, and an alert is acknowledged once.
"""

from collections.abc import Mapping
from datetime import datetime
from urllib.parse import quote

import msgspec

from tollkeeper.client.caller import JSON, Caller
from tollkeeper.client.errors import CallMalformed

PAGE_LIMIT = 1_000
"""Most alerts on one page."""


class AlertThreshold(msgspec.Struct, frozen=True, kw_only=True):
    """A threshold of an account; `state` is armed or fired."""

    threshold: int
    hysteresis: int
    state: str
    last_alert_id: str | None = None
    last_fired_at: datetime | None = None


class AccountAlerts(msgspec.Struct, frozen=True, kw_only=True):
    """The thresholds of an account, lowest first."""

    account_id: str
    available: int
    alerts: tuple[AlertThreshold, ...]


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """An alert that fired; `state` is open, acknowledged or rearmed."""

    alert_id: str
    account_id: str
    tenant_id: str
    state: str
    threshold: int
    hysteresis: int
    available: int
    sequence: int
    fired_at: datetime
    transaction_id: str | None = None
    rearmed_at: datetime | None = None
    rearmed_sequence: int | None = None
    acknowledged_at: datetime | None = None
    acknowledged_by: str | None = None
    note: str | None = None


class AlertPage(msgspec.Struct, frozen=True):
    """A page of alerts, oldest first; `next` is the cursor of the page after it."""

    items: tuple[Alert, ...]
    next: str | None = None


class AlertsCaller(Caller):
    """The calls of alerts; `CreditsClient` has them."""

    async def set_alerts(
        self, account_id: str, thresholds: Mapping[int, int | None]
    ) -> AccountAlerts:
        """Let an account have these thresholds and no others: threshold to hysteresis.

        None is the hysteresis of the service. What is crossed already fires at once.

        Raises:
            CallRefused: there is no such account, or a threshold cannot be.
        """
        items = [
            {"threshold": threshold}
            if hysteresis is None
            else {"threshold": threshold, "hysteresis": hysteresis}
            for threshold, hysteresis in thresholds.items()
        ]
        body = msgspec.json.encode({"alerts": items})
        path = _path("accounts", account_id, "alerts")
        return self._decode(await self._call("PUT", path, JSON, body), AccountAlerts)

    async def alerts_of(self, account_id: str) -> AccountAlerts:
        """Return the thresholds of an account and how each stands."""
        path = _path("accounts", account_id, "alerts")
        return self._decode(await self._call("GET", path), AccountAlerts)

    async def alerts(
        self,
        *,
        state: str = "open",
        account_id: str | None = None,
        tenant_id: str | None = None,
        after: str | None = None,
        limit: int = PAGE_LIMIT,
    ) -> AlertPage:
        """Return a page of alerts that are open, acknowledged, rearmed or all, oldest first."""
        asked = {"state": state, "account_id": account_id, "tenant_id": tenant_id, "after": after}
        query = "".join(
            f"&{name}={quote(value, safe='')}" for name, value in asked.items() if value is not None
        )
        return self._decode(await self._call("GET", f"/v1/alerts?limit={limit}{query}"), AlertPage)

    async def alert(self, alert_id: str) -> Alert:
        """Return an alert as it is now."""
        return self._decode(await self._call("GET", _path("alerts", alert_id)), Alert)

    async def acknowledge_alert(self, alert_id: str, *, note: str | None = None) -> Alert:
        """Say that you know of an alert, and return it; the first word stands."""
        try:
            body = msgspec.json.encode({} if note is None else {"note": note})
        except UnicodeEncodeError as error:
            raise CallMalformed(field="note", fault="is not valid Unicode text") from error
        path = _path("alerts", alert_id, "acknowledgement")
        return self._decode(await self._call("POST", path, JSON, body), Alert)


def _path(kind: str, name: str, *more: str) -> str:
    field = f"{kind.removesuffix('s')}_id"
    if not name or "/" in name:
        raise CallMalformed(field=field, fault="must not be empty nor contain a slash")
    try:
        return "/".join(("", "v1", kind, quote(name, safe=""), *more))
    except UnicodeEncodeError as error:
        raise CallMalformed(field=field, fault="is not valid Unicode text") from error
