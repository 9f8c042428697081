"""`/schema` of the shadow service: a valid document that holds, and a page whose examples work."""

import html
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx
import pytest
import schemathesis
from hypothesis import given, settings
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance
from schemathesis.specs.openapi.schemas import OpenApiSchema
from tests.acceptance.conftest import ShadowService, running_shadow
from tests.conftest import Databases
from tests.documents import request_of

from tollkeeper.shadow.route_facts import EXAMPLE_ID
from tollkeeper.shadow_app import PROBLEMS

if TYPE_CHECKING:
    from schemathesis.specs.openapi.schemas import OpenApiOperation

EXAMPLES = 8
"""Requests for each operation, and as many that the document forbids."""


@pytest.fixture(scope="module")
def shadow(
    databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ShadowService]:
    with (
        databases.fresh("shadow") as shadow_dsn,
        databases.fresh("access") as access_dsn,
        running_shadow(shadow_dsn, access_dsn, tmp_path_factory.mktemp("document")) as service,
    ):
        yield service


@pytest.fixture(scope="module")
def page(shadow: ShadowService) -> str:
    return httpx.get(f"{shadow.url}/schema").text


@pytest.fixture(scope="module")
def document(shadow: ShadowService) -> OpenApiSchema:
    return schemathesis.openapi.from_url(f"{shadow.url}/schema/openapi.json")


def test_every_example_works_in_their_order(shadow: ShadowService, page: str) -> None:
    statuses = {}
    with httpx.Client() as client:
        for command in re.findall(r"<code>(curl .*?)</code>", page, re.DOTALL):
            request = request_of(html.unescape(command).replace("$KEY", shadow.api_key))
            answer = client.send(request)
            statuses[f"{request.method} {request.url.path}"] = answer.status_code

    assert {
        "POST /v1/experiments": 201,
        "GET /v1/experiments": 200,
        "GET /v1/experiments/checkout": 200,
        "PATCH /v1/experiments/checkout": 200,
        "POST /v1/experiments/checkout/assignments": 201,
        "POST /v1/outcomes": 201,
        "GET /v1/snapshot": 200,
        "GET /v1/experiments/checkout/analysis": 200,
        "GET /v1/experiments/checkout/decisions": 200,
        "POST /v1/experiments/checkout/deployments": 409,  # one purchase proves nothing
        "GET /v1/experiments/checkout/deployments": 200,
        f"GET /v1/deployments/{EXAMPLE_ID}": 404,
        f"POST /v1/deployments/{EXAMPLE_ID}/rollback": 404,
        "GET /v1/database": 200,
        "GET /v1/database/slow-queries": 200,
        "GET /health": 200,
        "GET /health/ready": 200,
        "GET /metrics": 200,
    } == statuses


def test_document_is_valid_and_names_its_operations(document: OpenApiSchema) -> None:
    document.validate()

    assert {
        "create_experiment", "list_experiments", "read_experiment", "change_experiment",
        "read_snapshot", "assign", "record", "read_analysis", "list_decisions", "deploy",
        "list_deployments", "read_deployment", "roll_back", "database_status", "slow_queries",
        "health", "ready", "metrics",
    } == {
        operation["operationId"]
        for methods in document.raw_schema["paths"].values()
        for operation in methods.values()
    }  # fmt: skip


def test_page_names_every_route_and_problem_and_loads_nothing(
    page: str, document: OpenApiSchema
) -> None:
    paths = document.raw_schema["paths"]
    loads = re.findall(r'(?:href|src|action)="([^#"][^"]*)"|url\(|@import|<script', page)
    links = set(re.findall(r'href="#([^"]+)"', page))

    assert [] == [path for path in paths if f"<code>{path}</code>" not in page]
    assert [] == [kind.type for kind in PROBLEMS.values() if kind.type not in page]
    assert ["data:,", "/schema/openapi.json"] == loads
    assert links <= set(re.findall(r'id="([^"]+)"', page))


@pytest.mark.parametrize("mode", GenerationMode)
def test_what_is_asked_is_answered_as_documented(
    document: OpenApiSchema, shadow: ShadowService, mode: GenerationMode
) -> None:
    tried: list[str] = []
    for found in document.get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()
        if mode is GenerationMode.POSITIVE or operation.body or any(operation.iter_parameters()):
            tried.append(operation.label)

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(max_examples=EXAMPLES)
            def holds(case: "Case[OpenApiOperation]") -> None:
                case.call_and_validate(
                    headers={"Authorization": f"Bearer {shadow.api_key}"},
                    # A definition is judged as a whole: the document cannot say all of it.
                    excluded_checks=[positive_data_acceptance, ignored_auth],
                )

            holds()

    assert {"POST /v1/outcomes", "GET /v1/experiments/{experiment_id}/analysis"} < set(tried)
