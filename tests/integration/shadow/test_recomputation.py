"""What the database keeps of a decision is made anew byte for byte."""

import msgspec
import pytest
from tests import experiments
from tests.conftest import Databases
from tests.experiments import GOOD, definition

from tollkeeper.database.connect import close_gently, connector
from tollkeeper.shadow.decision import decide, recompute
from tollkeeper.shadow.evidence import parse
from tollkeeper.shadow.model import (
    MICRO,
    Adaptive,
    Decision,
    Direction,
    Metric,
    MetricKind,
    Verdict,
)

CODE = 'a "code"\n\tof \x01 \\ and € \x7f'
"""Whatever PostgreSQL and Python may escape in different ways."""


@pytest.mark.parametrize("name", ["default@1", "as-specified@1"])
async def test_a_stored_decision_is_made_anew_with_its_hash(
    databases: Databases, name: str
) -> None:
    latency = Metric(name="latency <ms>", kind=MetricKind.CONTINUOUS, direction=Direction.LOWER)
    success = Metric(name="success", kind=MetricKind.BINARY, prior=(2.5, 7.0))
    wanted = definition(profile=name, adaptive=Adaptive(), metrics=(success, latency))
    with databases.fresh("shadow") as dsn:
        connection = await connector(dsn)()
        number = await experiments.create(connection, "chéckout", wanted=wanted)
        await experiments.start(connection, number)
        await experiments.fill(connection, number, GOOD)
        inputs = await connection.fetchval("SELECT experiment_inputs($1, now())", number)
        made = decide(inputs, look=6, kind="look", seed=-(2**63), code=CODE)
        await connection.execute(
            "SELECT record_decision($1, 'look', 6, to_timestamp($2::numeric / 1000000), '1 day', "
            "$3, $4::smallint, $5, $6, $7, $8)",
            number, parse(inputs).as_of_us, str(made.verdict), made.variant_no, inputs,
            -(2**63), CODE, made.document,
        )  # fmt: skip
        row = await connection.fetchrow("SELECT * FROM decisions")
        assert row is not None
        await close_gently(connection, 5)
    decision = msgspec.convert(dict(row), Decision, strict=False)

    assert wanted == parse(inputs).definition
    assert (Verdict.HOLD if name == "default@1" else Verdict.DEPLOY) == decision.verdict
    assert () == recompute(decision).differences


SUMS = {
    "few in one arm": (MetricKind.BINARY, (), (100_000, 309, 309), (100, 1, 1)),
    "overdispersed": (MetricKind.COUNT, (), (1_000, 1_000, 11_000), (1_000, 1_100, 12_100)),
    "sure by its prior": (
        MetricKind.CONTINUOUS, (0.0, 1e-6, 1e6, 1.0), (200, 1_000, 6_000), (200, 1_055, 9_000),
    ),
}  # fmt: skip
"""A metric, its prior, and units, total and squares of control and candidate."""


@pytest.mark.parametrize("name", SUMS)
async def test_the_database_takes_what_the_gate_says(databases: Databases, name: str) -> None:
    kind, prior, *arms = SUMS[name]
    metric = Metric(name="m", kind=kind, prior=prior)
    wanted = definition(profile="as-specified@1", looks=None, metrics=(metric,))
    with databases.fresh("shadow") as dsn:
        connection = await connector(dsn)()
        number = await experiments.create(connection, wanted=wanted)
        await experiments.start(connection, number)
        for variant_no, (units, total, squares) in enumerate(arms):
            await connection.execute(
                "INSERT INTO arm_exposures VALUES ($1, 1, $2, now(), $3)", number, variant_no, units
            )
            await connection.execute(
                "INSERT INTO arm_statistics VALUES ($1, 1, $2, 0, now(), now(), $3, $4, $5)",
                number, variant_no, units, total * MICRO, squares * MICRO**2,
            )  # fmt: skip
        inputs = await connection.fetchval("SELECT experiment_inputs($1, now())", number)
        decided = decide(inputs, look=1, kind="look", seed=1, code=CODE)

        made = await experiments.record(connection, number, verdict=decided.verdict)
        await close_gently(connection, 5)

    assert (Verdict.DEPLOY, 1) == (decided.verdict, made)
