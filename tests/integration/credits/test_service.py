"""Reads and verification: pages, tenants, and every way to tamper with a stored ledger found."""

import asyncio
from collections.abc import Sequence

import pytest
from tests.ledger import Ledger, consume, opening, topup, words_of

from tollkeeper.credits import verification, verifier
from tollkeeper.credits.errors import AccountNotFound, VerificationRunning
from tollkeeper.credits.model import Verification
from tollkeeper.database.driver import Connection
from tollkeeper.kernel.ids import AccountId, TenantId

ANN = AccountId("ann")
ACME, UMBRA = TenantId("acme"), TenantId("umbra")


async def tamper(owner: Connection, *statements: str) -> None:
    """Change the ledger as only somebody with the whole server in hand can."""
    await owner.execute("SET session_replication_role = replica")
    for statement in statements:
        await owner.execute(statement)


async def verify_all(ledger: Ledger) -> list[Verification]:
    found = [await ledger.service.verify(None, None, after=None)]
    while found[-1].next is not None:
        found.append(await ledger.service.verify(None, None, after=found[-1].next))
    return found


@pytest.fixture
async def busy(ledger: Ledger) -> Ledger:
    """`ann` with ten transactions, `bob` with one."""
    await ledger.open_with(100, "ann", "bob")
    results = await ledger.execute(
        *(consume("ann", n, description=f"call {n}") for n in range(1, 10))
    )
    assert ["posted"] * 9 == words_of(results)
    return ledger


async def test_a_history_is_read_in_pages_oldest_first(busy: Ledger) -> None:
    sequences: list[int] = []
    while page := await busy.service.history(
        ANN, None, after=sequences[-1] if sequences else 0, limit=4
    ):
        assert len(page) <= 4
        sequences += [transaction.sequence for transaction in page]

    assert list(range(1, 11)) == sequences


async def test_what_was_answered_is_what_the_history_shows(ledger: Ledger) -> None:
    await ledger.execute(opening("ann"))
    metadata: dict[str, object] = {"b": [1, 2.5, None], "a": "Grüße"}
    (posted,) = await ledger.execute(topup("ann", 7, description="first", metadata=metadata))
    (stored,) = await ledger.service.history(ANN, None, after=0, limit=1)

    assert posted.transaction == stored  # type: ignore[union-attr]  # a refusal would fail here, too
    assert '{"a":"Grüße","b":[1,2.5,null]}' == stored.metadata


@pytest.mark.parametrize("tenant_id", [None, ACME])
async def test_an_account_is_seen_by_its_tenant(busy: Ledger, tenant_id: TenantId | None) -> None:
    account = await busy.service.account(ANN, tenant_id)
    found = await busy.service.verify(ANN, tenant_id, after=None)

    assert (55, 10, ACME) == (account.available, account.version, account.tenant_id)
    assert (1, 10, 100, 45, 55) == (
        found.accounts, found.transactions, found.topped_up, found.consumed, found.balance
    )  # fmt: skip


async def test_an_account_of_another_tenant_is_not_there(busy: Ledger) -> None:
    with pytest.raises(AccountNotFound):
        await busy.service.account(ANN, UMBRA)
    with pytest.raises(AccountNotFound):
        await busy.service.history(ANN, UMBRA, after=0, limit=1)
    with pytest.raises(AccountNotFound):
        await busy.service.verify(ANN, UMBRA, after=None)
    results = await busy.execute(consume("ann", 1, tenant_id=UMBRA), opening("ann", "umbra"))

    assert ["account_not_found", "account_taken"] == words_of(results)


async def test_refusals_of_one_operation_are_raised(busy: Ledger) -> None:
    with pytest.raises(AccountNotFound) as refused:
        await busy.service.execute_one(consume("nobody", 1))

    assert "nobody" == refused.value.account_id


