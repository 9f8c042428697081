"""Typed calls of the shadow service: what is sent, what is sent again, what comes back."""

from collections.abc import Iterator, Mapping
from datetime import UTC, timedelta
from decimal import Decimal
from itertools import count

import msgspec
import pytest
from tests.unit.client.network import answer, peer
from tests.unit.client.test_credits import NOW, StillClock

from tollkeeper.client.errors import (
    AnswerMalformed,
    CallMalformed,
    CallRefused,
    ServiceUnreachable,
)
from tollkeeper.client.shadow import ShadowClient
from tollkeeper.client.shadow_messages import Outcome, Unit
from tollkeeper.kernel.backoff import Backoff
from tollkeeper.kernel.ids import uuid7_milliseconds

EXPERIMENT = {
    "experiment_id": "checkout", "tenant_id": "acme", "state": "draft", "version": 1,
    "variants": [{"name": "a", "weight": 0.5}, {"name": "b", "weight": 0.5}], "control": "a",
    "metrics": [
        {
            "name": "sale", "kind": "binary", "direction": "higher", "missing": "exclude",
            "window_s": 3600, "per_unit": "max", "prior": None, "tolerance": 0.02,
        }
    ],
    "units": 100, "looks": 5, "margin": 0.05, "profile": "default@1", "adaptive": None,
    "holdout": None, "namespace": None, "early_s": 3600, "epoch": None, "deployed": None,
    "created_at": "2026-01-02T00:00:00Z", "started_at": None, "ended_at": None,
    "description": "", "something_new": True,
}  # fmt: skip
COUNTED = answer(201, {"status": "counted", "duplicate": False})


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


@pytest.fixture
def numbers() -> Iterator[int]:
    return count(1)


def client_of(url: str, clock: StillClock, numbers: Iterator[int]) -> ShadowClient:
    return ShadowClient(
        url,
        "tk_test",
        clock=clock,
        entropy=lambda: next(numbers),
        backoff=Backoff(first_ms=10, retries=2),
    )


def sent(request: bytes) -> dict[str, object]:
    body = request.partition(b"\r\n\r\n")[2]
    return msgspec.json.decode(body, type=dict[str, object])


def line_of(request: bytes) -> str:
    return request.split(b"\r\n")[0].decode()


async def test_an_outcome_keeps_its_id_over_retries(
    clock: StillClock, numbers: Iterator[int]
) -> None:
    duplicate = answer(200, {"status": "counted", "duplicate": True})
    async with (
        peer([b"", COUNTED[:20], duplicate], cuts=[0, 1]) as other,
        client_of(other.url, clock, numbers) as client,
    ):
        recorded = await client.record("checkout", "user-1", 2.5, metric="latency")

    ids = {sent(request)["outcome_id"] for request in other.requests}
    assert {recorded.outcome_id} == ids
    assert uuid7_milliseconds(recorded.outcome_id) is not None
    assert ("counted", True, 3) == (recorded.status, recorded.duplicate, len(other.requests))


async def test_outcomes_of_a_batch_get_ids_of_their_own_and_keep_them(
    clock: StillClock, numbers: Iterator[int]
) -> None:
    results = [
        {"status": 201, "outcome": {"status": "counted", "duplicate": False}},
        {"status": 409, "problem": {"type": "urn:x:unit-not-exposed", "title": "T", "status": 409}},
        {"status": 201, "outcome": {"status": "waiting", "duplicate": False}},
    ]
    outcomes = [
        Outcome("checkout", "user-1"),
        Outcome("checkout", "user-2", value=Decimal("123456789012.123456")),
        {"experiment_id": "checkout", "unit_id": "user-3", "outcome_id": "mine"},
    ]
    async with (
        peer([answer(503), answer(200, {"results": results})]) as other,
        client_of(other.url, clock, numbers) as client,
    ):
        found = await client.record_batch(outcomes)  # type: ignore[arg-type]  # TypedDicts

    first, second = other.requests
    assert first == second
    assert b'"value":123456789012.123456' in first
    ids = [item["outcome_id"] for item in _items(sent(first)["outcomes"])]
    assert 3 == len(set(ids))
    assert [ids[0], None, "mine"] == [
        None if each.outcome is None else each.outcome.outcome_id for each in found
    ]
    assert found[1].problem is not None
    assert "unit-not-exposed" == found[1].problem.name


def _items(found: object) -> list[Mapping[str, object]]:
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1 + 0.2, b"0.3}"),
        (12.34567891, b"12.345679}"),
        (1e-6, b"1e-6}"),
        (True, b"1}"),
        (7, b"7}"),
        (Decimal("0.100000"), b"0.100000}"),
    ],
)
async def test_values_are_sent_with_the_decimals_the_service_takes(
    clock: StillClock, numbers: Iterator[int], value: float, text: bytes
) -> None:
    async with peer([COUNTED]) as other, client_of(other.url, clock, numbers) as client:
        await client.record("checkout", "user-1", value)

    assert other.requests[0].endswith(text)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), Decimal("nan"), Decimal("sNaN"), 1e13, -(10**400)]
)
async def test_what_json_or_the_service_cannot_have_is_not_sent(
    clock: StillClock, numbers: Iterator[int], value: float
) -> None:
    client = client_of("http://127.0.0.1:1", clock, numbers)
    with pytest.raises(CallMalformed) as refused:
        await client.record("checkout", "user-1", value)

    assert "value" == refused.value.field


