"""Usage is what a scan of the rows gives, whatever is rolled up of them and by whom."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
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
from tests.hold_steps import Step, changes, operation_of
from tests.ledger import (
    Ledger,
    consume,
    held_by,
    opening,
    running_ledger,
    topup,
    words,
    words_of,
)
from tests.stage import ENGINES, Stage
from tests.usage import Facts, rows_of, running_roller, scan, wall

from tollkeeper.credits import requests
from tollkeeper.credits.errors import AccountNotFound, ExportsRunning, TenantNotFound
from tollkeeper.credits.model import Posted
from tollkeeper.credits.store import SESSION_SETTINGS, LedgerStore
from tollkeeper.credits.usage import START, Bucket, By, Cursor, Question, Usage, slot_of
from tollkeeper.credits.usage_reader import UsageReader
from tollkeeper.credits.usage_store import UsageStore
from tollkeeper.database.connect import connector
from tollkeeper.database.driver import Connection
from tollkeeper.database.embedded import EmbeddedServer
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.amounts import MAX_AMOUNT_MINOR
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.kernel.ids import AccountId, TenantId, TransactionId, shard_of
from tollkeeper.wiring import CREDITS_ROLE

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Pacific/Apia")
FEATURES = ("chat", "chat", "search", None, None, None, "x" * 128, "y" * 129, 7, "")
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
        steps=st.lists(st.tuples(changes, st.sampled_from(FEATURES)), min_size=1, max_size=8),
        engine=st.integers(0, ENGINES - 1),
        whose=st.integers(0, 1),
        rolled=st.integers(0, 9),
    )
    def move(self, steps: list[tuple[Step, object]], engine: int, whose: int, rolled: int) -> None:
        self.roll_up(rolled)
        name = self.accounts[whose]
        operations = []
        for step, feature in steps:
            about = self.taken[name] if step[0] == "refund" else self.made[name]
            operation = operation_of(step, about, account_id=name, second_s=900)
            if operation is not None:
                metadata = msgspec.json.encode({"feature": feature}).decode()
                operations.append(msgspec.structs.replace(operation, metadata=metadata))
        if operations:
            self._answer(engine, operations)

    @rule(minutes=st.integers(-3_000, 3_000))
    def set_the_clock(self, minutes: int) -> None:
        self._set_clock(minutes)

    @rule(engine=st.integers(0, ENGINES - 1))
    def sweep(self, engine: int) -> None:
        self.stage.sweep(engine)

    @rule(budget=st.integers(1, 9))
    def roll_up(self, budget: int) -> None:
        """Roll up some of it: a budget may end within an account."""
        places = sorted((shard_of(name), name) for name in self.accounts)
        if budget:
            self.stage.execute(lambda owner: UsageStore().roll_up(owner, places, budget))

    @rule(
        by=st.sampled_from(By),
        zone=st.sampled_from(ZONES),
        cut=st.tuples(st.integers(0, 40), st.integers(0, 40)),
        is_tenant=st.booleans(),
    )
    def compare(self, by: By, zone: str, cut: tuple[int, int], is_tenant: bool) -> None:
        whose = {"tenant_id": self.tenant_id} if is_tenant else {"account_id": self.accounts[0]}
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


class Reading:
    """A reader of usage as the service has it, beside the owner who scans."""

    def __init__(self, pool: Pool, owner: Connection) -> None:
        self.pool = pool
        self.owner = owner
        self.reader = UsageReader(pool, UsageStore(), LedgerStore())

    async def assert_exact(self, account_id: str, by: By = By.FEATURE) -> dict[str, Facts]:
        """Compare everything of an account with a scan; return the buckets."""
        rows = await rows_of(self.owner, account_id=account_id)
        start, end = ranges([row["created_at"] for row in rows])
        question = asked(by, start, end, account_id=account_id)
        _, total, found = await self.reader.page(question, None, after=START, limit=1_000)
        buckets = named(found, by, UTC)

        assert scan(rows, by=by, zone=UTC, start=start, end=end) == (facts(total), buckets)
        return buckets

    async def left(self) -> int:
        """Return how many transactions are not rolled up."""
        count: int = await self.owner.fetchval(
            "SELECT coalesce(sum(a.version - coalesce(r.sequence, 0)), 0)::bigint"
            " FROM accounts AS a LEFT JOIN rolled_accounts AS r USING (shard, account_id)"
        )
        return count


@pytest.fixture
async def reading(credits_dsn: str, owner: Connection) -> AsyncIterator[Reading]:
    pool = reading_pool(credits_dsn, size=3)
    yield Reading(pool, owner)
    await pool.close()


def about(feature: object) -> dict[str, object]:
    return {"feature": feature}


async def test_a_feature_is_handed_on_by_what_is_taken_and_given_back(
    ledger: Ledger, reading: Reading, credits_dsn: str
) -> None:
    await ledger.open_with(1_000, "ann")
    said, silent = replace(words("ann"), metadata=about("chat")), words("ann")
    (held,) = await ledger.execute(requests.reserve(said, amount=50))
    (first,) = await ledger.execute(requests.capture(silent, hold_id=held_by(held), amount=20))
    own = replace(words("ann"), metadata=about("search"))
    (second,) = await ledger.execute(requests.capture(own, hold_id=held_by(held), amount=9))
    for taken in (first, second):
        await ledger.execute(requests.refund(words("ann"), transaction_id=held_by(taken), amount=4))

    def seen(buckets: dict[str, Facts]) -> dict[str, tuple[int | None, ...]]:
        return {name: (each[0], each[2], each[3]) for name, each in buckets.items()}

    expected = {"": (0, 0, 0), "chat": (20, 4, 1), "search": (9, 4, 1)}
    assert expected == seen(await reading.assert_exact("ann"))
    async with running_roller(credits_dsn) as roller:
        assert await roller.round()
    assert 0 == await reading.left()
    assert expected == seen(await reading.assert_exact("ann"))


async def test_a_slot_is_rolled_up_several_times(
    ledger: Ledger, reading: Reading, credits_dsn: str
) -> None:
    await ledger.open_with(900, "ann")
    async with running_roller(credits_dsn) as roller:
        for amount in (500, 300, 50):
            assert await roller.round()
            assert 0 == await reading.left()
            await ledger.execute(consume("ann", amount))
        await reading.assert_exact("ann", By.HOUR)
        assert await roller.round()

    assert 900 == (await reading.assert_exact("ann"))[""][-1]


async def test_amounts_beyond_63_bits_add_up(
    ledger: Ledger, reading: Reading, credits_dsn: str
) -> None:
    await ledger.execute(opening("rich"))
    for _ in range(3):
        results = await ledger.execute(
            topup("rich", MAX_AMOUNT_MINOR), consume("rich", MAX_AMOUNT_MINOR)
        )
        assert ["posted"] * 2 == words_of(results)
    async with running_roller(credits_dsn) as roller:
        await roller.round()

    assert 3 * MAX_AMOUNT_MINOR == (await reading.assert_exact("rich"))[""][0]


async def test_two_that_roll_up_at_once_count_once(
    ledger: Ledger, reading: Reading, credits_dsn: str
) -> None:
    """Past the lock that keeps them apart: the second waits at the first one's row."""
    await ledger.open_with(1_000, "ann")
    await ledger.execute(*(consume("ann", 1) for _ in range(20)))
    place = [(shard_of("ann"), "ann")]
    store, other = UsageStore(), await asyncpg.connect(credits_dsn)
    try:
        await store.roll_up(reading.owner, place, 5)
        async with other.transaction():
            await store.roll_up(other, place, 7)
            second = asyncio.create_task(store.roll_up(reading.owner, place, 3))
            await until_waiting(other, reading.owner.get_server_pid())
        (late,) = await second
    finally:
        await other.close()

    assert not late.has_landed
    assert 21 - 12 == await reading.left()
    await reading.assert_exact("ann")


