"""Every way to change a stored ledger with SQL, each found by `verify` and named.

The ledger under test has a row of every kind and a value in every column. Whoever changes it here
owns the server: no trigger runs for them, and the schema's checks are gone.
"""

import asyncio
from collections.abc import Sequence

import pytest
from tests.forging import OTHER_VALUES, columns_of, faults_of, verify_all
from tests.ledger import Ledger, held_by, opening, running_ledger, topup, words

from tollkeeper.credits import requests, verifier
from tollkeeper.credits.errors import InvalidRequest
from tollkeeper.credits.model import Fault, Kind, Posted
from tollkeeper.credits.store import SESSION_SETTINGS
from tollkeeper.database.connect import connector
from tollkeeper.database.driver import Connection, Row
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.kernel.ids import AccountId, TenantId, shard_of
from tollkeeper.wiring import CREDITS_ROLE

ANN, BOB, CLEO = AccountId("ann"), AccountId("bob"), AccountId("cleo")
OTHERS_SHARD = 255 - shard_of(ANN)

KEY_COLUMNS = {"shard", "account_id", "sequence", "created_at"}  # never null


async def rows_of_ann(forger: Connection) -> Sequence[Row]:
    return await forger.fetch(
        "SELECT sequence, kind FROM credit_transactions WHERE account_id = 'ann' ORDER BY sequence"
    )


class Restored:
    """Puts the transactions back as they were, after each change."""

    def __init__(self, ledger: Ledger, forger: Connection) -> None:
        self._ledger = ledger
        self._forger = forger

    async def save(self) -> None:
        await self._forger.execute("CREATE TABLE saved AS TABLE credit_transactions")

    async def faults_after(self, statement: str) -> list[Fault]:
        """Return what verification finds after one row was changed."""
        assert (await self._forger.execute(statement)).endswith(" 1"), statement
        found = await faults_of(self._ledger)
        await self._forger.execute("DELETE FROM credit_transactions")
        await self._forger.execute("INSERT INTO credit_transactions TABLE saved")
        return found


@pytest.fixture
async def restored(full: Ledger, forger: Connection) -> Restored:
    restored = Restored(full, forger)
    await restored.save()
    return restored


async def test_another_value_in_any_column_of_any_row_is_found(
    restored: Restored, forger: Connection
) -> None:
    rows, columns = await rows_of_ann(forger), await columns_of(forger, "credit_transactions")
    assert len(rows) >= len(Kind)
    for column, data_type in columns:
        value = OTHER_VALUES[data_type].format(column=column)
        for row in rows:
            found = await restored.faults_after(
                f"UPDATE credit_transactions SET {column} = {value}"
                f" WHERE account_id = 'ann' AND sequence = {row['sequence']}"
            )
            places = {(fault.account_id, fault.sequence) for fault in found}

            assert places & {(ANN, row["sequence"]), (ANN, row["sequence"] + 1), (ANN, 0)}, (
                column, dict(row), found,
            )  # fmt: skip


async def test_a_value_that_is_gone_is_found(restored: Restored, forger: Connection) -> None:
    columns = [c for c, _ in await columns_of(forger, "credit_transactions")]
    for column in columns:
        if column not in KEY_COLUMNS:
            await forger.execute(f"ALTER TABLE credit_transactions ALTER {column} DROP NOT NULL")
    for column in columns:
        if column in KEY_COLUMNS:
            continue
        for row in await forger.fetch(
            f"SELECT sequence FROM credit_transactions"
            f" WHERE account_id = 'ann' AND {column} IS NOT NULL"
        ):
            found = await restored.faults_after(
                f"UPDATE credit_transactions SET {column} = NULL"
                f" WHERE account_id = 'ann' AND sequence = {row['sequence']}"
            )

            assert (ANN, row["sequence"]) in {(f.account_id, f.sequence) for f in found}, column


