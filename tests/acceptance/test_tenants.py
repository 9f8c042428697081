"""Keys of two tenants crossed over every route of the OpenAPI document, and every scope left out.

The document says which routes there are, which scope each needs and what a request of it looks
like; nothing of that is repeated here. For each operation tenant A gets objects of its own, a key
of tenant B asks for them, and nothing of A may be seen or changed; then A's own key asks the same
and is answered, so the request was a good one.

A new route is walked by itself. It fails the test until `CROSSED` says what the other tenant is
answered, and, if its request names a new kind of object, until `Ledger.world` makes one.
"""

import asyncio
import itertools
from collections.abc import Iterator, Mapping

import httpx
import pytest
from tests.acceptance.conftest import Service, running_service
from tests.checkpoints import running_maker
from tests.conftest import Databases
from tests.walk import (
    Operation,
    World,
    ask,
    assert_unseen,
    bodies_of,
    crossed,
    lists_of,
    named,
    operations_of,
    read_rows,
)

from tollkeeper.kernel.principal import Scope

CROSSED = {
    "open_account": 400, "read_account": 404, "top_up": 404, "consume": 404, "read_history": 404,
    "batch": 400, "verify": 404, "create_key": 400, "list_keys": 200, "rotate_key": 404,
    "revoke_key": 404, "list_key_events": 200, "hold": 404, "list_holds": 404, "read_hold": 404,
    "capture": 404, "extend": 404, "release": 404, "read_transaction": 404, "refund": 404,
    "read_checkpoints": 200, "read_leaves": 200, "prove": 404, "read_links": 404,
    "set_alerts": 404, "read_alerts": 404, "list_alerts": 200, "read_alert": 404,
    "acknowledge_alert": 404, "read_usage": 404, "read_tenant_usage": 404, "unfreeze": 403,
    "list_frozen": 200, "database_status": 403, "slow_queries": 403,
}  # fmt: skip
"""What another tenant's key is answered, by operation."""

ITEMS_CROSSED = {
    "batch": {
        "open": 400, "topup": 404, "consume": 404, "hold": 404, "capture": 404, "extend": 404,
        "release": 404, "refund": 404,
    }
}  # fmt: skip
"""The same for each item of a body that has a list of them, alone: the request's or the item's."""

MORE_ITEMS: Mapping[str, list[dict[str, object]]] = {
    "batch": [
        {"op": "hold", "account_id": "", "idempotency_key": "m1", "amount": 5},
        {"op": "capture", "account_id": "", "idempotency_key": "m2", "hold_id": "", "amount": 1},
        {"op": "extend", "account_id": "", "idempotency_key": "m3", "hold_id": "", "amount": 1},
        {"op": "refund", "account_id": "", "idempotency_key": "m4", "transaction_id": ""},
        {"op": "release", "account_id": "", "idempotency_key": "m5", "hold_id": ""},
    ]
}
"""Items that the document's examples leave out, as their ids are the reader's own."""

OPERATORS_ALONE = {
    "unfreeze": (403, 409), "database_status": (403, 200), "slow_queries": (403, 200),
}  # fmt: skip
"""What no tenant's key may do, not even with its own: what that is answered, and an operator."""

_numbers = itertools.count(1)


class Ledger:
    """A running credits service with its databases, and an administrator's key."""

    def __init__(self, service: Service, dsns: tuple[str, str]) -> None:
        self.api_key = service.api_key
        self._dsns = dsns
        self.context_ids = frozenset({"idempotency_key"})
        self.operators_alone: Mapping[str, tuple[int, int]] = OPERATORS_ALONE
        self.http = httpx.Client(base_url=service.url, timeout=20)

    def post(self, path: str, body: object, **headers: str) -> dict[str, str]:
        """Do something as the administrator."""
        sent = {"Authorization": f"Bearer {self.api_key}", **headers}
        answer = self.http.post(path, json=body, headers=sent)
        assert answer.is_success, answer.text
        found: dict[str, str] = answer.json()
        return found

    def get(self, path: str) -> dict[str, list[dict[str, str]]]:
        """Read something as the administrator."""
        answer = self.http.get(path, headers={"Authorization": f"Bearer {self.api_key}"})
        assert answer.is_success, answer.text
        found: dict[str, list[dict[str, str]]] = answer.json()
        return found

    def key(self, scopes: list[str], tenant: str | None) -> dict[str, str]:
        """Make a key."""
        body = {"name": f"mark-{next(_numbers)}", "scopes": scopes, "tenant_id": tenant}
        return self.post("/v1/keys", body)

    def world(self) -> World:
        """Make a tenant with one object of each kind."""
        number = next(_numbers)
        tenant, account, mark = f"tenant-{number}", f"account-{number}", f"mark-{number}"
        self.post("/v1/accounts", {"account_id": account, "tenant_id": tenant})
        moved = self.post(
            f"/v1/accounts/{account}/topups",
            {"amount": 1_000_000 + number, "description": mark, "metadata": {"m": mark}},
            **{"Idempotency-Key": mark},
        )
        spent = self.post(
            f"/v1/accounts/{account}/consumptions", {"amount": 300}, **{"Idempotency-Key": "spent"}
        )
        held = self.post(
            f"/v1/accounts/{account}/holds", {"amount": 500}, **{"Idempotency-Key": "held"}
        )
        self.http.put(
            f"/v1/accounts/{account}/alerts",
            json={"alerts": [{"threshold": 2_000_000 + number}]},
            headers={"Authorization": f"Bearer {self.api_key}"},
        ).raise_for_status()
        (alert,) = self.get(f"/v1/alerts?account_id={account}")["items"]
        key, own = self.key(["credits:read"], tenant), self.key([*Scope], tenant)
        return World(
            tenant=tenant,
            objects={
                "account_id": account,
                "tenant_id": tenant,
                "key_id": key["key_id"],
                "transaction_id": spent["transaction_id"],
                "hold_id": held["hold_id"],
                "alert_id": alert["alert_id"],
            },
            shared={"number": str(self.checkpoint())},
            token=own["token"],
            marks=(
                mark,
                str(1_000_000 + number),
                str(2_000_000 + number),
                moved["hash"],
                key["name"],
                own["name"],
            ),
        )

    def checkpoint(self) -> int:
        """Make a checkpoint over what was done; return its number."""

        async def work() -> int:
            async with running_maker(self._dsns[0]) as maker:
                made = await maker.make()
                assert made is not None
                return made.number

        return asyncio.run(work())

    def rows_of(self, world: World) -> list[str]:
        """Return every row of every table that names an object of the tenant."""
        return asyncio.run(read_rows(self._dsns, tuple(world.objects.values())))


