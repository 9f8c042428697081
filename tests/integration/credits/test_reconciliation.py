"""Accounts against their transactions: what is found and frozen, what goes on, what is lifted."""

import asyncio
import hashlib
import json
import stat
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from prometheus_client import CollectorRegistry
from tests.ledger import (
    Ledger,
    consume,
    held_by,
    opening,
    topup,
    words,
    words_of,
)
from tests.reconciliation import (
    Stage,
    drop_constraint,
    gauge,
    look_at_all,
    refusal_of,
    running_reconciler,
    running_stage,
    unfreeze,
)

from tollkeeper.credits import errors, freezer, reconciler, requests
from tollkeeper.credits.model import Kind, Posted
from tollkeeper.database.connect import connector
from tollkeeper.kernel.ids import AccountId, TenantId, shard_of
from tollkeeper.wiring import CREDITS_ROLE

SPENDING = Path(__file__).parents[2] / "spending_process.py"
BROKEN = "credits_audit_chain_integrity_errors"
NEGATIVE = "credits_negative_balance_accounts"


@pytest.fixture
async def stage(ledger: Ledger, credits_dsn: str, tmp_path: Path) -> AsyncIterator[Stage]:
    async with running_stage(ledger, credits_dsn, tmp_path / "evidence") as stage:
        yield stage


TAMPERINGS = {
    "balance": "UPDATE accounts SET balance = balance + 1000 WHERE account_id = 'ann'",
    "reserved": "UPDATE accounts SET reserved = 5 WHERE account_id = 'ann'",
    "version": "UPDATE accounts SET version = version + 1 WHERE account_id = 'ann'",
    "head": "UPDATE accounts SET head_hash = sha256('x') WHERE account_id = 'ann'",
    "last_row_deleted": (
        "DELETE FROM credit_transactions WHERE account_id = 'ann' AND sequence = 10"
    ),
    "old_row_deleted": "DELETE FROM credit_transactions WHERE account_id = 'ann' AND sequence = 3",
    "old_row_edited": (
        "UPDATE credit_transactions SET amount = 2 WHERE account_id = 'ann' AND sequence = 3"
    ),
    "last_row_edited": (
        "UPDATE credit_transactions SET metadata = '1' WHERE account_id = 'ann' AND sequence = 10"
    ),
    "row_added_behind": (
        "INSERT INTO credit_transactions SELECT (jsonb_populate_record(t, '{\"sequence\": 11}')).*"
        " FROM credit_transactions AS t WHERE account_id = 'ann' AND sequence = 10"
    ),
    "account_set_back": (
        "DELETE FROM credit_transactions WHERE account_id = 'ann' AND sequence = 10;"
        "UPDATE accounts AS a SET balance = t.balance, version = 9, head_hash = t.hash"
        " FROM credit_transactions AS t"
        " WHERE a.account_id = 'ann' AND t.account_id = 'ann' AND t.sequence = 9"
    ),
}


@pytest.mark.parametrize("tampering", sorted(TAMPERINGS))
async def test_what_was_tampered_with_is_frozen_alone(stage: Stage, tampering: str) -> None:
    await look_at_all(stage.reconciler)

    assert [] == await stage.frozen()
    assert (0, 0) == (gauge(stage.registry, BROKEN), gauge(stage.registry, NEGATIVE))

    await stage.attacker.execute(TAMPERINGS[tampering])
    await look_at_all(stage.reconciler)
    refused, other = await stage.execute(topup("ann", 1), consume("bob", 1))
    (evidence,) = stage.evidence()

    assert ["ann"] == await stage.frozen()
    assert refusal_of(refused).faults
    assert ["posted"] == words_of([other])
    assert 1 == gauge(stage.registry, BROKEN)
    assert "ann" == evidence["account"]["account_id"]  # type: ignore[index]  # JSON


async def test_an_account_below_zero_is_counted_and_frozen(stage: Stage) -> None:
    await look_at_all(stage.reconciler)
    await stage.attacker.execute(
        "ALTER TABLE accounts DROP CONSTRAINT accounts_never_negative;"
        "UPDATE accounts SET balance = -5 WHERE account_id = 'ann'"
    )
    await look_at_all(stage.reconciler)

    assert ["ann"] == await stage.frozen()
    assert (1, 1) == (gauge(stage.registry, BROKEN), gauge(stage.registry, NEGATIVE))


