"""Many callers at once on a real PostgreSQL: exact to the unit, and fair as a sequential ledger."""

import asyncio

import pytest
from tests.ledger import Ledger, ReferenceLedger, consume, opening, running_ledger, topup, words_of

from tollkeeper.credits.engine import Result
from tollkeeper.credits.model import Operation, Plan, Posted
from tollkeeper.credits.store import LedgerStore
from tollkeeper.database.driver import Connection
from tollkeeper.kernel.ids import AccountId

WORKERS = 100
ROUNDS = 10


async def together(ledger: Ledger, work: list[list[Operation]]) -> list[Result]:
    """Let one worker for each list send its operations one by one, all from the same moment on."""
    start = asyncio.Barrier(len(work))

    async def worker(operations: list[Operation]) -> list[Result]:
        await start.wait()
        return [(await ledger.execute(operation))[0] for operation in operations]

    answers = await asyncio.gather(*(worker(operations) for operations in work))
    return [result for results in answers for result in results]


async def test_a_hundred_workers_on_one_account_end_at_the_exact_balance(ledger: Ledger) -> None:
    await ledger.open_with(WORKERS * ROUNDS * 3, "hot")
    results = await together(
        ledger, [[consume("hot", 3) for _ in range(ROUNDS)] for _ in range(WORKERS)]
    )

    assert ["posted"] * WORKERS * ROUNDS == words_of(results)
    assert 0 == await ledger.balance("hot")
    await ledger.assert_sound()


async def test_a_hundred_workers_on_many_accounts_end_at_the_exact_balances(
    ledger: Ledger,
) -> None:
    names = [f"account-{number}" for number in range(40)]
    await ledger.open_with(WORKERS * ROUNDS, *names)
    work: list[list[Operation]] = [
        [consume(names[(worker * 7 + turn) % len(names)], 2) for turn in range(ROUNDS)]
        for worker in range(WORKERS)
    ]
    spent = {name: sum(op.account_id == name for ops in work for op in ops) * 2 for name in names}
    results = await together(ledger, work)

    assert ["posted"] * WORKERS * ROUNDS == words_of(results)
    assert {name: WORKERS * ROUNDS - spent[name] for name in names} == {
        name: await ledger.balance(name) for name in names
    }
    await ledger.assert_sound()


