"""Experiments as a caller meets them: over HTTP, with keys of several scopes and tenants."""

import asyncio
import itertools
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.acceptance.conftest import ShadowService, create_keys, running_shadow
from tests.conftest import Databases
from tests.hostile import assert_is_answered, hostile_bodies

from tollkeeper.kernel.principal import Scope

URN = "urn:tollkeeper:problem:"
PATIENCE_S = 20.0
NOBODY = "01978a3c-5f00-7abc-8def-0123456789ab"
SHADOW_SCOPES = [scope for scope in Scope if scope.startswith("shadow:")]
TABLES = ("experiments", "epochs", "units", "outcomes", "unit_values", "decisions", "deployments")

MEMBERS = [
    "experiment_id", "unit_id", "outcome_id", "metric", "value", "occurred_at", "outcomes", "units",
    "attributes", "epoch", "exposed_at", "variants", "metrics", "name", "kind", "weight", "variant",
    "reason", "margin", "looks", "holdout", "state", "__proto__", "", "\0",
]  # fmt: skip

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def tokens(databases: Databases) -> Iterator[dict[str, str]]:
    """Keys by name, and under `dsn` their database."""
    with databases.fresh("access") as access_dsn:
        made = create_keys(
            access_dsn,
            {
                "acme": (SHADOW_SCOPES, "acme"),
                "other": (SHADOW_SCOPES, "other"),
                **{scope.value: ([scope], None) for scope in Scope},
            },
        )
        yield {"dsn": access_dsn, **made}


@pytest.fixture(scope="module")
def shadow(
    databases: Databases, tokens: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ShadowService]:
    folder: Path = tmp_path_factory.mktemp("shadow")
    with (
        databases.fresh("shadow") as shadow_dsn,
        running_shadow(shadow_dsn, tokens["dsn"], folder) as service,
    ):
        yield service
    log = (folder / "service.log").read_text()
    assert "web.request_failed" not in log
    assert "Traceback" not in log


@pytest.fixture(scope="module")
def api(shadow: ShadowService) -> Iterator[httpx.Client]:
    with shadow.client() as client:
        yield client


@pytest.fixture(scope="module")
def acme(shadow: ShadowService, tokens: dict[str, str]) -> Iterator[httpx.Client]:
    with shadow.client(tokens["acme"]) as client:
        yield client


@pytest.fixture(scope="module")
def other(shadow: ShadowService, tokens: dict[str, str]) -> Iterator[httpx.Client]:
    with shadow.client(tokens["other"]) as client:
        yield client


def definition(name: str, **more: object) -> dict[str, object]:
    return {
        "experiment_id": name,
        "variants": [{"name": "control"}, {"name": "new"}],
        "metrics": [
            {"name": "purchase", "kind": "binary"},
            {"name": "items", "kind": "count"},
            {"name": "latency", "kind": "continuous", "direction": "lower"},
        ],
        **more,
    }


def created(client: httpx.Client, **more: object) -> str:
    """Create an experiment of this test's own; it runs, unless told otherwise."""
    name = f"api-{next(_numbers)}"
    answer = client.post("/v1/experiments", json=definition(name, **{"state": "running", **more}))
    assert answer.status_code == 201, answer.text
    return name


def assign(client: httpx.Client, name: str, unit: str, **more: object) -> httpx.Response:
    return client.post(f"/v1/experiments/{name}/assignments", json={"unit_id": unit, **more})


def report(client: httpx.Client, name: str, unit: str, key: str, **more: object) -> httpx.Response:
    body = {"experiment_id": name, "unit_id": unit, "outcome_id": key, **more}
    return client.post("/v1/outcomes", json=body)


