"""The schema refuses on its own what the rules refuse, whoever asks: tried with plain SQL."""

import json
from collections.abc import AsyncIterator

import asyncpg
import pytest
from tests.ledger import Ledger, consume, topup

from tollkeeper.database.connect import connector
from tollkeeper.database.driver import Connection
from tollkeeper.wiring import CREDITS_ROLE

ACCOUNT: dict[str, object] = {
    "shard": 1, "account_id": "new", "tenant_id": "acme", "balance": 5, "reserved": 0,
    "version": 1, "head_hash": bytes(32), "created_at": "2026-01-01T00:00:00Z",
}  # fmt: skip
TRANSACTION: dict[str, object] = {
    "shard": 1, "account_id": "new", "transaction_id": "01a20bde-8028-76e8-8fa8-1bc6b37ddf49",
    "kind": "topup", "amount": 5, "balance": 5, "reserved": 0, "sequence": 1,
    "fingerprint": bytes(32), "hash": bytes(32), "description": None, "metadata": None,
}  # fmt: skip
BROKEN_ACCOUNTS = [
    ("accounts_never_negative", {"balance": -1}),
    ("accounts_never_negative", {"balance": 5, "reserved": 6}),
    ("accounts_never_negative", {"reserved": -1}),
    ("accounts_version", {"version": -1}),
    ("accounts_shard", {"shard": 256}),
    ("accounts_shard", {"shard": -1}),
    ("accounts_id", {"account_id": ""}),
    ("accounts_id", {"account_id": "x" * 129}),
    ("accounts_tenant", {"tenant_id": ""}),
    ("accounts_head", {"head_hash": bytes(31)}),
]
BROKEN_TRANSACTIONS = [
    ("credit_transactions_amount", {"amount": 0}),
    ("credit_transactions_amount", {"amount": -5}),
    ("credit_transactions_kind", {"kind": "gift"}),
    ("credit_transactions_never_negative", {"balance": -1}),
    ("credit_transactions_never_negative", {"reserved": 6}),
    ("credit_transactions_never_negative", {"reserved": -1}),
    ("credit_transactions_sequence", {"sequence": 0}),
    ("credit_transactions_digests", {"hash": bytes(33)}),
    ("credit_transactions_digests", {"fingerprint": b""}),
]
CHANGES = [
    "UPDATE {} SET amount = amount + 1",
    "UPDATE {} SET description = 'never happened'",
    "DELETE FROM {}",
    "TRUNCATE {}",
]
IS_CREDITS = "relname ~ '^(accounts|credit_transactions|idempotency_keys)'"


@pytest.fixture
async def role(credits_dsn: str) -> AsyncIterator[Connection]:
    """A connection as the service has it."""
    connection = await connector(credits_dsn, role=CREDITS_ROLE)()
    yield connection
    await connection.close()


async def insert(connection: Connection, table: str, row: dict[str, object]) -> None:
    """Insert a row, given as JSON so that every column takes its own type."""
    document = json.dumps(
        {
            name: "\\x" + value.hex() if isinstance(value, bytes) else value
            for name, value in {"created_at": "now", **row}.items()
        }
    )
    columns = ", ".join(dict.fromkeys(["created_at", *row]))
    await connection.execute(
        f"INSERT INTO {table} ({columns}) SELECT {columns}"
        f" FROM json_populate_record(NULL::{table}, $1::json)",
        document,
    )


@pytest.mark.parametrize(("constraint", "broken"), BROKEN_ACCOUNTS)
async def test_an_account_that_cannot_be_is_refused(
    owner: Connection, constraint: str, broken: dict[str, object]
) -> None:
    await insert(owner, "accounts", ACCOUNT)
    with pytest.raises(asyncpg.CheckViolationError) as refused:
        await insert(owner, "accounts", {**ACCOUNT, "account_id": "other", **broken})

    assert constraint == refused.value.constraint_name


@pytest.mark.parametrize(("constraint", "broken"), BROKEN_TRANSACTIONS)
async def test_a_transaction_that_cannot_be_is_refused(
    owner: Connection, constraint: str, broken: dict[str, object]
) -> None:
    await insert(owner, "credit_transactions", TRANSACTION)
    with pytest.raises(asyncpg.CheckViolationError) as refused:
        await insert(owner, "credit_transactions", {**TRANSACTION, "sequence": 2, **broken})

    assert constraint == refused.value.constraint_name


