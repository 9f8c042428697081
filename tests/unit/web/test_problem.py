import json
from dataclasses import dataclass

import httpx
import pytest
from structlog.testing import capture_logs

from tollkeeper.database.errors import DatabaseDown
from tollkeeper.kernel.errors import TollkeeperError
from tollkeeper.web import errors
from tollkeeper.web.problem import (
    INTERNAL,
    SHARED_PROBLEMS,
    URN,
    Problem,
    ProblemKind,
    kind_of,
    problem_of,
)


def problem_in(answer: httpx.Response) -> dict[str, object]:
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert isinstance(document, dict)
    assert document["status"] == answer.status_code
    return document


async def test_error_becomes_problem_with_its_facts(client: httpx.AsyncClient) -> None:
    answer = await client.get("/raise/purse")

    assert problem_in(answer) == {
        "type": "urn:tollkeeper:problem:purse-empty",
        "title": "Purse empty",
        "status": 402,
        "detail": "5 needed, 3 there",
        "available": 3,
        "required": 5,
        "account_id": "00000000-0000-0000-0000-000000000007",
    }


async def test_unavailability_says_when_to_come_back(client: httpx.AsyncClient) -> None:
    answer = await client.get("/raise/queue")

    assert 503 == answer.status_code
    assert "3" == answer.headers["retry-after"]


@pytest.mark.parametrize(("wait_s", "header"), [(0.0, "1"), (0.2, "1"), (2.0, "2"), (2.1, "3")])
def test_database_that_is_down_says_when_to_come_back_and_nothing_else(
    wait_s: float, header: str
) -> None:
    error = DatabaseDown(retry_after_s=wait_s, access="write", reason="of db1, which is secret")
    problem = problem_of(error, SHARED_PROBLEMS)

    assert {"Retry-After": header} == problem.headers
    assert problem.document() == {
        "type": "urn:tollkeeper:problem:database-unavailable",
        "title": "The database is not available",
        "status": 503,
    }


async def test_database_trouble_is_503_without_its_words(client: httpx.AsyncClient) -> None:
    answer = await client.get("/raise/database")

    assert "1" == answer.headers["retry-after"]
    assert problem_in(answer) == {
        "type": "urn:tollkeeper:problem:database-unavailable",
        "title": "The database is not available",
        "status": 503,
    }


@pytest.mark.parametrize("name", ["bug", "unmapped"])
async def test_what_nobody_expected_is_500_without_detail_and_logged_once(
    client: httpx.AsyncClient, name: str
) -> None:
    with capture_logs() as logs:
        answer = await client.get(f"/raise/{name}")

    assert problem_in(answer) == {
        "type": "urn:tollkeeper:problem:internal-error",
        "title": "Internal error",
        "status": 500,
    }
    assert ["web.request_failed"] == [entry["event"] for entry in logs]
    assert isinstance(logs[0]["exc_info"], Exception)


async def test_missing_route_is_a_problem(client: httpx.AsyncClient) -> None:
    answer = await client.get("/nowhere")

    assert 404 == answer.status_code
    assert "urn:tollkeeper:problem:route-not-found" == problem_in(answer)["type"]


async def test_wrong_method_is_a_problem_that_names_the_right_ones(
    client: httpx.AsyncClient,
) -> None:
    answer = await client.delete("/payments")

    assert 405 == answer.status_code
    assert "urn:tollkeeper:problem:method-not-allowed" == problem_in(answer)["type"]
    assert {"POST", "OPTIONS"} == {name.strip() for name in answer.headers["allow"].split(",")}


async def test_bad_parameter_is_named(client: httpx.AsyncClient) -> None:
    answer = await client.get("/pages", params={"limit": "many"})

    document = problem_in(answer)
    assert 400 == answer.status_code
    assert "urn:tollkeeper:problem:invalid-request" == document["type"]
    assert "limit" in json.dumps(document["errors"])


async def test_missing_parameter_is_named(client: httpx.AsyncClient) -> None:
    answer = await client.get("/pages")

    assert 400 == answer.status_code
    assert "limit" in json.dumps(problem_in(answer)["errors"])


async def test_body_that_litestar_decodes_fails_as_a_problem_too(
    client: httpx.AsyncClient,
) -> None:
    json_type = {"content-type": "application/json"}
    malformed = await client.post("/strict", content=b"{", headers=json_type)
    invalid = await client.post("/strict", content=b'{"amount": 0}', headers=json_type)

    assert [400, 400] == [malformed.status_code, invalid.status_code]
    for answer in (malformed, invalid):
        assert "urn:tollkeeper:problem:invalid-request" == problem_in(answer)["type"]


def test_every_web_error_has_a_problem() -> None:
    known = [
        value
        for value in vars(errors).values()
        if isinstance(value, type)
        and issubclass(value, TollkeeperError)
        and not value.__subclasses__()
    ]

    assert len(known) >= 7
    assert [] == [error for error in known if kind_of(error, SHARED_PROBLEMS) is INTERNAL]


def test_nearest_base_in_the_table_decides() -> None:
    @dataclass(eq=False, kw_only=True)
    class TooDeep(errors.RequestInvalid):
        pass

    assert SHARED_PROBLEMS[errors.RequestInvalid] == kind_of(TooDeep, SHARED_PROBLEMS)


def test_standard_members_win_over_facts() -> None:
    problem = Problem(status=400, type=URN + "x", title="X", facts={"status": "odd", "n": 1})

    assert {"type": URN + "x", "title": "X", "status": 400, "n": 1} == problem.document()


def test_foreign_exception_shows_nothing() -> None:
    problem = problem_of(ValueError("postgresql://user:password@host"), SHARED_PROBLEMS)

    assert {"type": INTERNAL.type, "title": INTERNAL.title, "status": 500} == problem.document()


@pytest.mark.parametrize(("status", "kind"), [(200, URN + "fine"), (400, "about:blank")])
def test_kind_that_is_no_problem_is_refused(status: int, kind: str) -> None:
    with pytest.raises(ValueError, match="not a problem"):
        ProblemKind(status, kind, "No")
