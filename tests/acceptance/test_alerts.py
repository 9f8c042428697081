"""Low-balance alerts of a real service, over HTTP and on the command line."""

import asyncio
from collections.abc import Iterator
from uuid import uuid4

import httpx
import pytest
from tests.acceptance.conftest import Service

from tollkeeper.client import CreditsClient
from tollkeeper.client.errors import CallRefused
from tollkeeper.kernel.amounts import MAX_AMOUNT_MINOR


@pytest.fixture
def api(service: Service) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {service.api_key}"}
    with httpx.Client(base_url=service.url, headers=headers) as client:
        yield client


@pytest.fixture
def account(api: httpx.Client) -> str:
    """A fresh account with 1,000."""
    name = f"spender-{uuid4()}"
    api.post("/v1/accounts", json={"account_id": name, "tenant_id": "acme"}).raise_for_status()
    move(api, name, "topups", 1_000)
    return name


def move(api: httpx.Client, account: str, what: str, amount: int) -> dict[str, object]:
    answer = api.post(
        f"/v1/accounts/{account}/{what}",
        json={"amount": amount},
        headers={"Idempotency-Key": str(uuid4())},
    )
    assert 201 == answer.status_code, answer.text
    found: dict[str, object] = answer.json()
    return found


def put(api: httpx.Client, account: str, *alerts: object) -> httpx.Response:
    return api.put(f"/v1/accounts/{account}/alerts", json={"alerts": list(alerts)})


def test_an_alert_from_its_threshold_to_its_rearming(api: httpx.Client, account: str) -> None:
    path = f"/v1/accounts/{account}/alerts"
    first = put(api, account, {"threshold": 500}, {"threshold": 50, "hysteresis": 5})

    assert 200 == first.status_code
    assert {"account_id": account, "available": 1_000, "alerts": [
        {"threshold": 50, "hysteresis": 5, "state": "armed",
         "last_alert_id": None, "last_fired_at": None},
        {"threshold": 500, "hysteresis": 50, "state": "armed",
         "last_alert_id": None, "last_fired_at": None},
    ]} == first.json()  # fmt: skip
    assert first.json() == api.get(path).json() == put(api, account, *first_words()).json()

    crossing = move(api, account, "consumptions", 600)
    (alert,) = api.get("/v1/alerts", params={"account_id": account}).json()["items"]
    fired = api.get(path).json()["alerts"][1]

    assert (500, 400, "open", "acme") == tuple(
        alert[name] for name in ("threshold", "available", "state", "tenant_id")
    )
    assert (crossing["transaction_id"], crossing["created_at"]) == (
        alert["transaction_id"],
        alert["fired_at"],
    )
    assert ("fired", alert["alert_id"], alert["fired_at"]) == tuple(
        fired[name] for name in ("state", "last_alert_id", "last_fired_at")
    )

    said = f"/v1/alerts/{alert['alert_id']}/acknowledgement"
    known = api.post(said, json={"note": "card 4111 1111 1111 1111 is charged"})
    again = api.post(said)

    assert (201, 200) == (known.status_code, again.status_code)
    assert known.json() == again.json() == api.get(f"/v1/alerts/{alert['alert_id']}").json()
    assert ("acknowledged", "card ****-****-****-1111 is charged") == (
        known.json()["state"],
        known.json()["note"],
    )
    move(api, account, "topups", 149)
    assert "acknowledged" == api.get(f"/v1/alerts/{alert['alert_id']}").json()["state"]
    rearming = move(api, account, "topups", 1)
    ended = api.get(f"/v1/alerts/{alert['alert_id']}").json()
    assert ("rearmed", rearming["sequence"]) == (ended["state"], ended["rearmed_sequence"])
    assert [] == put(api, account).json()["alerts"]


def first_words() -> list[dict[str, int]]:
    """The same thresholds in another order and with the hysteresis spelled out."""
    return [{"threshold": 50, "hysteresis": 5}, {"threshold": 500, "hysteresis": 50}]


def test_the_list_pages_and_knows_its_states(api: httpx.Client, account: str) -> None:
    put(api, account, *({"threshold": 2_000 + number} for number in range(5)))
    seen, cursor = [], ""
    while True:
        page = api.get(f"/v1/alerts?account_id={account}&state=all&limit=2{cursor}").json()
        seen += [each["threshold"] for each in page["items"]]
        if page["next"] is None:
            break
        cursor = f"&after={page['next']}"

    assert list(range(2_000, 2_005)) == sorted(seen)
    for state, count in {"open": 5, "acknowledged": 0, "rearmed": 0}.items():
        found = api.get("/v1/alerts", params={"account_id": account, "state": state}).json()
        assert count == len(found["items"])
    everybodys = api.get("/v1/alerts", params={"tenant_id": "acme", "limit": 1_000}).json()
    assert 5 == sum(each["account_id"] == account for each in everybodys["items"])


