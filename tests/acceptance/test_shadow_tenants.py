"""Keys of two tenants crossed over every route of the shadow service, and every scope left out.

As `test_tenants.py` does it for credits: what is asked is read from the OpenAPI document.
"""

import asyncio
import itertools
from collections.abc import Iterator, Mapping

import httpx
import pytest
from tests.acceptance.conftest import ShadowService, create_keys, running_shadow
from tests.conftest import Databases
from tests.walk import (
    Operation,
    World,
    ask,
    assert_unseen,
    bodies_of,
    crossed,
    operations_of,
    read_rows,
)

from tollkeeper.kernel.principal import Scope
from tollkeeper.shadow.api import EXAMPLE

CROSSED = {
    "create_experiment": 409, "list_experiments": 200, "read_experiment": 404,
    "change_experiment": 404, "read_snapshot": 200, "assign": 404, "record": 404,
    "read_analysis": 404, "list_decisions": 404, "deploy": 404, "list_deployments": 404,
    "read_deployment": 404, "roll_back": 404, "database_status": 403, "slow_queries": 403,
}  # fmt: skip
"""What another tenant's key is answered, by operation."""

OPERATORS_ALONE = {"database_status": (403, 200), "slow_queries": (403, 200)}

TENANTS = 12
"""Tenants that may be made: their keys are known to the service from its start."""

UNITS = 300

_numbers = itertools.count(1)


class Shadow:
    """A running shadow service with its databases, and an administrator's key."""

    def __init__(self, service: ShadowService, tokens: Mapping[str, str]) -> None:
        self.api_key = service.api_key
        self.http = httpx.Client(base_url=service.url, timeout=20)
        self.context_ids = frozenset({"outcome_id"})
        self.operators_alone: Mapping[str, tuple[int, int]] = OPERATORS_ALONE
        self._dsn = service.shadow_dsn
        self.tokens = tokens

    def post(self, path: str, body: object) -> dict[str, list[dict[str, object]]]:
        """Do something as the administrator."""
        sent = {"Authorization": f"Bearer {self.api_key}"}
        answer = self.http.post(path, json=body, headers=sent)
        assert answer.is_success, answer.text
        found: dict[str, list[dict[str, object]]] = answer.json()
        return found

    def world(self) -> World:
        """Make a tenant with an experiment that may be deployed, and one that is."""
        number = next(_numbers)
        tenant, mark = f"tenant-{number}", f"mark-{number}"
        experiment, deployed = f"experiment-{number}", f"deployed-{number}"
        self._prove({**EXAMPLE, "experiment_id": experiment, "tenant_id": tenant}, f"u-{number}")
        variants = [{"name": "old"}, {"name": mark}]
        self._prove(
            {**EXAMPLE, "experiment_id": deployed, "tenant_id": tenant, "variants": variants},
            f"u-{mark}",
        )
        made = self.post(f"/v1/experiments/{deployed}/deployments", {"variant": mark})
        return World(
            tenant=tenant,
            objects={
                "experiment_id": experiment,
                "tenant_id": tenant,
                "unit_id": f"u-{number}-0",
                "deployment_id": str(made["deployment_id"]),
            },
            shared={},
            token=self.tokens[tenant],
            marks=(mark,),
        )

    def rows_of(self, world: World) -> list[str]:
        """Return every row of every table that names an object of the tenant."""
        return asyncio.run(read_rows((self._dsn,), tuple(world.objects.values())))

    def _prove(self, body: Mapping[str, object], unit: str) -> None:
        """Create an experiment whose second variant is better beyond doubt, and look at it."""
        name = body["experiment_id"]
        self.post("/v1/experiments", body)
        units = [{"unit_id": f"{unit}-{number}"} for number in range(UNITS)]
        assigned = self.post(f"/v1/experiments/{name}/assignments", {"units": units})
        outcomes = []
        for number, result in enumerate(assigned["results"]):
            assignment = result["assignment"]
            assert isinstance(assignment, dict)
            is_control = assignment["variant"] in {"control", "old"}
            outcomes.append({
                "experiment_id": name, "unit_id": assignment["unit_id"], "outcome_id": "first",
                "value": int(number % 10 < (3 if is_control else 9)),
            })  # fmt: skip
        self.post("/v1/outcomes", {"outcomes": outcomes})
        looked = self.http.get(
            f"/v1/experiments/{name}/analysis",
            headers={"Authorization": f"Bearer {self.api_key}"},
        )
        assert looked.is_success, looked.text


@pytest.fixture(scope="module")
def house(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shadow]:
    wanted = {f"tenant-{number}": ([*Scope], f"tenant-{number}") for number in range(1, TENANTS)}
    with (
        databases.fresh("shadow") as shadow_dsn,
        databases.fresh("access") as access_dsn,
    ):
        tokens = create_keys(access_dsn, wanted)
        folder = tmp_path_factory.mktemp("tenants")
        with running_shadow(shadow_dsn, access_dsn, folder) as service:
            house = Shadow(service, tokens)
            with house.http:
                yield house


@pytest.fixture(scope="module")
def operations(house: Shadow) -> list[Operation]:
    return operations_of(house.http)


def test_every_route_with_a_key_is_described(operations: list[Operation]) -> None:
    shadow = {scope for scope in Scope if scope.startswith("shadow:")}

    assert set(CROSSED) == {operation.name for operation in operations}
    assert {*shadow, Scope.ADMIN} == {operation.scope for operation in operations}


def test_another_tenants_key_sees_and_changes_nothing(
    house: Shadow, operations: list[Operation]
) -> None:
    other, shared = house.world(), house.world()
    answered = {}
    for operation in operations:
        # A world takes a second to make; after a deployment little else can be done in it.
        world = house.world() if operation.name == "deploy" else shared
        answers = crossed(
            house, operation, world, other=other, bodies=bodies_of(house, operation, world)
        )
        answered[operation.name] = answers[0].status_code

    assert CROSSED == answered


def test_without_a_key_every_route_is_closed(house: Shadow, operations: list[Operation]) -> None:
    world = house.world()
    before = house.rows_of(world)
    for operation in operations:
        for token in (None, "tk_wrong"):
            refused = ask(house, operation, world, token=token, body=operation.body)
            assert 401 == refused.status_code, operation.name

    assert before == house.rows_of(world)


def test_the_walk_would_notice(house: Shadow) -> None:
    world = house.world()
    tables = {row.split()[0] for row in house.rows_of(world)}
    listed = house.http.get("/v1/experiments", headers={"Authorization": f"Bearer {world.token}"})

    assert {"experiments", "units", "outcomes", "deployments"} <= tables
    with pytest.raises(AssertionError):
        assert_unseen(listed, world)
