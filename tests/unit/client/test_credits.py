"""The typed calls: keys kept over retries, problems as errors."""

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count

import msgspec
import pytest
from tests.unit.client.network import answer, key_of, peer

from tollkeeper.client.caller import RETRY_AFTER_LIMIT_S
from tollkeeper.client.credits import CreditsClient
from tollkeeper.client.errors import (
    AnswerMalformed,
    CallFailed,
    CallMalformed,
    CallRefused,
    ConnectionLost,
    ServiceUnreachable,
)
from tollkeeper.client.messages import Operation
from tollkeeper.kernel.backoff import Backoff
from tollkeeper.kernel.ids import uuid7_milliseconds

NOW = datetime(2026, 1, 2, tzinfo=UTC)
TRANSACTION = {
    "transaction_id": "019b7c35-0000-7000-8000-000000000001",
    "account_id": "acme",
    "kind": "consume",
    "amount": 5,
    "balance": 95,
    "reserved": 0,
    "available": 95,
    "sequence": 2,
    "hash": "ab",
    "created_at": "2026-01-02T00:00:00.000000Z",
}
CHARGED = answer(201, TRANSACTION)
REFUSED = answer(
    402,
    {
        "type": "urn:tollkeeper:problem:insufficient-credits",
        "title": "Insufficient credits",
        "status": 402,
        "detail": "acme has 3",
        "available": 3,
        "required": 5,
    },
)


