"""Holds and refunds against a ledger that is written down in a few lines: one step, one effect."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from tests.hold_steps import Reference, Step, changes, operation_of, waits
from tests.ledger import opening, topup, words, words_of

from tollkeeper.credits import requests
from tollkeeper.credits.chain import AccountVerifier
from tollkeeper.credits.model import (
    Account,
    Expiries,
    Hold,
    HoldState,
    Kind,
    Loaded,
    Operation,
    Plan,
    Posted,
    Refundable,
    Transaction,
)
from tollkeeper.credits.planner import plan
from tollkeeper.kernel.ids import AccountId, TransactionId

ANN = AccountId("ann")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
NEVER = TransactionId(UUID(int=7 << 76 | 2 << 62))


class Database:
    """What PostgreSQL would keep and load, in memory: as `store.py` does it."""

    def __init__(self) -> None:
        self.now = NOW
        self.account: Account | None = None
        self.holds: dict[TransactionId, Hold] = {}
        self.refunded: dict[TransactionId, Refundable] = {}
        self.transactions: list[Transaction] = []
        self.run(opening(ANN))

    def run(self, operation: Operation) -> Plan:
        done = plan(self._loaded(), [operation])
        for account in (*done.moved, *done.opened):
            self.account = account
        self.holds |= {hold.hold_id: hold for hold in done.holds}
        self.refunded |= {each.transaction_id: each for each in done.refunds}
        self.transactions += [keyed.transaction for keyed in done.transactions]
        return done

    def _loaded(self) -> Loaded:
        if self.account is None:
            return Loaded(self.now, {}, {})
        is_due = self.account.next_expiry is not None and self.account.next_expiry <= self.now
        refundables = {
            each.transaction_id: Refundable(
                transaction_id=each.transaction_id, account_id=ANN, shard=each.shard,
                kind=each.kind, taken=each.amount, refunded=0,
            )
            for each in self.transactions
        }  # fmt: skip
        return Loaded(
            self.now, {ANN: self.account}, {}, dict(self.holds),
            {ANN: self._expiries()} if is_due else {}, refundables | self.refunded,
        )  # fmt: skip

    def _expiries(self) -> Expiries:
        still = sorted(
            (hold for hold in self.holds.values() if hold.state is HoldState.OPEN),
            key=lambda hold: hold.expires_at,
        )
        later = [hold.expires_at for hold in still if hold.expires_at > self.now]
        return Expiries(
            [hold for hold in still if hold.expires_at <= self.now], min(later, default=None)
        )


@given(st.lists(changes | waits, max_size=40))
def test_every_step_does_what_the_reference_does(taken_steps: list[Step]) -> None:
    reference, database = Reference(), Database()
    holds: list[TransactionId] = []
    takings: list[TransactionId] = []
    for step in taken_steps:
        name, *asked = step
        if name == "wait":
            reference.wait(int(str(asked[0])))
            database.now = NOW + timedelta(seconds=reference.second)
            continue
        made = takings if name == "refund" else holds
        operation = operation_of(step, made, account_id=ANN)
        if operation is None:
            continue
        expected = reference.decide(step, len(made))
        (outcome,) = database.run(operation).outcomes

        assert [expected] == words_of([outcome]), step
        if isinstance(outcome, Posted):
            kind, transaction_id = outcome.transaction.kind, outcome.transaction.transaction_id
            if kind is Kind.HOLD:
                holds.append(transaction_id)
            elif kind in {Kind.CONSUME, Kind.CAPTURE}:
                takings.append(transaction_id)
            assert reference.balance == outcome.transaction.balance
            assert sum(reference.left) == outcome.transaction.reserved
    assert_sound(database)


def assert_sound(database: Database) -> None:
    assert database.account is not None
    verifier = AccountVerifier(database.account)
    for transaction in database.transactions:
        verifier.feed(transaction)
    verifier.finish()

    assert [] == verifier.faults
    assert verifier.topped_up == verifier.consumed + database.account.balance
    still_open = [hold for hold in database.holds.values() if hold.state is HoldState.OPEN]
    assert database.account.reserved == sum(hold.remaining for hold in still_open)
    for hold in database.holds.values():
        assert hold.captured + hold.released <= hold.amount
        assert hold.overrun <= hold.allowance
    if still_open:
        assert database.account.next_expiry is not None
        assert database.account.next_expiry <= min(hold.expires_at for hold in still_open)


def test_an_edited_term_breaks_the_chain() -> None:
    """What a transaction says beyond its amount is under its hash, each part of it."""
    database = Database()
    database.run(topup(ANN, 100))
    (held,) = database.run(requests.reserve(words(ANN), amount=50, allowance=5)).outcomes
    assert isinstance(held, Posted)
    database.run(
        requests.capture(words(ANN), hold_id=held.transaction.transaction_id, amount=10, final=True)
    )
    for index, change in (
        (1, {"allowance": 6}),
        (1, {"expires_at": NOW}),
        (2, {"freed": 49}),
        (2, {"reference_id": NEVER}),
        (0, {"payment": "{}"}),
    ):
        edited = list(database.transactions)
        edited[index] = msgspec.structs.replace(edited[index], **change)
        assert database.account is not None
        verifier = AccountVerifier(database.account)
        for transaction in edited:
            verifier.feed(transaction)

        assert edited[index].sequence in {fault.sequence for fault in verifier.faults}
