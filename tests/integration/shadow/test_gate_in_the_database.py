"""There is no way to a deployment that was not tested, whoever asks the database for one."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

import asyncpg
import pytest
from tests import experiments
from tests.conftest import Databases
from tests.experiments import GOOD, Arm

from tollkeeper.database.connect import close_gently, connector
from tollkeeper.database.driver import Connection
from tollkeeper.shadow.model import Namespace

UNTESTED = "SELECT deployments_without_testing()"
FORGED = (
    "INSERT INTO deployments "
    "(deployment_id, experiment_no, decision_no, variant_no, input_digest, deployed_by) "
)


@pytest.fixture
def dsn(other_databases: Databases) -> Iterator[str]:
    """A fresh database of the shadow service, on each PostgreSQL installed here."""
    with other_databases.fresh("shadow") as dsn:
        yield dsn


@pytest.fixture
async def owner(dsn: str) -> AsyncIterator[Connection]:
    connection = await connector(dsn)()
    yield connection
    await close_gently(connection, 5)


@pytest.fixture
async def service(dsn: str) -> AsyncIterator[Connection]:
    """What the service connects as."""
    connection = await connector(dsn, role=experiments.SERVICE_ROLE)()
    yield connection
    await close_gently(connection, 5)


async def running(service: Connection, arms: tuple[Arm, ...] = GOOD) -> int:
    experiment_no = await experiments.create(service)
    await experiments.start(service, experiment_no)
    await experiments.fill(service, experiment_no, arms)
    return experiment_no


async def confirmed(service: Connection, experiment_no: int) -> int:
    await experiments.record(service, experiment_no)
    return await experiments.record(service, experiment_no, kind="confirmation")


async def test_a_confirmed_verdict_deploys_and_ends_the_experiment(service: Connection) -> None:
    experiment_no = await running(service)

    deployment = await experiments.deploy(service, await confirmed(service, experiment_no))

    assert "ended" == await service.fetchval("SELECT state FROM experiments")
    assert deployment == await service.fetchval("SELECT deployment_id::text FROM deployments")
    assert 0 == await service.fetchval(UNTESTED)


async def test_a_look_alone_deploys_nothing(service: Connection) -> None:
    experiment_no = await running(service)
    look = await experiments.record(service, experiment_no)

    with pytest.raises(asyncpg.PostgresError, match="no confirmed verdict"):
        await experiments.deploy(service, look)


async def test_a_confirmation_without_a_look_deploys_nothing(service: Connection) -> None:
    experiment_no = await running(service)
    made = await experiments.record(service, experiment_no, kind="confirmation", look=0)

    with pytest.raises(asyncpg.PostgresError, match="last look does not say so"):
        await experiments.deploy(service, made)


@pytest.mark.parametrize("verdict", ["hold", "reject"])
async def test_another_verdict_deploys_nothing(service: Connection, verdict: str) -> None:
    experiment_no = await running(service)
    await experiments.record(service, experiment_no)
    made = await experiments.record(service, experiment_no, kind="confirmation", verdict=verdict)

    with pytest.raises(asyncpg.PostgresError, match="no confirmed verdict"):
        await experiments.deploy(service, made)


async def test_an_unknown_decision_deploys_nothing(service: Connection) -> None:
    with pytest.raises(asyncpg.PostgresError, match="no such decision"):
        await experiments.deploy(service, 4711)


async def test_data_that_moved_after_the_verdict_stop_the_deployment(service: Connection) -> None:
    experiment_no = await running(service)
    made = await confirmed(service, experiment_no)
    await experiments.fill(service, experiment_no, (Arm(units=1, successes=1),), prefix="late")

    with pytest.raises(asyncpg.PostgresError, match="the data have moved"):
        await experiments.deploy(service, made)

    assert 0 == await service.fetchval("SELECT count(*) FROM deployments")


async def test_counters_without_their_outcomes_stop_the_deployment(service: Connection) -> None:
    experiment_no = await running(
        service, (Arm(units=600, successes=60), Arm(units=600, successes=61))
    )
    await service.execute(
        "UPDATE arm_statistics SET total = total * 2, squares = squares * 2 WHERE variant_no = 1"
    )
    made = await confirmed(service, experiment_no)

    with pytest.raises(asyncpg.PostgresError, match="counters are not what the outcomes say"):
        await experiments.deploy(service, made)


async def test_an_older_snapshot_of_the_data_decides_and_deploys_nothing(
    service: Connection, owner: Connection
) -> None:
    experiment_no = await running(service)
    await experiments.record(service, experiment_no)
    bad = (Arm(units=0, successes=0), Arm(units=600, successes=0))

    for isolation in ("repeatable read", "serializable"):
        async with service.transaction(isolation=isolation.replace(" ", "_")):
            await service.fetchval("SELECT count(*) FROM units")
            await experiments.fill(owner, experiment_no, bad, prefix=isolation)
            with pytest.raises(asyncpg.PostgresError, match="read committed"):
                await experiments.record(service, experiment_no, kind="confirmation")
        async with service.transaction():
            made = await experiments.record(
                service, experiment_no, kind="confirmation", verdict="hold"
            )
        async with service.transaction(isolation=isolation.replace(" ", "_")):
            with pytest.raises(asyncpg.PostgresError, match="read committed"):
                await experiments.deploy(service, made)


async def test_the_data_of_another_moment_decide_nothing(service: Connection) -> None:
    experiment_no = await running(service)

    for moment in ("now() - interval '1 hour'", "now() + interval '1 hour'", "NULL"):
        with pytest.raises(asyncpg.PostgresError, match="inputs are not what is here"):
            await service.fetchval(
                f"""
                SELECT record_decision(
                    $1, 'confirmation', 0, m, '1 day', 'deploy', 1::smallint,
                    experiment_inputs($1, m), 1, 'by hand', '{{}}'
                )
                FROM (SELECT ({moment})::timestamptz AS m) AS s
                """,
                experiment_no,
            )


async def test_a_replayed_verdict_deploys_once(service: Connection, owner: Connection) -> None:
    experiment_no = await running(service)
    made = await confirmed(service, experiment_no)
    deployment = await experiments.deploy(service, made)
    await service.fetchval("SELECT roll_back_deployment($1::text::uuid, 'me', 'why')", deployment)

    with pytest.raises(asyncpg.PostgresError, match="the experiment has ended"):
        await experiments.deploy(service, made)

    await owner.execute("UPDATE experiments SET state = 'running', ended_at = NULL")
    with pytest.raises(asyncpg.UniqueViolationError):
        await experiments.deploy(service, made)


async def test_an_older_verdict_is_worth_nothing_after_a_later_one(service: Connection) -> None:
    experiment_no = await running(service)
    made = await confirmed(service, experiment_no)
    await experiments.record(service, experiment_no, look=2, verdict="hold", variant_no=None)

    with pytest.raises(asyncpg.PostgresError, match="a later decision stands"):
        await experiments.deploy(service, made)

    again = await experiments.record(service, experiment_no, kind="confirmation")
    with pytest.raises(asyncpg.PostgresError, match="last look does not say so"):
        await experiments.deploy(service, again)


@pytest.mark.parametrize("expired", ["look", "confirmation"])
async def test_an_expired_verdict_deploys_nothing(service: Connection, expired: str) -> None:
    experiment_no = await running(service)
    short, long = timedelta(milliseconds=1), experiments.DAY
    await experiments.record(service, experiment_no, lifetime=short if expired == "look" else long)
    made = await experiments.record(
        service,
        experiment_no,
        kind="confirmation",
        lifetime=short if expired == "confirmation" else long,
    )
    await service.execute("SELECT pg_sleep(0.002)")

    with pytest.raises(asyncpg.PostgresError, match="the verdict has expired"):
        await experiments.deploy(service, made)


async def test_two_deployments_at_once_are_one(dsn: str, service: Connection) -> None:
    experiment_no = await running(service)
    made = await confirmed(service, experiment_no)
    connections = [await connector(dsn, role=experiments.SERVICE_ROLE)() for _ in range(4)]
    try:
        results = await asyncio.gather(
            *(experiments.deploy(each, made) for each in connections), return_exceptions=True
        )
    finally:
        for each in connections:
            await close_gently(each, 5)

    assert 1 == sum(isinstance(each, str) for each in results)
    assert 1 == await service.fetchval("SELECT count(*) FROM deployments")


@pytest.mark.parametrize(
    ("arms", "doubt"),
    [
        ((Arm(units=600, successes=60), Arm(units=99, successes=90)), "100 are needed"),
        ((Arm(units=600, successes=60), Arm(units=600, successes=62)), "not 0.05 better"),
        ((Arm(units=600, successes=60), Arm(units=600, successes=30)), "not 0.05 better"),
        ((Arm(units=600, successes=60), Arm(units=600, successes=64)), "what chance does"),
        ((Arm(units=600, successes=0), Arm(units=600, successes=1)), "not 0.05 better"),
        ((), "100 are needed"),
    ],
)  # fmt: skip
async def test_a_verdict_that_cannot_be_right_is_not_recorded(
    service: Connection, arms: tuple[Arm, ...], doubt: str
) -> None:
    experiment_no = await running(service, arms)

    with pytest.raises(asyncpg.PostgresError, match=doubt):
        await experiments.record(service, experiment_no, kind="confirmation", look=0)


async def test_the_control_is_never_a_winner(service: Connection) -> None:
    experiment_no = await running(service)

    with pytest.raises(asyncpg.PostgresError, match="the variant is the control"):
        await experiments.record(service, experiment_no, variant_no=0)


async def test_made_up_inputs_are_not_recorded(service: Connection) -> None:
    experiment_no = await running(service)
    true = await service.fetchval("SELECT experiment_inputs($1, now())", experiment_no)

    with pytest.raises(asyncpg.PostgresError, match="inputs are not what is here"):
        await experiments.record(
            service, experiment_no, inputs=true.replace('"units": 600', '"units": 900')
        )


async def test_a_look_is_taken_once_and_not_before_it_is_due(service: Connection) -> None:
    experiment_no = await running(service)  # 1,200 of 2,000 units and 10 looks: 6 are due
    await experiments.record(service, experiment_no, look=3, verdict="hold", variant_no=None)

    for look in (0, 2, 3, 7, 11):
        with pytest.raises(asyncpg.PostgresError, match="is not due"):
            await experiments.record(service, experiment_no, look=look)
    await experiments.record(service, experiment_no, look=6)


@pytest.mark.parametrize(
    "statement",
    [
        FORGED + "SELECT gen_random_uuid(), 1, decision_no, 1, input_digest, 'x' FROM decisions",
        "UPDATE deployments SET variant_no = 0",
        "DELETE FROM deployments",
        "UPDATE decisions SET verdict = 'deploy'",
        "DELETE FROM decisions",
        "INSERT INTO decisions OVERRIDING SYSTEM VALUE SELECT * FROM decisions",
        "UPDATE experiments SET state = 'running'",
        "UPDATE experiments SET definition = '{}'",
        "DELETE FROM experiments",
        "INSERT INTO epochs VALUES (1, 2, now(), '{0,1}')",
        "UPDATE epochs SET weights = '{0,1}'",
        "DELETE FROM outcomes",
        "DELETE FROM units",
        "TRUNCATE arm_statistics",
        "ALTER TABLE deployments DISABLE TRIGGER deployments_checked",
        "CREATE OR REPLACE FUNCTION micros(timestamptz) RETURNS bigint LANGUAGE sql AS 'SELECT 1'",
        "SET session_replication_role = replica",
    ],
)
async def test_the_service_may_not_write_what_is_decided(
    service: Connection, statement: str
) -> None:
    await confirmed(service, await running(service))

    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await service.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE units SET variant_no = 1 - variant_no",
        "UPDATE units SET epoch = 2",
        "UPDATE outcomes SET status = 3",
    ],
)
async def test_what_was_assigned_and_counted_stays(service: Connection, statement: str) -> None:
    await running(service)

    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="stays"):
        await service.execute(statement)


async def test_not_even_the_owner_edits_the_decisions(
    service: Connection, owner: Connection
) -> None:
    made = await confirmed(service, await running(service))
    await experiments.deploy(service, made)

    for statement in (
        "UPDATE decisions SET verdict = 'hold'",
        "DELETE FROM decisions",
        "TRUNCATE decisions CASCADE",
        "UPDATE deployments SET decision_no = 1",
        "DELETE FROM deployments",
        "TRUNCATE deployments",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await owner.execute(statement)


@pytest.mark.parametrize(
    "forgery",
    [
        # Triggers and foreign keys are off: whoever is the superuser can do all of this.
        FORGED + "VALUES (gen_random_uuid(), 1, 4711, 1, '\\x00', 'x')",
        f"{FORGED} SELECT gen_random_uuid(), 1, 1, 1, input_digest, 'x' FROM decisions LIMIT 1",
        "UPDATE decisions SET seed = 2",
        "UPDATE decisions SET expires_at = expires_at + interval '9 days'",
        "UPDATE decisions SET document = '{\"p\": 1}'",
        "UPDATE decisions SET verdict = 'hold' WHERE kind = 'look'",
        "UPDATE decisions SET document = '{\"p\": 1}' WHERE kind = 'look'",
        "UPDATE decisions SET seed = 2; UPDATE decisions AS d SET hash = decision_hash(d)",
        "UPDATE decisions AS d SET hash = '\\x00' WHERE kind = 'look'",
        "UPDATE deployments SET variant_no = 0",
        "UPDATE deployments SET deployed_at = deployed_at + interval '9 days'",
        "DELETE FROM decisions WHERE kind = 'look'",
    ],
)  # fmt: skip
async def test_a_forged_deployment_is_counted(
    service: Connection, owner: Connection, forgery: str
) -> None:
    experiment_no = await running(service)
    deployment = await experiments.deploy(service, await confirmed(service, experiment_no))
    await owner.execute("SET session_replication_role = replica")
    if forgery.startswith("INSERT"):
        await service.fetchval("SELECT roll_back_deployment($1::text::uuid, 'x', '')", deployment)
        await owner.execute("ALTER TABLE deployments DROP CONSTRAINT deployments_proof")

    await owner.execute(forgery)

    assert 1 == await service.fetchval(UNTESTED)


async def test_a_rollback_needs_nothing_and_happens_once(service: Connection) -> None:
    experiment_no = await running(service)
    deployment = await experiments.deploy(service, await confirmed(service, experiment_no))
    version = await service.fetchval("SELECT version FROM experiments")
    back = "SELECT roll_back_deployment($1::text::uuid, $2, 'it hurt')"

    assert [True, False] == [
        await service.fetchval(back, deployment, who) for who in ("first", "second")
    ]
    (row,) = await service.fetch("SELECT rolled_back_by, reason FROM deployments")
    assert ("first", "it hurt") == tuple(row)
    assert version + 1 == await service.fetchval("SELECT version FROM experiments")
    assert 0 == await service.fetchval(UNTESTED)


async def test_ranges_of_a_namespace_are_taken_once(service: Connection) -> None:
    first, second, third = [
        await experiments.create(
            service,
            name,
            wanted=experiments.definition(namespace=Namespace(name="page", start=low, end=high)),
        )
        for name, low, high in (("one", 0.0, 0.5), ("two", 0.4, 0.9), ("three", 0.5, 1.0))
    ]
    await experiments.start(service, first)

    with pytest.raises(asyncpg.PostgresError) as refused:
        await experiments.start(service, second)
    await experiments.start(service, third)

    assert ("TK002", "one") == (refused.value.sqlstate, refused.value.detail)


async def test_states_have_their_ways(service: Connection) -> None:
    experiment_no = await experiments.create(service)
    move = "SELECT move_experiment($1, version, $2) FROM experiments WHERE experiment_no = $1"

    ways = ["paused", "running", "running", "draft", "paused", "running", "ended", "running"]

    assert [False, True, False, False, True, True, True, False] == [
        await service.fetchval(move, experiment_no, to) for to in ways
    ]
    assert False is await service.fetchval("SELECT move_experiment($1, 1, 'ended')", experiment_no)


async def test_epochs_follow_each_other_and_weights_sum_to_one(service: Connection) -> None:
    experiment_no = await experiments.create(service)
    await experiments.start(service, experiment_no)
    begin = "SELECT begin_epoch($1, $2, $3)"

    assert [True, False, False] == [
        await service.fetchval(begin, experiment_no, epoch, [0.1, 0.9]) for epoch in (2, 2, 4)
    ]
    for weights in ([0.5], [0.5, 0.6], [1.5, -0.5], [None, 1.0], [0.5, 0.25, 0.25]):
        with pytest.raises(asyncpg.CheckViolationError):
            await service.fetchval(begin, experiment_no, 3, weights)