async def test_one_roller_works_at_a_time(
    ledger: Ledger, reading: Reading, credits_dsn: str
) -> None:
    await ledger.open_with(10, "ann")
    async with running_roller(credits_dsn) as first, running_roller(credits_dsn) as second:
        async with UsageStore().roller_lock(reading.owner) as held:
            assert held
            assert await first.round()
            assert 1 == await reading.left()
        await asyncio.gather(first.round(), second.round())

    assert 0 == await reading.left()


async def until_waiting(connection: Connection, pid: int) -> None:
    """Return when a session waits for a lock."""
    async with asyncio.timeout(20):
        while not await connection.fetchval(
            "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $1", pid
        ):
            await asyncio.sleep(0.01)


async def test_a_worker_killed_in_the_middle_has_counted_nothing_twice(
    ledger: Ledger, reading: Reading, credits_dsn: str
) -> None:
    names = [f"user-{number}" for number in range(15)]
    await ledger.open_with(1_000, *names)
    killed_midway = 0
    for _ in range(2):
        await ledger.execute(*(consume(name, 1) for name in names for _ in range(20)))
        worker = await asyncio.create_subprocess_exec(
            sys.executable, str(PROCESS), credits_dsn, stdout=asyncio.subprocess.DEVNULL
        )
        whole = await reading.left()
        async with asyncio.timeout(30):
            while await reading.left() == whole:
                await asyncio.sleep(0)
        worker.kill()
        await worker.wait()
        killed_midway += await reading.left() > 0
    assert killed_midway
    async with running_roller(credits_dsn) as roller:
        async with asyncio.timeout(30):
            while await reading.left():  # the last session may still hold the lock
                await roller.round()

    for name in names:
        await reading.assert_exact(name)


async def test_an_account_that_lacks_a_row_is_left_alone_and_counted_from_rows(
    ledger: Ledger, reading: Reading, credits_dsn: str, forger: Connection
) -> None:
    await ledger.open_with(100, "ann", "bob")
    await ledger.execute(*(consume(name, 1) for name in ("ann", "bob") for _ in range(3)))
    await forger.execute(
        "DELETE FROM credit_transactions WHERE account_id = 'ann' AND sequence = 2"
    )
    await forger.execute("UPDATE accounts SET version = 1 << 60 WHERE account_id = 'ann'")
    registry = CollectorRegistry()
    async with running_roller(credits_dsn, registry=registry) as roller:
        assert await roller.round()

    assert 1 == registry.get_sample_value("credits_usage_accounts_not_whole")
    assert 4 == registry.get_sample_value("credits_usage_transactions_total")
    for name in ("ann", "bob"):
        await reading.assert_exact(name)


