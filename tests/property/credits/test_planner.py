"""Any list of operations: the planner's plan is what a ledger would do, and holds together."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st
from tests.ledger import ReferenceLedger, consume, opening, topup, words_of
from tests.operations import ACCOUNTS, movements, operations

from tollkeeper.credits.chain import AccountVerifier
from tollkeeper.credits.model import (
    Account,
    Kind,
    Loaded,
    Movement,
    Operation,
    Outcome,
    Plan,
    Posted,
    Transaction,
)
from tollkeeper.credits.planner import plan
from tollkeeper.kernel.amounts import MAX_AMOUNT_MINOR
from tollkeeper.kernel.ids import AccountId, milliseconds_since_epoch, mint_key

NOW = datetime(2026, 3, 29, 1, 30, 0, 123_456, tzinfo=UTC)
EMPTY = Loaded(NOW, {}, {})

batches = st.lists(operations(), max_size=30)
# Accounts that are open already, so that most movements meet one.
busy_batches = st.lists(movements(), max_size=30).map(
    lambda moved: [*(opening(name) for name in ACCOUNTS), *moved]
)
any_batch = batches | busy_batches


def after(loaded: Loaded, done: Plan) -> Loaded:
    """Return what the database would say after `done` was committed."""
    accounts = {**loaded.accounts}
    for account in (*done.moved, *done.opened):
        accounts[account.account_id] = account
    kept = {
        **loaded.kept,
        **{(k.transaction.account_id, k.key_hash): k.transaction for k in done.transactions},
    }
    return Loaded(loaded.now, accounts, kept)


def chains(done: Plan) -> dict[AccountId, list[Transaction]]:
    found: dict[AccountId, list[Transaction]] = {}
    for keyed in done.transactions:
        found.setdefault(keyed.transaction.account_id, []).append(keyed.transaction)
    return found


@given(any_batch)
def test_every_outcome_is_the_reference_ledgers(batch: list[Operation]) -> None:
    reference = ReferenceLedger()
    done = plan(EMPTY, batch)

    assert [reference.decide(operation) for operation in batch] == words_of(done.outcomes)
    assert reference.balances == {a.account_id: a.balance for a in done.opened if a.version}
    assert set(reference.tenants.items()) == {(a.account_id, a.tenant_id) for a in done.opened}


@given(any_batch)
def test_no_balance_is_ever_negative_or_too_large(batch: list[Operation]) -> None:
    done = plan(EMPTY, batch)

    states: list[Account | Transaction] = [keyed.transaction for keyed in done.transactions]
    for state in states + list(done.opened):
        assert 0 <= state.reserved <= state.balance <= MAX_AMOUNT_MINOR


@given(any_batch)
def test_credits_are_conserved(batch: list[Operation]) -> None:
    done = plan(EMPTY, batch)
    made = [keyed.transaction for keyed in done.transactions]
    topped_up = sum(t.amount for t in made if t.kind is Kind.TOPUP)
    consumed = sum(t.amount for t in made if t.kind is Kind.CONSUME)

    assert topped_up - consumed == sum(account.balance for account in done.opened)


@given(any_batch)
def test_every_chain_is_contiguous_and_verifies(batch: list[Operation]) -> None:
    done = plan(EMPTY, batch)
    made = chains(done)

    for account in done.opened:
        chain = made.get(account.account_id, [])
        verifier = AccountVerifier(account)
        for transaction in chain:
            verifier.feed(transaction)
        verifier.finish()

        assert [] == verifier.faults
        assert list(range(1, account.version + 1)) == [t.sequence for t in chain]


@given(any_batch, st.data())
def test_splitting_a_batch_anywhere_changes_nothing(
    batch: list[Operation], data: st.DataObject
) -> None:
    """With the same time, even the hashes are the same: where a batch ends is nobody's business."""
    places = sorted(data.draw(st.sets(st.integers(0, len(batch)), max_size=4)))
    whole = plan(EMPTY, batch)
    loaded, outcomes, made = EMPTY, list[Outcome](), list[Transaction]()
    for start, end in zip([0, *places], [*places, len(batch)], strict=True):
        part = plan(loaded, batch[start:end])
        loaded = after(loaded, part)
        outcomes += part.outcomes
        made += [keyed.transaction for keyed in part.transactions]

    assert words_of(whole.outcomes) == words_of(outcomes)
    assert [keyed.transaction for keyed in whole.transactions] == made
    assert {a.account_id: a for a in whole.opened} == loaded.accounts


@given(busy_batches)
def test_a_replayed_batch_writes_nothing_and_answers_as_the_first_time(
    batch: list[Operation],
) -> None:
    first = plan(EMPTY, batch)
    again = plan(after(EMPTY, first), batch)

    posted = {(k.transaction.account_id, k.key_hash) for k in first.transactions}
    for operation, earlier, later in zip(batch, first.outcomes, again.outcomes, strict=True):
        if isinstance(earlier, Posted) and isinstance(operation, Movement):
            assert isinstance(later, Posted)
            assert earlier.transaction == later.transaction
    # A refused key may be tried again, and may find the credits it lacked the first time.
    assert posted.isdisjoint({(k.transaction.account_id, k.key_hash) for k in again.transactions})


@given(any_batch)
def test_moved_and_opened_accounts_stand_in_lock_order(batch: list[Operation]) -> None:
    opened = plan(EMPTY, batch)
    fresh = [op for op in batch if not isinstance(op, Movement)]
    moved = plan(after(EMPTY, plan(EMPTY, fresh)), batch)

    for accounts in (opened.opened, moved.moved):
        places = [(a.shard, a.account_id) for a in accounts]
        assert sorted(set(places)) == places
    assert len(moved.moved) == len(moved.expected)
    assert [0] * len(moved.moved) == moved.expected


@given(st.integers(-90_000_000, 90_000_000), st.integers(0, 2**66 - 1))
def test_only_a_key_of_the_last_day_or_the_next_hour_is_taken(age_ms: int, entropy: int) -> None:
    """A UUIDv7 says when it was minted; one that is too old may have been charged and forgotten."""
    operation = consume("ann", 1, mint_key(NOW - timedelta(milliseconds=age_ms), entropy))
    opened = plan(EMPTY, [opening("ann"), topup("ann", 1)])
    (outcome,) = plan(after(EMPTY, opened), [operation]).outcomes
    assert operation.key_ms is not None
    # What counts is the millisecond inside the key.
    exact_age_ms = milliseconds_since_epoch(NOW) - operation.key_ms
    is_timely = -3_600_000 <= exact_age_ms < 86_400_000

    assert ["posted" if is_timely else "key_expired"] == words_of([outcome])
