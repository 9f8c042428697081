"""Holds and refunds against a ledger that is written down in a few lines: one step, one effect."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from tests.ledger import consume, opening, topup, words, words_of

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

amounts = st.integers(1, 30)
some = st.none() | amounts
turns = st.integers(0, 3)  # which of the holds or takings so far
steps = st.one_of(
    st.tuples(st.just("topup"), amounts),
    st.tuples(st.just("consume"), amounts, st.booleans()),
    st.tuples(st.just("hold"), amounts, st.integers(1, 9), st.integers(0, 5)),
    st.tuples(st.just("capture"), turns, some, st.booleans()),
    st.tuples(st.just("release"), turns),
    st.tuples(st.just("extend"), turns, st.integers(0, 9), st.integers(1, 9)),
    st.tuples(st.just("refund"), turns, some),
    st.tuples(st.just("wait"), st.integers(1, 9)),
)


@dataclass
class Reference:
    """What holds and refunds are: a balance, what is left of each hold, what may be given back."""

    balance: int = 0
    left: list[int] = field(default_factory=list)
    until: list[int] = field(default_factory=list)
    spare: list[int] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)
    second: int = 0

    def available(self) -> int:
        return self.balance - sum(self.left)

    def wait(self, seconds: int) -> None:
        self.second += seconds
        for index, until in enumerate(self.until):
            if until <= self.second:
                self.left[index] = 0

    def take(self, amount: int) -> str:
        self.balance -= amount
        self.taken.append(amount)
        return "posted"

    def consume(self, amount: int, up_to: bool) -> str:
        if up_to:
            amount = min(amount, self.available())
        return self.take(amount) if 0 < amount <= self.available() else "insufficient_credits"

    def hold(self, amount: int, seconds: int, allowance: int) -> str:
        if amount > self.available():
            return "insufficient_credits"
        self.left.append(amount)
        self.until.append(self.second + seconds)
        self.spare.append(allowance)
        return "posted"

    def capture(self, index: int, amount: int | None, final: bool) -> str:
        if self.left[index] == 0:
            return "hold_closed"
        amount = self.left[index] if amount is None else amount
        above = max(0, amount - self.left[index])
        if above > self.spare[index]:
            return "capture_too_large"
        if above > self.available():
            return "insufficient_credits"
        self.left[index] = 0 if final else max(0, self.left[index] - amount)
        return self.take(amount)

    def release(self, index: int) -> str:
        is_open, self.left[index] = self.left[index] > 0, 0
        return "posted" if is_open else "hold_closed"

    def extend(self, index: int, amount: int, seconds: int) -> str:
        if self.left[index] == 0:
            return "hold_closed"
        if amount > self.available():
            return "insufficient_credits"
        self.left[index] += amount
        self.until[index] = self.second + seconds
        return "posted"

    def refund(self, index: int, amount: int | None) -> str:
        amount = self.taken[index] if amount is None else amount
        if not 0 < amount <= self.taken[index]:
            return "refund_too_large"
        self.taken[index] -= amount
        self.balance += amount
        return "posted"


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


def operation_of(  # noqa: PLR0911  # one for each kind of step
    step: tuple[object, ...], made: list[TransactionId]
) -> Operation | None:
    """Return what a step asks for; None when there is nothing yet that it could be about."""
    name, *asked = step
    if name in {"capture", "release", "extend", "refund"}:
        if not made:
            return None
        asked[0] = made[int(str(asked[0])) % len(made)]
    said = words(ANN)
    match name, asked:
        case "topup", [int(amount)]:
            return topup(ANN, amount)
        case "consume", [int(amount), bool(up_to)]:
            return consume(ANN, amount, up_to=up_to)
        case "hold", [int(amount), int(seconds), int(allowance)]:
            return requests.reserve(said, amount=amount, expires_in_s=seconds, allowance=allowance)
        case "capture", [hold_id, amount, final]:
            return requests.capture(said, hold_id=hold_id, amount=amount, final=final)  # type: ignore[arg-type]  # as drawn
        case "release", [hold_id]:
            return requests.release(said, hold_id=hold_id)  # type: ignore[arg-type]  # as drawn
        case "extend", [hold_id, amount, seconds]:
            return requests.extend(said, hold_id=hold_id, amount=amount, expires_in_s=seconds)  # type: ignore[arg-type]  # as drawn
        case "refund", [transaction_id, amount]:
            return requests.refund(said, transaction_id=transaction_id, amount=amount)  # type: ignore[arg-type]  # as drawn
        case _:
            raise AssertionError(step)


@given(st.lists(steps, max_size=40))
def test_every_step_does_what_the_reference_does(taken_steps: list[tuple[object, ...]]) -> None:
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
        operation = operation_of(step, made)
        if operation is None:
            continue
        if made and name in {"capture", "release", "extend", "refund"}:
            asked[0] = int(str(asked[0])) % len(made)
        if name == "topup":
            reference.balance += int(str(asked[0]))
            expected = "posted"
        else:
            expected = getattr(reference, str(name))(*asked)
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