async def test_exactly_what_the_balance_allows_is_spent_when_everybody_wants_it(
    ledger: Ledger,
) -> None:
    await ledger.open_with(WORKERS // 2, "scarce")
    results = await together(ledger, [[consume("scarce", 1)] for _ in range(WORKERS)])

    assert WORKERS // 2 == words_of(results).count("posted")
    assert WORKERS // 2 == words_of(results).count("insufficient_credits")
    assert 0 == await ledger.balance("scarce")


async def test_no_worker_is_refused_what_a_sequential_ledger_would_give(ledger: Ledger) -> None:
    """Each worker tops up first and spends no more than that: no order of events may refuse it."""
    await ledger.execute(opening("shared"))
    work: list[list[Operation]] = [
        [
            op
            for turn in range(ROUNDS)
            for op in (topup("shared", turn + 1), consume("shared", turn + 1))
        ]
        for _ in range(WORKERS)
    ]
    results = await together(ledger, work)

    assert {"posted"} == set(words_of(results))
    assert 0 == await ledger.balance("shared")
    await ledger.assert_sound()


async def test_concurrent_operations_are_decided_in_the_order_they_were_accepted(
    ledger: Ledger,
) -> None:
    operations: list[Operation] = [opening("queue")]
    for number in range(300):
        operations += [topup("queue", 2), consume("queue", 1 + number % 4)]
    reference = ReferenceLedger()
    expected = [reference.decide(operation) for operation in operations]
    # Tasks run for the first time in the order they were made.
    answers = await asyncio.gather(*(ledger.execute(operation) for operation in operations))

    assert expected == words_of([result for (result,) in answers])


async def test_a_hundred_requests_with_one_key_are_charged_once(ledger: Ledger) -> None:
    await ledger.open_with(1_000, "ann")
    results = await together(ledger, [[consume("ann", 10, "same")] for _ in range(WORKERS)])
    transactions = {r.transaction.transaction_id for r in results if isinstance(r, Posted)}

    assert ["posted"] + ["replayed"] * (WORKERS - 1) == sorted(words_of(results))
    assert 1 == len(transactions)
    assert 990 == await ledger.balance("ann")
    assert 2 == len(await ledger.service.history(AccountId("ann"), None, after=0, limit=10))


async def test_one_key_over_two_engines_is_charged_once(ledger: Ledger, credits_dsn: str) -> None:
    await ledger.open_with(1_000, "ann")
    async with running_ledger(credits_dsn) as other:
        answers = await asyncio.gather(
            *(each.execute(consume("ann", 10, "same")) for each in [ledger, other] * 50)
        )

    assert ["posted"] + ["replayed"] * 99 == sorted(words_of([r for (r,) in answers]))
    assert 990 == await ledger.balance("ann")


async def test_the_same_key_with_another_request_is_refused(ledger: Ledger) -> None:
    await ledger.open_with(100, "ann", "bob")
    results = await ledger.execute(
        consume("ann", 10, "same"),
        consume("ann", 11, "same"),
        topup("ann", 10, "same"),
        consume("ann", 10, "same", description="tea"),
        consume("bob", 11, "same"),
        consume("ann", 10, "same"),
    )

    assert ["posted", *["key_reused"] * 3, "posted", "replayed"] == words_of(results)


class MeetingStore(LedgerStore):
    """A store whose first commits wait for each other: all have loaded before any commits."""

    def __init__(self, meeting: asyncio.Barrier) -> None:
        super().__init__()
        self._meeting = meeting
        self._has_met = False

    async def commit(self, connection: Connection, plan: Plan) -> frozenset[AccountId]:
        if not self._has_met:
            self._has_met = True
            await self._meeting.wait()
        return await super().commit(connection, plan)


@pytest.mark.parametrize("engines", [2, 5])
async def test_a_lost_race_is_tried_again_under_locks_and_loses_nothing(
    ledger: Ledger, credits_dsn: str, engines: int
) -> None:
    await ledger.open_with(100, "ann")
    meeting = asyncio.Barrier(engines)

    async def racer(number: int) -> tuple[str, float]:
        async with running_ledger(credits_dsn, store=MeetingStore(meeting)) as racing:
            results = await racing.execute(consume("ann", 10, f"racer-{number}"))
            return words_of(results)[0], racing.retries("contention")

    outcomes = await asyncio.gather(*(racer(number) for number in range(engines)))

    assert [("posted", 0.0)] + [("posted", 1.0)] * (engines - 1) == sorted(outcomes)
    assert 100 - 10 * engines == await ledger.balance("ann")
    await ledger.assert_sound()


async def test_racing_engines_do_not_spend_what_is_not_there(
    ledger: Ledger, credits_dsn: str
) -> None:
    await ledger.open_with(10, "ann")
    meeting = asyncio.Barrier(2)

    async def racer() -> str:
        async with running_ledger(credits_dsn, store=MeetingStore(meeting)) as racing:
            return words_of(await racing.execute(consume("ann", 10)))[0]

    assert ["insufficient_credits", "posted"] == sorted(await asyncio.gather(racer(), racer()))
    assert 0 == await ledger.balance("ann")


async def test_an_account_opened_by_two_engines_at_once_is_opened_once(credits_dsn: str) -> None:
    meeting = asyncio.Barrier(2)

    async def racer(tenant: str) -> list[str]:
        async with running_ledger(credits_dsn, store=MeetingStore(meeting)) as racing:
            return words_of(await racing.execute(opening("new", tenant), topup("new", 5)))

    first, second = sorted(await asyncio.gather(racer("acme"), racer("umbra")))

    assert (["account_taken", "posted"], ["opened", "posted"]) == (first, second)


async def test_neighbours_of_a_lost_account_land_at_once(ledger: Ledger, credits_dsn: str) -> None:
    """A batch is no unit: only the account that moved meanwhile is tried again."""
    await ledger.open_with(100, "ann", "bob")
    meeting = asyncio.Barrier(2)
    store = MeetingStore(meeting)
    async with running_ledger(credits_dsn, store=store, lanes=1) as racing:
        racing_results = asyncio.ensure_future(
            racing.execute(consume("ann", 1, "a"), consume("bob", 1, "b"))
        )
        async with asyncio.timeout(10):
            while meeting.n_waiting == 0:
                await asyncio.sleep(0.001)
        await ledger.execute(consume("ann", 50))
        await meeting.wait()

        assert ["posted", "posted"] == words_of(await racing_results)
        assert 1.0 == racing.retries("contention")
    assert (49, 99) == (await ledger.balance("ann"), await ledger.balance("bob"))
