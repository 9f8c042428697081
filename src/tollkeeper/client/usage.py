"""Typed calls of usage: what accounts and tenants consumed and purchased.

Computes nothing: the service does, exactly and in one snapshot.
"""

from collections.abc import Mapping
from datetime import date, datetime
from typing import Literal, TypedDict, Unpack
from urllib.parse import quote, urlencode

import msgspec

from tollkeeper.client.audit import AuditCaller
from tollkeeper.client.errors import CallMalformed

EXPORT_TIMEOUT_S = 120.0
"""Longest wait for a whole usage."""

By = Literal["hour", "day", "month", "feature"]


class UsageTotals(msgspec.Struct, frozen=True):
    """What happened, in minor units; `mean` is an exact decimal as text."""

    consumed: int
    purchased: int
    refunded: int
    net: int
    count: int
    mean: str | None
    peak_balance: int | None
    transactions: int


class UsageItem(UsageTotals, frozen=True, kw_only=True):
    """The usage of a part of the range; by feature, of one in all of it. None: not said."""

    start: datetime
    end: datetime
    feature: str | None = None


class Usage(msgspec.Struct, frozen=True):
    """Usage from `start` until before `end`; `items` are the buckets that have any."""

    tenant_id: str
    account_id: str | None
    start: datetime = msgspec.field(name="from")
    end: datetime = msgspec.field(name="to")
    by: By
    time_zone: str
    totals: UsageTotals
    items: tuple[UsageItem, ...]
    next: str | None = None


class UsageTerms(TypedDict, total=False):
    """Over which time usage is asked for, and broken down by what; left out: as the service has it.

    A date without a time, days and months are those of `time_zone`. `end` is not part of it.
    """

    start: date | datetime | str | None
    end: date | datetime | str | None
    by: By
    time_zone: str


class UsageCaller(AuditCaller):
    """The calls of usage. Give them an account or a tenant, and not both."""

    async def usage(
        self,
        account_id: str | None = None,
        *,
        tenant_id: str | None = None,
        **terms: Unpack[UsageTerms],
    ) -> Usage:
        """Return the whole usage of an account, or of all accounts of a tenant, in one snapshot.

        Raises:
            CallRefused: there is no such account or tenant.
        """
        path = _usage_path(account_id, tenant_id, {**_query(terms), "format": "json"})
        return self._decode(await self._call("GET", path, timeout_s=EXPORT_TIMEOUT_S), Usage)

    async def usage_page(
        self,
        account_id: str | None = None,
        *,
        tenant_id: str | None = None,
        after: str | None = None,
        limit: int = 1_000,
        **terms: Unpack[UsageTerms],
    ) -> Usage:
        """Return a page of usage; `after` is a page's `next`, with that page's range as terms.

        Raises:
            CallRefused: there is no such account or tenant.
        """
        page = {"limit": str(limit), **({} if after is None else {"after": after})}
        path = _usage_path(account_id, tenant_id, {**_query(terms), **page})
        return self._decode(await self._call("GET", path), Usage)

    async def usage_file(
        self,
        account_id: str | None = None,
        *,
        tenant_id: str | None = None,
        kind: Literal["csv", "json", "jsonl"] = "csv",
        **terms: Unpack[UsageTerms],
    ) -> bytes:
        """Return the whole usage as a file, in one snapshot.

        Raises:
            CallRefused: there is no such account or tenant.
        """
        path = _usage_path(account_id, tenant_id, {**_query(terms), "format": kind})
        return (await self._call("GET", path, timeout_s=EXPORT_TIMEOUT_S)).body


def _usage_path(account_id: str | None, tenant_id: str | None, query: Mapping[str, str]) -> str:
    if (account_id is None) == (tenant_id is None):
        raise CallMalformed(field="account_id", fault="or tenant_id must be given, and not both")
    kind, name = ("accounts", account_id) if tenant_id is None else ("tenants", tenant_id)
    if not name or "/" in name:
        raise CallMalformed(field=f"{kind[:-1]}_id", fault="must not be empty nor hold a slash")
    try:
        return f"/v1/{kind}/{quote(name, safe='')}/usage?{urlencode(query)}"
    except UnicodeEncodeError as error:
        raise CallMalformed(field="the request", fault="has text that is not Unicode") from error


def _query(terms: UsageTerms) -> dict[str, str]:
    asked = {
        "from": terms.get("start"),
        "to": terms.get("end"),
        "by": terms.get("by"),
        "time_zone": terms.get("time_zone"),
    }
    return {name: _text(name, value) for name, value in asked.items() if value is not None}


def _text(name: str, value: date | datetime | str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, datetime) and value.tzinfo is None:
        raise CallMalformed(field=name, fault="must have a time zone")
    return value.isoformat()