@pytest.mark.parametrize("name", ["", "a/b", "\ud800"])
async def test_an_id_that_cannot_stand_in_a_path_is_not_sent(
    clock: StillClock, numbers: Iterator[int], name: str
) -> None:
    with pytest.raises(CallMalformed):
        await client_of("http://127.0.0.1:1", clock, numbers).experiment(name)
    with pytest.raises(CallMalformed):
        await client_of("http://127.0.0.1:1", clock, numbers).deployment(name)


async def test_an_experiment_is_created_started_and_changed(
    clock: StillClock, numbers: Iterator[int]
) -> None:
    made, there = answer(201, EXPERIMENT), answer(200, EXPERIMENT)
    async with (
        peer([made, there, there, there]) as other,
        client_of(other.url, clock, numbers) as client,
    ):
        created = await client.create(
            "checkout",
            {"variants": [{"name": "a"}, {"name": "b"}], "metrics": [{"name": "sale"}]},
            tenant_id="acme",
            start=True,
        )
        again = await client.create("checkout", {})
        await client.change("checkout", {"looks": None}, state="paused", weights={"a": 1.0})
        await client.experiment("a b")

    assert (True, False) == (created.is_new, again.is_new)
    assert "sale" == created.experiment.metrics[0].name
    assert [
        "POST /v1/experiments HTTP/1.1", "POST /v1/experiments HTTP/1.1",
        "PATCH /v1/experiments/checkout HTTP/1.1", "GET /v1/experiments/a%20b HTTP/1.1",
    ] == [line_of(request) for request in other.requests]  # fmt: skip
    assert {
        "experiment_id": "checkout", "tenant_id": "acme", "state": "running",
        "variants": [{"name": "a"}, {"name": "b"}], "metrics": [{"name": "sale"}],
    } == sent(other.requests[0])  # fmt: skip
    assert {"looks": None, "state": "paused", "weights": {"a": 1.0}} == sent(other.requests[2])


async def test_units_are_assigned_with_what_is_said_of_them(
    clock: StillClock, numbers: Iterator[int]
) -> None:
    result = {"status": 200, "assignment": {"unit_id": "u", "status": "paused", "variant": "a"}}
    units: list[Unit | str] = [
        Unit("u", {"plan": "pro"}, 2, NOW.astimezone(UTC) + timedelta(milliseconds=5)),
        "somebody",
    ]
    async with (
        peer([answer(200, {"results": [result, result]})]) as other,
        client_of(other.url, clock, numbers) as client,
    ):
        found = await client.assign_batch("checkout", units)

    assert found[0].assignment is not None
    assert "paused" == found[0].assignment.status
    assert [
        {
            "unit_id": "u", "attributes": {"plan": "pro"}, "epoch": 2,
            "exposed_at": "2026-01-02T00:00:00.005000Z",
        },
        {"unit_id": "somebody"},
    ] == sent(other.requests[0])["units"]  # fmt: skip


async def test_a_batch_with_another_number_of_results_is_no_answer(
    clock: StillClock, numbers: Iterator[int]
) -> None:
    empty = answer(200, {"results": []})
    async with peer([empty, empty]) as other, client_of(other.url, clock, numbers) as client:
        with pytest.raises(AnswerMalformed):
            await client.assign_batch("checkout", ["u"])
        with pytest.raises(AnswerMalformed):
            await client.record_batch([Outcome("checkout", "u")])


async def test_a_refused_deployment_says_why(clock: StillClock, numbers: Iterator[int]) -> None:
    refused = answer(
        409,
        {
            "type": "urn:tollkeeper:problem:gate-refused", "title": "Refused", "status": 409,
            "detail": "b may not", "verdict": "hold", "reasons": ["too few units"],
        },
    )  # fmt: skip
    async with peer([refused]) as other, client_of(other.url, clock, numbers) as client:
        with pytest.raises(CallRefused) as stopped:
            await client.deploy("checkout", "b")

    assert "gate-refused" == stopped.value.name
    assert ["too few units"] == stopped.value.facts["reasons"]


async def test_a_snapshot_is_asked_for_by_what_is_known(
    clock: StillClock, numbers: Iterator[int]
) -> None:
    whole = answer(200, {"version": "abc", "experiments": []})
    async with (
        peer([whole, b"HTTP/1.1 304 X\r\n\r\n", whole]) as other,
        client_of(other.url, clock, numbers) as client,
    ):
        first = await client.snapshot()
        second = await client.snapshot("abc")
        third = await client.snapshot("other")

    assert first is not None
    assert second is None
    assert first == third
    assert b'If-None-Match: "abc"\r\n' in other.requests[1]
    assert 1 == other.connections


async def test_without_a_service_the_call_fails(clock: StillClock, numbers: Iterator[int]) -> None:
    with pytest.raises(ServiceUnreachable):
        await client_of("http://127.0.0.1:1", clock, numbers).experiments(state="running")

    assert 2 == len(clock.slept)
