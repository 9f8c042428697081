"""Holds and refunds of a real service, over HTTP and on the command line."""

import asyncio
import json
from collections.abc import Iterator
from uuid import uuid4

import httpx
import pytest
from tests.acceptance.conftest import Service

from tollkeeper.client import CreditsClient
from tollkeeper.client.errors import CallRefused


@pytest.fixture
def api(service: Service) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {service.api_key}"}
    with httpx.Client(base_url=service.url, headers=headers) as client:
        yield client


@pytest.fixture
def account(api: httpx.Client) -> str:
    """A fresh account with 1,000."""
    name = f"holder-{uuid4()}"
    api.post("/v1/accounts", json={"account_id": name, "tenant_id": "acme"}).raise_for_status()
    assert 201 == write(api, f"/v1/accounts/{name}/topups", amount=1_000).status_code
    return name


def write(api: httpx.Client, path: str, key: str | None = None, **body: object) -> httpx.Response:
    return api.post(path, json=body, headers={"Idempotency-Key": key or str(uuid4())})


def hold(api: httpx.Client, account: str, **body: object) -> str:
    answer = write(api, f"/v1/accounts/{account}/holds", None, **body)
    assert 201 == answer.status_code, answer.text
    found: str = answer.json()["hold_id"]
    return found


def test_a_hold_from_reservation_to_refund(api: httpx.Client, account: str) -> None:
    hold_id = hold(api, account, amount=400, expires_in_s=60, allowance=50)
    stands = api.get(f"/v1/accounts/{account}").json()
    captured = write(api, f"/v1/holds/{hold_id}/capture", amount=150).json()
    write(api, f"/v1/holds/{hold_id}/extend", amount=100, expires_in_s=120).raise_for_status()
    released = write(api, f"/v1/holds/{hold_id}/release").json()
    refund = write(api, f"/v1/transactions/{captured['transaction_id']}/refunds", amount=50).json()

    assert (1_000, 400, 600) == (stands["balance"], stands["reserved"], stands["available"])
    assert ("capture", 150, 850, 250) == tuple(
        captured[name] for name in ("kind", "amount", "balance", "reserved")
    )
    assert (350, 0, 850) == tuple(released[name] for name in ("freed", "reserved", "available"))
    assert captured["transaction_id"] == refund["refund_of"]
    assert 900 == refund["balance"]
    assert hold_id == captured["hold_id"] == released["hold_id"]
    assert "settled" == api.get(f"/v1/holds/{hold_id}").json()["state"]
    found = api.post("/v1/audit/verify", json={"account_id": account}).json()
    assert ([], 1_000, 100) == (found["faults"], found["topped_up"], found["consumed"])


def test_every_refusal_says_what_would_have_done(api: httpx.Client, account: str) -> None:
    hold_id = hold(api, account, amount=400, allowance=50)
    taken = write(api, f"/v1/accounts/{account}/consumptions", amount=30).json()["transaction_id"]
    passed = write(api, f"/v1/holds/{hold_id}/capture", amount=451)
    refunded = write(api, f"/v1/transactions/{taken}/refunds", amount=31)
    lacking = write(api, f"/v1/accounts/{account}/holds", amount=571)
    write(api, f"/v1/holds/{hold_id}/capture").raise_for_status()
    closed = write(api, f"/v1/holds/{hold_id}/release")
    unknown = write(api, f"/v1/holds/{taken}/release")

    assert (409, 450) == (passed.status_code, passed.json()["capturable"])
    assert (409, 30) == (refunded.status_code, refunded.json()["refundable"])
    assert (402, 570) == (lacking.status_code, lacking.json()["available"])
    assert (409, "settled") == (closed.status_code, closed.json()["state"])
    assert 404 == unknown.status_code


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("holds", {"amount": 0}),
        ("holds", {"amount": 1, "expires_in_s": 0}),
        ("holds", {"amount": 1, "expires_in_s": 10**9}),
        ("holds", {"amount": 1, "allowance": -1}),
        ("holds", {"amount": 1, "final": True}),
        ("consumptions", {"amount": 1, "up_to": 1}),
        ("topups", {"amount": 1, "up_to": True}),
    ],
)
def test_bad_input_names_its_field(
    api: httpx.Client, account: str, path: str, body: dict[str, object]
) -> None:
    """The last field of each body is the wrong one."""
    answer = write(api, f"/v1/accounts/{account}/{path}", None, **body)

    assert 400 == answer.status_code
    assert [list(body)[-1]] == [each["field"] for each in answer.json()["errors"]]


