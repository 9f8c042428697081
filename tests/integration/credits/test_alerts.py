"""Alerts on a real PostgreSQL: fired once, by the commit that crosses, whoever else is at it."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import asyncpg
import msgspec
import pytest
from prometheus_client import CollectorRegistry
from tests.alerts import (
    FIRST_ID,
    OPERATOR,
    TENANTS_KEY,
    alerts_of,
    at,
    fired_by,
    fired_of,
    set_alerts,
)
from tests.cutting_proxy import Cut, CuttingProxy
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
from tests.reconciliation import look_at_all, running_reconciler

from tollkeeper.credits import requests
from tollkeeper.credits.alert_metrics import OpenAlerts
from tollkeeper.credits.alert_model import AlertState
from tollkeeper.credits.alert_service import AlertFilter
from tollkeeper.credits.alert_store import AlertStore
from tollkeeper.credits.errors import AccountNotFound, AlertNotFound
from tollkeeper.credits.model import Plan, Posted, Sweep
from tollkeeper.credits.store import LedgerStore
from tollkeeper.database.connect import connector
from tollkeeper.database.driver import Connection
from tollkeeper.kernel.ids import AccountId, TenantId, shard_of
from tollkeeper.wiring import CREDITS_ROLE

ANN = AccountId("ann")
EARLIER_COMMIT = Path(__file__).with_name("earlier_commit.sql").read_text(encoding="utf-8")


async def test_a_dip_inside_a_batch_fires_names_its_transaction_and_re_arms(
    ledger: Ledger,
) -> None:
    await ledger.open_with(100, "ann")
    await set_alerts(ledger, "ann", at(50), at(20))
    results = await ledger.execute(
        consume("ann", 40), consume("ann", 20), topup("ann", 100), consume("ann", 80)
    )
    crossing = results[1]
    (alert,) = await alerts_of(ledger, "ann")

    assert isinstance(crossing, Posted)
    assert crossing.transaction.transaction_id == alert.transaction_id
    assert (50, 10, 3, 40) == (
        alert.threshold, alert.hysteresis, alert.sequence, alert.available
    )  # fmt: skip
    assert (4, AlertState.REARMED) == (alert.rearmed_sequence, alert.state)
    assert crossing.transaction.created_at == alert.fired_at == alert.rearmed_at
    assert alert.alert_id.bytes[-1] == shard_of("ann")
    assert 1 == fired_by(ledger)


async def test_an_alert_fires_again_only_after_its_hysteresis(ledger: Ledger) -> None:
    await ledger.open_with(100, "ann")
    await set_alerts(ledger, "ann", at(50, 10))
    # Each its own commit; 55 is above the threshold and not yet above the hysteresis.
    for step in (-60, +15, -10, +15, -15, +20):
        move = topup("ann", step) if step > 0 else consume("ann", -step)
        await ledger.execute(move)

    assert [(50, 2, 40, "rearmed"), (50, 6, 45, "rearmed")] == await fired_of(ledger, "ann")
    await ledger.assert_sound()


async def test_holds_captures_expiries_and_sweeps_count(ledger: Ledger) -> None:
    await ledger.open_with(100, "ann", "bob")
    await set_alerts(ledger, "ann", at(50))
    await set_alerts(ledger, "bob", at(50))
    soon = timedelta(microseconds=1)
    held, _ = await ledger.execute(
        requests.reserve(words("ann"), amount=60),
        msgspec.structs.replace(requests.reserve(words("bob"), amount=60), expires_in=soon),
    )
    fired = [(50, 2, 40, "open")]

    assert fired == await fired_of(ledger, "ann")
    await ledger.execute(requests.capture(words("ann"), hold_id=held_by(held), amount=10))
    await ledger.execute(requests.release(words("ann"), hold_id=held_by(held)))
    swept = await ledger.execute(Sweep(account_id=AccountId("bob"), shard=shard_of("bob")))

    assert ["swept"] == words_of(swept)
    assert [(50, 2, 40, "rearmed")] == await fired_of(ledger, "ann")
    assert [(50, 2, 40, "rearmed")] == await fired_of(ledger, "bob")


async def test_a_decision_that_finds_an_expired_hold_re_arms(ledger: Ledger) -> None:
    await ledger.open_with(100, "ann")
    await set_alerts(ledger, "ann", at(50))
    soon = timedelta(microseconds=1)
    await ledger.execute(
        msgspec.structs.replace(requests.reserve(words("ann"), amount=60), expires_in=soon)
    )
    await ledger.execute(consume("ann", 1))
    (alert,) = await alerts_of(ledger, "ann")

    assert (2, 3) == (alert.sequence, alert.rearmed_sequence)


async def test_replays_and_refusals_fire_nothing(ledger: Ledger) -> None:
    await ledger.open_with(100, "ann")
    await set_alerts(ledger, "ann", at(50))
    results = await ledger.execute(*(consume("ann", 60, "once") for _ in range(2)))
    results += await ledger.execute(consume("ann", 60, "once"), consume("ann", 99))

    assert ["posted", "replayed", "replayed", "insufficient_credits"] == words_of(results)
    assert [(50, 2, 40, "open")] == await fired_of(ledger, "ann")


@pytest.mark.parametrize("cuts", [[Cut.AFTER], [Cut.BEFORE], [Cut.BEFORE, Cut.PASS, Cut.AFTER]])
async def test_a_commit_whose_answer_was_lost_fires_once(
    ledger: Ledger, credits_dsn: str, cuts: list[Cut]
) -> None:
    """Change and alert are one statement: a cut, or a kill, leaves both or neither."""
    await ledger.open_with(100, "ann")
    await set_alerts(ledger, "ann", at(50))
    async with (
        CuttingProxy(credits_dsn, cuts) as proxy,
        running_ledger(proxy.dsn, lanes=1) as cut_off,
    ):
        assert ["posted"] == words_of(await cut_off.execute(consume("ann", 60)))
        assert not proxy.cuts

    assert [(50, 2, 40, "open")] == await fired_of(ledger, "ann")


class MeetingStore(LedgerStore):
    """A store whose first commit waits for others: what was planned is old by then."""

    def __init__(self, meeting: asyncio.Barrier) -> None:
        super().__init__()
        self._meeting = meeting
        self._has_met = False

    async def commit(self, connection: Connection, plan: Plan) -> frozenset[AccountId]:
        if not self._has_met:
            self._has_met = True
            await self._meeting.wait()  # planned
            await self._meeting.wait()  # the other is done
        return await super().commit(connection, plan)


@pytest.mark.parametrize("before", [(), (at(5),), (at(30), at(60))])
async def test_no_commit_lands_that_was_planned_with_other_thresholds(
    ledger: Ledger, credits_dsn: str, before: tuple[object, ...]
) -> None:
    await ledger.open_with(100, "ann")
    await set_alerts(ledger, "ann", *before)  # type: ignore[arg-type]  # thresholds
    meeting = asyncio.Barrier(2)
    async with running_ledger(credits_dsn, store=MeetingStore(meeting), lanes=1) as racing:
        call = asyncio.ensure_future(racing.execute(consume("ann", 60)))
        await meeting.wait()
        await set_alerts(ledger, "ann", at(50))
        await meeting.wait()

        assert ["posted"] == words_of(await call)
        assert 1 == racing.retries("contention")
        assert 1 == fired_by(racing)
    assert [(50, 2, 40, "open")] == await fired_of(ledger, "ann")


async def test_thresholds_that_are_set_again_as_they_are_cost_no_commit_a_retry(
    ledger: Ledger, credits_dsn: str
) -> None:
    await ledger.open_with(100, "ann")
    await set_alerts(ledger, "ann", at(50), at(20))
    meeting = asyncio.Barrier(2)
    async with running_ledger(credits_dsn, store=MeetingStore(meeting), lanes=1) as racing:
        call = asyncio.ensure_future(racing.execute(consume("ann", 60)))
        await meeting.wait()
        await set_alerts(ledger, "ann", at(20), at(50))
        await meeting.wait()

        assert ["posted"] == words_of(await call)
        assert 0 == racing.retries("contention")


async def test_two_services_that_race_below_a_threshold_fire_it_once(
    ledger: Ledger, credits_dsn: str
) -> None:
    await ledger.open_with(100, "ann")
    await set_alerts(ledger, "ann", at(50), at(30))
    meeting = asyncio.Barrier(2)
    async with running_ledger(credits_dsn, store=MeetingStore(meeting), lanes=1) as racing:
        call = asyncio.ensure_future(racing.execute(consume("ann", 30)))
        await meeting.wait()
        await ledger.execute(consume("ann", 60))
        await meeting.wait()

        assert ["posted"] == words_of(await call)
        assert 1 == fired_by(racing)
    assert [(30, 3, 10, "open"), (50, 2, 40, "open")] == await fired_of(ledger, "ann")
    assert 1 == fired_by(ledger)


async def test_a_hundred_consumers_while_thresholds_change_cross_each_once(
    ledger: Ledger, credits_dsn: str
) -> None:
    await ledger.open_with(100, "ann")
    await set_alerts(ledger, "ann", at(50))
    async with running_ledger(credits_dsn) as other:
        start = asyncio.Barrier(101)

        async def spend(number: int) -> None:
            await start.wait()
            assert ["posted"] == words_of(
                await (ledger, other)[number % 2].execute(consume("ann", 1))
            )

        async def change() -> None:
            await start.wait()
            for number in range(8):
                await set_alerts(ledger, "ann", at(50), *([at(5)] if number % 2 else []))

        await asyncio.gather(change(), *(spend(number) for number in range(100)))
    fired = await fired_of(ledger, "ann")

    # The first transaction after which less than 50 is available is the 52nd.
    assert [(50, 52, 49, "open")] == [each for each in fired if each[0] == 50]
    assert 5 in {each[0] for each in fired}
    await ledger.assert_sound()


async def test_a_new_threshold_that_is_crossed_already_fires_at_once(ledger: Ledger) -> None:
    await ledger.open_with(100, "ann")
    shown = await set_alerts(ledger, "ann", at(200, 50), at(50))
    (alert,) = await alerts_of(ledger, "ann")

    assert [True, False] == [each.threshold.armed for each in shown]
    assert [None, alert.fired_at] == [each.fired_at for each in shown]
    assert (200, 1, 100, None) == (
        alert.threshold, alert.sequence, alert.available, alert.transaction_id
    )  # fmt: skip
    assert 1 == fired_by(ledger)


async def test_setting_keeps_what_stays_and_ends_the_alerts_of_what_goes(
    ledger: Ledger,
) -> None:
    await ledger.open_with(100, "ann")
    await set_alerts(ledger, "ann", at(50), at(60))
    await ledger.execute(consume("ann", 60))
    await set_alerts(ledger, "ann", at(50))
    gone, stays = await alerts_of(ledger, "ann")
    if gone.threshold == 50:
        gone, stays = stays, gone

    assert (AlertState.REARMED, None) == (gone.state, gone.rearmed_sequence)
    assert AlertState.OPEN is stays.state
    # Less hysteresis than is available re-arms it at once.
    await ledger.execute(topup("ann", 15))
    await set_alerts(ledger, "ann", at(50, 5))
    assert [(50, 2, 40, "rearmed"), (60, 2, 40, "rearmed")] == await fired_of(ledger, "ann")
    assert () == await set_alerts(ledger, "ann")
    assert ["posted"] == words_of(await ledger.execute(consume("ann", 55)))
    assert 2 == len(await alerts_of(ledger, "ann"))


async def test_an_account_that_never_had_a_threshold_has_nothing_of_it_in_its_row(
    ledger: Ledger, owner: Connection
) -> None:
    await ledger.open_with(100, "ann", "bob")
    await set_alerts(ledger, "ann", at(50, 25), at(70, 2))
    await set_alerts(ledger, "bob")
    rows = await owner.fetch(
        "SELECT account_id, alert_at, alert_revision FROM accounts ORDER BY account_id"
    )

    assert [("ann", 75, 1), ("bob", None, None)] == [tuple(row) for row in rows]


class EarlierStore(LedgerStore):
    """Commits as the release before did, which knows no alerts."""

    async def commit(self, connection: Connection, plan: Plan) -> frozenset[AccountId]:
        rows = await connection.fetch(EARLIER_COMMIT, *_arguments_of(plan))
        return frozenset(AccountId(row["account_id"]) for row in rows)


def _arguments_of(plan: Plan) -> tuple[object, ...]:
    """Return the arguments of the earlier statement, of a plan that only moves one account."""
    ((account, expected),) = zip(plan.moved, plan.expected, strict=True)
    return (
        [
            (
                account.shard, account.account_id, expected, account.balance, account.reserved,
                account.version, account.head_hash, account.next_expiry,
            )
        ],
        [],
        [
            (
                t.shard, t.account_id, t.transaction_id, t.kind, t.amount, t.balance, t.reserved,
                t.sequence, t.fingerprint, t.hash, t.description, t.metadata, keyed.key_hash,
                0, None, None, None, None, None,
            )
            for keyed in plan.transactions
            for t in [keyed.transaction]
        ],
        plan.now,
        [],
        [],
    )  # fmt: skip


async def test_the_release_before_commits_and_the_next_commit_makes_up_for_it(
    ledger: Ledger, credits_dsn: str
) -> None:
    await ledger.open_with(100, "ann")
    await set_alerts(ledger, "ann", at(50), at(20))
    async with running_ledger(credits_dsn, store=EarlierStore(), lanes=1) as earlier:
        assert ["posted"] == words_of(await earlier.execute(consume("ann", 60)))
        assert [] == await fired_of(ledger, "ann")
        await ledger.execute(consume("ann", 25))
        first, second = await alerts_of(ledger, "ann")
        if first.threshold == 20:
            first, second = second, first

        assert (50, 2, 40, None) == (
            first.threshold, first.sequence, first.available, first.transaction_id
        )  # fmt: skip
        assert (20, 3, 15) == (second.threshold, second.sequence, second.available)
        assert second.transaction_id is not None
        # It comes up unseen, and down again: both are made up for, the alert fires anew.
        await earlier.execute(topup("ann", 85))
    await ledger.execute(consume("ann", 60))
    assert [
        (20, 3, 15, "rearmed"), (50, 2, 40, "rearmed"), (50, 5, 40, "open")
    ] == await fired_of(ledger, "ann")  # fmt: skip
    await ledger.assert_sound()


async def freeze(owner: Connection) -> None:
    await owner.execute("UPDATE accounts SET frozen_at = now() WHERE account_id = 'ann'")
    await owner.execute(
        "INSERT INTO freezes (frozen_at, version, shard, account_id, faults, evidence_problem)"
        " SELECT frozen_at, version, shard, account_id, '[]', 'none' FROM accounts"
        " WHERE account_id = 'ann'"
    )


@pytest.mark.parametrize("more", [0, 1])
async def test_a_frozen_account_fires_when_its_freeze_is_lifted_on_what_its_chain_says(
    ledger: Ledger, owner: Connection, more: int
) -> None:
    """Its row says anything: here, that there is plenty, or nothing."""
    await ledger.open_with(40, "ann")
    for forged in (10_000, 0):
        await owner.execute("UPDATE accounts SET balance = $1 WHERE account_id = 'ann'", forged)
        await freeze(owner)
        await set_alerts(ledger, "ann", at(50), at(20))
        before = await fired_of(ledger, "ann")
        reason = replace(words("ann"), description="looked into it")
        lift = requests.unfreeze(reason, actor="ops")
        results = await ledger.execute(lift, *[topup("ann", 1)] * more)
        (version,) = [each.transaction.sequence for each in results[:1] if isinstance(each, Posted)]
        fired = await fired_of(ledger, "ann")

        # The second time it has fired already, and stands.
        assert fired == ([(50, version, 40, "open")] if forged else before)
        assert bool(before) is not bool(forged)
    await ledger.assert_sound()


async def test_an_alert_is_acknowledged_once_and_leaves_the_open_ones(
    ledger: Ledger, credits_dsn: str
) -> None:
    await ledger.open_with(10, "ann", "bob")
    for name in ("ann", "bob"):
        await set_alerts(ledger, name, at(50))
    (alert,) = await alerts_of(ledger, "ann")
    answers = await asyncio.gather(
        *(
            ledger.alerts.acknowledge(alert.alert_id, f"note {number}", by=OPERATOR)
            for number in range(5)
        )
    )
    registry = CollectorRegistry()
    counting = OpenAlerts(ledger.pool, AlertStore(), registry)
    await counting.count()

    assert 1 == sum(is_new for _, is_new in answers)
    assert 1 == len({shown for shown, _ in answers})
    assert OPERATOR.key_id == answers[0][0].acknowledged_by
    assert 1 == registry.get_sample_value("credits_alerts_open")
    for state, names in {
        AlertState.OPEN: ["bob"], AlertState.ACKNOWLEDGED: ["ann"], AlertState.REARMED: [],
        None: ["ann", "bob"],
    }.items():  # fmt: skip
        for tenant in (None, TenantId("acme")):
            wanted = AlertFilter(state=state, tenant_id=tenant)
            found = await ledger.alerts.alerts(wanted, after=FIRST_ID, limit=10)
            assert names == sorted(each.account_id for each in found)


async def test_another_tenants_account_and_alerts_do_not_exist(ledger: Ledger) -> None:
    await ledger.execute(opening("eve", "umbra"))
    await set_alerts(ledger, "eve", at(50))
    (alert,) = await alerts_of(ledger, "eve")
    eve = AccountId("eve")
    with pytest.raises(AccountNotFound):
        await ledger.alerts.set_thresholds(eve, (), by=TENANTS_KEY)
    with pytest.raises(AccountNotFound):
        await ledger.alerts.thresholds(eve, TENANTS_KEY.tenant_id)
    with pytest.raises(AlertNotFound):
        await ledger.alerts.acknowledge(alert.alert_id, None, by=TENANTS_KEY)
    with pytest.raises(AlertNotFound):
        await ledger.alerts.alert(alert.alert_id, TENANTS_KEY.tenant_id)
    wanted = AlertFilter(account_id=eve, tenant_id=TENANTS_KEY.tenant_id)

    assert () == await ledger.alerts.alerts(wanted, after=FIRST_ID, limit=10)
    assert AlertState.OPEN is (await ledger.alerts.alert(alert.alert_id, None)).state


async def test_reconciling_and_verifying_see_nothing_of_alerts(
    ledger: Ledger, credits_dsn: str, tmp_path: Path
) -> None:
    await ledger.open_with(100, "ann")
    await set_alerts(ledger, "ann", at(50))
    await ledger.execute(consume("ann", 60))
    async with running_reconciler(ledger, credits_dsn, tmp_path) as reconciler:
        await look_at_all(reconciler)

    assert (await ledger.service.account(ANN, None)).frozen_at is None
    await ledger.assert_sound()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE alerts SET available = 1",
        "UPDATE alerts SET rearmed_at = NULL, rearmed_sequence = NULL",
        "UPDATE alerts SET rearmed_sequence = 1",
        "UPDATE alerts SET acknowledged_at = now()",
        "UPDATE alerts SET note = 'never said'",
        "DELETE FROM alerts",
        "TRUNCATE alerts",
    ],
)
async def test_not_even_the_owner_changes_what_became_of_an_alert(
    ledger: Ledger, owner: Connection, change: str
) -> None:
    await ledger.open_with(10, "ann")
    await set_alerts(ledger, "ann", at(50))
    (alert,) = await alerts_of(ledger, "ann")
    await ledger.alerts.acknowledge(alert.alert_id, "known", by=OPERATOR)
    await ledger.execute(topup("ann", 100))
    before = await alerts_of(ledger, "ann")
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
        await owner.execute(change)

    assert before == await alerts_of(ledger, "ann")


async def test_the_service_changes_of_an_alert_only_what_becomes_of_it(
    ledger: Ledger, credits_dsn: str
) -> None:
    connection = await connector(credits_dsn, role=CREDITS_ROLE)()
    for change in ("UPDATE alerts SET available = 1", "DELETE FROM alerts", "TRUNCATE alerts"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(change)
    await connection.close()


async def test_alerts_work_on_every_installed_postgresql(other_credits_dsn: str) -> None:
    async with running_ledger(other_credits_dsn) as ledger:
        await ledger.open_with(100, "ann")
        await set_alerts(ledger, "ann", at(50))
        await ledger.execute(consume("ann", 60))
        await ledger.execute(topup("ann", 60))
        await ledger.execute(consume("ann", 90))
        await set_alerts(ledger, "ann", at(50), at(20))
        alerts = await alerts_of(ledger, "ann")
        await ledger.alerts.acknowledge(alerts[-1].alert_id, None, by=OPERATOR)

        assert [
            (20, 4, 10, "acknowledged"), (50, 2, 40, "rearmed"), (50, 4, 10, "open")
        ] == await fired_of(ledger, "ann")  # fmt: skip
        assert sorted(alerts, key=lambda each: UUID(str(each.alert_id)).int) == list(alerts)