@pytest.fixture(scope="module")
def ledger(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    with (
        databases.fresh("credits") as credits_dsn,
        databases.fresh("access") as access_dsn,
        running_service(credits_dsn, access_dsn, tmp_path_factory.mktemp("tenants")) as service,
    ):
        ledger = Ledger(service, (credits_dsn, access_dsn))
        with ledger.http:
            yield ledger


@pytest.fixture(scope="module")
def operations(ledger: Ledger) -> list[Operation]:
    """Every operation that needs a key."""
    return operations_of(ledger.http)


def test_every_route_with_a_key_is_described(operations: list[Operation]) -> None:
    assert set(CROSSED) == {operation.name for operation in operations}


def test_another_tenants_key_sees_and_changes_nothing(
    ledger: Ledger, operations: list[Operation]
) -> None:
    other = ledger.world()
    answered = {}
    for operation in operations:
        world = ledger.world()
        answers = crossed(
            ledger, operation, world, other=other, bodies=bodies_of(ledger, operation, world)
        )
        answered[operation.name] = answers[0].status_code

    assert CROSSED == answered


def test_nor_through_an_item_of_a_batch(ledger: Ledger, operations: list[Operation]) -> None:
    other = ledger.world()
    answered: dict[str, dict[str, int]] = {}
    for operation in operations:
        for member, items in lists_of(operation.body):
            for item in [*items, *MORE_ITEMS.get(operation.name, ())]:
                world = ledger.world()
                body = named(ledger, world, {member: [item]})
                (answer,) = crossed(ledger, operation, world, other=other, bodies=[body])
                alone = answer.json()["results"][0]["status"] if answer.is_success else None
                answered.setdefault(operation.name, {})[str(item["op"])] = (
                    alone or answer.status_code
                )

    assert ITEMS_CROSSED == answered


def test_a_key_without_the_scope_is_refused_everywhere(
    ledger: Ledger, operations: list[Operation]
) -> None:
    """Whatever else it may do, also for its own tenant's objects, and without a change."""
    world = ledger.world()
    others = {
        scope: ledger.key(
            [each for each in Scope if each not in {scope, Scope.ADMIN}], world.tenant
        )
        for scope in Scope
    }
    before = ledger.rows_of(world)
    for operation in operations:
        for body in bodies_of(ledger, operation, world):
            refused = ask(
                ledger, operation, world, token=others[Scope(operation.scope)]["token"], body=body
            )
            assert (403, operation.scope) == (refused.status_code, refused.json().get("needed")), (
                operation.name
            )
            assert_unseen(refused, world)

    assert before == ledger.rows_of(world)


def test_without_a_key_every_route_is_closed(ledger: Ledger, operations: list[Operation]) -> None:
    world = ledger.world()
    before = ledger.rows_of(world)
    for operation in operations:
        for token in (None, "tk_wrong"):
            refused = ask(ledger, operation, world, token=token, body=operation.body)
            assert 401 == refused.status_code, operation.name

    assert before == ledger.rows_of(world)


def test_the_walk_would_notice(ledger: Ledger) -> None:
    """Rows of each kind are found, and a mark in an answer is."""
    world = ledger.world()
    tables = {row.split()[0] for row in ledger.rows_of(world)}
    assert {"accounts", "credit_transactions", "api_keys", "api_key_events"} <= tables
    history = ledger.http.get(
        f"/v1/accounts/{world.objects['account_id']}/transactions",
        headers={"Authorization": f"Bearer {world.token}"},
    )
    with pytest.raises(AssertionError):
        assert_unseen(history, world)


def test_all_the_scopes_of_credits_and_keys_occur(operations: list[Operation]) -> None:
    known = {scope for scope in Scope if not scope.startswith("shadow:")}

    assert known == {operation.scope for operation in operations}
