"""`/schema` of the running service: a valid document, and a page whose examples work."""

import html
import re

import httpx
import pytest
import schemathesis
from tests.acceptance.conftest import Service
from tests.documents import request_of

from tollkeeper.app import PROBLEMS
from tollkeeper.credits.messages import VerificationView
from tollkeeper.credits.model import Verification
from tollkeeper.credits.route_facts import EXAMPLE_ID

NO_KEY = "0190a5a0-0000-7000-8000-000000000000"
"""The id of a key in the examples: a service makes its own, so there is none of this id."""


@pytest.fixture(scope="module")
def page(service: Service) -> str:
    return httpx.get(f"{service.url}/schema").text


@pytest.fixture(scope="module")
def document(service: Service) -> dict[str, dict[str, dict[str, dict[str, object]]]]:
    found: dict[str, dict[str, dict[str, dict[str, object]]]] = httpx.get(
        f"{service.url}/schema/openapi.json"
    ).json()
    return found


def test_document_is_valid(document: dict[str, object]) -> None:
    schemathesis.openapi.from_dict(document).validate()


def test_operations_have_short_names_of_their_own(
    document: dict[str, dict[str, dict[str, dict[str, object]]]],
) -> None:
    assert [
        "open_account", "read_account", "top_up", "consume", "read_history", "batch", "verify",
        "list_holds", "hold", "read_hold", "capture", "extend", "release", "read_transaction",
        "refund", "read_alerts", "set_alerts", "list_alerts", "read_alert", "acknowledge_alert",
        "read_usage", "read_tenant_usage", "read_checkpoints", "read_leaves", "prove",
        "read_links", "unfreeze", "list_frozen",
        "list_keys", "create_key", "rotate_key", "revoke_key", "list_key_events",
        "database_status", "slow_queries",
        "health", "ready", "metrics",
    ] == [
        operation["operationId"]
        for methods in document["paths"].values()
        for operation in methods.values()
    ]  # fmt: skip


def test_page_names_every_route_and_problem(
    page: str, document: dict[str, dict[str, object]]
) -> None:
    missing = [path for path in document["paths"] if f"<code>{path}</code>" not in page]

    assert [] == missing
    assert [] == [kind.type for kind in PROBLEMS.values() if kind.type not in page]


def test_page_loads_nothing(page: str) -> None:
    loads = re.findall(r'(?:href|src|action)="([^#"][^"]*)"|url\(|@import|<script', page)

    assert ["data:,", "/schema/openapi.json"] == loads


def test_links_within_the_page_lead_somewhere(page: str) -> None:
    names = re.findall(r'id="([^"]+)"', page)

    assert len(names) == len(set(names))
    assert set() == set(re.findall(r'href="#([^"]+)"', page)) - set(names)


def test_every_example_works_in_their_order(service: Service, page: str) -> None:
    """As they stand, but for the id that stands where one of the reader's own belongs."""
    made = {"holds": "", "transactions": ""}
    commands = re.findall(r"<code>(curl .*?)</code>", page, re.DOTALL)
    statuses = {}
    with httpx.Client() as client:
        for command in commands:
            text = html.unescape(command).replace("$KEY", service.api_key)
            for place, identifier in made.items():
                text = text.replace(f"/{place}/{EXAMPLE_ID}", f"/{place}/{identifier}")
            request = request_of(text)
            answer = client.send(request)
            path = request.url.path
            if path.endswith(("/consumptions", "/holds")) and request.method == "POST":
                place = "holds" if path.endswith("/holds") else "transactions"
                made[place] = answer.json()["transaction_id"]
            for identifier in filter(None, made.values()):
                path = path.replace(identifier, "ID")
            statuses[f"{request.method} {path}"] = answer.status_code

    assert {
        "POST /v1/accounts": 201,
        "GET /v1/accounts/acme-prod": 200,
        "POST /v1/accounts/acme-prod/topups": 201,
        "POST /v1/accounts/acme-prod/consumptions": 201,
        "GET /v1/accounts/acme-prod/transactions": 200,
        "GET /v1/transactions/ID": 200,
        "POST /v1/transactions/ID/refunds": 201,
        "POST /v1/batch": 200,
        "POST /v1/accounts/acme-prod/holds": 201,
        "GET /v1/accounts/acme-prod/holds": 200,
        "GET /v1/holds/ID": 200,
        "POST /v1/holds/ID/capture": 201,
        "POST /v1/holds/ID/extend": 201,
        "POST /v1/holds/ID/release": 201,
        "PUT /v1/accounts/acme-prod/alerts": 200,
        "GET /v1/accounts/acme-prod/alerts": 200,
        "GET /v1/alerts": 200,
        f"GET /v1/alerts/{EXAMPLE_ID}": 404,
        f"POST /v1/alerts/{EXAMPLE_ID}/acknowledgement": 404,
        "GET /v1/accounts/acme-prod/usage": 200,
        "GET /v1/tenants/acme/usage": 200,
        "POST /v1/accounts/acme-prod/unfreeze": 409,  # nothing is wrong with it
        "GET /v1/frozen-accounts": 200,
        "POST /v1/audit/verify": 200,
        "GET /v1/audit/checkpoints": 200,
        "GET /v1/audit/checkpoints/1/leaves": 404,
        f"GET /v1/audit/proofs/{EXAMPLE_ID}": 404,
        "GET /v1/accounts/acme-prod/links": 200,
        "POST /v1/keys": 201,
        "GET /v1/keys": 200,
        f"POST /v1/keys/{NO_KEY}/rotate": 404,
        f"POST /v1/keys/{NO_KEY}/revoke": 404,
        "GET /v1/keys/events": 200,
        "GET /v1/database": 200,
        "GET /v1/database/slow-queries": 200,
        "GET /health": 200,
        "GET /health/ready": 200,
        "GET /metrics": 200,
    } == statuses


def test_documented_verification_is_the_one_that_is_answered() -> None:
    assert Verification.__struct_fields__ == VerificationView.__struct_fields__