TAMPERING: dict[str, tuple[Sequence[str], set[tuple[str, int]]]] = {
    "edited amount": (
        ["UPDATE credit_transactions SET amount = 1 WHERE account_id = 'ann' AND sequence = 4"],
        {("balance", 4), ("hash", 4)},
    ),
    "edited text": (
        [("UPDATE credit_transactions SET description = 'x'"
          " WHERE account_id = 'ann' AND sequence = 4")],
        {("hash", 4)},
    ),
    "deleted row": (
        ["DELETE FROM credit_transactions WHERE account_id = 'ann' AND sequence = 4"],
        {("sequence", 5), ("balance", 5), ("hash", 5)},
    ),
    "truncated history": (
        ["DELETE FROM credit_transactions WHERE account_id = 'ann' AND sequence > 8"],
        {("sequence", 0), ("balance", 0), ("head", 0)},
    ),
    "truncated with the account turned back": (
        ["DELETE FROM credit_transactions WHERE account_id = 'ann' AND sequence > 8",
         "UPDATE accounts SET version = 8, balance = 72 WHERE account_id = 'ann'"],
        {("head", 0)},
    ),
    "reordered rows": (
        [f"UPDATE credit_transactions SET sequence = {after}"
         f" WHERE account_id = 'ann' AND sequence = {before}"
         for before, after in ((4, 1_000), (5, 4), (1_000, 5))],
        {("balance", 4), ("hash", 4), ("balance", 5), ("hash", 5), ("balance", 6), ("hash", 6)},
    ),
    "balance out of thin air": (
        ["UPDATE accounts SET balance = balance + 1 WHERE account_id = 'ann'"],
        {("balance", 0)},
    ),
    "moved head": (
        ["UPDATE accounts SET head_hash = sha256('x') WHERE account_id = 'ann'"],
        {("head", 0)},
    ),
    "another tenant": (
        ["UPDATE accounts SET tenant_id = 'umbra' WHERE account_id = 'ann'"],
        {("hash", 1)},
    ),
    "everything gone": (
        ["DELETE FROM credit_transactions WHERE account_id = 'ann'"],
        {("sequence", 0), ("balance", 0), ("head", 0)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", TAMPERING)
async def test_tampering_is_found_and_named(busy: Ledger, owner: Connection, what: str) -> None:
    statements, expected = TAMPERING[what]
    await tamper(owner, *statements)
    (found,) = await verify_all(busy)
    alone = await busy.service.verify(ANN, None, after=None)

    assert expected == {(fault.fault.value, fault.sequence) for fault in found.faults}
    assert {"ann"} == {fault.account_id for fault in found.faults}
    assert found.faults == alone.faults
    assert not found.more_faults


async def test_a_retry_of_what_was_taken_away_is_told_so_and_nobody_else_pays(
    busy: Ledger, owner: Connection
) -> None:
    (posted,) = await busy.execute(consume("ann", 1, "gone"))
    assert ["posted"] == words_of([posted])
    await tamper(owner, "DELETE FROM credit_transactions WHERE account_id = 'ann' AND sequence > 9")
    results = await busy.execute(consume("bob", 1), consume("ann", 1, "gone"))

    assert ["posted", "transaction_vanished"] == words_of(results)


async def test_more_faults_than_are_listed_are_said_to_be_there(
    ledger: Ledger, owner: Connection
) -> None:
    await ledger.open_with(10_000, "ann")
    await ledger.execute(*(consume("ann", 1) for _ in range(verification.FAULTS_LIMIT)))
    await tamper(owner, "UPDATE credit_transactions SET fingerprint = sha256('x')")
    (found,) = await verify_all(ledger)

    assert verification.FAULTS_LIMIT == len(found.faults)
    assert found.more_faults


async def test_all_accounts_are_verified_a_slice_at_a_time(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifier, "STRETCH_ACCOUNTS", 7)
    monkeypatch.setattr(verifier, "SLICE_TRANSACTIONS", 10)
    await ledger.open_with(5, *(f"account-{number}" for number in range(40)))
    slices = await verify_all(ledger)

    assert len(slices) == 3
    assert (40, 40, 200) == (
        sum(each.accounts for each in slices),
        sum(each.transactions for each in slices),
        sum(each.balance for each in slices),
    )


async def test_verifying_while_others_write_finds_no_fault(ledger: Ledger) -> None:
    """Heads and rows come from one snapshot, however long it takes."""
    await ledger.open_with(100_000, "ann", "bob", "cleo")
    writers = [
        asyncio.ensure_future(ledger.execute(consume(name, 1)))
        for _ in range(300)
        for name in ("ann", "bob", "cleo")
    ]
    while not all(writer.done() for writer in writers):
        await ledger.assert_sound()

    assert {"posted"} == set(words_of([r for (r,) in await asyncio.gather(*writers)]))


async def test_one_verification_at_a_time(busy: Ledger) -> None:
    found = await asyncio.gather(
        *(busy.service.verify(None, None, after=None) for _ in range(2)), return_exceptions=True
    )

    assert {Verification, VerificationRunning} == {type(each) for each in found}
    assert 2 == (await busy.service.verify(None, None, after=None)).accounts


async def test_partitions_that_are_there_are_not_made_again(ledger: Ledger) -> None:
    assert 0 == await ledger.service.create_partitions()
