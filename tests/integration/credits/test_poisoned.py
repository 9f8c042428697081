"""Cells that nothing but SQL can write: each is found, named, and hides nothing else.

As in `test_verification.py`, whoever changes the ledger here owns the server.
"""

from collections.abc import Awaitable, Callable, Sequence

import pytest
from tests.forging import OTHER_VALUES, columns_of, faults_of, verify_all
from tests.ledger import Ledger, consume, held_by, topup, words, words_of

from tollkeeper.credits import requests, verifier
from tollkeeper.database.driver import Connection
from tollkeeper.kernel.ids import AccountId, TransactionId

KEYS = {
    "accounts": ("shard", "account_id"),
    "holds": ("shard", "hold_id"),
    "refunds": ("shard", "transaction_id"),
    "credit_transactions": ("shard", "account_id", "sequence", "created_at"),
}
EXTREMES = {
    "bigint": ("-9223372036854775808", "9223372036854775807"),
    "smallint": ("-32768", "32767"),
    "timestamp with time zone": (
        "'4713-01-01 BC'", "'-infinity'", "'infinity'", "'20000-01-01'", "'294276-12-31'",
    ),
    "text": ("''", "repeat('x', 2000)"),
    "bytea": ("''",),
}  # fmt: skip
SOUND = {
    ("accounts", "created_at", "other"),  # nothing else says when it was opened
    ("accounts", "frozen_at", "other"),
}
UNVERIFIED = {("accounts", "alert_at"), ("accounts", "alert_revision")}  # settings, and no credits


async def faults_by_change(
    ledger: Ledger, forger: Connection, table: str
) -> list[tuple[str, str, set[AccountId | None]]]:
    """Return what was changed in a row of ann's, to what, and the accounts that were named."""
    await forger.execute(f"CREATE TABLE saved AS TABLE {table}")
    found = []
    for column, data_type in await columns_of(forger, table):
        values = {value: value for value in EXTREMES.get(data_type, ())}
        values["other"] = OTHER_VALUES[data_type].format(column=column)
        if column not in KEYS[table]:
            await forger.execute(f"ALTER TABLE {table} ALTER {column} DROP NOT NULL")
            values["NULL"] = "NULL"
        for name, value in values.items():
            changed = await forger.execute(
                f"UPDATE {table} SET {column} = {value} WHERE (tableoid, ctid) ="
                f" (SELECT tableoid, ctid FROM {table} WHERE account_id = 'ann'"
                f" AND {column}::text IS DISTINCT FROM ({value})::text LIMIT 1)"
            )
            if changed == "UPDATE 0":
                continue  # it stands there already
            faults = await faults_of(ledger)
            await forger.execute(f"DELETE FROM {table}")
            await forger.execute(f"INSERT INTO {table} TABLE saved")
            found.append((column, name, {fault.account_id for fault in faults}))
    return found


@pytest.mark.parametrize("table", KEYS)
async def test_any_cell_is_found_and_accuses_nobody_else(
    full: Ledger, forger: Connection, table: str
) -> None:
    await forger.execute(
        "CREATE TABLE credit_transactions_rest PARTITION OF credit_transactions DEFAULT"
    )
    for column, value, named in await faults_by_change(full, forger, table):
        if (table, column, value) in SOUND:
            continue
        if (table, column) in UNVERIFIED:
            assert set() == named, (column, value)
            continue
        is_renamed = column == "account_id" and table in {"accounts", "credit_transactions"}

        assert "ann" in named, (column, value)
        assert is_renamed or {"ann"} == named, (column, value)


Minting = Callable[[Ledger, Connection], Awaitable[None]]

