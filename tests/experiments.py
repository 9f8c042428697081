"""Experiments made with SQL, for tests of what the database itself sees to."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import msgspec

from tollkeeper.database.driver import Connection
from tollkeeper.shadow.model import Definition, Metric, MetricKind, Variant

DAY = timedelta(days=1)
SERVICE_ROLE = "tollkeeper_shadow"


def definition(**changes: object) -> Definition:
    """Return a definition of two variants, with a binary metric, changed as said."""
    terms: dict[str, object] = {
        "variants": (Variant(name="a", weight=0.5), Variant(name="b", weight=0.5)),
        "control": "a",
        "metrics": (Metric(name="success", kind=MetricKind.BINARY),),
        "units": 2_000,
        "looks": 10,
        **changes,
    }
    return Definition(**terms)  # type: ignore[arg-type]  # tests say what they mean


@dataclass(frozen=True, kw_only=True)
class Arm:
    """How many units of an arm have an outcome, and how many of those a success."""

    units: int
    successes: int


GOOD = (Arm(units=600, successes=60), Arm(units=600, successes=120))
"""Data that every sensible gate lets through: 10 % against 20 %."""


async def create(
    connection: Connection,
    name: str = "checkout",
    *,
    wanted: Definition | None = None,
    tenant: str = "acme",
) -> int:
    """Make an experiment and return its number."""
    made: int = await connection.fetchval(
        "SELECT create_experiment($1, $2, $3::text::jsonb)",
        name,
        tenant,
        msgspec.json.encode(wanted or definition()).decode(),
    )
    return made


async def start(connection: Connection, experiment_no: int) -> None:
    """Set an experiment running."""
    moved = await connection.fetchval(
        "SELECT move_experiment($1, version, 'running') FROM experiments WHERE experiment_no = $1",
        experiment_no,
    )
    assert moved is True


async def fill(
    connection: Connection, experiment_no: int, arms: Sequence[Arm], *, prefix: str = "u"
) -> None:
    """Count units with a binary outcome each, as the service does."""
    for number, arm in enumerate(arms):
        await connection.execute(
            """
            WITH unit AS (
                INSERT INTO units (
                    experiment_no, epoch, variant_no, exposed_at, probability, unit_id
                )
                SELECT
                    $1::integer, 1, $2::smallint, now() - interval '1 minute', 0.5,
                    format('%s-%s-%s', $5::text, $2::smallint, n)
                FROM generate_series(1, $3::integer) AS n
                RETURNING unit_id
            ),
            numbered AS (
                SELECT unit_id, row_number() OVER (ORDER BY unit_id) <= $4::integer AS won FROM unit
            ),
            outcome AS (
                INSERT INTO outcomes (
                    experiment_no, metric_no, status, value_micro, occurred_at, received_at,
                    unit_id, outcome_id
                )
                SELECT $1::integer, 0, 1, won::integer * 1000000, now(), now(), unit_id, 'o'
                FROM numbered
                RETURNING unit_id, value_micro
            ),
            value AS (
                INSERT INTO unit_values (
                    experiment_no, metric_no, outcomes, total_micro, value_micro, unit_id
                )
                SELECT $1::integer, 0, 1, value_micro, value_micro, unit_id FROM outcome
            ),
            exposure AS (
                INSERT INTO arm_exposures (experiment_no, epoch, variant_no, bucket, units)
                VALUES ($1, 1, $2::smallint, date_trunc('minute', now()), $3::integer)
                ON CONFLICT (experiment_no, epoch, variant_no, bucket)
                DO UPDATE SET units = arm_exposures.units + excluded.units
            )
            INSERT INTO arm_statistics (
                experiment_no, epoch, variant_no, metric_no, bucket, last_received_at, units, total,
                squares
            )
            VALUES (
                $1, 1, $2::smallint, 0, date_trunc('minute', now()), now(), $3::integer,
                $4::integer::numeric * 1000000, $4::integer::numeric * 1000000000000
            )
            ON CONFLICT (experiment_no, epoch, variant_no, metric_no, bucket) DO UPDATE SET
                units = arm_statistics.units + excluded.units,
                total = arm_statistics.total + excluded.total,
                squares = arm_statistics.squares + excluded.squares
            """,
            experiment_no, number, arm.units, arm.successes, prefix,
        )  # fmt: skip


async def record(  # the arguments are those of the function in the schema
    connection: Connection,
    experiment_no: int,
    *,
    kind: str = "look",
    look: int = 1,
    verdict: str = "deploy",
    variant_no: int | None = 1,
    lifetime: timedelta = DAY,
    inputs: str | None = None,
) -> int:
    """Write a decision by hand over the inputs of this moment, and return its number."""
    made: int = await connection.fetchval(
        """
        SELECT record_decision(
            $1, $2, $3, s.moment, $4, $5, $6::smallint,
            coalesce($7, experiment_inputs($1, s.moment)), 1, 'by hand', '{}'
        )
        FROM (SELECT now() AS moment) AS s
        """,
        experiment_no, kind, look, lifetime, verdict, variant_no, inputs,
    )  # fmt: skip
    return made


async def deploy(connection: Connection, decision_no: int, by: str = "a test") -> str:
    """Deploy what a decision says, and return the deployment's id."""
    made: str = await connection.fetchval(
        "SELECT id::text FROM gen_random_uuid() AS id, deploy_variant(id, $1, $2)", decision_no, by
    )
    return made
