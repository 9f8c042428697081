"""Experiments are made, changed, assigned and measured as asked, or not at all."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import msgspec
import pytest
from tests.experiments import definition
from tests.shadow_service import ACME, Shadow, assigned, report, running_shadow

from tollkeeper.database.driver import Connection
from tollkeeper.database.errors import SchemaMissing
from tollkeeper.kernel.ids import TenantId
from tollkeeper.shadow.errors import (
    DefinitionInvalid,
    EpochUnknown,
    ExperimentChanged,
    ExperimentNotDraft,
    ExperimentNotFound,
    ExperimentNotRunning,
    ExperimentTaken,
    MetricUnknown,
    NamespaceTaken,
    ProfileUnknown,
    StateRefused,
)
from tollkeeper.shadow.experiment_store import ExperimentStore
from tollkeeper.shadow.model import (
    Adaptive,
    Experiment,
    ExperimentState,
    Holdout,
    Metric,
    MetricKind,
    Namespace,
    OutcomeStatus,
    Recorded,
    Variant,
)
from tollkeeper.shadow.requests import AssignmentStatus, AssignUnit, Change

OTHER = TenantId("other")
UNITS = [f"user-{number}" for number in range(1_000)]


@pytest.fixture
async def shadow(shadow_dsn: str) -> AsyncIterator[Shadow]:
    async with running_shadow(shadow_dsn) as shadow:
        yield shadow


async def test_making_an_experiment_again_changes_nothing(shadow: Shadow) -> None:
    first, is_new = await shadow.service.create("checkout", definition(), ACME)
    again, is_new_again = await shadow.service.create("checkout", definition(), ACME)

    assert (True, False) == (is_new, is_new_again)
    assert first == again
    for tenant, wanted in ((OTHER, definition()), (ACME, definition(units=3_000))):
        with pytest.raises(ExperimentTaken):
            await shadow.service.create("checkout", wanted, tenant)


async def test_an_experiment_of_another_tenant_is_not_there(shadow: Shadow) -> None:
    await shadow.running()

    for call in (
        shadow.service.read("checkout", OTHER),
        shadow.service.change("checkout", OTHER, Change(state=ExperimentState.ENDED)),
        shadow.service.assign("checkout", OTHER, [AssignUnit(unit_id="u")]),
        shadow.decider.deploy("checkout", "b", OTHER, by="me"),
        shadow.decider.analysis("checkout", OTHER),
        shadow.decider.decisions("checkout", OTHER, after=0, limit=1),
        shadow.decider.deployments("checkout", OTHER),
    ):
        with pytest.raises(ExperimentNotFound):
            await call
    (refused,) = await shadow.service.record([report("u")], OTHER)
    assert isinstance(refused, ExperimentNotFound)
    assert () == (await shadow.service.snapshot(OTHER)).experiments
    assert [] == await shadow.service.page(OTHER, state=None, after=0, limit=10)


class Asked(ExperimentStore):
    """Remembers what was read."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.snapshots = 0

    async def read(self, connection: Connection, experiment_id: str) -> Experiment | None:
        self.names.append(experiment_id)
        return await super().read(connection, experiment_id)

    async def of_interest(self, connection: Connection, *, limit: int) -> list[Experiment]:
        self.snapshots += 1
        return await super().of_interest(connection, limit=limit)


async def test_a_list_of_outcomes_asks_once_for_an_experiment_that_is_not_there(
    shadow_dsn: str,
) -> None:
    asked = Asked()
    outcomes = [report(f"u-{number}", name="gone") for number in range(100)]
    async with running_shadow(shadow_dsn, store=asked) as shadow:
        results = await shadow.service.record(outcomes, ACME)

    assert {ExperimentNotFound} == set(map(type, results))
    assert len(outcomes) == len(results)
    assert ["gone"] == asked.names


async def test_who_asks_for_the_snapshot_at_once_has_it_read_once(shadow_dsn: str) -> None:
    asked = Asked()
    async with running_shadow(shadow_dsn, store=asked) as shadow:
        await shadow.running()
        seen = await asyncio.gather(*(shadow.service.snapshot(ACME) for _ in range(50)))
        snapshots = asked.snapshots
        await shadow.service.change("checkout", ACME, Change(state=ExperimentState.PAUSED))
        (after,) = (await shadow.service.snapshot(ACME)).experiments

    assert {1} == {len(snapshot.experiments) for snapshot in seen}
    assert 1 == snapshots
    assert ExperimentState.PAUSED is after.state


async def test_what_is_wrong_with_the_database_stays_the_database_layers_error(
    shadow: Shadow, shadow_owner: Connection
) -> None:
    """Whose words, as of functions and hosts, no caller is shown."""
    await shadow_owner.execute("DROP FUNCTION create_experiment(text, text, jsonb)")

    with pytest.raises(SchemaMissing):
        await shadow.service.create("checkout", definition(), ACME)


