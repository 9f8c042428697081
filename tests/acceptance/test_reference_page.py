"""`/schema` of the running service: a valid document, and a page whose examples work."""

import html
import re
import shlex

import httpx
import pytest
import schemathesis
from tests.acceptance.conftest import Service

from tollkeeper.app import PROBLEMS
from tollkeeper.credits.messages import VerificationView
from tollkeeper.credits.model import Verification

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
        "list_keys", "create_key", "rotate_key", "revoke_key", "list_key_events",
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


def test_every_example_works_as_it_stands_in_their_order(service: Service, page: str) -> None:
    commands = re.findall(r"<code>(curl .*?)</code>", page, re.DOTALL)
    statuses = {}
    with httpx.Client() as client:
        for command in commands:
            request = request_of(html.unescape(command).replace("$KEY", service.api_key))
            statuses[f"{request.method} {request.url.path}"] = client.send(request).status_code

    assert {
        "POST /v1/accounts": 201,
        "GET /v1/accounts/acme-prod": 200,
        "POST /v1/accounts/acme-prod/topups": 201,
        "POST /v1/accounts/acme-prod/consumptions": 201,
        "GET /v1/accounts/acme-prod/transactions": 200,
        "POST /v1/batch": 200,
        "POST /v1/audit/verify": 200,
        "POST /v1/keys": 201,
        "GET /v1/keys": 200,
        f"POST /v1/keys/{NO_KEY}/rotate": 404,
        f"POST /v1/keys/{NO_KEY}/revoke": 404,
        "GET /v1/keys/events": 200,
        "GET /health": 200,
        "GET /health/ready": 200,
        "GET /metrics": 200,
    } == statuses


def test_documented_verification_is_the_one_that_is_answered() -> None:
    assert Verification.__struct_fields__ == VerificationView.__struct_fields__


def request_of(command: str) -> httpx.Request:
    """Return what curl would send; `-H` and `-d` are all that the examples use."""
    words = shlex.split(command.replace("\\\n", " "))
    pairs = list(zip(words[2::2], words[3::2], strict=True))
    headers = dict(value.split(": ", 1) for option, value in pairs if option == "-H")
    bodies = [value for option, value in pairs if option == "-d"]
    return httpx.Request(
        "POST" if bodies else "GET",
        words[1],
        headers=headers,
        content=bodies[0] if bodies else None,
    )