class StillClock:
    """Stands still; sleeping takes no time and is written down."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def now(self) -> datetime:
        return NOW

    def monotonic_s(self) -> float:
        return sum(self.slept)

    async def sleep(self, duration_s: float) -> None:
        self.slept.append(duration_s)


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


@pytest.fixture
def numbers() -> Iterator[int]:
    return count(1)


def client_of(url: str, clock: StillClock, numbers: Iterator[int]) -> CreditsClient:
    return CreditsClient(
        url,
        "tk_test",
        clock=clock,
        entropy=lambda: next(numbers),
        backoff=Backoff(first_ms=10, retries=3),
    )


async def test_a_lost_answer_is_asked_for_again_with_the_same_key(
    clock: StillClock, numbers: Iterator[int]
) -> None:
    replayed = answer(201, TRANSACTION, (("Idempotent-Replayed", "true"),))
    async with (
        peer([b"", CHARGED[:30], replayed], cuts=[0, 1]) as other,
        client_of(other.url, clock, numbers) as client,
    ):
        receipt = await client.consume("acme", 5)

        assert receipt.replayed
        assert receipt.transaction.balance == 95
        keys = {key_of(request) for request in other.requests}
        assert len(other.requests) == 3
        assert len(keys) == 1
        assert uuid7_milliseconds(keys.pop()) is not None
        assert [round(each, 3) for each in clock.slept] == [0.010, 0.020]


async def test_an_empty_key_is_not_replaced_by_a_fresh_one(
    clock: StillClock, numbers: Iterator[int]
) -> None:
    """A script whose variable is unset must not lose its idempotency without a word."""
    async with (
        peer([answer(400, {"title": "Idempotency-Key is invalid"})]) as other,
        client_of(other.url, clock, numbers) as client,
    ):
        with pytest.raises(CallFailed):
            await client.consume("acme", 5, key="")

        assert b"Idempotency-Key: \r\n" in other.requests[0]


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("account_id", {"account_id": "\udcff"}),
        ("account_id", {"account_id": "a/b"}),
        ("account_id", {"account_id": ""}),
        ("the request", {"account_id": "acme", "description": "\udcff"}),
        ("key", {"account_id": "acme", "key": "k\udcff"}),
        ("key", {"account_id": "acme", "key": "two\r\nlines"}),
    ],
)
async def test_what_cannot_be_sent_is_said_before_anything_is(
    clock: StillClock, field: str, call: dict[str, str]
) -> None:
    async with client_of("http://127.0.0.1:1", clock, count(1)) as client:
        with pytest.raises(CallMalformed) as refused:
            await client.consume(amount=5, **call)  # type: ignore[arg-type]  # names of its fields

    assert field == refused.value.field


def test_an_api_key_that_no_header_can_carry_is_not_shown() -> None:
    with pytest.raises(CallMalformed) as refused:
        CreditsClient("http://127.0.0.1:1", "tk_\udcff")

    assert "api_key must be visible ASCII characters" == str(refused.value)


async def test_two_writes_have_two_keys(clock: StillClock, numbers: Iterator[int]) -> None:
    async with (
        peer([CHARGED, CHARGED]) as other,
        client_of(other.url, clock, numbers) as client,
    ):
        await client.consume("acme", 5)
        await client.topup(
            "acme", 5, description="more", metadata={"a": 1}, payment={"holder": "Jo"}
        )

        first, second = other.requests
        assert key_of(first) != key_of(second)
        assert second.endswith(
            b'{"amount":5,"description":"more","metadata":{"a":1},"payment":{"holder":"Jo"}}'
        )
        assert b"Authorization: Bearer tk_test\r\n" in first


async def test_retry_after_is_waited_for_up_to_a_limit(
    clock: StillClock, numbers: Iterator[int]
) -> None:
    busy = {"type": "urn:tollkeeper:problem:overloaded", "title": "Busy", "status": 503}
    answers = [
        answer(503, busy, (("Retry-After", "2"),)),
        answer(429, busy, (("Retry-After", "999999"),)),
        answer(503, busy, (("Retry-After", "Fri, 31 Dec 1999 23:59:59 GMT"),)),
        CHARGED,
    ]
    async with peer(answers) as other, client_of(other.url, clock, numbers) as client:
        await client.consume("acme", 5, key="k")

        assert [round(each, 2) for each in clock.slept] == [2.0, RETRY_AFTER_LIMIT_S, 0.04]
        assert {key_of(request) for request in other.requests} == {"k"}


async def test_retries_end(clock: StillClock, numbers: Iterator[int]) -> None:
    async with (
        peer([b""] * 4, cuts=range(4)) as other,
        client_of(other.url, clock, numbers) as client,
    ):
        with pytest.raises(ConnectionLost):
            await client.consume("acme", 5)

        assert len(other.requests) == 4


async def test_a_refusal_is_not_retried_and_carries_its_facts(
    clock: StillClock, numbers: Iterator[int]
) -> None:
    async with peer([REFUSED]) as other, client_of(other.url, clock, numbers) as client:
        with pytest.raises(CallRefused, match="acme has 3") as caught:
            await client.consume("acme", 5)

        assert caught.value.name == "insufficient-credits"
        assert caught.value.facts == {"available": 3, "required": 5}
        assert clock.slept == []


@pytest.mark.parametrize(
    "strange",
    [
        answer(500, "no object"),
        answer(401, {"title": "Unauthorized"}),
        b"HTTP/1.1 404 X\r\nContent-Length: 6\r\n\r\n<html>",
    ],
)
async def test_an_error_that_is_no_problem_document_of_ours_is_a_failure_not_a_refusal(
    strange: bytes, clock: StillClock, numbers: Iterator[int]
) -> None:
    async with peer([strange]) as other, client_of(other.url, clock, numbers) as client:
        with pytest.raises(CallFailed) as caught:
            await client.account("acme")

        assert not isinstance(caught.value, CallRefused)


async def test_an_answer_that_breaks_the_contract_is_malformed(
    clock: StillClock, numbers: Iterator[int]
) -> None:
    async with (
        peer([answer(201, {"balance": "much"})]) as other,
        client_of(other.url, clock, numbers) as client,
    ):
        with pytest.raises(AnswerMalformed):
            await client.consume("acme", 5)


async def test_nothing_listening_is_unreachable_after_the_retries(
    clock: StillClock, numbers: Iterator[int]
) -> None:
    async with peer([]) as other:
        url = other.url
    async with client_of(url, clock, numbers) as client:
        with pytest.raises(ServiceUnreachable):
            await client.account("acme")

    assert len(clock.slept) == 3


async def test_account_ids_are_encoded_into_the_path(
    clock: StillClock, numbers: Iterator[int]
) -> None:
    async with (
        peer([answer(200, {"items": [], "next": None})]) as other,
        client_of(other.url, clock, numbers) as client,
    ):
        await client.page("a+b ?ü", after="9&x", limit=7)

        path = b"/v1/accounts/a%2Bb%20%3F%C3%BC/transactions?limit=7&after=9%26x"
        assert other.requests[0].startswith(b"GET " + path + b" HTTP/1.1\r\n")


async def test_the_history_follows_its_cursor(clock: StillClock, numbers: Iterator[int]) -> None:
    pages = [
        answer(200, {"items": [TRANSACTION], "next": "2"}),
        answer(200, {"items": [{**TRANSACTION, "sequence": 3}], "next": None}),
    ]
    async with peer(pages) as other, client_of(other.url, clock, numbers) as client:
        found = [each.sequence async for each in client.transactions("acme")]

        assert found == [2, 3]
        assert b"after=2" in other.requests[1]


async def test_a_batch_mints_missing_keys_and_keeps_given_ones(
    clock: StillClock, numbers: Iterator[int]
) -> None:
    results = {"results": [{"status": 201}, {"status": 201}, {"status": 201}]}
    async with (
        peer([b"", answer(200, results)], cuts=[0]) as other,
        client_of(other.url, clock, numbers) as client,
    ):
        await client.batch(
            [
                Operation(op="open", account_id="a", tenant_id="t"),
                Operation(op="topup", account_id="a", amount=1),
                Operation(op="consume", account_id="a", amount=1, idempotency_key="mine"),
            ]
        )

        first, second = (each.partition(b"\r\n\r\n")[2] for each in other.requests)
        sent = msgspec.json.decode(first)["operations"]
        assert first == second
        assert "idempotency_key" not in sent[0]
        assert uuid7_milliseconds(sent[1]["idempotency_key"]) is not None
        assert sent[2]["idempotency_key"] == "mine"


async def test_a_batch_with_too_few_results_is_malformed(
    clock: StillClock, numbers: Iterator[int]
) -> None:
    async with (
        peer([answer(200, {"results": []})]) as other,
        client_of(other.url, clock, numbers) as client,
    ):
        with pytest.raises(AnswerMalformed, match="0 results for 1 operations"):
            await client.batch([Operation(op="consume", account_id="a", amount=1)])


async def test_verify_asks_for_every_slice(clock: StillClock, numbers: Iterator[int]) -> None:
    fault = {"account_id": "a", "sequence": 0, "fault": "head", "detail": "x"}
    sums = {"accounts": 1, "transactions": 2, "topped_up": 9, "consumed": 4, "balance": 5}
    slices = [
        answer(200, {**sums, "faults": [fault], "more_faults": False, "next": "a"}),
        answer(200, {**sums, "faults": [], "more_faults": False, "next": None}),
    ]
    async with peer(slices) as other, client_of(other.url, clock, numbers) as client:
        found = await client.verify()

        assert (found.accounts, found.transactions, found.balance) == (2, 4, 10)
        assert [each.fault for each in found.faults] == ["head"]
        assert other.requests[1].endswith(b'{"after":"a"}')
