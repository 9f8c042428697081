"""Holds and refunds on PostgreSQL: what is reserved, taken and given back, and never twice."""

import asyncio
from collections import Counter
from datetime import timedelta
from uuid import UUID

import asyncpg
import msgspec
import pytest
from tests.ledger import Ledger, consume, held_by, running_ledger, topup, words, words_of

from tollkeeper.credits import requests
from tollkeeper.credits.errors import CaptureTooLarge, HoldClosed, InsufficientCredits
from tollkeeper.credits.model import Account, HoldState, Kind, Posted, Reserve, Sweep
from tollkeeper.kernel.ids import AccountId, TransactionId, shard_of

ANN = AccountId("ann")


def reserve(amount: int, *, allowance: int = 0, account_id: str = "ann") -> Reserve:
    return requests.reserve(words(account_id), amount=amount, allowance=allowance)


def reserve_for_no_time(amount: int) -> Reserve:
    """Reserve for a microsecond: it is over before the next statement."""
    return msgspec.structs.replace(reserve(amount), expires_in=timedelta(microseconds=1))


async def account_of(ledger: Ledger) -> Account:
    return await ledger.service.account(ANN, None)


async def held(ledger: Ledger, amount: int, *, allowance: int = 0) -> TransactionId:
    (result,) = await ledger.execute(reserve(amount, allowance=allowance))
    return held_by(result)


@pytest.fixture
async def funded(ledger: Ledger) -> Ledger:
    await ledger.open_with(100, "ann")
    return ledger


async def test_what_is_held_cannot_be_spent(funded: Ledger) -> None:
    await held(funded, 80)
    spent, rest = await funded.execute(consume("ann", 21), consume("ann", 20))

    assert isinstance(spent, InsufficientCredits)
    assert (20, 21) == (spent.available, spent.required)
    assert isinstance(rest, Posted)
    assert (80, 80) == ((await account_of(funded)).balance, (await account_of(funded)).reserved)
    await funded.assert_sound()


async def test_a_hold_is_captured_in_parts_and_the_last_gives_back_the_rest(funded: Ledger) -> None:
    hold_id = await held(funded, 50)
    parts = await funded.execute(
        requests.capture(words("ann"), hold_id=hold_id, amount=10),
        requests.capture(words("ann"), hold_id=hold_id, amount=15, final=True),
        requests.capture(words("ann"), hold_id=hold_id, amount=1),
    )
    hold = await funded.service.hold(hold_id, None)

    assert ["posted", "posted", "hold_closed"] == words_of(parts)
    assert (25, 25, HoldState.SETTLED) == (hold.captured, hold.released, hold.state)
    assert (75, 0) == ((await account_of(funded)).balance, (await account_of(funded)).reserved)
    await funded.assert_sound()


async def test_a_capture_passes_the_hold_only_within_its_allowance(funded: Ledger) -> None:
    hold_id = await held(funded, 50, allowance=10)
    too_much, within = await funded.execute(
        requests.capture(words("ann"), hold_id=hold_id, amount=61),
        requests.capture(words("ann"), hold_id=hold_id, amount=60),
    )

    assert isinstance(too_much, CaptureTooLarge)
    assert (60, 61) == (too_much.capturable, too_much.amount)
    assert isinstance(within, Posted)
    assert (60, 50) == (within.transaction.amount, within.transaction.freed)
    assert 10 == (await funded.service.hold(hold_id, None)).overrun
    await funded.assert_sound()


async def test_an_allowance_is_no_credit(funded: Ledger) -> None:
    hold_id = await held(funded, 95, allowance=10)
    (refused,) = await funded.execute(requests.capture(words("ann"), hold_id=hold_id, amount=101))

    assert isinstance(refused, InsufficientCredits)
    assert (100, 101) == (refused.available, refused.required)


async def test_a_released_hold_is_closed(funded: Ledger) -> None:
    hold_id = await held(funded, 50)
    results = await funded.execute(
        requests.release(words("ann"), hold_id=hold_id),
        requests.release(words("ann"), hold_id=hold_id),
        requests.extend(words("ann"), hold_id=hold_id, amount=1),
    )

    assert ["posted", "hold_closed", "hold_closed"] == words_of(results)
    assert 100 == (await account_of(funded)).available
    await funded.assert_sound()


