"""What a service says of itself: no series and no line of the log that an operator would miss."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import httpx
import pytest
from tests.acceptance.conftest import Service, running_service
from tests.conftest import Databases
from tests.exposition import series, undocumented

URN = "urn:tollkeeper:problem:"
PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def talkative(
    databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, Path]]:
    folder = tmp_path_factory.mktemp("life")
    settings = {"TOLLKEEPER_LOG_REQUESTS_PER_S": "1000", "TOLLKEEPER_BODY_LIMIT_BYTES": "10000"}
    with (
        databases.fresh("credits") as credits_dsn,
        databases.fresh("access") as access_dsn,
        running_service(credits_dsn, access_dsn, folder, settings=settings) as service,
    ):
        yield service, folder / "service.log"


def test_no_series_appears_on_first_use(talkative: tuple[Service, Path]) -> None:
    service, log = talkative
    before = series(service.url)
    with httpx.Client(
        base_url=service.url,
        headers={"Authorization": f"Bearer {service.api_key}"},
        timeout=PATIENCE_S,
    ) as client:
        statuses = use_everything(client)
    after = series(service.url)

    assert {200, 201, 400, 401, 402, 403, 404, 405, 409, 413, 422} <= statuses
    assert before == after
    assert [] == undocumented(after)
    names = [name for name in after if "{" in name]
    assert [] == [name for name in names if "life-" in name or "tenant" in name]
    assert len(after) < 1_000  # four pools with three histograms each are 144 of them
    assert "web.request_failed" not in log.read_text()


def use_everything(client: httpx.Client) -> set[int]:
    """Have every operation done, refused and sent wrongly; return the statuses of the answers."""
    statuses = set()

    def send(method: str, path: str, body: object = None, **headers: str) -> dict[str, object]:
        answer = client.request(
            method,
            path,
            json=body,
            headers={name.replace("_", "-"): t for name, t in headers.items()},
        )
        statuses.add(answer.status_code)
        found: dict[str, object] = answer.json() if answer.content else {}
        return found

    def write(path: str, key: str, body: object) -> dict[str, object]:
        return send("POST", path, body, Idempotency_Key=key)

    account = "/v1/accounts/life-1"
    for tenant in ("life", "life", "other"):
        send("POST", "/v1/accounts", {"account_id": "life-1", "tenant_id": tenant})
    write(f"{account}/topups", "a", {"amount": 100})
    write(f"{account}/topups", "a", {"amount": 100})
    write(f"{account}/topups", "a", {"amount": 101})
    write(f"{account}/topups", "b", {"amount": 2**53 - 1})
    write(f"{account}/topups", "c", {"amount": 2**63})
    write(f"{account}/topups", "01890a5d-ac96-774b-bcce-b302099a8057", {"amount": 1})
    spent = write(f"{account}/consumptions", "d", {"amount": 10})
    send("POST", "/v1/accounts", {"account_id": "life-2", "tenant_id": "life"})
    write("/v1/accounts/life-2/consumptions", "e", {"amount": 1})
    write("/v1/accounts/life-none/consumptions", "f", {"amount": 1})
    write(f"{account}/consumptions", "g", {"amount": 1, "metadata": {"x": "y" * 20_000}})
    refund = f"/v1/transactions/{spent['transaction_id']}/refunds"
    write(refund, "h", {"amount": 3})
    write(refund, "i", {"amount": 30})
    hold = write(f"{account}/holds", "j", {"amount": 10})["hold_id"]
    write(f"/v1/holds/{hold}/extend", "k", {"amount": 1})
    write(f"/v1/holds/{hold}/capture", "l", {"amount": 3})
    write(f"/v1/holds/{hold}/capture", "m", {"amount": 3_000})
    write(f"/v1/holds/{hold}/release", "n", {})
    write(f"/v1/holds/{hold}/release", "o", {})
    write(f"/v1/holds/{spent['transaction_id']}/release", "p", {})
    operations = [
        {"op": "topup", "account_id": "life-1", "idempotency_key": "q", "amount": 1},
        {"op": "consume", "account_id": "life-none", "idempotency_key": "r", "amount": 1},
    ]
    send("POST", "/v1/batch", {"operations": operations})
    for path in (
        account, f"{account}/transactions", f"{account}/holds", f"/v1/holds/{hold}",
        "/v1/audit/checkpoints", "/v1/keys", "/v1/database", "/v1/database/slow-queries?limit=x",
        "/v1/nowhere", f"{account}?x=1",
    ):  # fmt: skip
        send("GET", path)
    send("POST", "/v1/audit/verify", {})
    send("DELETE", account)
    new = send("POST", "/v1/keys", {"name": "life", "scopes": ["credits:read"]})
    send("POST", f"{account}/topups", {"amount": 1}, Authorization=f"Bearer {new['token']}")
    send("GET", account, Authorization="Bearer unknown")
    send("GET", account, Authorization="Basic x")
    return statuses


def test_every_line_of_a_request_has_its_ids_and_no_secret(
    talkative: tuple[Service, Path],
) -> None:
    service, log = talkative
    key = service.api_key
    made = httpx.post(
        f"{service.url}/v1/keys",
        json={"name": "logged", "scopes": ["credits:write"], "tenant_id": "acme"},
        headers={"Authorization": f"Bearer {key}"},
        timeout=PATIENCE_S,
    ).json()
    hidden = [key, made["token"], "4111-1111-1111-1111", "hush-hush"]
    url = f"{service.url}/v1/accounts/logged/topups?card=4111-1111-1111-1111"
    refused = httpx.post(
        url,
        headers={
            "Authorization": f"Bearer {made['token']}",
            "X-Request-Id": "asked-by-a-test",
            "Cookie": "hush-hush",
            "X-Api-Key": key,
        },
        timeout=PATIENCE_S,
    )
    for identifier in hidden[:3]:
        answer = httpx.get(
            f"{service.url}/v1/accounts/logged",
            headers={"X-Request-Id": identifier, "Authorization": f"Bearer {identifier}"},
            timeout=PATIENCE_S,
        )
        assert identifier != answer.headers["X-Request-Id"]

    lines = [json.loads(line) for line in log.read_text().splitlines()]
    (mine,) = [line for line in lines if line.get("request_id") == "asked-by-a-test"]
    assert "asked-by-a-test" == refused.json()["request_id"] == refused.headers["X-Request-Id"]
    assert ("web.request", 400, "POST", "acme", made["key_id"]) == tuple(
        mine[name] for name in ("event", "status", "method", "tenant_id", "key_id")
    )
    assert "/v1/accounts/{account_id}/topups" == mine["route"]
    assert {} == {text: line for text in hidden for line in lines if text in json.dumps(line)}
    assert "postgresql://" not in log.read_text()


async def test_what_the_engine_says_of_requests_names_them(
    databases: Databases, tmp_path: Path
) -> None:
    with (
        databases.fresh("credits") as credits_dsn,
        databases.fresh("access") as access_dsn,
        running_service(credits_dsn, access_dsn, tmp_path) as service,
    ):
        connection = await asyncpg.connect(credits_dsn)
        await connection.execute("ALTER TABLE accounts RENAME TO away")
        answer = await asyncio.to_thread(
            httpx.post,
            f"{service.url}/v1/accounts",
            json={"account_id": "ann", "tenant_id": "acme"},
            headers={"Authorization": f"Bearer {service.api_key}", "X-Request-Id": "lost"},
            timeout=PATIENCE_S,
        )
        await connection.execute("ALTER TABLE away RENAME TO accounts")
        await connection.close()

    lines = [json.loads(line) for line in (tmp_path / "service.log").read_text().splitlines()]
    assert (503, f"{URN}ledger-unavailable") == (answer.status_code, answer.json()["type"])
    retried = [line for line in lines if line["event"] == "credits.batch_retried"]
    (given_up,) = [line for line in lines if line["event"] == "credits.operations_given_up"]
    (ended,) = [line for line in lines if line["event"] == "web.request"]
    assert [["lost"]] * len(retried) == [line["request_ids"] for line in retried]
    assert (["lost"], 1) == (given_up["request_ids"], given_up["operations"])
    assert ("lost", "warning") == (ended["request_id"], ended["level"])
    assert "LedgerUnavailable" in ended["cause"]
