"""Variants chosen in one's own process, against a service that is there, away, old or wrong."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec
import pytest
from tests.unit.client.network import answer, routed

from tollkeeper.client.caller import NOT_MODIFIED
from tollkeeper.client.chooser import Choice, Chooser, ChooserLimits
from tollkeeper.client.errors import AnswerMalformed
from tollkeeper.client.shadow import ShadowClient
from tollkeeper.kernel.backoff import Backoff
from tollkeeper.shadow.allocation import Allocation, allocate

QUICK = ChooserLimits(flush_s=0.01, poll_s=0.01, starting_s=20, closing_s=20)
SLOW = ChooserLimits(flush_s=30, poll_s=30, starting_s=20, closing_s=20)
"""Nothing happens but what the test does."""


class SlowClock:
    """Time goes by as the test says; waiting takes no more than it must."""

    def __init__(self) -> None:
        self.moment_s = 0.0

    def now(self) -> datetime:
        return datetime(2026, 1, 2, tzinfo=UTC)

    def monotonic_s(self) -> float:
        return self.moment_s

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(duration_s)


def running(weights: tuple[float, ...] = (0.5, 0.5), **more: object) -> dict[str, object]:
    shares = [{"name": f"v{no}", "weight": weight} for no, weight in enumerate(weights)]
    return {
        "experiment_id": "checkout", "state": "running", "epoch": 1, "variants": shares,
        "control": "v0", "holdout": None, "namespace": None, "deployed": None, **more,
    }  # fmt: skip


@dataclass
class FakeService:
    """The other end: a snapshot, and what it says to reports."""

    experiments: list[dict[str, object]] = field(default_factory=lambda: [running()])
    version: int = 1
    polls: list[int] = field(default_factory=list)
    reported: list[dict[str, object]] = field(default_factory=list)
    verdict: Callable[[dict[str, object]], dict[str, object]] | None = None

    def respond(self, request: bytes) -> bytes:
        head, _, body = request.partition(b"\r\n\r\n")
        if head.startswith(b"GET /v1/snapshot"):
            known = f'If-None-Match: "{self.version}"'.encode() in head
            self.polls.append(NOT_MODIFIED if known else 200)
            if known:
                return b"HTTP/1.1 304 X\r\n\r\n"
            return answer(200, {"version": str(self.version), "experiments": self.experiments})
        assert head.startswith(b"POST /v1/experiments/checkout/assignments")
        units = msgspec.json.decode(body, type=dict[str, list[dict[str, object]]])["units"]
        if any(unit["unit_id"] == "faulty" for unit in units):
            return answer(400, {"type": "urn:tollkeeper:problem:request-invalid", "title": "bad"})
        self.reported += units
        return answer(200, {"results": [(self.verdict or self.assigned)(unit) for unit in units]})

    def assigned(self, unit: dict[str, object], variant: str | None = None) -> dict[str, object]:
        found = {
            "unit_id": unit["unit_id"], "status": "assigned", "epoch": unit["epoch"],
            "variant": variant or here(str(unit["unit_id"])), "probability": 0.5,
            "exposed_at": unit.get("exposed_at", "2026-01-02T00:00:00Z"),
        }  # fmt: skip
        return {"status": 201, "assignment": found}


def here(unit_id: str, weights: tuple[float, ...] = (0.5, 0.5)) -> str:
    """The variant that a unit must get."""
    return f"v{allocate(Allocation(salt='checkout', weights=weights), unit_id).variant}"


@asynccontextmanager
async def chooser_of(
    url: str, limits: ChooserLimits = QUICK, clock: SlowClock | None = None
) -> AsyncIterator[Chooser]:
    backoff = Backoff(first_ms=1, ceiling_ms=1, retries=0)
    async with (
        ShadowClient(url, "tk_test", backoff=backoff) as client,
        Chooser(client, limits=limits, clock=clock or SlowClock()) as chooser,
    ):
        yield chooser


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.002)


async def test_every_unit_gets_what_the_service_would_give_and_is_reported_once() -> None:
    service, units = FakeService(), [f"user-{number}" for number in range(1_000)]
    async with routed(service.respond) as url, chooser_of(url) as chooser:
        chosen = {unit: chooser.choose("checkout", unit, {"plan": "pro"}) for unit in units}
        again = {unit: chooser.choose("checkout", unit) for unit in units}
        await until(lambda: chooser.reported == len(units))

    assert {unit: Choice(here(unit), 0.5, 1, "assigned") for unit in units} == chosen == again
    assert units == [unit["unit_id"] for unit in service.reported]
    assert service.reported[0] == {
        "unit_id": "user-0", "attributes": {"plan": "pro"}, "epoch": 1,
        "exposed_at": "2026-01-02T00:00:00Z",
    }  # fmt: skip
    assert (0, 0, 0) == (chooser.corrected, chooser.dropped, chooser.refused)


async def test_what_waits_is_reported_at_the_end() -> None:
    service = FakeService()
    async with routed(service.respond) as url, chooser_of(url, SLOW) as chooser:
        for number in range(2_500):
            chooser.choose("checkout", f"user-{number}")

    assert (2_500, 0, 0) == (len(service.reported), chooser.waiting, chooser.dropped)


async def test_weights_that_change_move_nobody_who_is_known() -> None:
    service, units = FakeService(), [f"user-{number}" for number in range(200)]
    async with routed(service.respond) as url, chooser_of(url, SLOW) as chooser:
        before = {unit: chooser.choose("checkout", unit) for unit in units}
        service.experiments, service.version = [running((0.01, 0.99), epoch=2)], 2
        await chooser.refresh()
        after = {unit: chooser.choose("checkout", unit) for unit in units}
        fresh = chooser.choose("checkout", "somebody-new")

    assert before == after
    assert here("somebody-new", (0.01, 0.99)) == fresh.variant
    assert 2 == fresh.epoch


async def test_a_snapshot_that_has_not_changed_is_not_sent_again() -> None:
    service = FakeService()
    async with routed(service.respond) as url, chooser_of(url, SLOW) as chooser:
        await chooser.refresh()
        await chooser.refresh()

    assert [200, NOT_MODIFIED, NOT_MODIFIED] == service.polls


async def test_without_the_service_it_starts_and_later_catches_up() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    async with chooser_of(f"http://127.0.0.1:{port}") as chooser:
        assert Choice("old", None, None, "unavailable") == chooser.choose(
            "checkout", "user-1", fallback="old"
        )
        assert chooser.is_stale
        service = FakeService()
        async with routed(service.respond, port):
            await until(lambda: not chooser.is_stale)
            assert "assigned" == chooser.choose("checkout", "user-1").status
            await until(lambda: chooser.reported == 1)


async def test_an_old_snapshot_assigns_nobody_new() -> None:
    clock, service = SlowClock(), FakeService()
    limits = ChooserLimits(
        flush_s=0.01, poll_s=0.01, stale_after_s=60, starting_s=20, closing_s=0.05
    )
    async with routed(service.respond) as url:
        served = chooser_of(url, limits, clock)
        chooser = await served.__aenter__()
        known = chooser.choose("checkout", "known")
        await until(lambda: chooser.reported == 1)
    clock.moment_s = 59.0
    meanwhile = chooser.choose("checkout", "meanwhile")

    def is_old() -> bool:
        clock.moment_s += 61.0  # an answer may still have come
        return chooser.is_stale

    await until(is_old)

    assert "assigned" == meanwhile.status
    assert Choice("v0", None, None, "unavailable") == chooser.choose("checkout", "new")
    assert known == chooser.choose("checkout", "known")
    await served.__aexit__(None, None, None)
    assert 1 == chooser.dropped


async def test_a_unit_that_had_another_variant_gets_that_one_from_then_on() -> None:
    service = FakeService()
    first = here("user-1")
    other = "v1" if first == "v0" else "v0"
    service.verdict = lambda unit: service.assigned(unit, variant=other)
    async with routed(service.respond) as url, chooser_of(url) as chooser:
        assert first == chooser.choose("checkout", "user-1").variant
        await until(lambda: chooser.reported == 1)

        assert Choice(other, 0.5, 1, "assigned") == chooser.choose("checkout", "user-1")
        assert 1 == chooser.corrected


async def test_without_room_to_report_a_choice_is_dropped_and_counted() -> None:
    service = FakeService()
    limits = ChooserLimits(waiting=10, batch=100, flush_s=30, poll_s=30, starting_s=20)
    async with routed(service.respond) as url, chooser_of(url, limits) as chooser:
        statuses = {chooser.choose("checkout", f"user-{number}").status for number in range(25)}

        assert {"assigned"} == statuses
        assert (10, 15) == (chooser.waiting, chooser.dropped)
        chooser.choose("checkout", "user-0")
        chooser.choose("checkout", "user-24")
        assert (10, 16) == (chooser.waiting, chooser.dropped)


async def test_no_more_units_are_remembered_than_there_is_room_for() -> None:
    service = FakeService()
    limits = ChooserLimits(units=3, flush_s=30, poll_s=30, starting_s=20)
    async with routed(service.respond) as url, chooser_of(url, limits) as chooser:
        for unit in ("a", "b", "c", "a", "d"):
            chooser.choose("checkout", unit)
        for unit in ("a", "c", "d", "b"):
            chooser.choose("checkout", unit)

    assert ["a", "b", "c", "d", "b"] == [unit["unit_id"] for unit in service.reported]


async def test_one_faulty_unit_does_not_take_others_with_it() -> None:
    service = FakeService()
    async with routed(service.respond) as url, chooser_of(url, SLOW) as chooser:
        for unit in ("a", "b", "faulty", "c", "d"):
            chooser.choose("checkout", unit)

    assert (4, 1, 0) == (chooser.reported, chooser.refused, chooser.dropped)
    assert {"a", "b", "c", "d"} == {unit["unit_id"] for unit in service.reported}


async def test_attributes_that_are_no_json_do_not_stop_the_reports() -> None:
    service = FakeService()
    async with routed(service.respond) as url, chooser_of(url) as chooser:
        chosen = chooser.choose("checkout", "a", {"plan": object()})  # type: ignore[dict-item]  # as callers do
        chooser.choose("checkout", "b", {"plan": "pro"})
        await until(lambda: chooser.waiting == 0)

    assert "assigned" == chosen.status
    assert (1, 1, 0) == (chooser.reported, chooser.refused, chooser.dropped)


async def test_a_clock_that_is_ahead_of_the_services_loses_no_choice() -> None:
    service, refused = FakeService(), list[bytes]()
    fault = {"field": "units[0].exposed_at", "detail": "must not be in the future"}

    def respond(request: bytes) -> bytes:
        if b"exposed_at" in request:
            refused.append(request)
            return answer(400, {"type": "urn:tollkeeper:problem:x", "errors": [fault]})
        return service.respond(request)

    async with routed(respond) as url, chooser_of(url, SLOW) as chooser:
        for number in range(100):
            chooser.choose("checkout", f"user-{number}")

    assert (100, 0, 0) == (chooser.reported, chooser.refused, chooser.dropped)
    assert 1 == len(refused)


async def test_what_the_service_cannot_take_now_waits() -> None:
    unknown = {"type": "urn:tollkeeper:problem:epoch-unknown", "title": "T", "status": 400}
    busy_ones: list[dict[str, object]] = [{"status": 503}, {"status": 400, "problem": unknown}]
    service = FakeService()

    def busy(unit: dict[str, object]) -> dict[str, object]:
        return busy_ones.pop() if busy_ones else service.assigned(unit)

    service.verdict = busy
    async with routed(service.respond) as url, chooser_of(url) as chooser:
        chooser.choose("checkout", "a")
        chooser.choose("checkout", "b")
        await until(lambda: chooser.reported == 2)

    assert (0, 0) == (chooser.refused, chooser.dropped)


@pytest.mark.parametrize(
    ("experiments", "expected"),
    [
        ([], Choice("control", None, None, "unknown")),
        ([running(state="paused")], Choice("v0", None, None, "paused")),
        ([running(state="ended", deployed="v1")], Choice("v1", None, None, "deployed")),
        ([running(holdout={"group": "g", "share": 0.5})], Choice("v0", None, None, "held_out")),
        (
            [running(namespace={"name": "n", "start": 0.0, "end": 1e-9})],
            Choice("v0", None, None, "excluded"),
        ),
    ],
)
async def test_who_is_not_assigned_gets_the_control_or_what_is_deployed(
    experiments: list[dict[str, object]], expected: Choice
) -> None:
    service = FakeService(experiments=experiments)
    async with routed(service.respond) as url, chooser_of(url) as chooser:
        found = [chooser.choose("checkout", f"user-{number}") for number in range(40)]

    assert expected in found
    assert {expected.status} >= {each.status for each in found} - {"assigned"}


async def test_a_snapshot_that_cannot_be_is_not_taken() -> None:
    service = FakeService()
    async with routed(service.respond) as url, chooser_of(url, SLOW) as chooser:
        service.experiments, service.version = [running((0.9, 0.9))], 2
        with pytest.raises(AnswerMalformed):
            await chooser.refresh()

        assert ("1", "assigned") == (chooser.version, chooser.choose("checkout", "user-1").status)


async def test_an_experiment_that_is_gone_has_ended() -> None:
    service = FakeService()
    async with routed(service.respond) as url, chooser_of(url, SLOW) as chooser:
        chooser.choose("checkout", "user-1")
        service.experiments, service.version = [], 2
        await chooser.refresh()

        assert Choice("v0", None, None, "ended") == chooser.choose("checkout", "user-1")


async def test_what_cannot_be_a_unit_is_not_assigned() -> None:
    service = FakeService()
    async with routed(service.respond) as url, chooser_of(url) as chooser:
        found = {chooser.choose("checkout", text) for text in ("", "x" * 129, "a\0", "\ud800")}
        number = chooser.choose("checkout", 7)  # type: ignore[arg-type]  # as callers do
        widest = chooser.choose("checkout", "ü" * 64)

    assert {Choice("v0", None, None, "invalid")} == {*found, number}
    assert "assigned" == widest.status