async def test_what_text_cannot_hold_is_no_feature(
    ledger: Ledger, reading: Reading, credits_dsn: str, forger: Connection
) -> None:
    await ledger.open_with(100, "ann", "bob")
    for number, text in enumerate((r"\u0000", r"\ud800"), start=2):
        await ledger.execute(consume("ann", 1))
        await forger.execute(
            "UPDATE credit_transactions SET metadata = $2::text::json"
            " WHERE account_id = 'ann' AND sequence = $1",
            number,
            f'{{"feature": "{text}"}}',
        )
    async with running_roller(credits_dsn) as roller:
        assert await roller.round()

    assert 0 == await reading.left()
    question = whole("ann")
    _, total, found = await reading.reader.page(question, None, after=START, limit=9)
    assert (2, [""]) == (total.count, [each.feature for each in found])


def whole(account_id: str, by: By = By.FEATURE) -> Question:
    """Ask for the months around now."""
    now = slot_of(datetime.now(UTC))
    month = timedelta(days=30)
    return asked(by, now - month, now + month, account_id=account_id)


async def test_a_backslash_keeps_no_feature_from_being_counted(
    ledger: Ledger, reading: Reading
) -> None:
    await ledger.open_with(100, "ann")
    for feature in (r"C:\udata", r"\u0000"):
        await ledger.execute(consume("ann", 1, metadata={"feature": feature, "at": feature}))
    _, _, found = await reading.reader.page(whole("ann"), None, after=START, limit=9)

    assert ["", r"C:\udata", r"\u0000"] == [each.feature for each in found]


async def test_pages_follow_each_other(ledger: Ledger, reading: Reading) -> None:
    await ledger.open_with(100, "ann")
    features = ["b", "a", "c", "=1", "A"]
    await ledger.execute(*(consume("ann", 1, metadata=about(name)) for name in features))
    question, found, after = whole("ann"), [], START
    while True:
        _, total, page = await reading.reader.page(question, None, after=after, limit=2)
        found += [each.feature for each in page[:2]]
        assert 5 == total.count
        if len(page) < 3:
            break
        after = Cursor(feature=page[1].feature)

    assert sorted(["", *features]) == found


async def test_a_tenant_sees_its_own_only(ledger: Ledger, reading: Reading) -> None:
    await ledger.execute(opening("ann", "acme"), opening("bob", "evil"), topup("bob", 5))
    question, reader = whole("ann"), reading.reader
    _, total, found = await reader.page(question, TenantId("acme"), after=START, limit=9)
    of_tenant = replace(question, account_id=None, tenant_id=TenantId("evil"))

    assert (Usage(), ()) == (total, found)
    with pytest.raises(AccountNotFound):
        await reader.page(question, TenantId("evil"), after=START, limit=9)
    with pytest.raises(TenantNotFound):
        await reader.page(of_tenant, TenantId("acme"), after=START, limit=9)
    nobody = replace(of_tenant, tenant_id=TenantId("nobody"))
    with pytest.raises(TenantNotFound):
        await reader.page(nobody, None, after=START, limit=9)


async def test_exports_leave_connections_to_others(ledger: Ledger, reading: Reading) -> None:
    await ledger.open_with(100, "ann")
    first, second, third = (reading.reader.export(whole("ann"), None) for _ in range(3))
    await anext(first)
    await anext(second)
    with pytest.raises(ExportsRunning):
        await anext(third)
    await first.aclose()
    await second.aclose()

    assert [Question, Usage, Bucket] == [
        type(each) async for each in reading.reader.export(whole("ann"), None)
    ]


async def test_on_every_postgresql(other_server: EmbeddedServer, other_credits_dsn: str) -> None:
    owner = await asyncpg.connect(other_credits_dsn)
    pool = reading_pool(other_credits_dsn)
    try:
        async with running_ledger(other_credits_dsn) as ledger:
            await ledger.open_with(100, "ann")
            await ledger.execute(*(consume("ann", 1, metadata=about("chat")) for _ in range(5)))
            async with running_roller(other_credits_dsn) as roller:
                assert await roller.round()
            await ledger.execute(consume("ann", 7))
            for by in By:
                await Reading(pool, owner).assert_exact("ann", by)
    finally:
        await pool.close()
        await owner.close()


async def test_an_account_is_updated_in_its_page_beside_the_tenants_index(
    ledger: Ledger, owner: Connection
) -> None:
    await ledger.open_with(100, "ann")
    for _ in range(20):
        await owner.execute("UPDATE accounts SET balance = balance + 1, version = version + 1")
    await owner.execute("SELECT pg_stat_force_next_flush()")
    row = await owner.fetchrow(
        "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'accounts'"
    )
    assert row is not None

    assert row["n_tup_upd"] >= 20
    assert row["n_tup_hot_upd"] >= 20