async def test_an_account_that_is_gone_is_counted(stage: Stage) -> None:
    """There is no row to freeze; opened anew, it does not follow from its transactions."""
    await look_at_all(stage.reconciler)
    await stage.attacker.execute("DELETE FROM accounts WHERE account_id = 'ann'")
    await look_at_all(stage.reconciler)

    assert 1 == gauge(stage.registry, BROKEN)

    await stage.execute(opening("ann"))
    await look_at_all(stage.reconciler)

    assert ["ann"] == await stage.frozen()


@pytest.mark.parametrize("sequence", [3, 11])
async def test_a_row_that_cannot_be_read_stops_nobody_else(stage: Stage, sequence: int) -> None:
    """A new row, and one that was reconciled before."""
    await look_at_all(stage.reconciler)
    await stage.execute(consume("bob", 1), consume("ann", 1))
    for name in ("kind", "shape"):
        await drop_constraint(stage.attacker, "credit_transactions", name)
    await stage.attacker.execute(
        "UPDATE credit_transactions SET kind = 'gift' WHERE account_id = 'ann' AND sequence = $1",
        sequence,
    )
    await look_at_all(stage.reconciler)

    assert ["ann"] == await stage.frozen()

    await stage.attacker.execute(
        "UPDATE credit_transactions SET amount = 7 WHERE account_id = 'bob' AND sequence = 1"
    )
    await look_at_all(stage.reconciler)

    assert ["ann", "bob"] == await stage.frozen()


async def test_the_evidence_says_what_was_found(stage: Stage) -> None:
    await look_at_all(stage.reconciler)
    await stage.execute(consume("ann", 1))
    await stage.attacker.execute(
        "UPDATE credit_transactions SET amount = 50 WHERE account_id = 'ann' AND sequence = 11"
    )
    await stage.reconciler.recent()
    (path,) = stage.folder.iterdir()
    (document,) = stage.evidence()
    (freeze,) = await stage.ledger.service.frozen(None, after=0, limit=10)

    assert (0o600, 0o700) == tuple(
        stat.S_IMODE(each.stat().st_mode) for each in (path, stage.folder)
    )
    assert (path.name, hashlib.sha256(path.read_bytes()).digest()) == (
        freeze.evidence, freeze.evidence_sha256,
    )  # fmt: skip
    assert ("tollkeeper under test", "recent") == (document["software"], document["found_by"])
    assert 10 == document["reconciled"]["sequence"]  # type: ignore[index]  # JSON
    assert ["balance", "hash"] == [f["fault"] for f in document["faults"]]  # type: ignore[attr-defined]  # JSON
    assert [(10, 1), (11, 50)] == [(r["sequence"], r["amount"]) for r in document["rows"]]  # type: ignore[attr-defined]  # JSON


async def test_without_a_place_for_evidence_the_account_is_frozen_all_the_same(
    stage: Stage,
) -> None:
    stage.folder.write_text("a file where the directory should be")
    await stage.attacker.execute(TAMPERINGS["balance"])
    await stage.reconciler.recent()
    (freeze,) = await stage.ledger.service.frozen(None, after=0, limit=10)

    assert ("ann", None) == (freeze.account_id, freeze.evidence)
    assert freeze.evidence_problem
    assert 1 == gauge(stage.registry, "credits_evidence_failures_total")


async def test_evidence_that_takes_too_long_does_not_keep_an_account_going(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freezer, "EVIDENCE_TIMEOUT_S", 0)
    await stage.attacker.execute(TAMPERINGS["balance"])
    await stage.reconciler.recent()
    (freeze,) = await stage.ledger.service.frozen(None, after=0, limit=10)

    assert "not written within 0 s" == freeze.evidence_problem
    assert 1 == gauge(stage.registry, "credits_evidence_failures_total")


async def test_what_no_calendar_has_hides_no_other(stage: Stage) -> None:
    await look_at_all(stage.reconciler)
    await drop_constraint(stage.attacker, "credit_transactions", "shape")
    for statement in (
        "UPDATE credit_transactions SET expires_at = '294276-12-31' WHERE sequence = 10",
        "UPDATE accounts SET created_at = '10000-01-01' WHERE account_id = 'bob'",
    ):
        await stage.attacker.execute(statement)
    await look_at_all(stage.reconciler)
    names = [each.name for each in stage.folder.iterdir()]

    assert {"ann", "bob"} == set(await stage.frozen())
    assert 2 == len(names)
    assert any("294276-12-31" in (stage.folder / name).read_text() for name in names)


