"""What operators are told of the databases, and that nobody else is."""

from collections.abc import AsyncIterator

import httpx
import pytest
from tests.clocks import SetClock
from tests.databases import DOWN, HEALTHY, StatedDatabase, routes_of, stated

from tollkeeper.telemetry.request import REQUEST_ID, current_request

PATHS = ("/v1/database", "/v1/database/slow-queries")


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def databases(clock: SetClock) -> tuple[StatedDatabase, ...]:
    return stated(HEALTHY, clock), stated(DOWN, clock, threshold_s=0.05)


@pytest.fixture
async def client(
    databases: tuple[StatedDatabase, ...], clock: SetClock
) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=routes_of(databases, clock))  # type: ignore[arg-type]  # other ASGI types
    headers = {"Authorization": "Bearer operator"}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://test", headers=headers
    ) as client:
        yield client


async def test_each_database_is_told_whole(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/database")

    assert (200, "no-store") == (answer.status_code, answer.headers["cache-control"])
    document = answer.json()
    ledger, access = document.pop("databases")
    assert {"pid": 4_711, "at": "2026-03-01T12:00:00Z"} == document
    assert {
        "host": "db1:5432", "state": "primary", "is_writes": True, "is_reads": False,
        "latency_s": 0.0012, "lag_s": 0.5, "probe": "written", "version": "18.1", "timeline": 2,
        "checked_at": "2026-03-01T11:59:57Z", "fault": None,
    } == ledger["hosts"][0]  # fmt: skip
    assert {"access": "read", "state": "open", "retry_after_s": 12.3, "opened_total": 4} == (
        access["breakers"][1]
    )
    (lanes,) = ledger.pop("pools")
    assert (0.99, 10, 7) == (lanes["reuse_ratio"], lanes["size"], lanes["timeouts_total"])
    assert ("credits", "healthy", 24) == (
        ledger["name"], ledger["health"], ledger["budget"]
    )  # fmt: skip
    assert ("access", "down", None, None) == (
        access["name"], access["health"], access["budget"], access["checked_at"]
    )  # fmt: skip
    assert (None, None) == (
        access["pools"][0]["reuse_ratio"], access["pools"][0]["efficiency_ratio"]
    )  # fmt: skip


async def test_slow_statements_of_all_databases_are_told_newest_first(
    client: httpx.AsyncClient, databases: tuple[StatedDatabase, ...], clock: SetClock
) -> None:
    ledger, access = databases
    token = current_request.set({REQUEST_ID: "asked-1"})
    ledger.slow.note("SELECT 'ann'", args=("secret",), wait_s=0.25, run_s=0.5)
    current_request.reset(token)
    clock.advance(1)
    access.slow.note("COMMIT", wait_s=0, run_s=0.25, failed="57P01")
    clock.advance(1)
    ledger.slow.note("SELECT 'bob'", wait_s=0, run_s=0.125)
    clock.advance(1)

    answer = await client.get("/v1/database/slow-queries")

    assert "no-store" == answer.headers["cache-control"]
    document = answer.json()
    items, statements = document.pop("items"), document.pop("statements")
    assert {
        "pid": 4_711, "at": "2026-03-01T12:00:03Z", "threshold_s": 0.05, "total": 3
    } == document  # fmt: skip
    assert [("credits", "SELECT ?"), ("access", "COMMIT"), ("credits", "SELECT ?")] == [
        (item["database"], item["statement"]) for item in items
    ]
    assert {
        "database": "credits", "at": "2026-03-01T12:00:00Z", "statement": "SELECT ?",
        "fingerprint": "b28006e4549a", "types": ["str"], "duration_s": 0.75, "wait_s": 0.25,
        "run_s": 0.5, "failed": None, "request_id": "asked-1",
    } == items[2]  # fmt: skip
    assert [("SELECT ?", 2, 0, 0.875), ("COMMIT", 1, 1, 0.25)] == [
        (each["statement"], each["count"], each["failed"], each["sum_s"]) for each in statements
    ]
    assert "secret" not in answer.text

    newest = (await client.get("/v1/database/slow-queries", params={"limit": "2"})).json()
    assert items[:2] == newest["items"]


async def test_without_a_slow_statement_the_threshold_is_told(client: httpx.AsyncClient) -> None:
    document = (await client.get("/v1/database/slow-queries")).json()

    assert ([], [], 0) == (document["items"], document["statements"], document["total"])
    assert 0.05 == document["threshold_s"]


@pytest.mark.parametrize("path", PATHS)
async def test_a_key_of_a_tenant_is_refused(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path, headers={"Authorization": "Bearer tenant"})

    assert (403, "urn:tollkeeper:problem:operator-needed") == (
        answer.status_code, answer.json()["type"]
    )  # fmt: skip
    assert "pools" not in answer.text


@pytest.mark.parametrize("path", PATHS)
async def test_a_key_without_the_scope_is_refused(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path, headers={"Authorization": "Bearer reader"})

    assert (403, "admin") == (answer.status_code, answer.json()["needed"])


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "limit=-1", "limit=", "limit=1&limit=2", "page=1"]
)
async def test_what_cannot_be_asked_is_named(client: httpx.AsyncClient, query: str) -> None:
    answer = await client.get(f"/v1/database/slow-queries?{query}")

    assert (400, query.partition("=")[0]) == (
        answer.status_code, answer.json()["errors"][0]["field"]
    )  # fmt: skip
