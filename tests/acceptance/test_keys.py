"""Keys as an operator and a thief meet them: over HTTP, on the command line, in two processes."""

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import httpx
import pytest
from tests.acceptance.conftest import Service, create_key, running_service, tollkeeper
from tests.conftest import Databases

from tollkeeper.access.model import hash_token
from tollkeeper.web.attempts import FAILURES_BURST

PATIENCE_S = 20.0
"""What has not happened by then does not happen."""

DAY_S = 86_400


@pytest.fixture(scope="module")
def access_dsn(databases: Databases) -> Iterator[str]:
    with databases.fresh("access") as dsn:
        yield dsn


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def services(
    databases: Databases, access_dsn: str, folder: Path
) -> Iterator[tuple[Service, Service]]:
    """Two processes on the same databases."""
    other = folder / "other"
    other.mkdir()
    create_key(access_dsn, folder / "dev.key")
    (other / "dev.key").write_bytes((folder / "dev.key").read_bytes())
    with (
        databases.fresh("credits") as credits_dsn,
        running_service(credits_dsn, access_dsn, folder) as one,
        running_service(credits_dsn, access_dsn, other) as two,
    ):
        yield one, two


@pytest.fixture(scope="module")
def service(services: tuple[Service, Service]) -> Service:
    return services[0]


@pytest.fixture(scope="module")
def api(service: Service) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {service.api_key}"}
    with httpx.Client(base_url=service.url, headers=headers, timeout=PATIENCE_S) as client:
        yield client


def make(api: httpx.Client, name: str, scopes: list[str], **more: object) -> dict[str, str]:
    answer = api.post("/v1/keys", json={"name": name, "scopes": scopes, **more})
    assert (201, "no-store") == (answer.status_code, answer.headers["cache-control"]), answer.text
    made: dict[str, str] = answer.json()
    return made


def status(service: Service, token: str) -> int:
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.get(f"{service.url}/v1/accounts/nobody", headers=headers).status_code


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    started_s = time.monotonic()
    while not condition():
        assert time.monotonic() - started_s < PATIENCE_S
        time.sleep(0.2)


def all_keys(api: httpx.Client) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    after: str | None = None
    while True:
        cursor = {} if after is None else {"after": after}
        page = api.get("/v1/keys", params={"limit": "3", **cursor}).json()
        found |= {key["key_id"]: key for key in page["items"]}
        after = page["next"]
        if after is None:
            return found


def test_a_revoked_key_is_refused_by_every_process(
    services: tuple[Service, Service], api: httpx.Client
) -> None:
    """How long it takes is not asserted: a process asks every 2 s, and busy machines are slow."""
    made = make(api, "stolen", ["credits:read"])
    assert 404 == status(services[0], made["token"])
    eventually(lambda: status(services[1], made["token"]) == 404)
    answer = api.post(f"/v1/keys/{made['key_id']}/revoke")

    assert ("revoked", 200) == (answer.json()["state"], answer.status_code)
    assert 401 == status(services[0], made["token"])
    eventually(lambda: status(services[1], made["token"]) == 401)
    again = api.post(f"/v1/keys/{made['key_id']}/revoke").json()
    assert answer.json()["revoked_at"] == again["revoked_at"]


def test_a_key_expires_to_the_moment_without_anybody_reading_it_again(
    service: Service, api: httpx.Client
) -> None:
    made = make(api, "short", ["credits:read"], expires_in_s=2)
    assert 404 == status(service, made["token"])
    eventually(lambda: status(service, made["token"]) == 401)
    refused = httpx.get(
        f"{service.url}/v1/accounts/x", headers={"Authorization": f"Bearer {made['token']}"}
    )

    assert datetime.now(UTC) >= datetime.fromisoformat(made["expires_at"])
    assert "urn:tollkeeper:problem:key-expired" == refused.json()["type"]
    assert made["key_id"] == refused.json()["key_id"]
    assert "expired" == all_keys(api)[made["key_id"]]["state"]


