"""The served OpenAPI document holds: requests made from it get the answers it describes."""

from typing import TYPE_CHECKING

import pytest
import schemathesis
from hypothesis import given, settings
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance
from schemathesis.specs.openapi.schemas import OpenApiSchema
from tests.acceptance.conftest import Service

if TYPE_CHECKING:
    from schemathesis.specs.openapi.schemas import OpenApiOperation

EXAMPLES = 25
"""Requests for each operation, and as many that the document forbids."""


@pytest.fixture(scope="module")
def document(service: Service) -> OpenApiSchema:
    return schemathesis.openapi.from_url(f"{service.url}/schema/openapi.json")


@pytest.mark.parametrize("mode", GenerationMode)
def test_what_is_asked_is_answered_as_documented(
    document: OpenApiSchema, service: Service, mode: GenerationMode
) -> None:
    tried: list[str] = []
    for found in document.get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()
        # What takes no input cannot be asked wrongly.
        if mode is GenerationMode.POSITIVE or operation.body or any(operation.iter_parameters()):
            tried.append(operation.label)

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(max_examples=EXAMPLES)
            def holds(case: "Case[OpenApiOperation]") -> None:
                case.call_and_validate(
                    headers={"Authorization": f"Bearer {service.api_key}"},
                    # JSON Schema counts 3.0 as an integer; an amount is never written like that.
                    # Requests without a key would soon be answered 429: test_tenants.py has them.
                    excluded_checks=[positive_data_acceptance, ignored_auth],
                )

            holds()

    assert {"POST /v1/batch", "GET /v1/accounts/{account_id}/transactions"} < set(tried)