@pytest.mark.parametrize("column", sorted(TRANSACTION.keys() - {"description", "metadata"}))
async def test_every_fact_of_a_transaction_is_required(owner: Connection, column: str) -> None:
    with pytest.raises(asyncpg.NotNullViolationError):
        await insert(owner, "credit_transactions", {**TRANSACTION, column: None})


@pytest.mark.parametrize("assignment", ["balance = -1", "reserved = balance + 1", "reserved = -1"])
async def test_no_update_makes_an_account_negative(
    ledger: Ledger, owner: Connection, assignment: str
) -> None:
    await ledger.open_with(10, "ann")
    with pytest.raises(asyncpg.CheckViolationError, match="accounts_never_negative"):
        await owner.execute(f"UPDATE accounts SET {assignment}")


@pytest.mark.parametrize("change", CHANGES)
async def test_the_service_may_not_change_what_happened(
    ledger: Ledger, owner: Connection, role: Connection, change: str
) -> None:
    await ledger.open_with(10, "ann")
    for table in ["credit_transactions", *await partitions_of_transactions(owner)]:
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="permission denied"):
            await role.execute(change.format(table))


@pytest.mark.parametrize("change", CHANGES)
async def test_not_even_the_owner_changes_what_happened(
    ledger: Ledger, owner: Connection, change: str
) -> None:
    await ledger.open_with(10, "ann")
    await ledger.execute(topup("ann", 5), consume("ann", 3))
    partitions = await partitions_of_transactions(owner)
    used = [name for name in partitions if await owner.fetchval(f"SELECT count(*) FROM {name}")]
    before = await owner.fetch("SELECT * FROM credit_transactions ORDER BY sequence")
    for table in ["credit_transactions", *used]:
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
            await owner.execute(change.format(table))

    assert 1 == len(used)
    assert before == await owner.fetch("SELECT * FROM credit_transactions ORDER BY sequence")
    await ledger.assert_sound()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM accounts",
        "TRUNCATE accounts",
        "UPDATE idempotency_keys SET sequence = 1",
        "DELETE FROM idempotency_keys",
        "TRUNCATE idempotency_keys",
        "DELETE FROM holds",
        "DELETE FROM refunds",
        "DROP TABLE accounts",
        "ALTER TABLE accounts DROP CONSTRAINT accounts_never_negative",
        "ALTER TABLE credit_transactions DISABLE TRIGGER ALL",
        "SET session_replication_role = replica",
        "CREATE TABLE mine (a int)",
    ],
)
async def test_the_service_may_do_nothing_else(role: Connection, statement: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await role.execute(statement)


@pytest.mark.parametrize("statement", ["DELETE FROM accounts", "TRUNCATE accounts"])
async def test_not_even_the_owner_removes_an_account_by_accident(
    owner: Connection, statement: str
) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="accounts stay"):
        await owner.execute(statement)


async def test_partitions_carry_every_constraint_index_and_trigger_of_their_table(
    owner: Connection,
) -> None:
    counts = await owner.fetch(
        "SELECT regexp_replace(relname, '_[0-9]{4}.*', '') AS parent,"
        " (SELECT count(*) FROM pg_constraint WHERE conrelid = c.oid AND contype = 'c') AS checks,"
        " (SELECT count(*) FROM pg_index WHERE indrelid = c.oid) AS indexes,"
        " (SELECT count(*) FROM pg_trigger WHERE tgrelid = c.oid) AS triggers, relkind::text"
        f" FROM pg_class AS c WHERE {IS_CREDITS} AND relkind IN ('r', 'p')"
    )
    shapes = {(row["parent"], row["relkind"]): tuple(row)[1:4] for row in counts}

    assert (6, 2, 1) == shapes["credit_transactions", "p"]
    assert (6, 2, 2) == shapes["credit_transactions", "r"]  # and one against TRUNCATE
    assert shapes["idempotency_keys", "p"] == shapes["idempotency_keys", "r"] == (1, 1, 0)
    assert len(shapes) == len({(*key, *shape) for key, shape in shapes.items()})


async def partitions_of_transactions(owner: Connection) -> list[str]:
    rows = await owner.fetch(
        "SELECT inhrelid::regclass::text AS name FROM pg_inherits"
        " WHERE inhparent = 'credit_transactions'::regclass"
    )
    return [row["name"] for row in rows]
