"""The chain: different rows have different bytes, and no change of a stored chain goes unseen."""

from datetime import UTC, datetime, timedelta

import msgspec
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.ledger import opening, topup
from tests.operations import movements, texts

from tollkeeper.credits.chain import AccountVerifier, genesis, link, link_of
from tollkeeper.credits.model import Account, Fault, Kind, Loaded, Movement, Transaction
from tollkeeper.credits.planner import plan
from tollkeeper.kernel.amounts import MAX_AMOUNT_MINOR
from tollkeeper.kernel.ids import AccountId, TenantId

NOW = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
Row = tuple[bytes, bytes, int, int, int, int, int, bytes, AccountId, Kind, str | None, str | None]

bigints = st.integers(0, MAX_AMOUNT_MINOR)
digests = st.binary(min_size=32, max_size=32)
# Of short texts over two letters, many are each other's prefix: a missing length would show.
ambiguous = st.text("ab", max_size=4)
rows: st.SearchStrategy[Row] = st.tuples(
    st.just(bytes(32)), st.just(bytes(16)), bigints, bigints, bigints, bigints, bigints,
    st.just(bytes(32)), ambiguous.map(AccountId), st.sampled_from(Kind), st.none() | ambiguous,
    st.none() | ambiguous,
)  # fmt: skip


@given(rows, rows)
def test_no_two_different_rows_have_the_same_hash(one: Row, other: Row) -> None:
    assume(one != other)

    assert link(*one) != link(*other)


@given(ambiguous, ambiguous, ambiguous, ambiguous)
def test_no_two_accounts_have_the_same_genesis(a: str, b: str, c: str, d: str) -> None:
    assume((a, b) != (c, d))

    assert genesis(AccountId(a), TenantId(b)) != genesis(AccountId(c), TenantId(d))


@st.composite
def histories(draw: st.DrawFn) -> tuple[Account, list[Transaction]]:
    """An account after some movements, with its rows."""
    moved = draw(st.lists(movements().filter(lambda m: m.tenant_id is None), max_size=12))
    mine = [m for m in moved if m.account_id == "ann"]
    batch: list[Movement] = [topup("ann", 5, "first"), *mine, topup("ann", 1, "last")]
    done = plan(Loaded(NOW, {}, {}), [opening("ann"), *batch])
    (account,) = done.opened
    made = [keyed.transaction for keyed in done.transactions]
    assume(len(made) >= 2)
    return account, made


def faults_of(account: Account, chain: list[Transaction]) -> list[Fault]:
    verifier = AccountVerifier(account)
    for transaction in chain:
        verifier.feed(transaction)
    verifier.finish()
    return verifier.faults


changes = st.sampled_from(
    ["amount", "balance", "kind", "sequence", "fingerprint", "hash", "created_at", "id", "text"]
)


@given(histories(), changes, st.integers(0), texts)
def test_an_edited_row_is_found(
    history: tuple[Account, list[Transaction]], change: str, place: int, text: str
) -> None:
    account, chain = history
    row = chain[place % len(chain)]
    edits: dict[str, dict[str, object]] = {
        "amount": {"amount": row.amount - 1},
        "balance": {"balance": row.balance ^ 1},
        "kind": {"kind": Kind.CONSUME if row.kind is Kind.TOPUP else Kind.TOPUP},
        "sequence": {"sequence": row.sequence + 1},
        "fingerprint": {"fingerprint": bytes(32)},
        "hash": {"hash": bytes(32)},
        "created_at": {"created_at": row.created_at + timedelta(microseconds=1)},
        "id": {"account_id": AccountId(row.account_id + "x")},
        "text": {"description": (row.description or "") + text + "!"},
    }
    chain[place % len(chain)] = msgspec.structs.replace(row, **edits[change])

    assert [] != faults_of(account, chain)


@given(histories(), st.data())
def test_a_row_taken_out_moved_or_doubled_is_found(
    history: tuple[Account, list[Transaction]], data: st.DataObject
) -> None:
    account, chain = history
    places = st.integers(0, len(chain) - 1)
    rearranged = [chain[place] for place in data.draw(st.lists(places, max_size=len(chain) + 1))]
    assume(rearranged != chain)

    assert [] == faults_of(account, chain)
    assert [] != faults_of(account, rearranged)


@given(histories(), st.integers(0), st.integers(1, MAX_AMOUNT_MINOR))
def test_a_chain_written_anew_from_some_row_on_does_not_meet_the_head(
    history: tuple[Account, list[Transaction]], place: int, amount: int
) -> None:
    """A fork: every hash and balance of the new rows is right, but the head is the old one."""
    account, chain = history
    start = place % len(chain)
    assume(amount != chain[start].amount)
    head = chain[start - 1].hash if start else genesis(account.account_id, account.tenant_id)
    balance = chain[start - 1].balance if start else 0
    forked = list(chain)
    for index in range(start, len(chain)):
        changed = amount if index == start else chain[index].amount
        sign = 1 if chain[index].kind is Kind.TOPUP else -1
        balance += sign * changed
        assume(0 <= balance <= MAX_AMOUNT_MINOR)
        row = msgspec.structs.replace(chain[index], amount=changed, balance=balance)
        forked[index] = msgspec.structs.replace(row, hash=link_of(head, row))
        head = forked[index].hash

    assert "head" in {fault.fault for fault in faults_of(account, forked)}
