"""What was signed catches what a chain alone cannot: every tampering here passes `verify`.

Done as whoever owns the server would do it: triggers off, hashes computed anew.
"""

from collections.abc import Awaitable, Callable

import msgspec
import pytest
from tests.checkpoints import KEY, AskedInProcess, audit, faults_of, running_maker
from tests.ledger import Ledger, consume, held_by, opening, topup, words

from tollkeeper.credits import requests
from tollkeeper.credits.audit import FAULTS_LIMIT, CheckpointAudit
from tollkeeper.credits.auditor import Auditor
from tollkeeper.credits.chain import genesis, link_of
from tollkeeper.credits.checkpoint_store import CheckpointStore
from tollkeeper.credits.errors import AccountNotFound, CheckpointNotFound, TransactionNotFound
from tollkeeper.credits.model import Posted, Transaction
from tollkeeper.credits.note import make_key, split_note
from tollkeeper.database.driver import Connection
from tollkeeper.kernel.ids import AccountId, TenantId, shard_of

Tampering = Callable[[Ledger, Connection], Awaitable[None]]
Faults = set[tuple[str, str | None, int]]


@pytest.fixture
async def notes(ledger: Ledger, owner: Connection, credits_dsn: str) -> list[str]:
    """Three checkpoints over ann, bob and cleo; ann is at 2, 4 and 6 when they are made."""
    await ledger.open_with(100, "ann", "bob")
    await ledger.execute(opening("cleo", "umbra"))
    async with running_maker(credits_dsn) as maker:
        for _ in range(3):
            await ledger.execute(consume("ann", 1))
            await maker.make()
            await ledger.execute(topup("ann", 7))
    await ledger.execute(consume("bob", 5))
    await owner.execute("SET session_replication_role = replica")
    rows = await owner.fetch("SELECT note FROM checkpoints ORDER BY number")
    return [row["note"] for row in rows]


async def rewrite(
    ledger: Ledger, owner: Connection, name: str, *, upto: int | None = None, change: int = 0
) -> None:
    """Write an account's chain anew: without what is behind `upto`, the first amount changed."""
    account_id, shard = AccountId(name), shard_of(name)
    async with ledger.pool.connection() as connection:
        account = await ledger.store.account(connection, account_id, shard)
        assert account is not None
        rows = await ledger.store.history(connection, account, after=0, limit=1_000)
    head, balance = genesis(account_id, account.tenant_id), 0
    kept: list[Transaction] = []
    for row in rows[:upto]:
        amount = row.amount + (0 if kept else change)
        balance += amount if row.kind == "topup" else -amount
        fresh = msgspec.structs.replace(row, amount=amount, balance=balance)
        head = link_of(head, fresh)
        kept.append(msgspec.structs.replace(fresh, hash=head))
    await owner.execute(
        "DELETE FROM credit_transactions WHERE account_id = $1 AND sequence > $2", name, len(kept)
    )
    for row in kept:
        await owner.execute(
            "UPDATE credit_transactions SET amount = $3, balance = $4, hash = $5"
            " WHERE account_id = $1 AND sequence = $2",
            name, row.sequence, row.amount, row.balance, row.hash,
        )  # fmt: skip
    await owner.execute(
        "UPDATE accounts SET balance = $2, version = $3, head_hash = $4 WHERE account_id = $1",
        name, balance, len(kept), head,
    )  # fmt: skip


async def truncate(ledger: Ledger, owner: Connection) -> None:
    await rewrite(ledger, owner, "ann", upto=5)


async def truncate_all(ledger: Ledger, owner: Connection) -> None:
    await rewrite(ledger, owner, "ann", upto=0)


async def rewrite_whole(ledger: Ledger, owner: Connection) -> None:
    await rewrite(ledger, owner, "bob", change=1)


async def rewrite_and_truncate(ledger: Ledger, owner: Connection) -> None:
    await rewrite(ledger, owner, "ann", upto=5, change=1)


async def remove(ledger: Ledger, owner: Connection) -> None:
    await owner.execute("DELETE FROM credit_transactions WHERE account_id = 'bob'")
    await owner.execute("DELETE FROM accounts WHERE account_id = 'bob'")


async def remove_empty(ledger: Ledger, owner: Connection) -> None:
    await owner.execute("DELETE FROM accounts WHERE account_id = 'cleo'")


async def give_away(ledger: Ledger, owner: Connection) -> None:
    start = genesis(AccountId("cleo"), TenantId("acme"))
    await owner.execute(
        "UPDATE accounts SET tenant_id = 'acme', head_hash = $1 WHERE account_id = 'cleo'", start
    )


