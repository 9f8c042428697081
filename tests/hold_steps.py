"""Holds and refunds as a few lines, and steps to take on them and on the ledger alike."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import strategies as st
from tests.ledger import consume, topup, words

from tollkeeper.credits import requests
from tollkeeper.credits.model import HoldOperation, Movement, Refund, Reserve
from tollkeeper.kernel.ids import TransactionId

Step = tuple[object, ...]
MoneyWrite = Movement | Reserve | HoldOperation | Refund

amounts = st.integers(1, 30)
some = st.none() | amounts
turns = st.integers(0, 3)  # which of the holds or takings so far
changes = st.one_of(
    st.tuples(st.just("topup"), amounts),
    st.tuples(st.just("consume"), amounts, st.booleans()),
    st.tuples(st.just("hold"), amounts, st.integers(1, 9), st.integers(0, 5)),
    st.tuples(st.just("capture"), turns, some, st.booleans()),
    st.tuples(st.just("release"), turns),
    st.tuples(st.just("extend"), turns, st.integers(0, 9), st.integers(1, 9)),
    st.tuples(st.just("refund"), turns, some),
)
"""What may be asked of an account; which hold or taking is meant is counted modulo."""

ABOUT_ONE = frozenset({"capture", "release", "extend", "refund"})

waits = st.tuples(st.just("wait"), st.integers(1, 9))


@dataclass
class Reference:
    """What holds and refunds are: a balance, what is left of each hold, what may be given back."""

    balance: int = 0
    left: list[int] = field(default_factory=list)
    until: list[int] = field(default_factory=list)
    spare: list[int] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)
    second: int = 0

    def decide(self, step: Step, made: int) -> str:
        """Take a step; of `made` holds or takings one is meant. Return what becomes of it."""
        name, *asked = step
        if name in ABOUT_ONE:
            asked[0] = int(str(asked[0])) % made
        decided: str = getattr(self, str(name))(*asked)
        return decided

    def topup(self, amount: int) -> str:
        self.balance += amount
        return "posted"

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


def operation_of(  # noqa: PLR0911  # one for each kind of step
    step: Step,
    made: Sequence[TransactionId],
    *,
    account_id: str,
    key: str | None = None,
    second_s: int = 1,
) -> MoneyWrite | None:
    """Return what a step asks for; None when there is nothing yet that it could be about.

    A second of the reference lasts `second_s`.
    """
    name, *asked = step
    if name in ABOUT_ONE:
        if not made:
            return None
        asked[0] = made[int(str(asked[0])) % len(made)]
    said = words(account_id, key)
    match name, asked:
        case "topup", [int(amount)]:
            return topup(account_id, amount, key)
        case "consume", [int(amount), bool(up_to)]:
            return consume(account_id, amount, key, up_to=up_to)
        case "hold", [int(amount), int(seconds), int(allowance)]:
            expires_in_s = seconds * second_s
            return requests.reserve(
                said, amount=amount, expires_in_s=expires_in_s, allowance=allowance
            )
        case "capture", [hold_id, amount, final]:
            return requests.capture(said, hold_id=hold_id, amount=amount, final=final)  # type: ignore[arg-type]  # as drawn
        case "release", [hold_id]:
            return requests.release(said, hold_id=hold_id)  # type: ignore[arg-type]  # as drawn
        case "extend", [hold_id, int(amount), int(seconds)]:
            expires_in_s = seconds * second_s
            return requests.extend(said, hold_id=hold_id, amount=amount, expires_in_s=expires_in_s)  # type: ignore[arg-type]  # as drawn
        case "refund", [transaction_id, amount]:
            return requests.refund(said, transaction_id=transaction_id, amount=amount)  # type: ignore[arg-type]  # as drawn
        case _:
            raise AssertionError(step)