def test_a_rotated_key_works_until_the_end_of_its_grace(
    service: Service, api: httpx.Client
) -> None:
    old = make(api, "billing", ["credits:read"], tenant_id="acme")
    new = api.post(f"/v1/keys/{old['key_id']}/rotate").json()
    assert [404, 404] == [status(service, key["token"]) for key in (old, new)]
    listed = all_keys(api)[old["key_id"]]
    assert ("grace", new["key_id"]) == (listed["state"], listed["replaced_by"])
    assert new["name"] == "billing"
    assert new["tenant_id"] == "acme"

    refused = api.post(f"/v1/keys/{old['key_id']}/rotate")
    assert (409, new["key_id"]) == (refused.status_code, refused.json()["replaced_by"])
    newest = api.post(f"/v1/keys/{new['key_id']}/rotate", json={"grace_s": 0}).json()
    assert [404, 401, 404] == [status(service, key["token"]) for key in (old, new, newest)]


def test_neither_token_nor_hash_is_shown_again_or_logged(
    api: httpx.Client, access_dsn: str, folder: Path
) -> None:
    made = make(api, "secret", ["credits:read"])
    texts = [
        json.dumps(all_keys(api)),
        api.get("/v1/keys/events", params={"limit": 1_000}).text,
        api.post(f"/v1/keys/{made['key_id']}/revoke").text,
        (folder / "service.log").read_text(),
    ]

    for text in texts:
        assert made["token"] not in text
        assert made["token"][8:40] not in text
        assert hash_token(made["token"]).hex() not in text
    assert made["key_id"] in texts[0]
    assert made["key_id"] in texts[3]


def test_the_trail_names_the_key_that_asked(service: Service, api: httpx.Client) -> None:
    admin = make(api, "admin", ["admin"])
    headers = {"Authorization": f"Bearer {admin['token']}"}
    with httpx.Client(base_url=service.url, headers=headers) as other:
        made = make(other, "of admin", ["credits:read"])
        other.post(f"/v1/keys/{made['key_id']}/revoke")
    page = api.get("/v1/keys/events", params={"limit": 1_000}).json()
    found = [event for event in page["items"] if event["key_id"] == made["key_id"]]

    assert ["created", "revoked"] == [event["kind"] for event in found]
    assert {admin["key_id"]} == {event["actor"] for event in found}
    early = api.get("/v1/keys/events", params={"limit": 1}).json()
    assert early["next"] == str(early["items"][0]["sequence"])
    rest = api.get("/v1/keys/events", params={"limit": 1, "after": early["next"]}).json()
    assert rest["items"][0]["sequence"] > early["items"][0]["sequence"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"scopes": ["credits:read"]}, "name"),
        ({"name": "", "scopes": ["credits:read"]}, "name"),
        ({"name": "a\x1bb", "scopes": ["credits:read"]}, "name"),
        ({"name": "x", "scopes": []}, "scopes"),
        ({"name": "x", "scopes": ["everything"]}, "scopes[0]"),
        ({"name": "x", "scopes": ["admin"], "tenant_id": "no spaces"}, "tenant_id"),
        ({"name": "x", "scopes": ["admin"], "expires_in_s": 0}, "expires_in_s"),
        ({"name": "x", "scopes": ["admin"], "token": "mine"}, "token"),
    ],
)
def test_what_makes_no_sense_is_named(
    api: httpx.Client, body: dict[str, object], field: str
) -> None:
    answer = api.post("/v1/keys", json=body)

    assert (400, [field]) == (
        answer.status_code,
        [error["field"] for error in answer.json()["errors"]],
    )


@pytest.mark.parametrize(
    "path",
    [
        "/v1/keys?after=x", "/v1/keys?limit=0", "/v1/keys?limit=1001", "/v1/keys?page=2",
        "/v1/keys/events?after=-1", "/v1/keys/events?limit=many",
    ],
)  # fmt: skip
def test_queries_that_make_no_sense_are_refused(api: httpx.Client, path: str) -> None:
    assert 400 == api.get(path).status_code


@pytest.mark.parametrize("key_id", ["x", "0190a5a000007000800000000000000a", "{0190}"])
def test_ids_that_make_no_sense_are_refused(api: httpx.Client, key_id: str) -> None:
    assert 400 == api.post(f"/v1/keys/{key_id}/revoke").status_code