TAMPERINGS: list[tuple[Tampering, Faults]] = [
    (truncate, {("truncated", "ann", 6)}),
    (truncate_all, {("truncated", "ann", sequence) for sequence in (2, 4, 6)}),
    (rewrite_whole, {("rewritten", "bob", 1)}),
    (rewrite_and_truncate, {
        ("rewritten", "ann", 2), ("rewritten", "ann", 4), ("truncated", "ann", 6)
    }),
    (remove, {("vanished", "bob", 1)}),
    (remove_empty, {("vanished", "cleo", 0)}),
    (give_away, {("rewritten", "cleo", 0)}),
]  # fmt: skip


@pytest.mark.parametrize("case", TAMPERINGS, ids=[tamper.__name__ for tamper, _ in TAMPERINGS])
async def test_a_ledger_that_holds_in_itself_is_not_what_was_signed(
    ledger: Ledger, owner: Connection, notes: list[str], case: tuple[Tampering, Faults]
) -> None:
    tamper, faults = case
    before = await audit(ledger, notes)
    await tamper(ledger, owner)
    await ledger.assert_sound()
    found = await audit(ledger, notes)

    assert () == before.faults
    assert (3, 5) == (found.checkpoints, found.leaves)
    assert faults == faults_of(found)


async def test_rows_that_are_gone_below_an_account_that_stands_are_named(
    ledger: Ledger, owner: Connection, notes: list[str]
) -> None:
    await owner.execute("DELETE FROM credit_transactions WHERE account_id = 'ann' AND sequence > 3")

    assert {("truncated", "ann", 4), ("truncated", "ann", 6)} == faults_of(
        await audit(ledger, notes)
    )


STATEMENTS = [
    ("tree", "UPDATE checkpoint_leaves SET balance = 9 WHERE position = 0"),
    ("tree", "DELETE FROM checkpoint_leaves WHERE account_id = 'bob'"),
    ("tree", "UPDATE checkpoint_leaves SET position = 1 - position WHERE checkpoint = 1"),
    ("checkpoint", "DELETE FROM checkpoints WHERE number = 2"),
    ("checkpoint", "DELETE FROM checkpoints WHERE number = 3"),
    ("checkpoint", "UPDATE checkpoints SET note = replace(note, 'number 2', 'number 9')"),
]


ADDED = """
INSERT INTO checkpoint_leaves (
    sequence, checkpoint, position, balance, reserved, shard, account_id, tenant_id, head_hash
)
SELECT 9, 1, 3, 0, 0, shard, 'dan', tenant_id, head_hash FROM accounts WHERE account_id = 'cleo'
"""


@pytest.mark.parametrize("case", [*STATEMENTS, ("tree", ADDED)])
async def test_checkpoints_that_were_changed_in_the_database_are_found(
    ledger: Ledger, owner: Connection, notes: list[str], case: tuple[str, str]
) -> None:
    fault, statement = case
    await owner.execute(statement)

    assert (fault, None, 0) in faults_of(await audit(ledger, notes))


async def test_a_leaf_that_hides_a_rewritten_chain_makes_another_root(
    ledger: Ledger, owner: Connection, notes: list[str]
) -> None:
    """Ledger, leaves and marks are all made to fit: only the signed root does not."""
    await rewrite(ledger, owner, "bob", change=1)
    await owner.execute(
        "UPDATE checkpoint_leaves AS l SET head_hash = t.hash, balance = t.balance"
        " FROM credit_transactions AS t"
        " WHERE t.account_id = l.account_id AND t.sequence = l.sequence"
    )

    assert {("tree", None, 0)} == faults_of(await audit(ledger, notes))


async def test_a_checkpoint_that_was_made_anew_with_another_key_is_found(
    ledger: Ledger, owner: Connection, notes: list[str]
) -> None:
    """Ledger and checkpoints are written anew and signed again: the old file tells."""
    forger = make_key("example.com/credits", bytes(32))
    forged = [forger.sign(split_note(note)[0]) for note in notes]

    assert {("signature", None, 0)} == faults_of(await audit(ledger, forged))
    assert 3 == len((await audit(ledger, forged)).faults)
    assert () == (await audit(ledger, forged, keys=[KEY, forger])).faults


async def test_a_file_that_was_tampered_with_is_found(ledger: Ledger, notes: list[str]) -> None:
    first, second, third = notes
    changed = second.replace("\n1\n", "\n2\n", 1)
    foreign = KEY.sign("not a checkpoint\n")
    found = {
        name: faults_of(await audit(ledger, file))
        for name, file in {
            "whole": notes, "twice": [first, second, second, third], "no end": [first, second],
            "no beginning": [second, third], "no middle": [first, third], "nothing": [],
            "swapped": [second, first, third], "changed": [first, changed, third],
            "foreign": [*notes, foreign],
        }.items()
    }  # fmt: skip
    clean = {name for name, faults in found.items() if not faults}

    assert {"whole", "twice"} == clean
    assert ("signature", None, 0) in found["changed"]
    assert 1 == (await audit(ledger, [first, first, second, third])).repeated
    assert {kind for name in found for kind, _, _ in found[name]} == {
        "checkpoint", "signature", "tree"
    }  # fmt: skip


