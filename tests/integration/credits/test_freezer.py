"""The reconciler itself under attack: its notes, its freezes, and rows that cannot be read.

Whoever writes here owns the database. Nothing of it may blind the reconciler, turn it against
others, or make it accept what nobody accepted.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs
from tests.ledger import Ledger, consume, held_by, opening, words, words_of
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

from tollkeeper.credits import chain, errors, requests
from tollkeeper.credits.model import Posted
from tollkeeper.database.errors import SchemaMissing
from tollkeeper.kernel.ids import AccountId, shard_of

BROKEN = "credits_audit_chain_integrity_errors"
EDIT_OF_AN_OLD_ROW = (
    "UPDATE credit_transactions SET amount = amount + 1 WHERE account_id = 'ann' AND sequence = 3"
)


@pytest.fixture
async def stage(ledger: Ledger, credits_dsn: str, tmp_path: Path) -> AsyncIterator[Stage]:
    async with running_stage(ledger, credits_dsn, tmp_path / "evidence") as stage:
        await look_at_all(stage.reconciler)
        yield stage


# What was accepted -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "again",
    [
        EDIT_OF_AN_OLD_ROW,
        EDIT_OF_AN_OLD_ROW.replace("sequence = 3", "sequence = 2"),
        EDIT_OF_AN_OLD_ROW.replace("amount = amount + 1", "description = 'x'"),
        EDIT_OF_AN_OLD_ROW.replace("sequence = 3", "sequence = 4"),
        "DELETE FROM credit_transactions WHERE account_id = 'ann' AND sequence = 3",
    ],
)
async def test_a_row_that_was_accepted_is_not_accepted_in_another_form(
    stage: Stage, again: str
) -> None:
    await stage.attacker.execute(EDIT_OF_AN_OLD_ROW)
    await look_at_all(stage.reconciler)
    await stage.execute(unfreeze("ann"))
    await look_at_all(stage.reconciler)

    assert [] == await stage.frozen()

    await stage.attacker.execute(again)
    await look_at_all(stage.reconciler)

    assert ["ann"] == await stage.frozen()


async def test_a_row_written_anew_before_one_that_was_accepted_is_new(stage: Stage) -> None:
    """The hash that does not follow stays the one that was accepted; the row before it is not."""
    await stage.attacker.execute(
        "UPDATE credit_transactions SET hash = sha256('x')"
        " WHERE account_id = 'ann' AND sequence = 4"
    )
    await look_at_all(stage.reconciler)
    assert ["posted"] == words_of(await stage.execute(unfreeze("ann")))
    history = await stage.ledger.service.history(AccountId("ann"), None, after=0, limit=4)
    edited = msgspec.structs.replace(history[3], description="x")
    forged = chain.link_of(history[2].hash, edited)
    await look_at_all(stage.reconciler)

    assert [] == await stage.frozen()

    await stage.attacker.execute(
        "UPDATE credit_transactions SET hash = $1, description = 'x'"
        " WHERE account_id = 'ann' AND sequence = 4",
        forged,
    )
    await look_at_all(stage.reconciler)

    assert ["ann"] == await stage.frozen()


@pytest.mark.parametrize("column", ["allowance", "captured", "expires_at"])
async def test_a_hold_that_was_accepted_is_not_accepted_in_another_form(
    stage: Stage, column: str
) -> None:
    await stage.execute(requests.reserve(words("ann"), amount=50))
    await stage.attacker.execute("UPDATE holds SET allowance = 50")
    await look_at_all(stage.reconciler)
    await stage.execute(unfreeze("ann"))
    await look_at_all(stage.reconciler)

    assert [] == await stage.frozen()

    step = "interval '1 second'" if column == "expires_at" else "1"
    await stage.attacker.execute(f"UPDATE holds SET {column} = {column} + {step}")
    await look_at_all(stage.reconciler)

    assert ["ann"] == await stage.frozen()


async def test_a_hold_that_stayed_wrong_is_new_when_it_is_used(stage: Stage) -> None:
    (held,) = await stage.execute(requests.reserve(words("ann"), amount=50))
    await stage.attacker.execute("UPDATE holds SET allowance = 50")
    await look_at_all(stage.reconciler)
    capture = requests.capture(words("ann"), hold_id=held_by(held), amount=5)

    assert ["posted", "posted"] == words_of(await stage.execute(unfreeze("ann"), capture))

    await look_at_all(stage.reconciler)

    assert ["ann"] == await stage.frozen()


@pytest.mark.parametrize("faults", ["[]", '{"x": 1}'])
async def test_nothing_is_accepted_by_a_lifting_that_is_not_in_the_chain(
    stage: Stage, faults: str
) -> None:
    await stage.attacker.execute(
        "INSERT INTO freezes (frozen_at, version, lifted_at, lifted_sequence, reason, shard,"
        " account_id, faults, evidence_problem)"
        " SELECT now(), 1, now(), 9000000000000000000, 'x', shard, account_id, $1::text::jsonb, 'x'"
        " FROM accounts",
        faults,
    )
    await stage.attacker.execute(EDIT_OF_AN_OLD_ROW)
    await look_at_all(stage.reconciler)

    assert ["ann"] == await stage.frozen()


async def test_findings_that_cannot_be_read_stop_neither_the_list_nor_the_ledger(
    stage: Stage,
) -> None:
    await stage.attacker.execute(EDIT_OF_AN_OLD_ROW)
    await look_at_all(stage.reconciler)
    await stage.attacker.execute(
        "UPDATE freezes SET faults = '{\"x\": 1}', frozen_at = '20000-01-01'"
    )
    refused, spent = await stage.execute(consume("ann", 1), consume("bob", 1))

    assert ["ann"] == await stage.frozen()
    assert () == refusal_of(refused).faults
    assert ["posted"] == words_of([spent])
    assert ["posted"] == words_of(await stage.execute(unfreeze("ann")))


# Its notes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["balance", "reserved"])
async def test_a_note_that_was_edited_accuses_nobody(stage: Stage, column: str) -> None:
    await stage.attacker.execute(f"UPDATE reconciled_accounts SET {column} = {column} + 1")
    with capture_logs() as logs:
        await look_at_all(stage.reconciler)
    dropped = [each["account"] for each in logs if each["event"] == "worker.point_dropped"]
    wrong = await stage.attacker.fetchval(
        "SELECT count(*) FROM accounts AS a JOIN reconciled_accounts AS r USING (shard, account_id)"
        " WHERE (a.version, a.balance, a.reserved) <> (r.sequence, r.balance, r.reserved)"
    )

    assert [] == await stage.frozen()
    assert ["ann", "bob"] == sorted(dropped)
    assert 0 == wrong


async def test_a_chain_that_was_written_anew_is_found_though_it_holds_together(
    stage: Stage,
) -> None:
    bob = AccountId("bob")
    (row,) = await stage.ledger.service.history(bob, None, after=0, limit=1)
    account = await stage.ledger.service.account(bob, None)
    forged = chain.link_of(
        chain.genesis(bob, account.tenant_id),
        msgspec.structs.replace(row, amount=900, balance=900),
    )
    for statement in (
        "UPDATE credit_transactions SET amount = 900, balance = 900, hash = $1 WHERE shard = $2",
        "UPDATE accounts SET balance = 900, head_hash = $1 WHERE shard = $2",
    ):
        await stage.attacker.execute(statement, forged, shard_of(bob))

    assert () == (await stage.ledger.service.verify(bob, None, after=None)).faults

    await look_at_all(stage.reconciler)
    (freeze,) = await stage.ledger.service.frozen(None, after=0, limit=10)

    assert ("bob", "the row is not the one that was reconciled") == (
        freeze.account_id, freeze.faults[0].detail,
    )  # fmt: skip


@pytest.mark.parametrize(
    "statement",
    ["UPDATE reconciliation_progress SET after = 'garbage'", "DELETE FROM reconciliation_progress"],
)
async def test_progress_that_is_no_place_begins_anew(stage: Stage, statement: str) -> None:
    await stage.attacker.execute(statement)
    await stage.attacker.execute(EDIT_OF_AN_OLD_ROW)
    await look_at_all(stage.reconciler)
    row = await stage.attacker.fetchrow("SELECT after, passes > 0 FROM reconciliation_progress")

    assert ["ann"] == await stage.frozen()
    assert row is not None
    assert (None, True) == tuple(row)


async def test_an_account_that_is_gone_with_its_note_is_counted(stage: Stage) -> None:
    for table in ("accounts", "reconciled_accounts"):
        await stage.attacker.execute(f"DELETE FROM {table} WHERE account_id = 'ann'")
    with capture_logs() as logs:
        await look_at_all(stage.reconciler)

    assert 1 == gauge(stage.registry, BROKEN)
    assert [1] == [e["accounts"] for e in logs if e["event"] == "worker.accounts_vanished"]


# Its freezes -----------------------------------------------------------------------------------


async def test_freezes_of_nobody_use_up_no_limit_and_are_listed_as_such(
    stage: Stage, credits_dsn: str
) -> None:
    await stage.attacker.execute(
        "INSERT INTO freezes (frozen_at, version, shard, account_id, faults, evidence_problem)"
        " SELECT now(), 1, get_byte(sha256(convert_to('ghost' || g, 'UTF8')), 0), 'ghost' || g,"
        " '[]', 'x' FROM generate_series(1, 3) AS g"
    )
    await stage.attacker.execute(EDIT_OF_AN_OLD_ROW)
    async with running_reconciler(
        stage.ledger, credits_dsn, stage.folder, freeze_limit=1
    ) as limited:
        await look_at_all(limited)
    listed = await stage.ledger.service.frozen(None, after=0, limit=10)

    assert {"ann": "acme", "ghost1": None, "ghost2": None, "ghost3": None} == {
        each.account_id: each.tenant_id for each in listed
    }


async def test_a_freeze_whose_account_was_thawed_in_sql_is_closed(stage: Stage) -> None:
    await stage.attacker.execute("UPDATE accounts SET balance = balance + 5")
    await look_at_all(stage.reconciler)
    await stage.attacker.execute("UPDATE accounts SET balance = balance - 5, frozen_at = NULL")

    assert [] == await stage.frozen()

    await look_at_all(stage.reconciler)
    reasons = await stage.attacker.fetch("SELECT reason FROM freezes")

    assert ["thawed in the database"] * 2 == [row["reason"] for row in reasons]


@pytest.mark.parametrize("moment", ["2026-01-01", "20000-01-01", "infinity"])
async def test_who_was_frozen_in_sql_is_listed_and_can_be_lifted(stage: Stage, moment: str) -> None:
    await stage.attacker.execute(
        f"UPDATE accounts SET frozen_at = '{moment}' WHERE account_id = 'ann'"
    )
    await look_at_all(stage.reconciler)

    assert ["ann"] == await stage.frozen()
    assert 1 == gauge(stage.registry, BROKEN)
    assert ["posted"] == words_of(await stage.execute(unfreeze("ann")))


# Rows that cannot be read, or stand where none belongs -----------------------------------------

POISONS = {
    "balance": "balance = NULL",
    "reserved": "reserved = NULL",
    "version": "version = NULL",
    "last_version": "version = 9223372036854775807",
    "tenant": "tenant_id = NULL",
    "head": "head_hash = NULL",
    "created_at": "created_at = '4000-01-01 BC'",
    "next_expiry": "next_expiry = '20000-01-01'",
}


@pytest.mark.parametrize("poison", POISONS)
async def test_an_account_with_a_poisoned_cell_hides_no_other(stage: Stage, poison: str) -> None:
    for column in ("balance", "reserved", "version", "tenant_id", "head_hash"):
        await stage.attacker.execute(f"ALTER TABLE accounts ALTER {column} DROP NOT NULL")
    await stage.attacker.execute(
        f"UPDATE accounts SET {POISONS[poison]} WHERE account_id = 'ann';"
        "UPDATE accounts SET balance = balance + 1 WHERE account_id = 'bob'"
    )
    await look_at_all(stage.reconciler)
    states = await stage.attacker.fetch("SELECT frozen_at IS NOT NULL AS is_frozen FROM accounts")

    assert [True, True] == [row["is_frozen"] for row in states]


async def test_a_transaction_at_the_end_of_all_calendars_hides_no_other(stage: Stage) -> None:
    await stage.execute(consume("ann", 1), consume("bob", 1))
    await stage.attacker.execute(
        "CREATE TABLE beyond PARTITION OF credit_transactions DEFAULT;"
        "UPDATE credit_transactions SET created_at = '294276-12-01'"
        " WHERE account_id = 'ann' AND sequence = 11;"
        "UPDATE accounts SET balance = balance + 1 WHERE account_id = 'bob'"
    )
    await stage.reconciler.recent()

    assert "bob" in await stage.frozen()


async def test_a_row_that_cannot_be_read_at_all_stops_no_other(stage: Stage) -> None:
    """As of a page that is broken on the disk: whoever reads that column gets an error."""
    await stage.attacker.execute(
        "UPDATE accounts SET balance = balance + 1;"
        "ALTER TABLE accounts RENAME TO stored_accounts;"
        "CREATE VIEW accounts AS SELECT created_at, version, balance, reserved, shard, account_id,"
        " CASE WHEN account_id = 'ann' THEN (1 / (balance - balance))::text ELSE tenant_id END"
        " AS tenant_id, head_hash, next_expiry, frozen_at FROM stored_accounts;"
        "GRANT SELECT ON accounts TO tollkeeper_credits"
    )
    with capture_logs() as logs:
        await stage.reconciler.recent()
        await stage.reconciler.thorough()
        await stage.reconciler.recent()
    frozen = await stage.attacker.fetch(
        "SELECT account_id FROM stored_accounts WHERE frozen_at IS NOT NULL"
    )
    told = [each["first"] for each in logs if each["event"] == "worker.accounts_not_reconciled"]

    assert ["bob"] == [row["account_id"] for row in frozen]
    assert [["ann"]] == told
    for name in ("recent", "thorough"):
        failures = stage.registry.get_sample_value(
            "credits_reconciliation_failures_total", {"pass": name}
        )

        assert failures


async def test_a_twin_in_another_shard_hides_nobody(stage: Stage) -> None:
    other = shard_of(AccountId("ann")) ^ 1
    await stage.attacker.execute(
        "UPDATE accounts SET balance = balance + 1000 WHERE account_id = 'ann';"
        "INSERT INTO accounts SELECT (jsonb_populate_record(a, jsonb_build_object("
        f"'shard', {other}, 'balance', 91))).* FROM accounts AS a WHERE account_id = 'ann'"
    )
    await stage.reconciler.recent()
    places = await stage.attacker.fetch("SELECT shard FROM accounts WHERE frozen_at IS NOT NULL")

    assert {other, shard_of(AccountId("ann"))} == {row["shard"] for row in places}


@pytest.mark.parametrize("shard", [-5, 300])
async def test_an_account_in_another_shard_is_counted_and_can_be_moved_back(
    stage: Stage, shard: int
) -> None:
    await drop_constraint(stage.attacker, "accounts", "shard")
    await stage.attacker.execute(f"UPDATE accounts SET shard = {shard} WHERE account_id = 'ann'")
    await look_at_all(stage.reconciler)

    assert 2 == gauge(stage.registry, BROKEN)  # frozen there, gone from here

    await stage.attacker.execute(
        f"UPDATE accounts SET shard = {shard_of(AccountId('ann'))} WHERE account_id = 'ann'"
    )
    await look_at_all(stage.reconciler)

    assert ["ann"] == await stage.frozen()
    assert ["posted"] == words_of(await stage.execute(unfreeze("ann")))

    await look_at_all(stage.reconciler)

    assert 0 == gauge(stage.registry, BROKEN)


# Passes that fail ------------------------------------------------------------------------------


async def test_a_pass_that_fails_is_told_once_and_the_other_goes_on(stage: Stage) -> None:
    await stage.attacker.execute("ALTER TABLE reconciliation_progress RENAME TO elsewhere")
    with capture_logs() as logs:
        for _ in range(6):
            await stage.reconciler.piece()
        await stage.attacker.execute("ALTER TABLE elsewhere RENAME TO reconciliation_progress")
        for _ in range(2):
            await stage.reconciler.piece()
    told = [(each["event"], each["name"]) for each in logs]

    assert [("worker.pass_failed", "thorough"), ("worker.pass_recovered", "thorough")] == told


async def test_when_both_passes_fail_the_piece_does(stage: Stage) -> None:
    await stage.attacker.execute("ALTER TABLE reconciled_accounts RENAME TO elsewhere")
    await stage.attacker.execute("ALTER TABLE reconciliation_progress RENAME TO nowhere")
    await stage.reconciler.piece()
    with pytest.raises(SchemaMissing):
        await stage.reconciler.piece()


async def test_an_account_opened_anew_under_a_name_that_vanished_is_frozen(stage: Stage) -> None:
    await stage.attacker.execute("DELETE FROM accounts; DELETE FROM reconciled_accounts")
    await look_at_all(stage.reconciler)
    opened = await stage.execute(opening("ann"))
    await look_at_all(stage.reconciler)
    (lifted,) = await stage.execute(unfreeze("ann"))

    assert not isinstance(opened[0], errors.CreditsError)
    assert isinstance(lifted, Posted)
    assert 91 == lifted.transaction.balance