async def test_many_faults_of_one_account_hide_no_other(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tollkeeper.credits.verification.FAULTS_LIMIT", 1)
    await look_at_all(stage.reconciler)
    await stage.attacker.execute("UPDATE credit_transactions SET amount = amount + 1")
    await stage.reconciler.thorough()

    assert ["ann", "bob"] == await stage.frozen()


async def test_a_tenant_sees_its_own_frozen_accounts(stage: Stage) -> None:
    await stage.execute(opening("cleo", "umbra"))
    await stage.attacker.execute("UPDATE accounts SET balance = balance + 1")
    await look_at_all(stage.reconciler)
    frozen = stage.ledger.service.frozen
    theirs = await frozen(TenantId("umbra"), after=0, limit=10)
    first = await frozen(None, after=0, limit=2)
    rest = await frozen(None, after=first[-1].number, limit=2)

    assert ["cleo"] == [freeze.account_id for freeze in theirs]
    assert {"ann", "bob", "cleo"} == {freeze.account_id for freeze in (*first, *rest)}


async def test_a_restarted_worker_shows_what_is_broken_at_once(
    stage: Stage, credits_dsn: str
) -> None:
    await stage.attacker.execute(TAMPERINGS["balance"])
    await stage.reconciler.recent()
    registry = CollectorRegistry()
    async with running_reconciler(
        stage.ledger, credits_dsn, stage.folder, registry=registry
    ) as restarted:
        before = gauge(registry, BROKEN)
        await restarted.piece()

    assert (0, 1) == (before, gauge(registry, BROKEN))


async def test_beyond_the_limit_accounts_are_told_and_not_frozen(
    stage: Stage, credits_dsn: str
) -> None:
    await stage.attacker.execute("UPDATE accounts SET balance = balance + 7")
    registry = CollectorRegistry()
    async with running_reconciler(
        stage.ledger, credits_dsn, stage.folder, registry=registry, freeze_limit=1
    ) as limited:
        await look_at_all(limited)

        assert 1 == len(await stage.frozen())
        assert 2 == gauge(registry, BROKEN)

        (name,) = await stage.frozen()
        await stage.execute(unfreeze(name))
        await look_at_all(limited)

        assert 1 == len(await stage.frozen())
        assert 1 == gauge(registry, BROKEN)


# A frozen account ------------------------------------------------------------------------------


async def test_a_frozen_account_refuses_what_would_move_it(stage: Stage) -> None:
    ledger = stage.ledger
    hold = held_by((await stage.execute(requests.reserve(words("ann"), amount=5)))[0])
    (spent,) = await stage.execute(consume("ann", 3, "spent"))
    assert isinstance(spent, Posted)
    await stage.attacker.execute(TAMPERINGS["balance"])
    await stage.reconciler.recent()
    refused = await stage.execute(
        topup("ann", 1),
        consume("ann", 1),
        requests.reserve(words("ann"), amount=1),
        requests.capture(words("ann"), hold_id=hold),
        requests.release(words("ann"), hold_id=hold),
        requests.extend(words("ann"), hold_id=hold, amount=1),
        requests.refund(words("ann"), transaction_id=spent.transaction.transaction_id),
    )
    again = await stage.execute(
        consume("ann", 3, "spent"), opening("ann"), consume("ann", 4, "spent")
    )

    assert {errors.AccountFrozen} == {type(each) for each in refused}
    assert ["replayed", "reopened", "key_reused"] == words_of(again)
    assert (await ledger.service.account(AccountId("ann"), None)).frozen_at is not None
    assert 12 == len(await ledger.service.history(AccountId("ann"), None, after=0, limit=100))


async def test_a_retry_whose_row_was_deleted_is_not_booked_again(stage: Stage) -> None:
    await stage.execute(consume("ann", 5, "once"))
    await stage.attacker.execute(
        "DELETE FROM credit_transactions WHERE account_id = 'ann' AND sequence = 11"
    )
    await stage.reconciler.recent()

    assert isinstance((await stage.execute(consume("ann", 5, "once")))[0], errors.AccountFrozen)


async def test_a_freeze_between_reading_and_writing_holds(stage: Stage) -> None:
    """The freeze waits uncommitted while a commit runs into it: the operation is refused."""
    waiting = asyncio.Event()
    async with stage.attacker.transaction():
        await stage.attacker.execute(
            "UPDATE accounts SET frozen_at = now() WHERE account_id = 'ann'"
        )
        call = asyncio.ensure_future(stage.execute(consume("ann", 1)))
        async with asyncio.timeout(10):
            while not waiting.is_set():
                blocked = await stage.attacker.fetchval(
                    "SELECT count(*) FROM pg_stat_activity"
                    " WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid))"
                )
                if blocked:
                    waiting.set()
                await asyncio.sleep(0.005)

    assert isinstance((await call)[0], errors.AccountFrozen)
    assert 1 == stage.ledger.retries("contention")


async def test_expired_holds_of_a_frozen_account_wait_for_the_lifting(stage: Stage) -> None:
    await stage.execute(
        requests.reserve(words("ann"), amount=5, expires_in_s=600),
        requests.reserve(words("bob"), amount=5, expires_in_s=600),
    )
    await stage.reconciler.recent()
    await stage.attacker.execute(
        "UPDATE accounts SET frozen_at = now(), next_expiry = now() WHERE account_id = 'ann';"
        "UPDATE accounts SET next_expiry = now() WHERE account_id = 'bob';"
        "UPDATE holds SET expires_at = now() - interval '1 second'"
    )

    assert 1 == await stage.ledger.service.sweep()
    assert 0 == await stage.ledger.service.sweep()

    lifted, spent = await stage.execute(unfreeze("ann"), consume("ann", 91))
    history = await stage.ledger.service.history(AccountId("ann"), None, after=11, limit=10)

    assert ["posted", "posted"] == words_of([lifted, spent])
    assert [Kind.UNFREEZE, Kind.EXPIRE, Kind.CONSUME] == [each.kind for each in history]


# Lifting a freeze ------------------------------------------------------------------------------


async def test_lifting_restates_the_account_from_its_chain_and_stands_in_it(stage: Stage) -> None:
    await look_at_all(stage.reconciler)
    await stage.attacker.execute(TAMPERINGS["balance"])
    await look_at_all(stage.reconciler)
    refused, lifted, spent, again = await stage.execute(
        consume("ann", 1),
        unfreeze("ann", "restored; card 4111 1111 1111 1111", "lift-1"),
        consume("ann", 91),
        unfreeze("ann"),
    )
    replayed = await stage.execute(unfreeze("ann", "restored; card 4111 1111 1111 1111", "lift-1"))
    account = await stage.ledger.service.account(AccountId("ann"), None)
    row = await stage.attacker.fetchrow("SELECT lifted_sequence, lifted_by, reason FROM freezes")

    assert isinstance(refused, errors.AccountFrozen)
    assert ["posted", "posted"] == words_of([lifted, spent])
    assert isinstance(lifted, Posted)
    assert (Kind.UNFREEZE, 0, 91, 0, 11) == (
        lifted.transaction.kind, lifted.transaction.amount, lifted.transaction.balance,
        lifted.transaction.reserved, lifted.transaction.sequence,
    )  # fmt: skip
    assert "restored; card ****-****-****-1111" == lifted.transaction.description
    assert isinstance(again, errors.NotFrozen)
    assert ["replayed"] == words_of(replayed)
    assert (0, 12, None) == (account.balance, account.version, account.frozen_at)
    assert row is not None
    assert (11, "key-of-the-operator") == (row["lifted_sequence"], row["lifted_by"])
    await stage.ledger.assert_sound()


async def test_what_was_accepted_does_not_freeze_again_and_what_is_new_does(stage: Stage) -> None:
    await look_at_all(stage.reconciler)
    await stage.attacker.execute(TAMPERINGS["old_row_edited"])
    await look_at_all(stage.reconciler)
    await stage.execute(unfreeze("ann"))
    found = await stage.ledger.service.verify(AccountId("ann"), None, after=None)
    await look_at_all(stage.reconciler)

    assert {3, 4} >= {fault.sequence for fault in found.faults} > set()
    assert [] == await stage.frozen()
    assert 0 == gauge(stage.registry, BROKEN)

    await stage.execute(consume("ann", 1))
    await look_at_all(stage.reconciler)
    # Where it was reconciled is forgotten: from the first row on, nothing new is found.
    await stage.attacker.execute("DELETE FROM reconciled_accounts")
    await look_at_all(stage.reconciler)

    assert [] == await stage.frozen()

    await stage.attacker.execute(
        "UPDATE credit_transactions SET amount = 9 WHERE account_id = 'ann' AND sequence = 12"
    )
    await look_at_all(stage.reconciler)

    assert ["ann"] == await stage.frozen()
    assert 2 == await stage.attacker.fetchval("SELECT count(*) FROM freezes")


async def test_a_chain_that_was_cut_is_lifted_to_where_it_ends(stage: Stage) -> None:
    await look_at_all(stage.reconciler)
    await stage.attacker.execute("DELETE FROM credit_transactions WHERE account_id = 'bob'")
    await look_at_all(stage.reconciler)
    (lifted,) = await stage.execute(unfreeze("bob"))

    assert isinstance(lifted, Posted)
    assert (1, 0) == (lifted.transaction.sequence, lifted.transaction.balance)

    await look_at_all(stage.reconciler)

    assert [] == await stage.frozen()


async def test_holds_that_do_not_agree_are_named_and_can_be_repaired(stage: Stage) -> None:
    await stage.execute(requests.reserve(words("ann"), amount=5))
    await look_at_all(stage.reconciler)
    await stage.attacker.execute("UPDATE holds SET amount = 50")
    await look_at_all(stage.reconciler)
    (refused,) = await stage.execute(unfreeze("ann"))

    assert ["ann"] == await stage.frozen()
    assert isinstance(refused, errors.UnfreezeUnsafe)
    assert "5 reserved" in refused.message()
    assert "50" in refused.message()

    await stage.attacker.execute("UPDATE holds SET amount = 5")

    assert ["posted"] == words_of(await stage.execute(unfreeze("ann")))
    await stage.ledger.assert_sound()


async def test_a_wrong_hold_that_was_accepted_does_not_freeze_again(stage: Stage) -> None:
    await stage.execute(requests.reserve(words("ann"), amount=5))
    await stage.attacker.execute("UPDATE holds SET allowance = 50")
    await look_at_all(stage.reconciler)

    assert ["ann"] == await stage.frozen()

    await stage.execute(unfreeze("ann"))
    await look_at_all(stage.reconciler)

    assert [] == await stage.frozen()


async def test_a_chain_that_ends_below_zero_is_not_lifted(stage: Stage) -> None:
    await drop_constraint(stage.attacker, "credit_transactions", "never_negative")
    await stage.attacker.execute(
        "UPDATE credit_transactions SET balance = -1 WHERE account_id = 'bob'"
    )
    await look_at_all(stage.reconciler)
    (refused,) = await stage.execute(unfreeze("bob"))

    assert isinstance(refused, errors.UnfreezeUnsafe)
    assert "-1" in refused.message()


async def test_only_a_transaction_in_the_chain_thaws_an_account(
    stage: Stage, credits_dsn: str
) -> None:
    await stage.attacker.execute(TAMPERINGS["balance"])
    await stage.reconciler.recent()
    service = await connector(credits_dsn, role=CREDITS_ROLE)()
    owner = await connector(credits_dsn)()
    try:
        for statement in (
            "UPDATE accounts SET frozen_at = NULL",
            "UPDATE accounts SET tenant_id = 'mine'",
            "UPDATE freezes SET lifted_at = now()",
            "DELETE FROM reconciled_accounts",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await service.execute(statement)
        with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
            await service.execute(
                "SELECT lift_freeze(row(shard, account_id, gen_random_uuid(), 'topup', 0, balance,"
                " reserved, version + 1, head_hash, head_hash, 'x', null, head_hash, 1, null, null,"
                " null, null, null)::written_transaction, now(), null, 'me')"
                " FROM accounts WHERE account_id = 'ann'"
            )
        for statement in (
            "UPDATE freezes SET reason = 'x'",
            "DELETE FROM freezes",
            "TRUNCATE freezes",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await owner.execute(statement)
    finally:
        await service.close()
        await owner.close()

    assert ["ann"] == await stage.frozen()


async def test_an_account_that_was_thawed_in_sql_is_frozen_again(stage: Stage) -> None:
    await stage.attacker.execute(TAMPERINGS["balance"])
    await stage.reconciler.recent()
    await stage.attacker.execute("UPDATE accounts SET frozen_at = NULL")
    await look_at_all(stage.reconciler)

    assert (await stage.ledger.service.account(AccountId("ann"), None)).frozen_at is not None
    assert [("thawed in the database", 0), (None, None)] == [
        tuple(row)
        for row in await stage.attacker.fetch(
            "SELECT reason, lifted_sequence FROM freezes ORDER BY number"
        )
    ]


# While the ledger works ------------------------------------------------------------------------


async def test_an_untouched_ledger_under_load_is_never_accused(
    stage: Stage, credits_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes on the same accounts, holds among them; small pieces end everywhere."""
    monkeypatch.setattr(reconciler, "PIECE_ROWS", 7)
    monkeypatch.setattr(reconciler, "PIECE_ACCOUNTS", 3)
    monkeypatch.setattr(reconciler, "CHANGED_LIMIT", 4)
    names = [f"account-{number}" for number in range(12)]
    await stage.ledger.open_with(1_000, *names)

    async def spend(seed: int) -> None:
        ledger = stage.ledger
        for turn in range(40):
            name = names[(turn * 5 + seed) % len(names)]
            (held,) = await ledger.execute(requests.reserve(words(name), amount=3))
            hold = held_by(held)
            await ledger.execute(
                consume(name, 1), requests.capture(words(name), hold_id=hold, amount=2)
            )
            await ledger.execute(requests.release(words(name), hold_id=hold))

    command = (sys.executable, str(SPENDING), credits_dsn, names[0], "10", "30", "other")
    other = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
    assert other.stdin is not None
    assert other.stdout is not None
    assert b"ready\n" == await other.stdout.readline()
    other.stdin.write(b"go\n")
    theirs = asyncio.ensure_future(other.communicate())
    ours = asyncio.ensure_future(asyncio.gather(*(spend(seed) for seed in range(4))))
    while not (theirs.done() and ours.done()):
        await stage.reconciler.recent()
        await stage.reconciler.thorough()
    await ours
    said, _ = await theirs

    assert 300 == sum(json.loads(said).values())

    for _ in range(2):  # the first may be in the middle of the accounts
        await look_at_all(stage.reconciler)
    sums = await stage.attacker.fetchrow(
        "SELECT (SELECT count(*) FROM freezes) AS frozen, count(*) AS accounts,"
        " count(*) FILTER (WHERE r.sequence = a.version AND r.head_hash = a.head_hash) AS same"
        " FROM accounts AS a LEFT JOIN reconciled_accounts AS r USING (shard, account_id)"
    )

    assert sums is not None
    assert (0, 14, 14) == tuple(sums)


async def test_the_pass_over_all_chains_goes_on_after_a_restart(
    stage: Stage, credits_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tollkeeper.credits.verifier.SLICE_TRANSACTIONS", 1)
    monkeypatch.setattr("tollkeeper.credits.verifier.STRETCH_ACCOUNTS", 1)
    ends = []
    for _ in range(2):
        async with running_reconciler(stage.ledger, credits_dsn, stage.folder) as restarted:
            ends.append(await restarted.thorough())
    row = await stage.attacker.fetchrow("SELECT after, passes FROM reconciliation_progress")

    assert [False, False] == ends
    assert row is not None
    assert (f"{shard_of(AccountId('bob'))}/bob", 0) == (row["after"], row["passes"])

    async with running_reconciler(stage.ledger, credits_dsn, stage.folder) as restarted:
        assert await restarted.thorough()

    assert 1 == await stage.attacker.fetchval("SELECT passes FROM reconciliation_progress")


async def test_what_is_new_comes_first_and_what_is_old_without_fail(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler, "PIECE_ROWS", 1)
    checked = "credits_reconciled_transactions_total"
    found = []
    for _ in range(reconciler.RECENT_IN_A_ROW + 1):
        assert await stage.reconciler.piece() >= reconciler.PAUSE_S
        found.append(
            tuple(
                stage.registry.get_sample_value(checked, {"pass": name})
                for name in ("recent", "thorough")
            )
        )

    assert [(n + 1, 0) for n in range(8)] == found[:8]
    assert (8, 11) == found[8]


async def test_one_reconciles_at_a_time(stage: Stage) -> None:
    held = "SELECT pg_advisory_lock(hashtextextended('tollkeeper.credits.reconciliation', 0))"
    await stage.attacker.execute(held)

    assert await stage.reconciler.recent()
    assert await stage.reconciler.thorough()
    assert 0 == await stage.attacker.fetchval("SELECT count(*) FROM reconciled_accounts")
