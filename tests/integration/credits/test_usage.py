"""Usage is what a scan of the rows gives, whatever is rolled up of them and by whom."""

import asyncio
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo

import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from prometheus_client import CollectorRegistry
from tests.database_clock import make_settable, set_ahead
from tests.hold_steps import Reference, Step, changes, operation_of
from tests.ledger import Ledger, consume, held_by, opening, topup, words, words_of
from tests.stage import ENGINES, Stage
from tests.usage import Facts, rows_of, running_roller, scan, wall

from tollkeeper.credits import requests, roller
from tollkeeper.credits.errors import AccountNotFound, ExportsRunning, TenantNotFound
from tollkeeper.credits.model import Posted
from tollkeeper.credits.store import SESSION_SETTINGS, LedgerStore
from tollkeeper.credits.usage import START, Bucket, By, Cursor, Question, Usage, slot_of
from tollkeeper.credits.usage_reader import UsageReader
from tollkeeper.credits.usage_store import UsageStore
from tollkeeper.database.connect import connector
from tollkeeper.database.driver import Connection
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.amounts import MAX_AMOUNT_MINOR
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.kernel.ids import AccountId, TenantId, TransactionId
from tollkeeper.wiring import CREDITS_ROLE

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Pacific/Apia")
FEATURES = ("chat", "search", "=2+2", "", "x" * 128, "y" * 129, 7, None)
PROCESS = Path(__file__).parents[2] / "usage_process.py"


def asked(by: By, start: datetime, end: datetime, zone: str = "UTC", **whose: str) -> Question:
    account_id, tenant_id = whose.get("account_id"), whose.get("tenant_id")
    return Question(
        account_id=None if account_id is None else AccountId(account_id),
        tenant_id=None if tenant_id is None else TenantId(tenant_id),
        start=start,
        end=end,
        by=by,
        zone_name=zone,
        zone=UTC if zone == "UTC" else ZoneInfo(zone),
    )


def facts(usage: Usage) -> Facts:
    return (
        usage.consumed, usage.purchased, usage.refunded, usage.count, usage.transactions,
        usage.peak_balance,
    )  # fmt: skip


def named(buckets: Sequence[Bucket], by: By, zone: tzinfo) -> dict[str, Facts]:
    return {
        (each.feature if each.feature is not None else wall(each.start, by, zone)): facts(
            each.usage
        )
        for each in buckets
    }


def reading_pool(dsn: str, size: int = 1) -> Pool:
    connect = connector(dsn, role=CREDITS_ROLE, settings=SESSION_SETTINGS)
    return Pool(connect, size=size, clock=SystemClock())


def ranges(rows: Sequence[datetime]) -> tuple[datetime, datetime]:
    """Return a range that all moments are in."""
    return slot_of(min(rows)), slot_of(max(rows)) + timedelta(minutes=15)


class UsageMachine(RuleBasedStateMachine):
    """Moves credits, sets clocks, rolls up from both sides, and compares."""

    stage: Stage
    pool: Pool

    @initialize()
    def open(self) -> None:
        number = next(self.stage.examples)
        self.tenant_id = f"tenant-{number}"
        self.accounts = (f"ann-{number}", f"bob-{number}")
        self.made: dict[str, list[TransactionId]] = {name: [] for name in self.accounts}
        self.taken: dict[str, list[TransactionId]] = {name: [] for name in self.accounts}
        self.features = itertools.cycle(FEATURES)
        self._set_clock(0)
        opened = [opening(name, self.tenant_id) for name in self.accounts]
        funds = [topup(name, 100) for name in self.accounts]
        self._answer(0, [*opened, *funds])

    def _set_clock(self, minutes: int) -> None:
        self.stage.execute(lambda owner: set_ahead(owner, timedelta(minutes=minutes)))

    def _answer(self, engine: int, operations: Sequence[object]) -> None:
        results = self.stage.answer(engine, operations, apart=False, killing=False)  # type: ignore[arg-type]  # operations of every kind
        for result in results:
            if isinstance(result, Posted):
                made = result.transaction
                if made.kind in {"consume", "capture"}:
                    self.taken[made.account_id].append(made.transaction_id)
                elif made.kind == "hold":
                    self.made[made.account_id].append(made.transaction_id)

    @rule(
        steps=st.lists(changes, min_size=1, max_size=8),
        engine=st.integers(0, ENGINES - 1),
        whose=st.integers(0, 1),
    )
    def move(self, steps: list[Step], engine: int, whose: int) -> None:
        name = self.accounts[whose]
        operations = []
        for step in steps:
            about = self.taken[name] if step[0] == "refund" else self.made[name]
            operation = operation_of(step, about, account_id=name, second_s=900)
            if operation is not None:
                metadata = msgspec.json.encode({"feature": next(self.features)}).decode()
                operations.append(msgspec.structs.replace(operation, metadata=metadata))
        if operations:
            self._answer(engine, operations)

    @rule(minutes=st.integers(-3_000, 3_000))
    def set_the_clock(self, minutes: int) -> None:
        self._set_clock(minutes)

    @rule(engine=st.integers(0, ENGINES - 1))
    def sweep(self, engine: int) -> None:
        self.stage.sweep(engine)

    @rule(rollers=st.integers(1, 2), budget=st.integers(1, 9))
    def roll_up(self, rollers: int, budget: int) -> None:
        """From one side, or from two at once, past the lock that keeps them apart."""
        places = [(requests.shard_of(name), name) for name in self.accounts]

        async def work() -> None:
            store = UsageStore()
            connections = [await self.stage.connect() for _ in range(rollers)]
            try:
                await asyncio.gather(
                    *(store.roll_up(each, sorted(places), budget) for each in connections)
                )
            finally:
                for each in connections:
                    await each.close()

        self.stage.run(work())

    @rule(
        by=st.sampled_from(By),
        zone=st.sampled_from(ZONES),
        cut=st.tuples(st.integers(0, 40), st.integers(0, 40)),
        is_tenant=st.booleans(),
    )
    def compare(self, by: By, zone: str, cut: tuple[int, int], is_tenant: bool) -> None:
        whose = (
            {"tenant_id": self.tenant_id} if is_tenant else {"account_id": self.accounts[0]}
        )
        rows = self.stage.execute(lambda owner: rows_of(owner, **whose))
        start, end = ranges([row["created_at"] for row in rows])
        slot = timedelta(minutes=15)
        start, end = start + cut[0] * slot, end - cut[1] * slot
        if start >= end:
            return
        question = asked(by, start, end, zone, **whose)
        reader = UsageReader(self.pool, UsageStore(), LedgerStore())
        _, total, buckets = self.stage.run(reader.page(question, None, after=START, limit=10_000))
        expected = scan(rows, by=by, zone=question.zone, start=start, end=end)

        assert expected == (facts(total), named(buckets, by, question.zone))

    def teardown(self) -> None:
        if hasattr(self, "accounts"):
            self.compare(By.FEATURE, "UTC", (0, 0), True)


@pytest.fixture
def stage(credits_dsn: str) -> Iterator[Stage]:
    async def prepare() -> None:
        owner: Connection = await connector(credits_dsn)()
        await make_settable(owner)
        await owner.close()

    asyncio.run(prepare())
    stage = Stage(credits_dsn)
    yield stage
    stage.close()


def test_usage_equals_a_scan_of_the_rows(stage: Stage, credits_dsn: str) -> None:
    class Machine(UsageMachine):
        pass

    Machine.stage, Machine.pool = stage, reading_pool(credits_dsn)
    try:
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=25,
                stateful_step_count=14,
                deadline=None,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            ),
        )
    finally:
        stage.run(Machine.pool.close())
