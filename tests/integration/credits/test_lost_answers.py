"""The connection is cut around the commit: whatever the client could see, each is charged once."""

import asyncio
from collections.abc import Callable

import pytest
from tests.cutting_proxy import Cut, CuttingProxy
from tests.hold_steps import MoneyWrite
from tests.ledger import Ledger, consume, held_by, opening, running_ledger, topup, words, words_of
from tests.stage import as_another_request

from tollkeeper.credits import requests
from tollkeeper.credits.model import Posted
from tollkeeper.database.driver import Connection
from tollkeeper.kernel.backoff import Backoff
from tollkeeper.kernel.ids import AccountId, TransactionId

SERIES = [
    [Cut.AFTER],
    [Cut.BEFORE],
    [Cut.BEFORE, Cut.PASS, Cut.BEFORE],
    # The retry holds row locks: statement, then COMMIT. Here its COMMIT is done and unanswered.
    [Cut.BEFORE, Cut.PASS, Cut.AFTER],
    [Cut.AFTER, Cut.BEFORE, Cut.AFTER],
]


@pytest.mark.parametrize("cuts", SERIES, ids=lambda cuts: "-".join(cut.value for cut in cuts))
async def test_an_operation_whose_answer_was_lost_is_charged_once(
    ledger: Ledger, credits_dsn: str, cuts: list[Cut]
) -> None:
    await ledger.open_with(100, "ann")
    async with (
        CuttingProxy(credits_dsn, cuts) as proxy,
        running_ledger(proxy.dsn, lanes=1) as cut_off,
    ):
        (answer,) = await cut_off.execute(consume("ann", 30, "lost"))
        again = await cut_off.execute(consume("ann", 30, "lost"))
        retries = cut_off.retries("database")

    assert not proxy.cuts
    assert len([cut for cut in cuts if cut is not Cut.PASS]) == retries
    # It learned its own commit: to the caller this is the first answer, not a replay.
    assert isinstance(answer, Posted)
    assert not answer.replayed
    assert ["replayed"] == words_of(again)
    assert 70 == await ledger.balance("ann")
    assert 2 == answer.transaction.sequence
    await ledger.assert_sound()


Changes = Callable[[TransactionId, TransactionId], MoneyWrite]
CHANGES: dict[str, tuple[Changes, tuple[int, int]]] = {
    "hold": (lambda *_: requests.reserve(words("ann", "k"), amount=10), (70, 50)),
    "capture": (
        lambda hold_id, _: requests.capture(words("ann", "k"), hold_id=hold_id, amount=10),
        (60, 30),
    ),
    "final": (
        lambda hold_id, _: requests.capture(
            words("ann", "k"), hold_id=hold_id, amount=10, final=True
        ),
        (60, 0),
    ),
    "release": (lambda hold_id, _: requests.release(words("ann", "k"), hold_id=hold_id), (70, 0)),
    "extend": (
        lambda hold_id, _: requests.extend(words("ann", "k"), hold_id=hold_id, amount=10),
        (70, 50),
    ),
    "refund": (
        lambda _, taken: requests.refund(words("ann", "k"), transaction_id=taken, amount=10),
        (80, 40),
    ),
}
"""What is done to a balance of 70 with a hold of 40 in it, and what balance and hold are then."""


async def spent_and_held(ledger: Ledger) -> tuple[TransactionId, TransactionId]:
    """Return a hold of 40 and a consumption of 30, both out of 100."""
    await ledger.open_with(100, "ann")
    taken, held = await ledger.execute(
        consume("ann", 30), requests.reserve(words("ann"), amount=40)
    )
    return held_by(held), held_by(taken)


async def state(ledger: Ledger) -> tuple[int, int]:
    account = await ledger.service.account(AccountId("ann"), None)
    return account.balance, account.reserved


@pytest.mark.parametrize("cut", [Cut.BEFORE, Cut.AFTER])
@pytest.mark.parametrize("change", CHANGES)
async def test_what_is_done_to_a_hold_or_given_back_is_done_once(
    ledger: Ledger, credits_dsn: str, change: str, cut: Cut
) -> None:
    make, expected = CHANGES[change]
    operation = make(*await spent_and_held(ledger))
    async with (
        CuttingProxy(credits_dsn, [cut]) as proxy,
        running_ledger(proxy.dsn, lanes=1) as cut_off,
    ):
        (answer,) = await cut_off.execute(operation)
        again = await cut_off.execute(as_another_request(operation))
        retries = cut_off.retries("database")

    assert 1 == retries
    assert isinstance(answer, Posted)
    assert not answer.replayed
    assert [Posted(answer.transaction, replayed=True)] == again
    assert expected == await state(ledger)
    await ledger.assert_sound()