@pytest.mark.parametrize(
    ("field", "alerts"),
    [
        ("alerts[0].threshold", [{"threshold": -1}]),
        ("alerts[0].threshold", [{"threshold": 0}]),
        ("alerts[1].threshold", [{"threshold": 1}, {"threshold": MAX_AMOUNT_MINOR + 1}]),
        ("alerts[2].threshold", [{"threshold": 5}, {"threshold": 6}, {"threshold": 5}]),
        ("alerts[0].hysteresis", [{"threshold": 1, "hysteresis": -1}]),
        ("alerts[0].hysteresis", [{"threshold": MAX_AMOUNT_MINOR, "hysteresis": 1}]),
        ("alerts[0].hysteresis", [{"threshold": 1, "hysteresis": MAX_AMOUNT_MINOR}]),
        ("alerts[0].threshold", [{}]),
        ("alerts[0].webhook", [{"threshold": 1, "webhook": "http://here"}]),
        ("alerts", [{"threshold": number} for number in range(1, 22)]),
    ],
)
def test_a_threshold_that_cannot_be_is_named(
    api: httpx.Client, account: str, field: str, alerts: list[object]
) -> None:
    refused = put(api, account, *alerts)

    assert (400, field) == (refused.status_code, refused.json()["errors"][0]["field"])
    assert [] == api.get(f"/v1/accounts/{account}/alerts").json()["alerts"]


def test_twenty_thresholds_and_the_largest_amount_may_be(api: httpx.Client, account: str) -> None:
    twenty = [{"threshold": MAX_AMOUNT_MINOR - number} for number in range(20)]
    answer = put(api, account, *twenty)

    assert 200 == answer.status_code
    assert 0 == answer.json()["alerts"][-1]["hysteresis"]
    assert {"fired"} == {each["state"] for each in answer.json()["alerts"]}


@pytest.mark.parametrize(
    ("status", "method", "path"),
    [
        (404, "GET", "/v1/accounts/nobody/alerts"),
        (404, "PUT", "/v1/accounts/nobody/alerts"),
        (404, "GET", "/v1/alerts/01978a3c-5f00-7abc-8def-0123456789ab"),
        (404, "POST", "/v1/alerts/01978a3c-5f00-7abc-8def-0123456789ab/acknowledgement"),
        (400, "GET", "/v1/alerts/1"),
        (400, "GET", "/v1/alerts?state=closed"),
        (400, "GET", "/v1/alerts?after=1"),
        (400, "GET", "/v1/alerts?tenant_id=a/b"),
    ],
)
def test_what_is_not_there_or_not_meant_is_said(
    api: httpx.Client, status: int, method: str, path: str
) -> None:
    answer = api.request(method, path, content=b'{"alerts": []}' if method == "PUT" else None)

    assert status == answer.status_code, answer.text
    assert answer.json()["detail"]


def test_the_command_line_sets_shows_lists_and_acknowledges(
    service: Service, api: httpx.Client, account: str
) -> None:
    alerts = ("credits", "alerts")
    wrong = service.run(*alerts, "set", account, "500:x")
    done = service.run(*alerts, "set", account, "500", "2000:50", "--json").json()
    shown = service.run(*alerts, "show", account)
    (alert,) = api.get("/v1/alerts", params={"account_id": account}).json()["items"]
    listed = service.run(*alerts, "list", "--account", account)
    known = service.run(*alerts, "acknowledge", alert["alert_id"], "--note", "known")
    left = service.run(*alerts, "list", "--account", account, "--state", "all", "--json").json()
    gone = service.run(*alerts, "set", account)

    assert 2 == wrong.code
    assert "500:x" in wrong.err
    assert api.get(f"/v1/accounts/{account}/alerts").json()["alerts"] == []
    assert isinstance(done["alerts"], list)
    assert [(500, 50), (2_000, 50)] == [(a["threshold"], a["hysteresis"]) for a in done["alerts"]]
    for word in ("550", "2,050", "armed", "fired"):
        assert word in shown.out
    for word in (alert["alert_id"], "2,000", "1,000", "open"):
        assert word in listed.out
    assert "acknowledged" in known.out
    assert isinstance(left["items"], list)
    assert ["known"] == [each["note"] for each in left["items"]]
    assert "has no alerts" in gone.out


def test_the_client_calls_what_the_service_answers(
    service: Service, api: httpx.Client, account: str
) -> None:
    async def work() -> None:
        async with CreditsClient(service.url, service.api_key) as client:
            done = await client.set_alerts(account, {5_000: None, 10: 3})
            page = await client.alerts(account_id=account)
            alert = await client.acknowledge_alert(page.items[0].alert_id, note="known")

            assert [(10, 3, "armed"), (5_000, 500, "fired")] == [
                (each.threshold, each.hysteresis, each.state) for each in done.alerts
            ]
            assert done == await client.alerts_of(account)
            assert alert == await client.alert(alert.alert_id)
            assert ("acknowledged", "known") == (alert.state, alert.note)
            with pytest.raises(CallRefused):
                await client.set_alerts("nobody", {})

    asyncio.run(work())


def test_what_fired_is_counted(api: httpx.Client, account: str) -> None:
    def counted() -> float:
        text = api.get("/metrics").text
        (value,) = (
            line.split()[1]
            for line in text.splitlines()
            if line.startswith("credits_alerts_fired_total ")
        )
        return float(value)

    before = counted()
    put(api, account, {"threshold": 500}, {"threshold": 1_001})
    move(api, account, "consumptions", 501)

    assert before + 2 == counted()
