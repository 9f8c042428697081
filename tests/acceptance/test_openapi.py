"""The served OpenAPI document holds: requests made from it get the answers it describes."""

import itertools
import random
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.core.jsonschema.types import JsonValue
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance
from schemathesis.specs.openapi.schemas import OpenApiSchema
from tests.acceptance.conftest import Service

if TYPE_CHECKING:
    from schemathesis.specs.openapi.schemas import OpenApiOperation

EXAMPLES = 10
"""Requests for each operation, and as many that the document forbids."""

WALKS, STEPS = 14, 20
"""How often an account is opened to follow the document's links, and how far."""


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


class Walker:
    """Opens an account, and does next what an answer leads to, with what the answer says."""

    def __init__(
        self,
        document: OpenApiSchema,
        service: Service,
        done: Counter[tuple[str, int]],
        *,
        number: int,
        seed: int,
    ) -> None:
        self._document = document
        self._service = service
        self.done = done
        self._dice = random.Random(seed)
        self._account_id = f"chain-{number}"
        self._leads: list[tuple[str, dict[str, object]]] = []

    def walk(self, data: st.DataObject, steps: int) -> None:
        """Open and fund the account, then follow answers in any order, each where it leads once."""
        names = {"account_id": self._account_id}
        self._ask(data, "open_account", {}, {**names, "tenant_id": "acme"})
        self._ask(data, "top_up", names, {"amount": 1_000})
        for _ in range(steps):
            if not self._leads:
                return
            turn = self._dice.randrange(len(self._leads))
            self._ask(data, *self._leads.pop(turn))

    def _ask(
        self,
        data: st.DataObject,
        operation_id: str,
        parameters: Mapping[str, object],
        body: dict[str, JsonValue] | None = None,
    ) -> None:
        operation = self._document.find_operation_by_id(operation_id)
        case = data.draw(operation.as_strategy(generation_mode=GenerationMode.POSITIVE))
        case.path_parameters = {**(case.path_parameters or {}), **parameters}
        if body is not None:
            case.body = body
        elif isinstance(case.body, dict) and "amount" in case.body:
            case.body["amount"] = self._dice.randint(1, 9)  # as one can afford it
        answer = case.call_and_validate(
            headers={"Authorization": f"Bearer {self._service.api_key}"},
            excluded_checks=[positive_data_acceptance, ignored_auth],
        )
        self.done[operation_id, answer.status_code] += 1
        said = operation.definition.raw["responses"].get(str(answer.status_code), {})
        for link in said.get("links", {}).values():
            found = {
                name: answer.json()[place.removeprefix("$response.body#/")]
                for name, place in link["parameters"].items()
            }
            self._leads.append((link["operationId"], found))


def test_what_answers_lead_to_can_be_done_next_and_is_answered_as_documented(
    document: OpenApiSchema, service: Service
) -> None:
    """Accounts are topped up, holds captured, what was taken given back, in any order."""
    numbers = itertools.count(1)
    done: Counter[tuple[str, int]] = Counter()

    @given(data=st.data())
    @settings(
        max_examples=WALKS,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
        derandomize=True,
    )
    def holds(data: st.DataObject) -> None:
        # The order is drawn too: what is drawn after it must follow from what was drawn before.
        seed = data.draw(st.integers(0, 1_000_000))
        walker = Walker(document, service, done, number=next(numbers), seed=seed)
        walker.walk(data, STEPS)

    holds()

    assert {
        "open_account", "read_account", "read_history", "list_holds", "top_up", "consume", "hold",
        "read_hold", "capture", "extend", "release", "read_transaction", "refund",
    } == {operation_id for operation_id, status in done if status < 300}  # fmt: skip