async def test_pages_follow_each_other(shadow: Shadow) -> None:
    for number in range(5):
        await shadow.service.create(f"e{number}", definition(), ACME)
    await shadow.service.change("e1", ACME, Change(state=ExperimentState.RUNNING))

    first = await shadow.service.page(ACME, state=None, after=0, limit=3)
    second = await shadow.service.page(None, state=None, after=first[-1].experiment_no, limit=3)
    running = await shadow.service.page(ACME, state=ExperimentState.RUNNING, after=0, limit=9)

    assert ["e0", "e1", "e2"] == [each.experiment_id for each in first]
    assert ["e3", "e4"] == [each.experiment_id for each in second]
    assert ["e1"] == [each.experiment_id for each in running]


async def test_arms_change_in_a_draft_only(shadow: Shadow) -> None:
    await shadow.service.create("checkout", definition(), ACME)
    thirds = tuple(Variant(name=name, weight=1 / 3) for name in "abc")

    changed = await shadow.service.change(
        "checkout", ACME, Change(definition=definition(variants=thirds))
    )
    await shadow.service.change("checkout", ACME, Change(state=ExperimentState.RUNNING))

    assert ("a", "b", "c") == changed.definition.names
    with pytest.raises(ExperimentNotDraft):
        await shadow.service.change("checkout", ACME, Change(definition=definition()))
    assert thirds == (await shadow.service.read("checkout", ACME)).definition.variants


async def test_a_change_is_whole_or_not_at_all(shadow: Shadow) -> None:
    await shadow.service.create("checkout", definition(), ACME)
    change = Change(definition=definition(units=5_000), state=ExperimentState.PAUSED)

    with pytest.raises(StateRefused):
        await shadow.service.change("checkout", ACME, change)
    with pytest.raises(ExperimentChanged):
        await shadow.service.change(
            "checkout", ACME, Change(definition=definition(units=5_000), version=7)
        )

    kept = await shadow.service.read("checkout", ACME)
    assert (definition(), 1) == (kept.definition, kept.version)


async def test_a_gate_that_nobody_knows_is_refused(shadow: Shadow) -> None:
    with pytest.raises(ProfileUnknown, match="default@1"):
        await shadow.service.create("checkout", definition(profile="mine@1"), ACME)
    with pytest.raises(DefinitionInvalid, match="looks must be a number"):
        await shadow.service.create("checkout", definition(looks=None), ACME)

    await shadow.service.create("checkout", definition(looks=None, profile="as-specified@1"), ACME)


async def test_units_are_assigned_once_by_their_weights(shadow: Shadow) -> None:
    await shadow.running(
        wanted=definition(variants=(Variant(name="a", weight=0.8), Variant(name="b", weight=0.2)))
    )

    first, again = await shadow.assign(UNITS), await shadow.assign(UNITS)

    counts = Counter(each.variant for each in first)
    assert 750 < counts["a"] < 850
    assert {"a": {0.8}, "b": {0.2}} == {
        name: {each.probability for each in first if each.variant == name} for name in "ab"
    }
    assert all(each.is_new for each in first)
    assert not any(each.is_new for each in again)
    assert [each.variant for each in first] == [each.variant for each in again]


async def test_new_weights_move_nobody(shadow: Shadow) -> None:
    await shadow.running()
    before = await shadow.assign(UNITS[:500])

    changed = await shadow.service.change("checkout", ACME, Change(weights={"a": 0, "b": 1}))
    after = await shadow.assign(UNITS)

    assert 2 == len(changed.epochs)
    assert [each.variant for each in before] == [each.variant for each in after[:500]]
    assert {("b", 1.0, 2)} == {(each.variant, each.probability, each.epoch) for each in after[500:]}


@pytest.mark.parametrize(
    "weights", [{"a": 1}, {"a": 0.5, "c": 0.5}, {"a": 0.5, "b": 0.6}, {"a": -1, "b": 2}, {}]
)
async def test_weights_that_cannot_be_change_nothing(
    shadow: Shadow, weights: dict[str, float]
) -> None:
    await shadow.running()

    with pytest.raises(DefinitionInvalid):
        await shadow.service.change("checkout", ACME, Change(weights=weights))

    assert 1 == len((await shadow.service.read("checkout", ACME)).epochs)


async def test_weights_of_an_adaptive_experiment_are_its_own(shadow: Shadow) -> None:
    await shadow.running(wanted=definition(adaptive=Adaptive()))

    with pytest.raises(DefinitionInvalid, match="adaptive"):
        await shadow.service.change("checkout", ACME, Change(weights={"a": 0.4, "b": 0.6}))


