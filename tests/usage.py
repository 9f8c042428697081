"""Usage as a scan of the rows gives it, in plain Python, and a roller to compare with."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from typing import Any
from uuid import UUID

from prometheus_client import CollectorRegistry

from tollkeeper.credits.roller import Roller
from tollkeeper.credits.usage_metrics import UsageMetrics
from tollkeeper.credits.usage_store import SESSION_SETTINGS, UsageStore
from tollkeeper.database.connect import connector
from tollkeeper.database.driver import Connection
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.clock import SystemClock

ROWS = (
    "SELECT a.tenant_id, t.account_id, t.created_at, t.kind, t.amount, t.balance,"
    " t.transaction_id, t.reference_id, t.metadata::text AS metadata"
    " FROM credit_transactions AS t JOIN accounts AS a USING (shard, account_id)"
)


@dataclass
class Counted:
    """What a scan counts."""

    consumed: int = 0
    purchased: int = 0
    refunded: int = 0
    count: int = 0
    transactions: int = 0
    balances: list[int] = field(default_factory=list)

    def add(self, row: Mapping[str, Any]) -> None:
        kind, amount = row["kind"], row["amount"]
        self.transactions += 1
        self.balances.append(row["balance"])
        if kind in {"consume", "capture"}:
            self.consumed += amount
            self.count += 1
        if kind == "topup":
            self.purchased += amount
        if kind == "refund":
            self.refunded += amount

    def facts(self) -> tuple[int | None, ...]:
        return (
            self.consumed, self.purchased, self.refunded, self.count, self.transactions,
            max(self.balances, default=None),
        )  # fmt: skip


Facts = tuple[int | None, ...]


def scan(
    rows: list[Mapping[str, Any]], *, by: str, zone: tzinfo, start: datetime, end: datetime
) -> tuple[Facts, dict[str, Facts]]:
    """Return the totals of a range and its buckets, by what a clock on the wall names them."""
    by_id = {row["transaction_id"]: row for row in rows}
    totals, buckets = Counted(), dict[str, Counted]()
    for row in rows:
        at = row["created_at"]
        if start <= at < end:
            totals.add(row)
            name = feature_of(row, by_id) if by == "feature" else wall(at, by, zone)
            buckets.setdefault(name, Counted()).add(row)
    return totals.facts(), {name: each.facts() for name, each in buckets.items()}


def wall(at: datetime, by: str, zone: tzinfo) -> str:
    """Name the hour, day or month that a moment is in; an hour that comes twice has two names."""
    form = {"hour": "%Y-%m-%d %H %z", "day": "%Y-%m-%d", "month": "%Y-%m"}[by]
    return at.astimezone(zone).strftime(form)


def feature_of(row: Mapping[str, Any], by_id: Mapping[UUID, Mapping[str, Any]]) -> str:
    """Return a row's feature: its own, or that of the hold or taking it is about."""
    own = (json.loads(row["metadata"]) if row["metadata"] else {}).get("feature")
    if isinstance(own, str) and len(own) <= 128:
        return own
    if row["kind"] in {"capture", "refund"} and row["reference_id"] in by_id:
        return feature_of(by_id[row["reference_id"]], by_id)
    return ""


async def rows_of(owner: Connection, **of: str) -> list[Mapping[str, Any]]:
    """Return the transactions of an account or a tenant, without the ledger's code."""
    ((column, name),) = of.items()
    found = await owner.fetch(ROWS)
    return [dict(row.items()) for row in found if row[column] == name]


@asynccontextmanager
async def running_roller(
    dsn: str, *, registry: CollectorRegistry | None = None
) -> AsyncIterator[Roller]:
    """Lend a roller as the worker has it."""
    clock = SystemClock()
    pool = Pool(connector(dsn, settings=SESSION_SETTINGS), size=1, clock=clock)
    metrics = UsageMetrics(registry or CollectorRegistry())
    try:
        yield Roller(pool, UsageStore(), clock=clock, metrics=metrics)
    finally:
        await pool.close()