def problem(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return answer.status_code, answer.json()["type"].removeprefix(URN)


def rows(shadow: ShadowService) -> dict[str, int]:
    """Return how many rows each table has."""

    async def work() -> dict[str, int]:
        connection = await asyncpg.connect(shadow.shadow_dsn)
        try:
            return {
                table: await connection.fetchval(f"SELECT count(*) FROM {table}")
                for table in TABLES
            }
        finally:
            await connection.close()

    return asyncio.run(work())


def test_an_experiment_is_defined_changed_started_and_ended(api: httpx.Client) -> None:
    name = created(api, state="draft", margin=0.1)
    path = f"/v1/experiments/{name}"
    changed = api.patch(path, json={"margin": 0.2, "units": 500}).json()
    started = api.patch(path, json={"state": "running"}).json()
    reweighed = api.patch(path, json={"weights": {"control": 0.2, "new": 0.8}}).json()
    paused = api.patch(path, json={"state": "paused"}).json()
    ended = api.patch(path, json={"state": "ended"}).json()

    assert (0.2, 500, "draft", None) == tuple(
        changed[member] for member in ("margin", "units", "state", "epoch")
    )
    assert ("running", 1) == (started["state"], started["epoch"])
    assert [{"name": "control", "weight": 0.2}, {"name": "new", "weight": 0.8}] == (
        reweighed["variants"]
    )
    assert 2 == reweighed["epoch"]
    assert ("paused", "ended") == (paused["state"], ended["state"])
    assert ended == api.get(path).json()
    assert ended["ended_at"] is not None


def test_creating_it_again_alike_changes_nothing(api: httpx.Client) -> None:
    name = created(api)
    again = api.post("/v1/experiments", json=definition(name, state="running"))
    otherwise = api.post("/v1/experiments", json=definition(name, units=77))

    assert (200, 1) == (again.status_code, again.json()["epoch"])
    assert (409, "experiment-taken") == problem(otherwise)


def test_a_unit_keeps_its_variant(api: httpx.Client) -> None:
    name = created(api)
    first = assign(api, name, "ann", attributes={"plan": "pro"})
    again = assign(api, name, "ann")

    assert (201, 200) == (first.status_code, again.status_code)
    assert first.json() == again.json()
    assert ("assigned", 0.5, 1) == tuple(
        first.json()[member] for member in ("status", "probability", "epoch")
    )
    assert first.json()["variant"] in {"control", "new"}


def test_an_outcome_counts_once(api: httpx.Client) -> None:
    name = created(api)
    assign(api, name, "ann")
    first, again = report(api, name, "ann", "o"), report(api, name, "ann", "o")
    otherwise = report(api, name, "ann", "o", value=0)

    assert (201, {"status": "counted", "duplicate": False}) == (first.status_code, first.json())
    assert (200, {"status": "counted", "duplicate": True}) == (again.status_code, again.json())
    assert (422, "outcome-reused") == problem(otherwise)


def test_an_outcome_waits_for_its_unit(api: httpx.Client) -> None:
    name = created(api)
    early = report(api, name, "ann", "o", metric="latency", value=0.123456)
    assign(api, name, "ann")
    again = report(api, name, "ann", "o", metric="latency", value=0.123456)

    assert "waiting" == early.json()["status"]
    assert {"status": "counted", "duplicate": True} == again.json()


def test_an_outcome_too_late_or_too_early_is_kept_and_not_counted(api: httpx.Client) -> None:
    name = created(api)
    now = datetime.now(UTC)
    assign(api, name, "ann", exposed_at=(now - timedelta(hours=3)).isoformat())
    late = report(api, name, "ann", "late", occurred_at=now.isoformat())
    early = (now - timedelta(hours=5)).isoformat()

    assert "outside_window" == late.json()["status"]
    assert "before_exposure" == report(api, name, "ann", "e", occurred_at=early).json()["status"]


def test_items_of_a_list_are_answered_each_for_itself(api: httpx.Client) -> None:
    name, draft = created(api), created(api, state="draft")
    units = [{"unit_id": "ann"}, {"unit_id": "bob", "epoch": 9}, {"unit_id": "ann"}]
    assigned = api.post(f"/v1/experiments/{name}/assignments", json={"units": units}).json()
    item = {"experiment_id": name, "unit_id": "ann", "outcome_id": "o"}
    items: list[Mapping[str, object]] = [
        item, item, {**item, "metric": "nope"}, {**item, "outcome_id": "p", "value": 0.5},
        {**item, "experiment_id": "nope"}, {**item, "experiment_id": draft},
    ]  # fmt: skip
    recorded = api.post("/v1/outcomes", json={"outcomes": items}).json()

    assert [201, 400, 200] == [each["status"] for each in assigned["results"]]
    assert assigned["results"][0]["assignment"] == assigned["results"][2]["assignment"]
    assert URN + "epoch-unknown" == assigned["results"][1]["problem"]["type"]
    assert [201, 200, 400, 400, 404, 409] == [each["status"] for each in recorded["results"]]
    assert [
        "metric-unknown",
        "value-invalid",
        "experiment-not-found",
        "experiment-not-running",
    ] == [each["problem"]["type"].removeprefix(URN) for each in recorded["results"][2:]]


def test_another_tenant_sees_nothing(acme: httpx.Client, other: httpx.Client) -> None:
    name = created(acme)
    path = f"/v1/experiments/{name}"
    answers = [
        other.get(path),
        other.patch(path, json={"state": "ended"}),
        other.patch(path, json={"margin": 0.3}),
        assign(other, name, "ann"),
        report(other, name, "ann", "o"),
        other.get(f"{path}/analysis"),
        other.get(f"{path}/decisions"),
        other.get(f"{path}/deployments"),
        other.post(f"{path}/deployments", json={"variant": "new"}),
    ]

    assert {(404, "experiment-not-found")} == {problem(each) for each in answers}
    assert [] == other.get("/v1/experiments").json()["items"]
    assert [] == other.get("/v1/snapshot").json()["experiments"]
    assert "acme" == acme.get(path).json()["tenant_id"]
    assert "running" == acme.get(path).json()["state"]
    taken = other.post("/v1/experiments", json=definition(name))
    assert (409, "experiment-taken") == problem(taken)
    foreign = other.post("/v1/experiments", json=definition("x", tenant_id="acme"))
    assert (400, "invalid-request") == problem(foreign)


def test_every_scope_allows_its_own(
    api: httpx.Client, shadow: ShadowService, tokens: dict[str, str]
) -> None:
    name = created(api)
    path = f"/v1/experiments/{name}"
    needed = {
        ("GET", path): "shadow:read",
        ("GET", f"{path}/analysis"): "shadow:read",
        ("PATCH", path): "shadow:write",
        ("POST", "/v1/experiments"): "shadow:write",
        ("POST", f"{path}/assignments"): "shadow:assign",
        ("POST", "/v1/outcomes"): "shadow:assign",
        ("GET", "/v1/snapshot"): "shadow:assign",
        ("POST", f"{path}/deployments"): "shadow:deploy",
        ("POST", f"/v1/deployments/{NOBODY}/rollback"): "shadow:deploy",
        ("GET", "/v1/database"): "admin",
    }
    refused: dict[tuple[str, str], set[str]] = {}
    for scope in Scope:
        with shadow.client(tokens[scope]) as client:
            for method, where in needed:
                answer = client.request(method, where)
                if answer.status_code == 403:
                    refused.setdefault((method, where), set()).add(scope)

    everyone = {scope.value for scope in Scope}
    assert {what: everyone - {scope, "admin"} for what, scope in needed.items()} == refused


def test_the_snapshot_says_when_nothing_has_changed(api: httpx.Client) -> None:
    name = created(api)
    first = api.get("/v1/snapshot")
    tag = first.headers["etag"]
    same = api.get("/v1/snapshot", headers={"If-None-Match": f'"x", W/{tag}'})
    api.patch(f"/v1/experiments/{name}", json={"weights": {"control": 0.1, "new": 0.9}})
    changed = api.get("/v1/snapshot", headers={"If-None-Match": tag})
    found = {each["experiment_id"]: each for each in changed.json()["experiments"]}

    assert (304, b"", tag) == (same.status_code, same.content, same.headers["etag"])
    assert 200 == changed.status_code
    assert [0.1, 0.9] == [each["weight"] for each in found[name]["variants"]]
    assert (2, "running", "control") == tuple(
        found[name][member] for member in ("epoch", "state", "control")
    )


def test_experiments_are_listed_in_pages(acme: httpx.Client) -> None:
    names = [created(acme, state="draft") for _ in range(3)]
    seen: list[str] = []
    query = {"limit": "2", "state": "draft"}
    while True:
        page = acme.get("/v1/experiments", params=query).json()
        seen += [each["experiment_id"] for each in page["items"]]
        if page["next"] is None:
            break
        query["after"] = page["next"]

    assert names == seen


BAD_DEFINITIONS: list[tuple[dict[str, object], str]] = [
    ({"variants": [{"name": "a"}]}, "invalid-request"),
    ({"variants": [{"name": str(n)} for n in range(51)]}, "invalid-request"),
    ({"variants": [{"name": "a"}, {"name": "a"}]}, "definition-invalid"),
    ({"variants": [{"name": "a", "weight": 0.5}, {"name": "b"}]}, "definition-invalid"),
    (
        {"variants": [{"name": "a", "weight": 0.5}, {"name": "b", "weight": 0.6}]},
        "definition-invalid",
    ),
    ({"variants": [{"name": "a\0"}, {"name": "b"}]}, "definition-invalid"),
    ({"control": "nobody"}, "definition-invalid"),
    ({"metrics": []}, "invalid-request"),
    ({"metrics": [{"name": "a", "kind": "nope"}]}, "invalid-request"),
    ({"metrics": [{"name": "a", "kind": "binary", "prior": [1]}]}, "definition-invalid"),
    ({"metrics": [{"name": "a", "kind": "binary", "per_unit": "mean"}]}, "definition-invalid"),
    ({"margin": 1.5}, "invalid-request"),
    ({"margin": -0.1}, "invalid-request"),
    ({"units": 0}, "invalid-request"),
    ({"looks": 0}, "definition-invalid"),
    ({"units": 10, "looks": 11}, "definition-invalid"),
    ({"profile": "nope@1"}, "profile-unknown"),
    ({"namespace": {"name": "n", "start": 0.5, "end": 0.5}}, "definition-invalid"),
    ({"holdout": {"group": "g", "share": 0.9}}, "invalid-request"),
    ({"adaptive": {"floor": 0.5}, "variants": [{"name": n} for n in "abc"]}, "definition-invalid"),
    ({"state": "ended"}, "invalid-request"),
    ({"experiment_id": "a/b"}, "invalid-request"),
    ({"nonsense": 1}, "invalid-request"),
]


@pytest.mark.parametrize(("change", "kind"), BAD_DEFINITIONS, ids=str)
def test_a_definition_that_cannot_be_is_refused(
    api: httpx.Client, shadow: ShadowService, change: dict[str, object], kind: str
) -> None:
    before = rows(shadow)
    answer = api.post("/v1/experiments", json={**definition("bad"), **change})

    assert (400, kind) == problem(answer)
    assert answer.json()["detail"]
    assert before == rows(shadow)


def test_what_cannot_be_done_now_says_what_to_do(api: httpx.Client, shadow: ShadowService) -> None:
    running, draft = created(api), created(api, state="draft")
    path = f"/v1/experiments/{running}"
    before = rows(shadow)
    answers = {
        "other arms": api.patch(path, json={"variants": [{"name": "a"}, {"name": "b"}]}),
        "back to a draft": api.patch(path, json={"state": "draft"}),
        "weights of a draft": api.patch(
            f"/v1/experiments/{draft}", json={"weights": {"control": 0.5, "new": 0.5}}
        ),
        "weights that do not sum": api.patch(path, json={"weights": {"control": 0.5, "new": 0.6}}),
        "weights of some": api.patch(path, json={"weights": {"control": 1.0}}),
        "weights of a stranger": api.patch(path, json={"weights": {"control": 0.5, "x": 0.5}}),
        "a unit of a draft": assign(api, draft, "ann"),
        "a unit of nothing": assign(api, "nope", "ann"),
        "an outcome of nothing": report(api, "nope", "ann", "o"),
        "an outcome of no metric": report(api, running, "ann", "o", metric="nope"),
        "half a success": report(api, running, "ann", "o", value=0.5),
        "a count below zero": report(api, running, "ann", "o", metric="items", value=-1),
        "half an item": report(api, running, "ann", "o", metric="items", value=0.5),
        "a unit nobody awaits": report(
            api, running, "zoe", "o", occurred_at=(datetime.now(UTC) - timedelta(2)).isoformat()
        ),
        "a day to come": report(
            api, running, "ann", "o", occurred_at=(datetime.now(UTC) + timedelta(1)).isoformat()
        ),
        "a deployment too soon": api.post(f"{path}/deployments", json={"variant": "new"}),
        "a stranger's deployment": api.post(f"{path}/deployments", json={"variant": "x"}),
        "nothing to roll back": api.post(f"/v1/deployments/{NOBODY}/rollback"),
        "no id": api.get("/v1/deployments/1"),
        "no page": api.get("/v1/experiments", params={"after": "x"}),
        "no state": api.get("/v1/experiments", params={"state": "x"}),
    }
    after = rows(shadow)

    assert {
        "other arms": (409, "experiment-not-draft"),
        "back to a draft": (409, "state-refused"),
        "weights of a draft": (409, "experiment-not-running"),
        "weights that do not sum": (400, "definition-invalid"),
        "weights of some": (400, "definition-invalid"),
        "weights of a stranger": (400, "definition-invalid"),
        "a unit of a draft": (409, "experiment-not-running"),
        "a unit of nothing": (404, "experiment-not-found"),
        "an outcome of nothing": (404, "experiment-not-found"),
        "an outcome of no metric": (400, "metric-unknown"),
        "half a success": (400, "value-invalid"),
        "a count below zero": (400, "value-invalid"),
        "half an item": (400, "value-invalid"),
        "a unit nobody awaits": (409, "unit-not-exposed"),
        "a day to come": (400, "invalid-request"),
        "a deployment too soon": (409, "gate-refused"),
        "a stranger's deployment": (404, "variant-unknown"),
        "nothing to roll back": (404, "deployment-not-found"),
        "no id": (400, "invalid-request"),
        "no page": (400, "invalid-request"),
        "no state": (400, "invalid-request"),
    } == {what: problem(answer) for what, answer in answers.items()}
    assert all(answer.json()["detail"] for answer in answers.values())
    assert {**before, "decisions": 0} == {**after, "decisions": 0}


def test_a_fault_in_one_item_refuses_the_list(api: httpx.Client, shadow: ShadowService) -> None:
    name = created(api)
    item = {"experiment_id": name, "unit_id": "ann", "outcome_id": "o"}
    before = rows(shadow)
    answers = [
        api.post("/v1/outcomes", json={"outcomes": [item, {**item, "value": 1e-7}]}),
        api.post("/v1/outcomes", json={"outcomes": [item] * 10_001}),
        api.post("/v1/outcomes", json={"outcomes": [item], **item}),
        api.post(
            f"/v1/experiments/{name}/assignments",
            json={"units": [{"unit_id": "ann"}, {"unit_id": ""}]},
        ),
    ]

    assert {(400, "invalid-request")} == {problem(each) for each in answers}
    assert "outcomes[1].value" == answers[0].json()["errors"][0]["field"]
    assert "units[1].unit_id" == answers[3].json()["errors"][0]["field"]
    assert before == rows(shadow)


@given(
    path=st.sampled_from([
        "/v1/experiments", "/v1/experiments/fuzz/assignments", "/v1/outcomes",
        "/v1/experiments/fuzz/deployments", f"/v1/deployments/{NOBODY}/rollback",
    ]),
    body=hostile_bodies(MEMBERS, "outcomes") | hostile_bodies(MEMBERS, "units"),
)  # fmt: skip
@settings(max_examples=100, suppress_health_check=list(HealthCheck))
def test_any_body_is_taken_or_a_problem(api: httpx.Client, path: str, body: bytes) -> None:
    assert_is_answered(api.post(path, content=body))


def decided(api: httpx.Client, **more: object) -> str:
    """Return an experiment whose new variant is better beyond doubt."""
    name = created(api, metrics=[{"name": "purchase", "kind": "binary"}], **more)
    units = [{"unit_id": f"u{number}"} for number in range(1_200)]
    assigned = api.post(f"/v1/experiments/{name}/assignments", json={"units": units}).json()
    outcomes, counts = [], {"control": 0, "new": 0}
    for result in assigned["results"]:
        variant = result["assignment"]["variant"]
        counts[variant] += 1
        outcomes.append({
            "experiment_id": name, "unit_id": result["assignment"]["unit_id"], "outcome_id": "o",
            "value": int(counts[variant] % (10 if variant == "control" else 3) == 0),
        })  # fmt: skip
    recorded = api.post("/v1/outcomes", json={"outcomes": outcomes}).json()
    assert {201} == {each["status"] for each in recorded["results"]}
    return name


def test_a_variant_is_deployed_by_a_decision_and_rolled_back(
    api: httpx.Client, shadow: ShadowService
) -> None:
    name = decided(api, units=1_000, looks=1)
    path = f"/v1/experiments/{name}"
    analysis = api.get(f"{path}/analysis")
    looks = api.get(f"{path}/decisions").json()["items"]
    deployed = api.post(f"{path}/deployments", json={"variant": "new"})
    second = api.post(f"{path}/deployments", json={"variant": "new"})
    another = api.post(f"{path}/deployments", json={"variant": "control"})
    where = f"/v1/deployments/{deployed.json()['deployment_id']}"
    proof, listed = api.get(where).json(), api.get(f"{path}/deployments").json()["items"]
    everybody = assign(api, name, "somebody new")
    rolled_back = api.post(f"{where}/rollback", json={"reason": "4111 1111 1111 1111 complained"})
    again = api.post(f"{where}/rollback")

    assert 200 == analysis.status_code, analysis.text
    assert [("look", "deploy", "new")] == [
        (each["kind"], each["verdict"], each["variant"]) for each in looks
    ]
    assert (201, "new") == (deployed.status_code, deployed.json()["variant"]), deployed.text
    assert (200, deployed.json()) == (second.status_code, second.json())
    assert (409, "already-deployed") == problem(another)
    assert [deployed.json()] == listed
    assert proof["deployment"] == deployed.json()
    assert ("confirmation", "deploy") == (proof["decision"]["kind"], proof["decision"]["verdict"])
    assert proof["decision"]["input_digest"] == deployed.json()["input_digest"]
    assert ("deployed", "new") == (everybody.json()["status"], everybody.json()["variant"])
    assert (200, 200) == (rolled_back.status_code, again.status_code)
    assert rolled_back.json() == again.json()
    assert "4111 1111" not in rolled_back.json()["reason"]
    assert "control" == assign(api, name, "somebody else").json()["variant"]


def figures(api: httpx.Client) -> dict[str, float]:
    """Return the value of every label set that is shown."""
    lines = api.get("/metrics").text.splitlines()
    found = (line.rpartition(" ") for line in lines if line.startswith("shadow_"))
    return {labels: float(value) for labels, _, value in found}


def test_a_look_is_taken_by_itself_and_shown(api: httpx.Client) -> None:
    """Nobody asks for the analysis."""
    name = decided(api, units=1_000, looks=1)
    best: list[float] = []
    shown: dict[str, float] = {}
    deadline_s = time.monotonic() + PATIENCE_S
    while not best and time.monotonic() < deadline_s:
        time.sleep(0.1)
        shown = figures(api)
        best = [
            value
            for labels, value in shown.items()
            if labels.startswith("shadow_test_probability_best{") and f'"{name}"' in labels
        ]

    assert pytest.approx(1.0) == sum(best)
    assert 1 == len(api.get(f"/v1/experiments/{name}/decisions").json()["items"])
    assert 0 == shown["shadow_deployments_without_testing"]
    assert shown['shadow_requests_total{kind="outcome",result="counted"}'] >= 1_200
    assert shown['shadow_requests_total{kind="assignment",result="assigned"}'] >= 1_200
