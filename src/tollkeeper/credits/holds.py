"""What can be done with a hold: capture, release, extend, expire. Pure.

Each returns the hold as it is afterwards and what that does to its account, or a refusal; whether
the account and the key are right is the planner's business. Invariants: `captured + released` never
passes `amount`, `overrun` never passes `allowance`, and a hold is open as long as something is left
of it.
"""

from datetime import datetime

import msgspec

from tollkeeper.credits.errors import CaptureTooLarge, HoldClosed, InsufficientCredits, Refusal
from tollkeeper.credits.model import Capture, Extend, Hold, HoldState


class Settlement(msgspec.Struct, frozen=True, gc=False):
    """A hold afterwards: `taken` leaves the balance, `freed` is no longer reserved."""

    hold: Hold
    taken: int
    freed: int


def capture(hold: Hold, operation: Capture, available: int) -> Settlement | Refusal:
    """Take from a hold; what passes it comes out of its allowance and of `available` credits."""
    if hold.state is not HoldState.OPEN:
        return HoldClosed(hold_id=hold.hold_id, state=hold.state)
    remaining = hold.remaining
    amount = remaining if operation.amount is None else operation.amount
    within = min(amount, remaining)
    overrun = amount - within
    if overrun > hold.allowance:
        return CaptureTooLarge(
            hold_id=hold.hold_id, capturable=remaining + hold.allowance, amount=amount
        )
    if overrun > available:
        return InsufficientCredits(
            account_id=hold.account_id, available=remaining + available, required=amount
        )
    released = remaining - within if operation.final else 0
    captured = _with(hold, captured=hold.captured + within, released=hold.released + released)
    return Settlement(
        msgspec.structs.replace(captured, overrun=overrun), taken=amount, freed=within + released
    )


def release(hold: Hold) -> Settlement | Refusal:
    """Give back what is left of a hold."""
    if hold.state is not HoldState.OPEN:
        return HoldClosed(hold_id=hold.hold_id, state=hold.state)
    remaining = hold.remaining
    return Settlement(_with(hold, released=hold.released + remaining), taken=0, freed=remaining)


def expire(hold: Hold) -> Settlement:
    """Give back what is left of an open hold because its time is over."""
    assert hold.state is HoldState.OPEN, "only open holds are looked for"
    remaining = hold.remaining
    released = _with(hold, released=hold.released + remaining)
    expired = msgspec.structs.replace(released, state=HoldState.EXPIRED)
    return Settlement(expired, taken=0, freed=remaining)


def extend(hold: Hold, operation: Extend, *, available: int, now: datetime) -> Hold | Refusal:
    """Hold more, or longer, or both."""
    if hold.state is not HoldState.OPEN:
        return HoldClosed(hold_id=hold.hold_id, state=hold.state)
    if operation.amount > available:
        return InsufficientCredits(
            account_id=hold.account_id, available=available, required=operation.amount
        )
    lasting = operation.expires_in
    return msgspec.structs.replace(
        hold,
        amount=hold.amount + operation.amount,
        expires_at=hold.expires_at if lasting is None else now + lasting,
    )


def _with(hold: Hold, *, captured: int | None = None, released: int | None = None) -> Hold:
    """Return the hold with other sums, and the state that follows from them."""
    taken = hold.captured if captured is None else captured
    given_back = hold.released if released is None else released
    is_over = taken + given_back == hold.amount
    return msgspec.structs.replace(
        hold,
        captured=taken,
        released=given_back,
        state=HoldState.SETTLED if is_over else HoldState.OPEN,
    )