def test_a_tenants_administrator_stays_in_the_tenant(service: Service, api: httpx.Client) -> None:
    everybodys = make(api, "everybody's", ["credits:read"])
    bound = make(api, "acme's admin", ["admin"], tenant_id="acme-bound")
    headers = {"Authorization": f"Bearer {bound['token']}"}
    with httpx.Client(base_url=service.url, headers=headers) as admin:
        own = make(admin, "own", ["admin"])
        foreign = admin.post(
            "/v1/keys", json={"name": "x", "scopes": ["admin"], "tenant_id": "other"}
        )
        rotated = admin.post(f"/v1/keys/{everybodys['key_id']}/rotate")
        revoked = admin.post(f"/v1/keys/{everybodys['key_id']}/revoke", json={"force": True})
        listed = all_keys(admin)
        events = admin.get("/v1/keys/events").json()["items"]

    assert "acme-bound" == own["tenant_id"]
    assert (400, "tenant_id") == (foreign.status_code, foreign.json()["field"])
    assert [404, 404] == [rotated.status_code, revoked.status_code]
    assert {bound["key_id"], own["key_id"]} == set(listed)
    assert {"acme-bound"} == {event["tenant_id"] for event in events}
    assert 404 == status(service, everybodys["token"])


def test_a_key_without_the_scope_administers_nothing(service: Service, api: httpx.Client) -> None:
    made = make(api, "writer", ["credits:read", "credits:write"])
    headers = {"Authorization": f"Bearer {made['token']}"}
    answer = httpx.post(
        f"{service.url}/v1/keys", headers=headers, json={"name": "x", "scopes": ["credits:read"]}
    )

    assert (403, "admin") == (answer.status_code, answer.json()["needed"])


def test_metrics_count_authentications(service: Service, api: httpx.Client) -> None:
    status(service, "tk_wrong")
    text = httpx.get(f"{service.url}/metrics").text
    found = {
        line.split()[0]: float(line.split()[1])
        for line in text.splitlines()
        if line.startswith("access_")
    }

    results = {"ok", "missing", "unknown", "expired", "unavailable", "limited"}
    names = {f'access_authentications_total{{result="{result}"}}' for result in results}
    assert names < set(found)
    assert found['access_authentications_total{result="unknown"}'] >= 1
    assert found["access_keys_age_seconds"] < PATIENCE_S
    assert found["access_keys"] >= 1


def test_who_fails_too_often_waits_and_a_valid_key_does_not(
    databases: Databases, tmp_path: Path
) -> None:
    with (
        databases.fresh("credits") as credits_dsn,
        databases.fresh("access") as access_dsn,
        running_service(credits_dsn, access_dsn, tmp_path) as service,
        httpx.Client(base_url=service.url) as thief,
    ):
        answers = [
            thief.get("/v1/accounts/a", headers={"Authorization": f"Bearer guess-{number}"})
            for number in range(FAILURES_BURST + 50)
        ]
        statuses = [answer.status_code for answer in answers]
        assert [401] * FAILURES_BURST == statuses[:FAILURES_BURST]
        assert 429 in statuses
        (limited, *_) = [answer for answer in answers if answer.status_code == 429]
        assert int(limited.headers["retry-after"]) >= 1
        assert "urn:tollkeeper:problem:too-many-failures" == limited.json()["type"]
        assert 404 == status(service, service.api_key)
        log = (tmp_path / "service.log").read_text()

    assert "access.authentication_refused" in log
    assert "guess-" not in log


async def test_last_use_is_written_when_the_process_leaves(
    databases: Databases, tmp_path: Path
) -> None:
    with databases.fresh("credits") as credits_dsn, databases.fresh("access") as access_dsn:
        with running_service(credits_dsn, access_dsn, tmp_path) as service:
            for _ in range(20):
                assert 404 == status(service, service.api_key)
        connection = await asyncpg.connect(access_dsn)
        try:
            rows = await connection.fetch(
                "SELECT last_used_at, k.name FROM api_key_uses JOIN api_keys AS k USING (key_id)"
            )
        finally:
            await connection.close()

    ((used_at, name),) = rows
    assert "development" == name
    assert abs((datetime.now(UTC) - used_at).total_seconds()) < DAY_S


# On the command line -----------------------------------------------------------------------------