def test_bad_ids_and_empty_extensions_are_named(api: httpx.Client, account: str) -> None:
    hold_id = hold(api, account, amount=1)
    for path, field in (
        ("/v1/holds/nothing/capture", "hold_id"),
        (f"/v1/holds/{uuid4()}/release", "hold_id"),
        ("/v1/transactions/x/refunds", "transaction_id"),
        (f"/v1/holds/{hold_id}/extend", "expires_in_s"),
    ):
        answer = write(api, path)
        assert 400 == answer.status_code
        assert [field] == [each["field"] for each in answer.json()["errors"]]


def test_retries_answer_as_the_first_time(api: httpx.Client, account: str) -> None:
    first = write(api, f"/v1/accounts/{account}/holds", "h", amount=10)
    again = write(api, f"/v1/accounts/{account}/holds", "h", amount=10)
    hold_id = first.json()["hold_id"]
    captures = [write(api, f"/v1/holds/{hold_id}/capture", "c", amount=10) for _ in range(2)]
    other = write(api, f"/v1/holds/{hold_id}/capture", "c", amount=9)

    assert first.json() == again.json()
    assert "true" == again.headers["Idempotent-Replayed"]
    assert captures[0].json() == captures[1].json()
    assert 422 == other.status_code


def test_a_batch_may_hold_capture_and_refund(api: httpx.Client, account: str) -> None:
    hold_id = hold(api, account, amount=100)
    spent = write(api, f"/v1/accounts/{account}/consumptions", amount=10).json()["transaction_id"]
    common = {"account_id": account}
    items = [
        {"op": "hold", "idempotency_key": "1", "amount": 5, **common},
        {"op": "capture", "idempotency_key": "2", "hold_id": hold_id, "amount": 60, **common},
        {"op": "extend", "idempotency_key": "3", "hold_id": hold_id, "expires_in_s": 9, **common},
        {"op": "release", "idempotency_key": "4", "hold_id": hold_id, **common},
        {"op": "refund", "idempotency_key": "5", "transaction_id": spent, **common},
        {"op": "consume", "idempotency_key": "6", "amount": 5_000, "up_to": True, **common},
    ]
    answer = api.post("/v1/batch", json={"operations": items}).json()["results"]

    assert [201] * 6 == [result["status"] for result in answer]
    assert 935 == answer[-1]["transaction"]["amount"]
    assert hold_id == answer[1]["transaction"]["hold_id"]


def test_open_holds_page(api: httpx.Client, account: str) -> None:
    made = [hold(api, account, amount=1) for _ in range(5)]
    found, after = [], ""
    while True:
        page = api.get(f"/v1/accounts/{account}/holds?limit=2{after}").json()
        found += [each["hold_id"] for each in page["items"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"

    assert sorted(made) == found


def test_the_command_line_does_the_same(service: Service, account: str) -> None:
    made = service.run("credits", "hold", account, "100", "--expires-in", "60", "--json")
    hold_id = json.loads(made.out)["transaction"]["hold_id"]
    listed = service.run("credits", "holds", account)
    captured = service.run("credits", "capture", hold_id, "40", "--json")
    extended = service.run("credits", "extend", hold_id, "--amount", "5")
    released = service.run("credits", "release", hold_id)
    status = service.run("credits", "hold-status", hold_id)
    transaction_id = json.loads(captured.out)["transaction"]["transaction_id"]
    refunded = service.run("credits", "refund", transaction_id, "15")
    too_much = service.run("credits", "refund", transaction_id, "26")
    left = service.run("credits", "balance", account, "--json")

    assert hold_id in listed.out
    assert [0] * 5 == [each.code for each in (captured, extended, released, status, refunded)]
    assert "settled" in status.out
    assert (3, "", 1) == (too_much.code, too_much.out, too_much.err.count("\n"))
    assert 975 == json.loads(left.out)["available"]
    assert "No open holds" in service.run("credits", "holds", account).out
    assert 2 == service.run("credits", "extend", hold_id).code


def test_the_client_does_the_same(service: Service, account: str) -> None:
    async def use() -> None:
        async with CreditsClient(service.url, service.api_key) as ledger:
            made = await ledger.hold(account, 100, expires_in_s=60, allowance=10)
            hold_id = made.transaction.hold_id
            assert hold_id is not None
            assert [hold_id] == [each.hold_id async for each in ledger.holds(account)]
            taken = await ledger.capture(hold_id, 110)
            with pytest.raises(CallRefused, match="settled"):
                await ledger.release(hold_id)
            await ledger.refund(taken.transaction.transaction_id)
            rest = await ledger.consume(account, 10_000, up_to=True)
            assert 1_000 == rest.transaction.amount
            assert 10 == (await ledger.read_hold(hold_id)).overrun

    asyncio.run(use())