async def test_a_ledger_that_goes_on_is_never_accused(
    ledger: Ledger, owner: Connection, credits_dsn: str
) -> None:
    """Every kind of transaction, checkpoints in between, and an audit after each of them."""
    await ledger.open_with(1_000, "ann", "bob")
    async with running_maker(credits_dsn) as maker:

        async def check() -> None:
            await maker.make()
            rows = await owner.fetch("SELECT note FROM checkpoints ORDER BY number")
            found = await audit(ledger, [row["note"] for row in rows])
            assert () == found.faults

        (held,) = await ledger.execute(
            requests.reserve(words("ann"), amount=50, expires_in_s=600, allowance=5)
        )
        hold = held_by(held)
        await check()
        await ledger.execute(requests.capture(words("ann"), hold_id=hold, amount=20, final=False))
        await check()
        await ledger.execute(requests.release(words("ann"), hold_id=hold))
        (spent,) = await ledger.execute(consume("bob", 30))
        assert isinstance(spent, Posted)
        await check()
        await ledger.execute(
            requests.refund(
                words("bob"), transaction_id=spent.transaction.transaction_id, amount=10
            )
        )
        await ledger.execute(opening("cleo", "umbra"))
        await check()
    await ledger.assert_sound()


async def test_a_tenant_sees_its_own_leaves_and_can_still_compute_the_root(
    ledger: Ledger, owner: Connection, notes: list[str]
) -> None:
    mine = await audit(ledger, notes, tenant_id="umbra")
    page = await AskedInProcess(ledger, TenantId("umbra")).leaves(1)
    rest = await AskedInProcess(ledger, TenantId("umbra")).leaves(1, after=page.next)
    shown = [item.leaf for item in (*page.items, *rest.items)]
    await rewrite(ledger, owner, "bob", change=1)

    assert () == mine.faults
    assert ["cleo"] == [leaf.account_id for leaf in shown if leaf is not None]
    assert 3 == len(shown)
    assert () == (await audit(ledger, notes, tenant_id="umbra")).faults
    assert 1 == len((await audit(ledger, notes, tenant_id="acme")).faults)


async def test_a_tenant_is_not_shown_what_is_not_its_own(ledger: Ledger, notes: list[str]) -> None:
    auditor = Auditor(ledger.pool, CheckpointStore(), ledger.store)
    history = await ledger.service.history(AccountId("ann"), None, after=0, limit=1)
    transaction_id, umbra = history[0].transaction_id, TenantId("umbra")

    assert 1 == (await auditor.prove(transaction_id, TenantId("acme"))).checkpoint
    with pytest.raises(TransactionNotFound):
        await auditor.prove(transaction_id, umbra)
    with pytest.raises(AccountNotFound):
        await auditor.links(AccountId("ann"), umbra, after=0, limit=1)
    with pytest.raises(CheckpointNotFound, match="no checkpoint 4"):
        await auditor.leaves(4, None, after=0, limit=1)


async def test_faults_beyond_the_limit_are_counted_as_more(ledger: Ledger) -> None:
    notes = [KEY.sign(f"note {number}\n") for number in range(FAULTS_LIMIT + 1)]
    judging = CheckpointAudit(AskedInProcess(ledger), [KEY.verifying])
    await judging.read(notes)
    found = judging.finish()

    assert (FAULTS_LIMIT, True, 0) == (len(found.faults), found.more_faults, found.checkpoints)


@pytest.mark.usefixtures("notes")
@pytest.mark.parametrize(
    "change", ["balance = balance + 5", "balance = balance + 7, reserved = 7", "balance = 0"]
)
async def test_credits_that_were_false_when_they_were_signed_are_named(
    ledger: Ledger, owner: Connection, credits_dsn: str, change: str
) -> None:
    """The account's row is wrong while a checkpoint is made, and put back before anyone looks."""
    await owner.execute("DELETE FROM checkpointed_accounts")
    await owner.execute(f"UPDATE accounts SET {change}")
    async with running_maker(credits_dsn) as maker:
        await maker.make()
    await owner.execute(
        "UPDATE accounts AS a SET balance = coalesce(t.balance, 0), reserved = 0"
        " FROM accounts AS b LEFT JOIN credit_transactions AS t"
        " ON t.account_id = b.account_id AND t.sequence = b.version"
        " WHERE a.account_id = b.account_id"
    )
    await ledger.assert_sound()
    rows = await owner.fetch("SELECT note FROM checkpoints ORDER BY number")
    found = await audit(ledger, [row["note"] for row in rows])
    empty = set() if change == "balance = 0" else {("rewritten", "cleo", 0)}

    assert {("rewritten", "ann", 7), ("rewritten", "bob", 2), *empty} == faults_of(found)
