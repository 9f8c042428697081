"""The client library and a running service: they choose alike, and understand each other."""

import asyncio
from collections.abc import Iterator
from uuid import uuid4

import pytest
from tests.acceptance.conftest import ShadowService, running_shadow
from tests.conftest import Databases

from tollkeeper.client import Chooser, ShadowClient
from tollkeeper.client.chooser import ChooserLimits
from tollkeeper.client.shadow_messages import DefinitionFields, Outcome

UNITS = [f"user-{number}" for number in range(1_000)]
DEFINITION: DefinitionFields = {
    "variants": [{"name": "old"}, {"name": "new"}, {"name": "newest"}],
    "metrics": [{"name": "sale", "kind": "binary"}],
}
BY_HAND = ChooserLimits(poll_s=30, flush_s=0.01, starting_s=20, closing_s=20)


@pytest.fixture(scope="module")
def shadow(
    databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ShadowService]:
    with (
        databases.fresh("shadow") as shadow_dsn,
        databases.fresh("access") as access_dsn,
        running_shadow(shadow_dsn, access_dsn, tmp_path_factory.mktemp("client")) as service,
    ):
        yield service


async def test_process_and_service_choose_alike(shadow: ShadowService) -> None:
    name = f"alike-{uuid4()}"
    definition: DefinitionFields = {
        **DEFINITION,
        "holdout": {"group": name, "share": 0.1},
        "namespace": {"name": name, "start": 0.2, "end": 0.9},
    }
    async with ShadowClient(shadow.url, shadow.api_key) as client:
        await client.create(name, definition, start=True)
        async with Chooser(client, limits=BY_HAND) as chooser:
            chosen = [chooser.choose(name, unit, {"plan": "pro"}) for unit in UNITS]
        results = await client.assign_batch(name, UNITS)

    said = [each.assignment for each in results]
    assert [(each.variant, each.status, each.probability, each.epoch) for each in chosen] == [
        (each.variant, each.status, each.probability, each.epoch)
        for each in said
        if each is not None
    ]
    assert {"assigned", "held_out", "excluded"} == {each.status for each in chosen}
    assert {200} == {each.status for each in results}, "they were reported before"
    assert sum(each.status == "assigned" for each in chosen) == chooser.reported
    assert (0, 0, 0) == (chooser.corrected, chooser.dropped, chooser.refused)


async def test_weights_that_change_move_nobody(shadow: ShadowService) -> None:
    name = f"weights-{uuid4()}"
    async with ShadowClient(shadow.url, shadow.api_key) as client:
        await client.create(name, DEFINITION, start=True)
        async with Chooser(client, limits=BY_HAND) as first:
            before = {unit: first.choose(name, unit).variant for unit in UNITS}
            await client.change(name, weights={"old": 0.1, "new": 0.1, "newest": 0.8})
            await first.refresh()
            after = {unit: first.choose(name, unit).variant for unit in UNITS}
        async with Chooser(client, limits=BY_HAND) as other:
            moved = sum(other.choose(name, unit).variant != before[unit] for unit in UNITS)
            while other.reported < len(UNITS):
                await asyncio.sleep(0.005)
            elsewhere = {unit: other.choose(name, unit).variant for unit in UNITS}

    assert before == after == elsewhere
    assert moved == other.corrected > 300


async def test_what_the_service_stops_the_process_stops(shadow: ShadowService) -> None:
    name = f"stops-{uuid4()}"
    async with (
        ShadowClient(shadow.url, shadow.api_key) as client,
        Chooser(client, limits=BY_HAND) as chooser,
    ):
        await client.create(name, DEFINITION)
        statuses = [chooser.choose(name, "user-1").status]
        for state in ("running", "paused", "running", "ended"):
            await client.change(name, state=state)
            await chooser.refresh()
            statuses.append(chooser.choose(name, "user-1").status)
            statuses.append(chooser.choose(name, f"while-{state}").status)

    assert [
        "unknown", "assigned", "assigned", "assigned", "paused", "assigned", "assigned", "ended",
        "ended",
    ] == statuses  # fmt: skip


async def test_every_answer_is_understood(shadow: ShadowService) -> None:
    name = f"typed-{uuid4()}"
    async with ShadowClient(shadow.url, shadow.api_key) as client:
        created = await client.create(name, {**DEFINITION, "units": 200, "looks": 1}, start=True)
        again = await client.create(name, {**DEFINITION, "units": 200, "looks": 1}, start=True)
        assigned = await client.assign(name, "user-1", {"age": 7})
        recorded = await client.record(name, "user-1", outcome_id="order-1")
        await client.assign_batch(name, UNITS[:300])
        results = await client.record_batch([Outcome(name, unit, value=0) for unit in UNITS[:300]])
        analysis = await client.analysis(name)
        decisions = await client.decisions(name)
        page = await client.experiments(state="running", limit=1)

    assert (True, False) == (created.is_new, again.is_new)
    assert created.experiment.created_at == again.experiment.created_at
    assert ("assigned", 1) == (assigned.status, assigned.epoch)
    assert ("counted", False, "order-1") == (
        recorded.status, recorded.duplicate, recorded.outcome_id,
    )  # fmt: skip
    assert {"counted"} == {each.outcome.status for each in results if each.outcome is not None}
    assert name.encode() in analysis
    assert [1] == [each.look for each in decisions.items]
    assert decisions.items[0].verdict in {"hold", "reject"}
    assert 1 == len(page.items)
