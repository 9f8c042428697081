"""The ledger's rules by example; that they hold for anything is in tests/property."""

from datetime import UTC, datetime, timedelta

import pytest
from tests.ledger import consume, opening, topup

from tollkeeper.credits.chain import genesis
from tollkeeper.credits.errors import (
    AccountNotFound,
    AccountTaken,
    BalanceTooLarge,
    InsufficientCredits,
    KeyExpired,
    KeyReused,
    Refusal,
)
from tollkeeper.credits.model import Account, Loaded, Opened, Operation, Outcome, Plan, Posted
from tollkeeper.credits.planner import plan
from tollkeeper.kernel.amounts import MAX_AMOUNT_MINOR
from tollkeeper.kernel.ids import AccountId, TenantId, mint_key, shard_of

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ANN, ACME, UMBRA = AccountId("ann"), TenantId("acme"), TenantId("umbra")


def account(balance: int, *, reserved: int = 0, version: int = 1) -> Account:
    return Account(
        account_id=ANN, tenant_id=ACME, shard=shard_of(ANN), balance=balance, reserved=reserved,
        version=version, head_hash=genesis(ANN, ACME), created_at=NOW,
    )  # fmt: skip


def decide(*operations: Operation, found: Account | None = None) -> Plan:
    return plan(Loaded(NOW, {} if found is None else {found.account_id: found}, {}), operations)


def refused(outcome: Outcome) -> Refusal:
    assert isinstance(outcome, Refusal)
    return outcome


def test_an_account_is_opened_and_used_in_one_batch() -> None:
    made = decide(opening("ann"), topup("ann", 10), consume("ann", 4))
    opened, topped, spent = made.outcomes

    assert isinstance(opened, Opened)
    assert isinstance(topped, Posted)
    assert isinstance(spent, Posted)
    assert opened.created
    assert (1, 10) == (topped.transaction.sequence, topped.transaction.balance)
    assert (2, 6) == (spent.transaction.sequence, spent.transaction.balance)
    assert (6, 2, spent.transaction.hash) == (
        made.opened[0].balance, made.opened[0].version, made.opened[0].head_hash
    )  # fmt: skip
    assert [] == list(made.moved)


def test_an_account_that_exists_moves_from_the_version_it_was_found_at() -> None:
    made = decide(consume("ann", 4), found=account(10, version=7))

    assert [] == list(made.opened)
    assert [(6, 8)] == [(moved.balance, moved.version) for moved in made.moved]
    assert [7] == list(made.expected)


def test_everything_may_be_spent_and_no_unit_more() -> None:
    made = decide(consume("ann", 10), consume("ann", 1), found=account(10))
    no = refused(made.outcomes[1])

    assert isinstance(made.outcomes[0], Posted)
    assert isinstance(no, InsufficientCredits)
    assert (0, 1) == (no.available, no.required)


def test_what_is_reserved_cannot_be_spent() -> None:
    made = decide(consume("ann", 4), consume("ann", 3), found=account(10, reserved=7))
    no = refused(made.outcomes[0])

    assert isinstance(no, InsufficientCredits)
    assert (3, 4) == (no.available, no.required)
    assert isinstance(made.outcomes[1], Posted)
    assert (7, 7) == (made.moved[0].balance, made.moved[0].reserved)


def test_a_refusal_leaves_no_trace_and_its_key_may_be_used_again() -> None:
    made = decide(consume("ann", 5, "k"), topup("ann", 5), consume("ann", 5, "k"), found=account(0))

    assert [InsufficientCredits, Posted, Posted] == [type(each) for each in made.outcomes]
    assert [2, 3] == [keyed.transaction.sequence for keyed in made.transactions]


def test_a_balance_may_fill_63_bits_and_no_more() -> None:
    made = decide(topup("ann", 1), topup("ann", 1), found=account(MAX_AMOUNT_MINOR - 1))

    assert isinstance(made.outcomes[0], Posted)
    assert isinstance(refused(made.outcomes[1]), BalanceTooLarge)


def test_the_same_key_and_request_is_answered_as_the_first_time() -> None:
    made = decide(consume("ann", 3, "k"), topup("ann", 9), consume("ann", 3, "k"), found=account(5))
    first, _, again = made.outcomes

    assert isinstance(first, Posted)
    assert isinstance(again, Posted)
    assert (False, True) == (first.replayed, again.replayed)
    assert first.transaction == again.transaction


def test_the_same_key_with_another_request_is_refused() -> None:
    made = decide(consume("ann", 3, "k"), consume("ann", 4, "k"), found=account(5))

    assert isinstance(refused(made.outcomes[1]), KeyReused)


def test_an_operation_that_meets_its_own_commit_is_no_replay() -> None:
    """The database committed, its answer was lost, the engine asks again: the id tells."""
    movement = consume("ann", 3, "k")
    (written,) = decide(movement, found=account(5)).transactions
    kept = {(ANN, written.key_hash): written.transaction}
    (own,) = plan(Loaded(NOW, {ANN: account(2)}, kept), [movement]).outcomes
    (others,) = plan(Loaded(NOW, {ANN: account(2)}, kept), [consume("ann", 3, "k")]).outcomes

    assert isinstance(own, Posted)
    assert isinstance(others, Posted)
    assert (False, True) == (own.replayed, others.replayed)


def test_accounts_are_of_one_tenant() -> None:
    found = account(5)
    made = decide(
        opening("ann"), opening("ann", "umbra"), consume("ann", 1, tenant_id=UMBRA),
        consume("ann", 1, tenant_id=ACME), consume("ann", 1), found=found,
    )  # fmt: skip

    assert [Opened, AccountTaken, AccountNotFound, Posted, Posted] == [
        type(each) for each in made.outcomes
    ]
    assert Opened(found, created=False) == made.outcomes[0]


def test_what_was_never_opened_is_not_there() -> None:
    made = decide(topup("ann", 1))

    assert isinstance(refused(made.outcomes[0]), AccountNotFound)
    assert ([], [], []) == (list(made.opened), list(made.moved), list(made.transactions))


@pytest.mark.parametrize(
    ("age", "is_taken"),
    [
        (timedelta(hours=-1), True),
        (timedelta(hours=-1, milliseconds=-1), False),
        (timedelta(0), True),
        (timedelta(hours=24, milliseconds=-1), True),
        (timedelta(hours=24), False),
    ],
)
def test_a_uuid7_key_lives_a_day_and_may_be_an_hour_early(age: timedelta, is_taken: bool) -> None:
    key = mint_key(NOW - age, 0)
    (outcome,) = decide(topup("ann", 1, key), found=account(0)).outcomes

    assert is_taken == isinstance(outcome, Posted)
    assert is_taken or isinstance(outcome, KeyExpired)


def test_a_key_that_is_known_is_answered_however_old() -> None:
    movement = consume("ann", 3, mint_key(NOW, 0))
    (written,) = decide(movement, found=account(5)).transactions
    much_later = Loaded(
        NOW + timedelta(days=3), {ANN: account(2)}, {(ANN, written.key_hash): written.transaction}
    )

    assert [Posted(written.transaction, replayed=False)] == plan(much_later, [movement]).outcomes