async def test_a_hold_is_extended_in_time_and_amount(funded: Ledger) -> None:
    hold_id = await held(funded, 50)
    before = await funded.service.hold(hold_id, None)
    longer, more, too_much = await funded.execute(
        requests.extend(words("ann"), hold_id=hold_id, expires_in_s=7_200),
        requests.extend(words("ann"), hold_id=hold_id, amount=50),
        requests.extend(words("ann"), hold_id=hold_id, amount=1),
    )
    hold = await funded.service.hold(hold_id, None)

    assert isinstance(longer, Posted)
    assert 0 == longer.transaction.amount
    assert isinstance(more, Posted)
    assert isinstance(too_much, InsufficientCredits)
    assert 100 == hold.amount
    assert hold.expires_at - before.expires_at >= timedelta(seconds=3_600)
    await funded.assert_sound()


async def test_an_expired_hold_frees_its_credits_for_the_next_decision(funded: Ledger) -> None:
    (expired,) = await funded.execute(reserve_for_no_time(100))
    late, spent = await funded.execute(
        requests.capture(words("ann"), hold_id=held_by(expired), amount=1), consume("ann", 100)
    )
    history = await funded.service.history(ANN, None, after=0, limit=10)

    assert isinstance(late, HoldClosed)
    assert "expired" == late.state
    assert isinstance(spent, Posted)
    kinds = [Kind.TOPUP, Kind.HOLD, Kind.EXPIRE, Kind.CONSUME]
    assert kinds == [transaction.kind for transaction in history]
    assert held_by(expired) == history[2].reference_id
    await funded.assert_sound()


async def test_the_sweeper_books_what_nobody_asks_for(funded: Ledger) -> None:
    await funded.execute(reserve_for_no_time(30), reserve_for_no_time(30), reserve(40))

    assert 2 == await funded.service.sweep()
    assert 0 == await funded.service.sweep()
    assert (100, 40) == ((await account_of(funded)).balance, (await account_of(funded)).reserved)
    await funded.assert_sound()


async def test_two_sweepers_and_a_decision_book_an_expiry_once(
    funded: Ledger, credits_dsn: str
) -> None:
    async with running_ledger(credits_dsn) as other:
        for _ in range(10):
            (made,) = await funded.execute(reserve_for_no_time(50))
            assert isinstance(made, Posted)
            sweep = Sweep(account_id=ANN, shard=shard_of(ANN))
            await asyncio.gather(
                funded.execute(sweep), other.execute(sweep), other.execute(topup("ann", 1))
            )

        history = await funded.service.history(ANN, None, after=0, limit=100)

    assert 10 == Counter(transaction.kind for transaction in history)[Kind.EXPIRE]
    await funded.assert_sound()


async def test_captures_that_race_take_what_was_held_and_no_more(
    funded: Ledger, credits_dsn: str
) -> None:
    hold_id = await held(funded, 50)
    async with running_ledger(credits_dsn) as other:
        results = await asyncio.gather(
            *(
                ledger.execute(requests.capture(words("ann"), hold_id=hold_id, amount=1))
                for _ in range(50)
                for ledger in (funded, other)
            )
        )

    found = Counter(word for result in results for word in words_of(result))
    assert {"posted": 50, "hold_closed": 50} == found
    assert (50, 0) == ((await account_of(funded)).balance, (await account_of(funded)).reserved)
    await funded.assert_sound()


@pytest.mark.parametrize("kind", [Kind.CONSUME, Kind.CAPTURE])
async def test_a_refund_gives_back_what_was_taken_and_no_more(funded: Ledger, kind: Kind) -> None:
    if kind is Kind.CONSUME:
        (taken,) = await funded.execute(consume("ann", 30))
    else:
        hold_id = await held(funded, 30)
        (taken,) = await funded.execute(requests.capture(words("ann"), hold_id=hold_id))
    refunded = held_by(taken)
    results = await funded.execute(
        requests.refund(words("ann"), transaction_id=refunded, amount=10),
        requests.refund(words("ann"), transaction_id=refunded, amount=21),
        requests.refund(words("ann"), transaction_id=refunded),
        requests.refund(words("ann"), transaction_id=refunded),
        requests.refund(words("ann"), transaction_id=refunded, amount=1),
    )

    assert [
        "posted", "refund_too_large", "posted", "refund_too_large", "refund_too_large",
    ] == words_of(results)  # fmt: skip
    assert 100 == (await account_of(funded)).balance
    await funded.assert_sound()