@pytest.mark.parametrize("change", ["capture", "final", "release", "extend"])
async def test_a_commit_that_arrives_late_finds_the_hold_gone(
    ledger: Ledger, credits_dsn: str, change: str
) -> None:
    """The commit waits on the wire while another process releases the hold."""
    make, _ = CHANGES[change]
    hold_id, taken = await spent_and_held(ledger)
    async with (
        CuttingProxy(credits_dsn, [Cut.DELAY]) as proxy,
        running_ledger(proxy.dsn, lanes=1) as late,
    ):
        call = asyncio.ensure_future(late.execute(make(hold_id, taken)))
        await proxy.held.wait()
        other = await ledger.execute(requests.release(words("ann"), hold_id=hold_id))
        proxy.go_on.set()
        answer = await call
        retries = late.retries("contention")

    assert ["posted", "hold_closed"] == words_of([*other, *answer])
    assert 1 == retries
    assert (70, 0) == await state(ledger)
    await ledger.assert_sound()


async def test_two_that_would_spend_the_same_credits_and_one_of_them_is_late(
    ledger: Ledger, credits_dsn: str
) -> None:
    await ledger.open_with(100, "ann")
    async with (
        CuttingProxy(credits_dsn, [Cut.DELAY]) as proxy,
        running_ledger(proxy.dsn, lanes=1) as late,
    ):
        call = asyncio.ensure_future(late.execute(consume("ann", 60)))
        await proxy.held.wait()
        other = await ledger.execute(consume("ann", 60))
        proxy.go_on.set()
        answer = await call

    assert ["posted", "insufficient_credits"] == words_of([*other, *answer])
    assert 40 == await ledger.balance("ann")
    await ledger.assert_sound()


async def test_a_batch_whose_answer_was_lost_is_charged_once_and_new_accounts_stay(
    ledger: Ledger, credits_dsn: str
) -> None:
    async with (
        CuttingProxy(credits_dsn, [Cut.AFTER]) as proxy,
        running_ledger(proxy.dsn, lanes=1) as cut_off,
    ):
        results = await cut_off.execute(
            opening("ann"), topup("ann", 10), consume("ann", 3), consume("ann", 30)
        )

    assert ["posted", "posted", "insufficient_credits"] == words_of(results[1:])
    assert 7 == await ledger.balance("ann")
    await ledger.assert_sound()


async def test_under_load_and_many_cuts_every_operation_is_charged_once(
    ledger: Ledger, credits_dsn: str
) -> None:
    await ledger.open_with(10_000, "ann", "bob", "cleo")
    # An operation has five retries; two cuts in a row are followed by commits that pass.
    cuts = [Cut.AFTER, Cut.BEFORE, Cut.PASS, Cut.PASS, Cut.PASS, Cut.PASS] * 6
    async with (
        CuttingProxy(credits_dsn, cuts) as proxy,
        running_ledger(proxy.dsn, batch=10) as cut_off,
    ):
        answers = await asyncio.gather(
            *(
                cut_off.execute(consume(("ann", "bob", "cleo")[number % 3], 1, f"key-{number}"))
                for number in range(300)
            )
        )

    assert ["posted"] * 300 == words_of([result for (result,) in answers])
    assert [9_900] * 3 == [await ledger.balance(name) for name in ("ann", "bob", "cleo")]
    await ledger.assert_sound()


async def test_backends_killed_under_load_lose_nothing(
    ledger: Ledger, credits_dsn: str, owner: Connection
) -> None:
    await ledger.open_with(10_000, "hot")
    patient = Backoff(first_ms=2, ceiling_ms=100, retries=20)
    async with running_ledger(credits_dsn, backoff=patient, batch=20) as shaken:
        calls = [asyncio.ensure_future(shaken.execute(consume("hot", 1))) for _ in range(1_000)]
        rounds = 0
        while not all(call.done() for call in calls):
            rounds += 1
            await owner.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE"
                " datname = current_database() AND application_name = 'tollkeeper'"
            )
            # Let one commit through, so that killing cannot go on for ever.
            before = await owner.fetchval("SELECT version FROM accounts")
            async with asyncio.timeout(20):
                while not all(call.done() for call in calls) and before == await owner.fetchval(
                    "SELECT version FROM accounts"
                ):
                    await asyncio.sleep(0.001)
        answers = await asyncio.gather(*calls)

    assert rounds > 1
    assert ["posted"] * 1_000 == words_of([result for (result,) in answers])
    async with running_ledger(credits_dsn) as fresh:
        assert 9_000 == await fresh.balance("hot")
        await fresh.assert_sound()
