"""What a running service says of its databases."""

import httpx
from tests.acceptance.conftest import Service

TIMEOUT_S = 20.0


def test_the_process_that_answers_names_itself(service: Service) -> None:
    status = service.run("db", "status", "--json")
    slow = service.run("db", "slow", "--json")

    assert [service.process.pid] * 2 == [status.json()["pid"], slow.json()["pid"]]
    assert [0, 0] == [status.code, slow.code]


def test_only_the_operator_is_told(service: Service) -> None:
    made = httpx.post(
        f"{service.url}/v1/keys",
        json={"name": "tenant", "scopes": ["admin"], "tenant_id": "acme"},
        headers={"Authorization": f"Bearer {service.api_key}"},
        timeout=TIMEOUT_S,
    ).json()
    refused = service.run(
        "db", "status", "--json", environment={"TOLLKEEPER_API_KEY": made["token"]}
    )

    assert (1, "", "urn:tollkeeper:problem:operator-needed") == (
        refused.code,
        refused.out,
        refused.problem()["type"],
    )