async def test_a_text_that_does_not_fit_is_found(restored: Restored) -> None:
    for statement in (
        "UPDATE credit_transactions SET hash = '' WHERE account_id = 'ann' AND sequence = 3",
        "UPDATE credit_transactions SET fingerprint = '' WHERE account_id = 'ann' AND sequence = 3",
        (
            "UPDATE credit_transactions SET expires_at = 'infinity'"
            " WHERE account_id = 'ann' AND sequence = 4"
        ),
        (
            "UPDATE credit_transactions SET expires_at = '294276-12-31'"
            " WHERE account_id = 'ann' AND sequence = 4"
        ),
        "UPDATE credit_transactions SET kind = 'gift' WHERE account_id = 'ann' AND sequence = 3",
    ):
        found = await restored.faults_after(statement)

        assert {ANN} == {fault.account_id for fault in found}, statement


SWAP = [
    f"UPDATE credit_transactions SET sequence = {after}"
    f" WHERE account_id = 'ann' AND sequence = {before}"
    for before, after in ((4, 1_000), (5, 4), (1_000, 5))
]
COPY_OF_THE_LAST = (
    "INSERT INTO credit_transactions SELECT created_at + interval '1 microsecond', sequence + 1,"
    " amount, balance, reserved, gen_random_uuid(), shard, account_id, kind, fingerprint, hash"
    " FROM credit_transactions WHERE account_id = 'bob'"
)
FORGERIES: dict[str, tuple[Sequence[str], set[tuple[str | None, str, int]]]] = {
    "a deleted row": (
        ["DELETE FROM credit_transactions WHERE account_id = 'ann' AND sequence = 1"],
        {("ann", "sequence", 2), ("ann", "balance", 2), ("ann", "hash", 2)},
    ),
    "swapped rows": (
        SWAP, {("ann", kind, row) for kind in ("balance", "hash") for row in (4, 5, 6)}
    ),
    "a row behind the head": (
        [COPY_OF_THE_LAST],
        {("bob", "balance", 2), ("bob", "hash", 2), ("bob", "sequence", 0)},
    ),
    "a doubled row": (
        [COPY_OF_THE_LAST.replace("sequence + 1", "sequence")],
        {("bob", "sequence", 1), ("bob", "balance", 1), ("bob", "hash", 1)},
    ),
    "a row written anew with a hash of its own": (
        [("UPDATE credit_transactions SET amount = 60, balance = 60, hash = sha256('bob')"
         " WHERE account_id = 'bob'"),
         "UPDATE accounts SET balance = 60 WHERE account_id = 'bob'"],
        {("bob", "hash", 1), ("bob", "head", 0)},
    ),
    "the same with the head": (
        [("UPDATE credit_transactions SET amount = 60, balance = 60, hash = sha256('bob')"
         " WHERE account_id = 'bob'"),
         "UPDATE accounts SET balance = 60, head_hash = sha256('bob') WHERE account_id = 'bob'"],
        {("bob", "hash", 1)},
    ),
    "another balance": (
        ["UPDATE accounts SET balance = 51 WHERE account_id = 'bob'"], {("bob", "balance", 0)}
    ),
    "a negative balance": (
        ["UPDATE accounts SET balance = -1 WHERE account_id = 'bob'"], {("bob", "balance", 0)}
    ),
    "another reserve": (
        ["UPDATE accounts SET reserved = 1 WHERE account_id = 'bob'"], {("bob", "balance", 0)}
    ),
    "a version before the head": (
        ["UPDATE accounts SET version = 0 WHERE account_id = 'bob'"], {("bob", "sequence", 0)}
    ),
    "a version that is negative": (
        ["UPDATE accounts SET version = -9 WHERE account_id = 'bob'"], {("bob", "sequence", 0)}
    ),
    "a version behind the head": (
        ["UPDATE accounts SET version = 9000000 WHERE account_id = 'bob'"],
        {("bob", "sequence", 0)},
    ),
    "another tenant": (
        ["UPDATE accounts SET tenant_id = 'umbra' WHERE account_id = 'bob'"], {("bob", "hash", 1)}
    ),
    "a head that is none": (
        ["UPDATE accounts SET head_hash = '' WHERE account_id = 'bob'"],
        {("bob", "head", 0), ("bob", "account", 0)},
    ),
    "an expiry that never comes": (
        ["UPDATE accounts SET next_expiry = NULL WHERE account_id = 'ann'"], {("ann", "hold", 0)}
    ),
    "a time that is none": (
        ["UPDATE accounts SET created_at = 'infinity' WHERE account_id = 'bob'",
         "UPDATE accounts SET next_expiry = '294276-12-31' WHERE account_id = 'cleo'"],
        {("bob", "account", 0), ("cleo", "account", 0)},
    ),
    "an account that is gone": (
        ["DELETE FROM accounts WHERE account_id = 'bob'"], {("bob", "account", 1)}
    ),
    "all accounts gone": (
        ["DELETE FROM accounts"],
        {("ann", "account", 1), ("bob", "account", 1), ("cleo", "account", 1)},
    ),
    "an account in another shard": (
        [f"UPDATE accounts SET shard = {255 - shard_of(BOB)} WHERE account_id = 'bob'"],
        {("bob", "account", 0), ("bob", "account", 1), ("bob", "sequence", 0),
         ("bob", "balance", 0), ("bob", "head", 0)},
    ),
    "a second account of the same name": (
        [("INSERT INTO accounts SELECT created_at, 7, 0, 0, shard # 1, account_id, tenant_id,"
         " head_hash FROM accounts WHERE account_id = 'bob'")],
        {("bob", "account", 0), ("bob", "balance", 0), ("bob", "head", 0)},
    ),
    "a partition that is gone": (
        [("DO $$ DECLARE part text; BEGIN SELECT tableoid::regclass INTO part"
         " FROM credit_transactions LIMIT 1; EXECUTE format('DROP TABLE %s', part); END $$")],
        {(None, "partition", 0), ("ann", "hold", 0), ("ann", "refund", 0),
         *((name, kind, 0) for name in ("ann", "bob", "cleo")
           for kind in ("sequence", "balance", "head"))},
    ),
    "all partitions gone": (
        [("DO $$ DECLARE part text; BEGIN FOR part IN SELECT inhrelid::regclass FROM pg_inherits"
         " WHERE inhparent = 'credit_transactions'::regclass"
         " LOOP EXECUTE format('DROP TABLE %s', part); END LOOP; END $$")],
        {(None, "partition", 0), ("ann", "hold", 0), ("ann", "refund", 0),
         *((name, kind, 0) for name in ("ann", "bob", "cleo")
           for kind in ("sequence", "balance", "head"))},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FORGERIES)
async def test_a_forgery_is_found_and_named(full: Ledger, forger: Connection, what: str) -> None:
    statements, expected = FORGERIES[what]
    for statement in statements:
        await forger.execute(statement)
    found = await faults_of(full)

    assert expected == {(fault.account_id, fault.fault.value, fault.sequence) for fault in found}


async def test_a_small_slice_finds_the_same(
    full: Ledger, forger: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However accounts are cut into stretches and slices: also what lies between two accounts."""
    monkeypatch.setattr(verifier, "STRETCH_ACCOUNTS", 2)
    monkeypatch.setattr(verifier, "STRETCH_TRANSACTIONS", 3)
    monkeypatch.setattr(verifier, "SLICE_TRANSACTIONS", 1)
    assert [] == await faults_of(full)
    slices = await verify_all(full)
    for name in ("ann", "bob"):
        await forger.execute(f"DELETE FROM accounts WHERE account_id = '{name}'")
    await forger.execute(
        "UPDATE accounts SET shard = 255 - shard WHERE account_id = 'cleo'"  # its cursor: there
    )
    found = await faults_of(full)

    assert len(slices) == 3
    assert {("ann", 1), ("bob", 1), ("cleo", 1), ("cleo", 0)} == {
        (fault.account_id, fault.sequence) for fault in found if fault.fault.value == "account"
    }


async def test_a_tenant_is_told_of_its_own_accounts_only(
    full: Ledger, forger: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifier, "STRETCH_ACCOUNTS", 2)
    umbra = TenantId("umbra")
    await full.execute(opening("dora", "umbra"), topup("dora", 5), opening("eve", "umbra"))
    await forger.execute("UPDATE credit_transactions SET amount = amount + 1")
    await forger.execute("DELETE FROM accounts WHERE account_id = 'bob'")
    found = await full.service.verify(None, umbra, after=None)

    assert (2, 1, None) == (found.accounts, found.transactions, found.next)
    assert {("dora", 1)} == {(fault.account_id, fault.sequence) for fault in found.faults}


@pytest.mark.parametrize(
    "cursor",
    ["ann", "/ann", "--1/ann", "1/a\0", "٣/ann", "32768/", "-32769/ann", "111111/ann"],
)
async def test_a_cursor_that_is_none_is_refused(ledger: Ledger, cursor: str) -> None:
    with pytest.raises(InvalidRequest):
        await ledger.service.verify(None, None, after=cursor)


async def test_a_cursor_is_data_whatever_it_says(full: Ledger) -> None:
    for text in ("a\nSELECT 1 / 0", "'", "\\'", "$1", "a\n) TO STDOUT; SELECT 1 / 0 --"):
        found = await full.service.verify(None, None, after=f"255/{text}")

        assert () == found.faults, text


async def test_an_empty_ledger_holds(ledger: Ledger) -> None:
    found = await ledger.service.verify(None, None, after=None)

    assert (0, 0, (), None) == (found.accounts, found.transactions, found.faults, found.next)


async def test_verifying_beside_two_writing_processes_accuses_nobody(
    full: Ledger, credits_dsn: str
) -> None:
    """Holds, captures and refunds come and go while every stretch has a snapshot of its own."""
    async with running_ledger(credits_dsn) as other:
        await asyncio.gather(*(_settle(each, 40) for each in (full, other)), _watch(full))
    await full.assert_sound()


async def _settle(ledger: Ledger, rounds: int) -> None:
    for _ in range(rounds):
        (made,) = await ledger.execute(requests.reserve(words("bob"), amount=1))
        taken, _ = await ledger.execute(
            requests.capture(words("bob"), hold_id=held_by(made)), topup("cleo", 1)
        )
        assert isinstance(taken, Posted)
        await ledger.execute(requests.refund(words("bob"), transaction_id=held_by(taken)))


async def _watch(ledger: Ledger) -> None:
    for _ in range(40):
        assert [] == await faults_of(ledger)


async def test_walk_takes_longer_than_the_drivers_limit_on_other_statements(
    full: Ledger, forger: Connection, credits_dsn: str
) -> None:
    """One chain may have millions of rows; here each row takes as long as a statement may."""
    await forger.execute("ALTER VIEW ledger_transactions RENAME TO kept")
    await forger.execute(
        "CREATE VIEW ledger_transactions AS"
        " SELECT kept.* FROM kept CROSS JOIN LATERAL (SELECT pg_sleep(0.05), kept.sequence) AS s"
    )
    await forger.execute("GRANT SELECT ON ledger_transactions TO tollkeeper_credits")
    connect = connector(
        credits_dsn, role=CREDITS_ROLE, settings=SESSION_SETTINGS, command_timeout_s=0.25
    )
    pool = Pool(connect, size=1, clock=SystemClock())

    found = await verifier.LedgerVerifier(pool).verify(None, None, after=None)

    assert () == found.faults
    assert found.transactions > 5
    await pool.close()