async def test_a_choice_made_elsewhere_is_assigned_by_its_epoch(shadow: Shadow) -> None:
    await shadow.running()
    await shadow.service.change("checkout", ACME, Change(weights={"a": 1, "b": 0}))

    results = await shadow.service.assign(
        "checkout", ACME, [AssignUnit(unit_id=unit_id, epoch=1) for unit_id in UNITS[:100]]
    )
    (unknown,) = await shadow.service.assign("checkout", ACME, [AssignUnit(unit_id="x", epoch=3)])

    assert {"a", "b"} == {assigned(each).variant for each in results}
    assert {(1, 0.5)} == {(assigned(each).epoch, assigned(each).probability) for each in results}
    assert isinstance(unknown, EpochUnknown)


async def test_held_out_units_are_the_same_in_every_experiment(shadow: Shadow) -> None:
    held: list[set[str]] = []
    for name in ("one", "two"):
        wanted = definition(holdout=Holdout(group="global", share=0.1))
        await shadow.running(name, wanted=wanted)
        results = await shadow.assign(UNITS, name)
        held.append({e.unit_id for e in results if e.status is AssignmentStatus.HELD_OUT})
        assert {("a", None)} == {
            (e.variant, e.probability) for e in results if e.unit_id in held[-1]
        }

    assert held[0] == held[1]
    assert 70 < len(held[0]) < 130


async def test_experiments_of_a_namespace_share_no_unit(
    shadow: Shadow, shadow_owner: Connection
) -> None:
    for name, start, end in (("one", 0.0, 0.5), ("two", 0.5, 1.0)):
        await shadow.running(
            name, wanted=definition(namespace=Namespace(name="page", start=start, end=end))
        )
        await shadow.assign(UNITS, name)

    rows = await shadow_owner.fetch("SELECT unit_id FROM units")
    assert sorted(UNITS) == sorted(row["unit_id"] for row in rows)
    await shadow.service.create(
        "three", definition(namespace=Namespace(name="page", start=0.9, end=1)), ACME
    )
    with pytest.raises(NamespaceTaken, match="two"):
        await shadow.service.change("three", ACME, Change(state=ExperimentState.RUNNING))


async def test_a_paused_experiment_keeps_who_is_in_it(shadow: Shadow) -> None:
    await shadow.running()
    before = await shadow.assign(UNITS[:50])

    await shadow.service.change("checkout", ACME, Change(state=ExperimentState.PAUSED))
    after = await shadow.assign(UNITS[:100])

    assert [each.variant for each in before] == [each.variant for each in after[:50]]
    assert {(AssignmentStatus.PAUSED, "a")} == {(e.status, e.variant) for e in after[50:]}


async def test_an_ended_experiment_gives_everybody_the_control(shadow: Shadow) -> None:
    await shadow.running()
    await shadow.assign(UNITS[:50])

    await shadow.service.change("checkout", ACME, Change(state=ExperimentState.ENDED))

    assert {(AssignmentStatus.ENDED, "a")} == {
        (each.status, each.variant) for each in await shadow.assign(UNITS[:100])
    }


async def test_a_draft_neither_assigns_nor_counts(shadow: Shadow) -> None:
    await shadow.service.create("checkout", definition(), ACME)

    with pytest.raises(ExperimentNotRunning):
        await shadow.assign(["u"])
    (refused,) = await shadow.service.record([report("u")], ACME)

    assert isinstance(refused, ExperimentNotRunning)


async def test_outcomes_are_recorded_each_by_itself(shadow: Shadow) -> None:
    await shadow.running(
        wanted=definition(
            metrics=(
                Metric(name="success", kind=MetricKind.BINARY),
                Metric(name="latency", kind=MetricKind.CONTINUOUS),
            )
        )
    )
    await shadow.assign(["u"])

    results = await shadow.service.record(
        [
            report("u"),
            report("u", name="nowhere"),
            report("u"),
            report("later", outcome_id="p"),
        ],
        ACME,
    )

    assert [
        Recorded(status=OutcomeStatus.COUNTED, is_new=True),
        ExperimentNotFound,
        Recorded(status=OutcomeStatus.COUNTED, is_new=False),
        Recorded(status=OutcomeStatus.WAITING, is_new=True),
    ] == [each if isinstance(each, Recorded) else type(each) for each in results]
    strange = msgspec.structs.replace(report("u", outcome_id="q"), metric="x")
    (refused,) = await shadow.service.record([strange], ACME)
    assert isinstance(refused, MetricUnknown)


async def test_a_snapshot_moves_with_what_it_shows(shadow: Shadow) -> None:
    empty = await shadow.service.snapshot(ACME)
    await shadow.running()
    running = await shadow.service.snapshot(ACME)
    again = await shadow.service.snapshot(ACME)
    await shadow.service.change("checkout", ACME, Change(weights={"a": 0.1, "b": 0.9}))
    changed = await shadow.service.snapshot(ACME)

    assert () == empty.experiments
    assert running == again
    assert 3 == len({empty.version, running.version, changed.version})
    assert ((0.1, 0.9),) == tuple(each.weights for each in changed.experiments)