def test_a_life_of_a_key_on_the_command_line(service: Service) -> None:
    made = service.run(
        "keys", "create", "cli", "--scope", "credits:read", "--scope", "credits:write",
        "--tenant", "acme", "--expires-in", "90d",
    )  # fmt: skip
    token = made.out.strip()
    assert (0, 1, 1) == (made.code, made.out.count("\n"), made.err.count("\n"))
    assert token.startswith("tk_live_")
    assert "shown this once" in made.err
    assert token not in made.err
    assert 404 == status(service, token)

    listed = service.run("keys", "list", "--limit", "1000", "--json").json()["items"]
    assert isinstance(listed, list)
    (key,) = [each for each in listed if each["name"] == "cli"]
    assert (["credits:read", "credits:write"], "acme") == (key["scopes"], key["tenant_id"])

    rotated = service.run("keys", "rotate", key["key_id"], "--grace", "0", "--json").json()
    assert [401, 404] == [status(service, each) for each in (token, str(rotated["token"]))]
    revoked = service.run("keys", "revoke", str(rotated["key_id"]))
    assert 0 == revoked.code
    assert "revoked" in revoked.out
    assert 401 == status(service, str(rotated["token"]))

    table = service.run("keys", "list", "--limit", "1000", environment={"COLUMNS": "250"})
    assert {"grace", "expired", "revoked", "active"} & set(table.out.split())
    assert key["key_id"] in table.out
    events = service.run("keys", "events", "--limit", "1000", environment={"COLUMNS": "250"})
    assert [0, 0] == [table.code, events.code]
    rows = [line.split() for line in events.out.splitlines() if key["key_id"] in line]
    assert ["created", "rotated"] == [row[3] for row in rows]
    trail = service.run("keys", "events", "--limit", "1", "--json").json()
    assert isinstance(trail["next"], str)
    more = service.run("keys", "events", "--limit", "1", "--after", trail["next"])
    assert "--after" in more.out


def test_what_is_refused_on_the_command_line(service: Service) -> None:
    nobody = "0190a5a0-0000-7000-8000-000000000000"
    for command in (["revoke", nobody], ["rotate", nobody, "--json"]):
        refused = service.run("keys", *command)
        assert (3, "", 1) == (refused.code, refused.out, refused.err.count("\n"))
    for wrong in (
        ["create", "x"], ["create", "x", "--scope", "all"],
        ["create", "x", "--scope", "admin", "--force"],
        ["create", "x", "--scope", "admin", "--first"],
        ["create", "x", "--scope", "admin", "--expires-in", "soon"],
        ["create", "x", "--scope", "admin", "--expires-in", "0"],
        ["rotate", nobody, "--grace", "31d"], ["rotate", nobody, "--grace", "-1"],
    ):  # fmt: skip
        assert 2 == service.run("keys", *wrong).code, wrong


def test_the_last_administrator_and_the_first(databases: Databases, tmp_path: Path) -> None:
    """From configured databases and no key at all to a lost last one, and back."""
    with databases.fresh("credits") as credits_dsn, databases.fresh("access") as access_dsn:
        settings = {"TOLLKEEPER_ACCESS_DSN": access_dsn}
        made = tollkeeper("keys", "create", "operator", "--first", environment=settings)
        assert 0 == made.code, made.err
        again = tollkeeper("keys", "create", "operator", "--first", environment=settings)
        assert (3, "") == (again.code, again.out)
        (tmp_path / "dev.key").write_text(made.out)
        with running_service(credits_dsn, access_dsn, tmp_path) as service:
            assert made.out.strip() == service.api_key
            page = service.run("keys", "list", "--json").json()
            assert isinstance(page["items"], list)
            ((key_id, scopes),) = [(key["key_id"], key["scopes"]) for key in page["items"]]
            assert ["admin"] == scopes
            refused = service.run("keys", "revoke", key_id, "--json")
            assert (3, "urn:tollkeeper:problem:last-admin-key") == (
                refused.code,
                refused.problem()["type"],
            )
            assert 0 == service.run("keys", "revoke", key_id, "--force").code
            anew = tollkeeper("keys", "create", "anew", "--first", "--json", environment=settings)
            token = str(anew.json()["token"])
            eventually(lambda: status(service, token) == 404)


def test_first_key_needs_the_database_of_keys(tmp_path: Path) -> None:
    nothing = tollkeeper(
        "keys", "create", "x", "--first", environment={"TOLLKEEPER_DATA": f"{tmp_path}"}
    )

    assert (1, 1) == (nothing.code, nothing.err.count("\n"))
    assert "TOLLKEEPER_ACCESS_DSN" in nothing.err