async def test_only_what_took_something_is_refunded(funded: Ledger) -> None:
    (added,) = await funded.execute(topup("ann", 5))
    results = await funded.execute(
        requests.refund(words("ann"), transaction_id=held_by(added)),
        requests.refund(words("ann"), transaction_id=TransactionId(UUID(int=7))),
        requests.refund(words("bob"), transaction_id=held_by(added)),
    )

    assert ["not_refundable", "transaction_not_found", "transaction_not_found"] == words_of(results)


async def test_refunds_that_race_give_back_once(funded: Ledger, credits_dsn: str) -> None:
    (taken,) = await funded.execute(consume("ann", 30))
    async with running_ledger(credits_dsn) as other:
        results = await asyncio.gather(
            *(
                ledger.execute(
                    requests.refund(words("ann"), transaction_id=held_by(taken), amount=3)
                )
                for _ in range(10)
                for ledger in (funded, other)
            )
        )

    found = Counter(word for result in results for word in words_of(result))
    assert {"posted": 10, "refund_too_large": 10} == found
    assert 100 == await funded.balance("ann")
    await funded.assert_sound()


async def test_up_to_takes_what_is_there(funded: Ledger) -> None:
    await held(funded, 60)
    some, none = await funded.execute(
        consume("ann", 50, up_to=True), consume("ann", 50, up_to=True)
    )

    assert isinstance(some, Posted)
    assert 40 == some.transaction.amount
    assert isinstance(none, InsufficientCredits)
    assert (0, 1) == (none.available, none.required)


async def test_the_same_key_answers_again_and_another_request_is_refused(funded: Ledger) -> None:
    first = requests.reserve(words("ann", "k"), amount=10)
    again = requests.reserve(words("ann", "k"), amount=10)
    other = requests.reserve(words("ann", "k"), amount=11)
    results = await funded.execute(first)
    results += await funded.execute(again, other)

    assert ["posted", "replayed", "key_reused"] == words_of(results)
    assert held_by(results[0]) == held_by(results[1])


TAMPERING = {
    "captured": "UPDATE holds SET captured = captured - 1 WHERE state = 'open'",
    "released": "UPDATE holds SET released = released + 1 WHERE state = 'open'",
    "amount": "UPDATE holds SET amount = amount + 1 WHERE state = 'open'",
    "allowance": "UPDATE holds SET allowance = allowance + 1000 WHERE state = 'open'",
    "expiry": "UPDATE holds SET expires_at = expires_at + interval '1 hour' WHERE state = 'open'",
    "deleted": "DELETE FROM holds WHERE state = 'open'",
    "invented": "INSERT INTO holds SELECT uuid7_bound(now()), created_at, expires_at, 5, 0, 0, 0,"
    " 0, shard, 'open', account_id FROM holds LIMIT 1",
    "refunded less": "UPDATE refunds SET refunded = refunded - 1",
    "refund deleted": "DELETE FROM refunds",
    "taken more": "UPDATE refunds SET taken = taken + 1",
}


@pytest.mark.parametrize("statement", TAMPERING.values(), ids=TAMPERING)
async def test_verification_finds_tampered_holds_and_refunds(
    funded: Ledger, credits_dsn: str, statement: str
) -> None:
    hold_id = await held(funded, 50)
    (taken,) = await funded.execute(requests.capture(words("ann"), hold_id=hold_id, amount=20))
    await funded.execute(requests.refund(words("ann"), transaction_id=held_by(taken), amount=5))
    await funded.assert_sound()
    owner = await asyncpg.connect(credits_dsn)
    try:
        assert (await owner.execute(statement)).endswith(" 1")
    finally:
        await owner.close()
    found = await funded.service.verify(None, None, after=None)

    assert [ANN] == [fault.account_id for fault in found.faults]
    assert [True] == [str(fault.about) in fault.detail for fault in found.faults]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE holds SET captured = amount + 1",
        "UPDATE holds SET captured = amount, released = 1",
        "UPDATE holds SET overrun = allowance + 1",
        "UPDATE holds SET state = 'settled'",
        "UPDATE refunds SET refunded = taken + 1",
    ],
)
async def test_the_schema_keeps_what_the_rules_keep(
    funded: Ledger, credits_dsn: str, statement: str
) -> None:
    await held(funded, 50)
    (taken,) = await funded.execute(consume("ann", 10))
    await funded.execute(requests.refund(words("ann"), transaction_id=held_by(taken), amount=5))
    owner = await asyncpg.connect(credits_dsn)
    try:
        with pytest.raises(asyncpg.CheckViolationError):
            await owner.execute(statement)
    finally:
        await owner.close()
