"""Looks are taken once, deployments stand on proof, and every decision can be made anew."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import msgspec
import pytest
from tests.clocks import SetClock
from tests.experiments import definition
from tests.shadow_service import ACME, Shadow, report, running_shadow

from tollkeeper.database.driver import Connection
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.kernel.ids import TenantId
from tollkeeper.shadow.decision import recompute
from tollkeeper.shadow.errors import (
    AlreadyDeployed,
    DeploymentNotFound,
    ExperimentNotRunning,
    GateRefused,
    VariantUnknown,
)
from tollkeeper.shadow.evaluator import Evaluator
from tollkeeper.shadow.model import (
    Adaptive,
    Direction,
    ExperimentState,
    Metric,
    MetricKind,
    Variant,
    Verdict,
)
from tollkeeper.shadow.requests import AssignmentStatus, Change

WINNING = {"a": 0.1, "b": 0.3}
ALIKE = {"a": 0.2, "b": 0.2}


@pytest.fixture
async def shadow(shadow_dsn: str) -> AsyncIterator[Shadow]:
    async with running_shadow(shadow_dsn) as shadow:
        yield shadow


async def proven(shadow: Shadow) -> None:
    """Bring an experiment to a verdict to deploy b."""
    await shadow.running()
    await shadow.serve(1_600, WINNING)
    await look(shadow)


async def look(shadow: Shadow) -> None:
    for standing in await shadow.decider.standings():
        await shadow.decider.take_look(standing)


async def untested(owner: Connection) -> int:
    found: int = await owner.fetchval("SELECT deployments_without_testing()")
    return found


async def test_a_proven_variant_is_deployed_to_everybody_and_taken_back(
    shadow: Shadow, shadow_owner: Connection
) -> None:
    await proven(shadow)

    deployment, decision, is_new = await shadow.decider.deploy("checkout", "b", ACME, by="ann")
    deployed = await shadow.assign(["u-1", "new"])
    back, was_done = await shadow.decider.roll_back(
        deployment.deployment_id, ACME, by="bob", reason="it hurt"
    )
    ended = await shadow.assign(["u-1", "new"])

    assert (True, True) == (is_new, was_done)
    assert ("ann", 1, "confirmation") == (
        deployment.deployed_by, deployment.variant_no, decision.kind,
    )  # fmt: skip
    assert {(AssignmentStatus.DEPLOYED, "b")} == {(e.status, e.variant) for e in deployed}
    assert ("bob", "it hurt") == (back.rolled_back_by, back.reason)
    assert {(AssignmentStatus.ENDED, "a")} == {(e.status, e.variant) for e in ended}
    assert 0 == await untested(shadow_owner)


async def test_deploying_again_is_the_same_deployment(shadow: Shadow) -> None:
    await proven(shadow)
    first, _, _ = await shadow.decider.deploy("checkout", "b", ACME, by="ann")

    again, _, is_new = await shadow.decider.deploy("checkout", "b", ACME, by="bob")

    assert (first, False) == (again, is_new)
    with pytest.raises(AlreadyDeployed):
        await shadow.decider.deploy("checkout", "a", ACME, by="ann")
    await shadow.decider.roll_back(first.deployment_id, ACME, by="ann", reason=None)
    with pytest.raises(ExperimentNotRunning, match="create another"):
        await shadow.decider.deploy("checkout", "b", ACME, by="ann")


async def test_nothing_is_deployed_before_a_look(shadow: Shadow) -> None:
    await shadow.running()
    await shadow.serve(150, WINNING)

    with pytest.raises(GateRefused, match="no look has been taken yet"):
        await shadow.decider.deploy("checkout", "b", ACME, by="ann")
    with pytest.raises(VariantUnknown):
        await shadow.decider.deploy("checkout", "c", ACME, by="ann")


async def test_a_variant_that_is_no_better_is_refused_with_every_reason(
    shadow: Shadow, shadow_owner: Connection
) -> None:
    await shadow.running()
    await shadow.serve(1_600, ALIKE)
    await look(shadow)

    with pytest.raises(GateRefused) as refused:
        await shadow.decider.deploy("checkout", "b", ACME, by="ann")

    assert refused.value.verdict in {Verdict.HOLD, Verdict.REJECT}
    assert 3 < len(refused.value.reasons)
    assert 0 == await shadow_owner.fetchval("SELECT count(*) FROM deployments")


async def test_the_control_and_losers_are_not_deployed(shadow: Shadow) -> None:
    thirds = tuple(Variant(name=name, weight=1 / 3) for name in "abc")
    await shadow.running(wanted=definition(variants=thirds))
    await shadow.serve(1_800, {"a": 0.1, "b": 0.12, "c": 0.4})
    await look(shadow)

    for loser in "ab":
        with pytest.raises(GateRefused, match="the verdict is for variant c"):
            await shadow.decider.deploy("checkout", loser, ACME, by="ann")
    deployment, _, _ = await shadow.decider.deploy("checkout", "c", ACME, by="ann")
    assert 2 == deployment.variant_no


async def test_data_that_turn_after_the_verdict_stop_the_deployment(
    shadow: Shadow, shadow_owner: Connection
) -> None:
    await proven(shadow)
    await shadow.serve(2_000, {"a": 0.3, "b": 0.05}, prefix="late")

    with pytest.raises(GateRefused, match="since the look do not confirm it"):
        await shadow.decider.deploy("checkout", "b", ACME, by="ann")

    kinds = await shadow_owner.fetch("SELECT kind, verdict FROM decisions ORDER BY sequence")
    assert ("confirmation", True) == (kinds[-1]["kind"], kinds[-1]["verdict"] != "deploy")
    assert 0 == await shadow_owner.fetchval("SELECT count(*) FROM deployments")


async def test_outcomes_changed_by_hand_stop_the_deployment(
    shadow: Shadow, shadow_owner: Connection
) -> None:
    await proven(shadow)
    await shadow_owner.execute("UPDATE arm_statistics SET total = total + 1000000")

    with pytest.raises(GateRefused, match="not what the outcomes say"):
        await shadow.decider.deploy("checkout", "b", ACME, by="ann")


async def test_a_verdict_of_yesterday_is_worth_nothing(shadow_dsn: str) -> None:
    clock = SetClock(datetime.now(UTC))
    async with running_shadow(shadow_dsn, clock=clock) as shadow:
        await proven(shadow)
        clock.advance(25 * 3_600)

        with pytest.raises(GateRefused, match="expired"):
            await shadow.decider.deploy("checkout", "b", ACME, by="ann")


async def test_two_services_deploy_once(shadow_dsn: str, shadow: Shadow) -> None:
    await proven(shadow)
    async with running_shadow(shadow_dsn) as other:
        results = await asyncio.gather(
            *(each.decider.deploy("checkout", "b", ACME, by="ann") for each in (shadow, other) * 3)
        )

    assert 1 == len({deployment.deployment_id for deployment, _, _ in results})
    assert 1 == sum(is_new for _, _, is_new in results)


async def test_two_services_take_a_look_once(
    shadow_dsn: str, shadow: Shadow, shadow_owner: Connection
) -> None:
    await shadow.running()
    await shadow.serve(800, ALIKE)
    async with running_shadow(shadow_dsn) as other:
        standings = await shadow.decider.standings()
        taken = await asyncio.gather(
            *(each.decider.take_look(standings[0]) for each in (shadow, other) * 3)
        )

    assert 1 == sum(each is not None for each in taken)
    assert [4] == [row["look"] for row in await shadow_owner.fetch("SELECT look FROM decisions")]


async def test_looks_wait_for_their_units(shadow: Shadow, shadow_owner: Connection) -> None:
    await shadow.running()
    for part in range(5):
        await shadow.serve(150, ALIKE, prefix=f"part{part}")
        await look(shadow)
        await look(shadow)

    rows = await shadow_owner.fetch("SELECT look FROM decisions ORDER BY sequence")
    assert [1, 2, 3] == [row["look"] for row in rows]


async def test_the_plan_ends_in_a_verdict(shadow: Shadow, shadow_owner: Connection) -> None:
    await shadow.running()
    await shadow.serve(2_100, {"a": 0.2, "b": 0.21})
    await look(shadow)

    row = await shadow_owner.fetchrow("SELECT look, verdict FROM decisions")
    assert row is not None
    assert (10, "reject") == (row["look"], row["verdict"])
    assert [0] == [each.counted for each in await shadow.decider.standings()]  # nobody counts again


async def test_a_verdict_to_deploy_is_not_looked_away(shadow: Shadow) -> None:
    await proven(shadow)
    await shadow.serve(400, {"a": 0.3, "b": 0.0}, prefix="late")

    assert [None] == [
        await shadow.decider.take_look(each) for each in await shadow.decider.standings()
    ]


async def test_as_specified_looks_whenever_there_is_more(
    shadow: Shadow, shadow_owner: Connection
) -> None:
    await shadow.running(wanted=definition(profile="as-specified@1", looks=None))
    for part in range(3):
        await shadow.serve(50, ALIKE, prefix=f"part{part}")
        await look(shadow)
        await look(shadow)

    assert 3 == await shadow_owner.fetchval("SELECT count(*) FROM decisions")


async def test_every_decision_is_recomputed_bit_for_bit(
    shadow: Shadow, shadow_owner: Connection
) -> None:
    metrics = (
        Metric(name="success", kind=MetricKind.BINARY),
        Metric(name="latency", kind=MetricKind.CONTINUOUS, direction=Direction.LOWER),
        Metric(name="calls", kind=MetricKind.COUNT, direction=Direction.LOWER, tolerance=0.5),
    )
    await shadow.running(wanted=definition(metrics=metrics, adaptive=Adaptive(floor=0.1)))
    for part in range(4):
        await shadow.serve(400, WINNING, prefix=f"part{part}")
        await shadow.service.record(
            [
                msgspec.structs.replace(
                    report(f"part{part}-{number}", value, outcome_id=metric), metric=metric
                )
                for number in range(300)
                for metric, value in (("latency", 100 + number % 7), ("calls", number % 5))
            ],
            ACME,
        )
        await look(shadow)
    deployment, _, _ = await shadow.decider.deploy("checkout", "b", ACME, by="ann")

    decisions = await shadow.decider.decisions("checkout", ACME, after=0, limit=100)

    assert 3 <= len(decisions)
    assert [()] * len(decisions) == [recompute(each).differences for each in decisions]
    assert [b"", *(each.hash for each in decisions[:-1])] == [e.prev_hash for e in decisions]
    assert deployment.decision_no == decisions[-1].decision_no


async def test_weights_follow_the_evidence_at_looks(shadow: Shadow) -> None:
    await shadow.running(wanted=definition(adaptive=Adaptive(floor=0.1), units=4_000))
    await shadow.serve(800, {"a": 0.3, "b": 0.33})
    await look(shadow)

    experiment = await shadow.service.read("checkout", ACME)

    assert 2 == len(experiment.epochs)
    assert experiment.weights[1] > 0.5
    assert min(experiment.weights) >= 0.1
    assert 1 == pytest.approx(sum(experiment.weights), abs=1e-9)


async def test_an_analysis_takes_the_look_that_is_due(shadow: Shadow) -> None:
    await shadow.running()
    before = await shadow.decider.analysis("checkout", ACME)
    await shadow.serve(1_600, WINNING)

    after = await shadow.decider.analysis("checkout", ACME)

    assert [0, 0] == [arm.units for arm in before.arms]
    assert b'"verdict":"deploy"' in msgspec.json.encode(after)


async def test_deployments_of_others_are_not_there(shadow: Shadow) -> None:
    await proven(shadow)
    deployment, _, _ = await shadow.decider.deploy("checkout", "b", ACME, by="ann")
    other = TenantId("other")

    for call in (
        shadow.decider.deployment(deployment.deployment_id, other),
        shadow.decider.roll_back(deployment.deployment_id, other, by="eve", reason=None),
    ):
        with pytest.raises(DeploymentNotFound):
            await call
    found, experiment, decision = await shadow.decider.deployment(deployment.deployment_id, None)
    assert (deployment, "checkout", Verdict.DEPLOY) == (
        found, experiment.experiment_id, decision.verdict,
    )  # fmt: skip
    assert [deployment] == await shadow.decider.deployments("checkout", ACME)


async def test_counting_waits_for_a_decision_and_a_decision_for_counting(
    shadow: Shadow, shadow_owner: Connection
) -> None:
    """Decisions under a storm of outcomes: each is over inputs that were there together."""
    await shadow.running(wanted=definition(units=100_000, looks=100))

    async def storm(number: int) -> None:
        for part in range(6):
            await shadow.serve(100, WINNING, prefix=f"s{number}-{part}")

    async def looking() -> None:
        for _ in range(20):
            await look(shadow)
            await asyncio.sleep(0.01)

    await asyncio.gather(*(storm(number) for number in range(4)), looking())
    await look(shadow)

    decisions = await shadow.decider.decisions("checkout", ACME, after=0, limit=100)
    assert len(decisions) >= 1
    assert all(not recompute(each).differences for each in decisions)
    assert 0 == await shadow_owner.fetchval("SELECT count(*) FROM experiment_differences(1)")
    counted = await shadow_owner.fetchval("SELECT sum(units) FROM arm_statistics")
    assert 2_400 == counted


async def test_the_evaluator_looks_and_counts(shadow: Shadow, shadow_owner: Connection) -> None:
    await shadow.running()
    await shadow.serve(1_600, WINNING)
    registry = shadow.registry
    evaluator = Evaluator(shadow.decider, clock=SystemClock(), metrics=shadow.metrics.decisions)

    await evaluator.round(is_census=True)

    assert "deploy" == await shadow_owner.fetchval("SELECT verdict FROM decisions")
    best = registry.get_sample_value(
        "shadow_test_probability_best", {"experiment": "checkout", "variant": "b"}
    )
    assert best is not None
    assert best > 0.999
    assert 0 == registry.get_sample_value("shadow_deployments_without_testing")
    assert 1 == registry.get_sample_value("shadow_experiments", {"state": "running"})

    await shadow.service.change("checkout", ACME, Change(state=ExperimentState.ENDED))
    await evaluator.round(is_census=True)

    assert 1 == registry.get_sample_value("shadow_experiments", {"state": "ended"})
    gone = {"experiment": "checkout", "variant": "b"}
    assert registry.get_sample_value("shadow_test_probability_best", gone) is None


async def test_an_experiment_that_cannot_be_judged_holds_up_no_other(
    shadow: Shadow, shadow_owner: Connection
) -> None:
    for name in ("broken", "checkout"):
        await shadow.running(name)
        await shadow.serve(1_600, WINNING, name=name)
    await shadow_owner.execute(
        """
        UPDATE experiments SET definition = jsonb_set(definition, '{profile}', '"later@9"')
        WHERE experiment_id = 'broken'
        """
    )
    evaluator = Evaluator(shadow.decider, clock=SystemClock(), metrics=shadow.metrics.decisions)

    for _ in range(2):
        await evaluator.round(is_census=True)

    assert [2] == [
        row["experiment_no"]
        for row in await shadow_owner.fetch("SELECT experiment_no FROM decisions")
    ]
    assert 2 == shadow.registry.get_sample_value("shadow_experiments", {"state": "running"})
    assert 1 == shadow.registry.get_sample_value("shadow_looks_overdue")