HUGE = 2**63 - 1
POISON: dict[str, tuple[Sequence[str], set[tuple[str | None, str, int]]]] = {
    "a hold's sums": (
        [f"UPDATE holds SET allowance = {HUGE}, overrun = {HUGE} WHERE captured > 0"],
        {("ann", "hold", 0)},
    ),
    "what a hold was extended by": (
        [("INSERT INTO credit_transactions SELECT created_at, sequence + 100, amount, balance,"
          " reserved, gen_random_uuid(), shard, account_id, kind, fingerprint, hash, description,"
          " metadata, reference_id, freed, expires_at, allowance, payment"
          " FROM credit_transactions WHERE kind = 'extend'"),
         f"UPDATE credit_transactions SET amount = {HUGE} WHERE kind = 'extend'"],
        {("ann", "hold", 0)},
    ),
    "what was refunded": (
        [("INSERT INTO credit_transactions SELECT created_at, sequence + 100, amount, balance,"
          " reserved, gen_random_uuid(), shard, account_id, kind, fingerprint, hash, description,"
          " metadata, reference_id, freed, expires_at, allowance, payment"
          " FROM credit_transactions WHERE kind = 'refund'"),
         f"UPDATE credit_transactions SET amount = {HUGE} WHERE kind = 'refund'"],
        {("ann", "refund", 0)},
    ),
    "a transaction's time": (
        ["CREATE TABLE credit_transactions_rest PARTITION OF credit_transactions DEFAULT",
         ("UPDATE credit_transactions SET created_at = '294276-12-01'"
          " WHERE account_id = 'bob'")],
        {("bob", "hash", 1)},
    ),
    "a time of an account, and missing rows": (
        ["UPDATE accounts SET created_at = '4713-01-01 BC' WHERE account_id = 'bob'",
         "DELETE FROM credit_transactions WHERE account_id = 'cleo'"],
        {("bob", "account", 0), ("cleo", "sequence", 0)},
    ),
    "an account in the last shard": (
        ["UPDATE accounts SET shard = 32767 WHERE account_id = 'bob'"],
        {("bob", "account", 0), ("bob", "account", 1)},
    ),
    "rows in the last shard": (
        ["UPDATE credit_transactions SET shard = 32767 WHERE account_id = 'bob'"],
        {("bob", "account", 1), ("bob", "sequence", 0)},
    ),
    "an account without a name in the first shard": (
        [("UPDATE accounts SET shard = -32768, account_id = '' WHERE account_id = 'bob'")],
        {("", "account", 0), ("bob", "account", 1)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", POISON)
async def test_what_cannot_be_added_or_read_is_a_fault_like_others(
    full: Ledger, forger: Connection, what: str
) -> None:
    statements, expected = POISON[what]
    await forger.execute("UPDATE accounts SET balance = 51 WHERE account_id = 'cleo'")
    for statement in statements:
        await forger.execute(statement)
    found = await faults_of(full)

    assert {*expected, ("cleo", "balance", 0)} <= {
        (fault.account_id, fault.fault.value, fault.sequence) for fault in found
    }


# Minted through the service, the notes of what was given back put right each time ---------------


async def refund(ledger: Ledger, transaction_id: TransactionId, amount: int | None = None) -> None:
    refunding = requests.refund(words("bob"), transaction_id=transaction_id, amount=amount)
    assert ["posted"] == words_of(await ledger.execute(refunding))


async def refund_thrice(ledger: Ledger, forger: Connection) -> None:
    taken = held_by((await ledger.execute(consume("bob", 40)))[0])
    for _ in range(3):
        await refund(ledger, taken)
        await forger.execute("UPDATE refunds SET refunded = 0 WHERE account_id = 'bob'")
    await forger.execute("UPDATE refunds SET refunded = 120 WHERE account_id = 'bob'")


async def refund_a_topup(ledger: Ledger, forger: Connection) -> None:
    given = held_by((await ledger.execute(topup("bob", 40)))[0])
    change = "UPDATE credit_transactions SET kind = $2 WHERE transaction_id = $1"
    await forger.execute(change, given, "consume")
    await refund(ledger, given)
    await forger.execute(change, given, "topup")


async def capture_thrice(ledger: Ledger, forger: Connection) -> None:
    first, _ = await ledger.execute(
        requests.reserve(words("bob"), amount=10), requests.reserve(words("bob"), amount=30)
    )
    hold = held_by(first)
    for _ in range(3):
        captured = await ledger.execute(requests.capture(words("bob"), hold_id=hold))
        assert ["posted"] == words_of(captured)
        await forger.execute(
            "UPDATE holds SET captured = 0, state = 'open' WHERE hold_id = $1", hold
        )
    await forger.execute("UPDATE holds SET captured = 30 WHERE hold_id = $1", hold)
    await forger.execute("UPDATE accounts SET next_expiry = now() WHERE account_id = 'bob'")


async def overrun_twice(ledger: Ledger, forger: Connection) -> None:
    made = await ledger.execute(requests.reserve(words("bob"), amount=10, allowance=5))
    hold = held_by(made[0])
    for amount in (15, 5):
        captured = await ledger.execute(
            requests.capture(words("bob"), hold_id=hold, amount=amount, final=False)
        )
        assert ["posted"] == words_of(captured)
        await forger.execute(
            "UPDATE holds SET overrun = 0, state = 'open' WHERE hold_id = $1", hold
        )
    await forger.execute(
        "UPDATE holds SET captured = 10, overrun = 10, state = 'settled' WHERE hold_id = $1", hold
    )


@pytest.mark.parametrize(
    ("minting", "kind"),
    [
        (refund_thrice, "refund"), (refund_a_topup, "refund"),
        (capture_thrice, "hold"), (overrun_twice, "hold"),
    ],
)  # fmt: skip
async def test_more_than_the_transactions_allow_is_found(
    full: Ledger, forger: Connection, minting: Minting, kind: str
) -> None:
    await minting(full, forger)
    found = await faults_of(full)

    assert [("bob", kind, 0)] == [(f.account_id, f.fault.value, f.sequence) for f in found]


# Where a slice ends ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE accounts SET shard = -5 WHERE account_id = 'bob'",
        "UPDATE accounts SET shard = -32768, account_id = '' WHERE account_id = 'bob'",
        "UPDATE accounts SET shard = 32767 WHERE account_id = 'bob'",
        "UPDATE accounts SET account_id = repeat('b', 50000) WHERE account_id = 'bob'",
        "UPDATE accounts SET account_id = E'b/o\\nb' WHERE account_id = 'bob'",
    ],
)
async def test_the_walk_goes_on_behind_any_account(
    full: Ledger, forger: Connection, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(verifier, "STRETCH_ACCOUNTS", 1)
    monkeypatch.setattr(verifier, "SLICE_TRANSACTIONS", 1)
    await forger.execute(change)
    slices = await verify_all(full)

    assert len(slices) >= 3
    assert {"ann", "cleo"} & {f.account_id for each in slices for f in each.faults} == set()
    assert ("bob", 1) in {(f.account_id, f.sequence) for each in slices for f in each.faults}
