"""Usage over HTTP, in the client and on the command line, of a running service."""

import asyncio
import csv
import io
import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from tests.acceptance.conftest import Service, execute, tollkeeper

from tollkeeper.client import CreditsClient
from tollkeeper.web.stream import TAKE_LIMIT_S

FEATURES = ("chat", "=HYPERLINK(1)", 'search, "deep"', None)
URN = "urn:tollkeeper:problem:"


@pytest.fixture(scope="module")
def http(service: Service) -> Iterator[httpx.Client]:
    """A client for two accounts of a tenant, with 30 consumptions each."""
    headers = {"Authorization": f"Bearer {service.api_key}"}
    with httpx.Client(base_url=service.url, headers=headers, timeout=30) as http:
        operations: list[dict[str, object]] = []
        for name in ("ann", "bob"):
            operations += [
                {"op": "open", "account_id": name, "tenant_id": "acme"},
                {"op": "topup", "account_id": name, "idempotency_key": "t", "amount": 1_000},
            ]
            operations += [
                {
                    "op": "consume", "account_id": name, "idempotency_key": f"c{number}",
                    "amount": number, "metadata": {"feature": FEATURES[number % 4]},
                }
                for number in range(1, 31)
            ]  # fmt: skip
        http.post("/v1/batch", json={"operations": operations}).raise_for_status()
        empty = {"account_id": "empty", "tenant_id": "void"}
        http.post("/v1/accounts", json=empty).raise_for_status()
        yield http


def usage(http: httpx.Client, path: str = "accounts/ann", **query: object) -> dict[str, Any]:
    answer = http.get(f"/v1/{path}/usage", params={k: str(v) for k, v in query.items()})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def totals(found: dict[str, Any]) -> dict[str, object]:
    return dict(found["totals"])


def test_usage_of_an_account_and_of_its_tenant(http: httpx.Client) -> None:
    expected = {
        "consumed": 465, "purchased": 1_000, "refunded": 0, "net": 465, "count": 30,
        "mean": "15.5000", "peak_balance": 1_000, "transactions": 31,
    }  # fmt: skip
    doubled = {"consumed": 930, "purchased": 2_000, "net": 930, "count": 60, "transactions": 62}
    of_account, of_tenant = usage(http), usage(http, "tenants/acme", by="month")

    assert expected == totals(of_account)
    assert {**expected, **doubled} == totals(of_tenant)
    assert ("acme", "ann") == (of_account["tenant_id"], of_account["account_id"])
    assert ("acme", None) == (of_tenant["tenant_id"], of_tenant["account_id"])
    (month,) = of_tenant["items"]
    assert {**month, **totals(of_tenant)} == month


def test_an_account_without_transactions_has_an_empty_list(http: httpx.Client) -> None:
    for path in ("accounts/empty", "tenants/void"):
        found = usage(http, path)

        assert ([], None) == (found["items"], found["next"])
        assert {0, None} == set(totals(found).values())


def test_features_page_to_the_end(http: httpx.Client) -> None:
    found: list[dict[str, Any]] = []
    query: dict[str, object] = {"by": "feature", "limit": 1}
    while True:
        page = usage(http, "accounts/ann", **query)
        found += page["items"]
        if page["next"] is None:
            break
        query |= {"after": page["next"], "from": page["from"], "to": page["to"]}

    assert [None, *sorted(filter(None, FEATURES))] == [each["feature"] for each in found]
    assert 465 == sum(each["consumed"] for each in found)


def test_days_are_those_of_the_zone(http: httpx.Client) -> None:
    page = usage(http, time_zone="Asia/Kathmandu")
    (day,) = page["items"]
    assert day["start"].endswith("T00:00:00+05:45")
    assert page["time_zone"] == "Asia/Kathmandu"


@pytest.mark.parametrize(
    ("field", "query"),
    [
        ("by", {"by": "week"}),
        ("by", {"by": "hour", "from": "2020-01-01"}),
        ("time_zone", {"time_zone": "Mars/Olympus"}),
        ("time_zone", {"time_zone": "../../etc/passwd"}),
        ("from", {"from": "2026-01-01T00:00:01Z"}),
        ("to", {"from": "2026-01-02", "to": "2026-01-01"}),
        ("after", {"after": "soon"}),
        ("limit", {"limit": "0"}),
        ("limit", {"limit": "5", "format": "csv"}),
        ("format", {"format": "xlsx"}),
        ("zone", {"zone": "UTC"}),
    ],
)
def test_what_makes_no_sense_is_named(
    http: httpx.Client, field: str, query: dict[str, str]
) -> None:
    answer = http.get("/v1/accounts/ann/usage", params=query)

    assert (400, [field]) == (
        answer.status_code,
        [each["field"] for each in answer.json()["errors"]],
    )


@pytest.mark.parametrize("file", [{}, {"format": "csv"}, {"format": "json"}])
@pytest.mark.parametrize(
    ("path", "problem"),
    [("accounts/nobody", "account-not-found"), ("tenants/nobody", "tenant-not-found")],
)
def test_whose_there_is_none_is_not_found(
    http: httpx.Client, path: str, problem: str, file: dict[str, str]
) -> None:
    answer = http.get(f"/v1/{path}/usage", params=file)

    assert (404, URN + problem) == (answer.status_code, answer.json()["type"])


def test_a_file_says_what_the_pages_say(http: httpx.Client) -> None:
    asked = {"by": "feature", "from": "2026-01-01", "to": "2099-01-01"}
    page = usage(http, **asked)
    as_json, as_lines, as_csv = (
        http.get("/v1/accounts/ann/usage", params={**asked, "format": kind})
        for kind in ("json", "jsonl", "csv")
    )
    rows = list(csv.DictReader(io.StringIO(as_csv.text, newline="")))

    assert page == as_json.json()
    assert page["items"] == [json.loads(line) for line in as_lines.text.splitlines()]
    assert ["", "'=HYPERLINK(1)", "chat", 'search, "deep"'] == [row["feature"] for row in rows]
    assert ["consumed"] * 4 == [name for row in rows for name in row if name == "consumed"]
    assert 465 == sum(int(row["consumed"]) for row in rows)
    assert (
        'attachment; filename="usage-ann-feature-20260101-20990101.csv"'
        == (as_csv.headers["content-disposition"])
    )
    assert as_csv.headers["content-type"].startswith("text/csv")


async def test_the_client_reads_it_whole_and_in_pages(service: Service, http: httpx.Client) -> None:
    async with CreditsClient(service.url, service.api_key) as client:
        whole = await client.usage("ann", by="feature", start=datetime(2026, 1, 1, tzinfo=UTC))
        page = await client.usage_page(tenant_id="acme", by="hour", limit=1)
        file = await client.usage_file("ann", kind="csv")

    assert (465, 4, "15.5000") == (whole.totals.consumed, len(whole.items), whole.totals.mean)
    assert (930, None) == (page.totals.consumed, page.account_id)
    assert file.startswith(b"start,end,consumed")


def test_the_command_line_shows_it(service: Service, http: httpx.Client) -> None:
    shown = service.run("credits", "usage", "ann", "--by", "feature")
    empty = service.run("credits", "usage", "--tenant", "void")
    as_csv = service.run("credits", "usage", "ann", "--by", "feature", "--csv")
    as_json = service.run("credits", "usage", "--tenant", "acme", "--json")

    assert [0] * 4 == [each.code for each in (shown, empty, as_csv, as_json)]
    for text in ("465 in 30, on the average 15.5000", "(not said)", "=HYPERLINK(1)"):
        assert text in shown.out
    assert "No transaction in this time" in empty.out
    assert 4 == len(list(csv.DictReader(io.StringIO(as_csv.out))))
    assert 930 == totals(as_json.json())["consumed"]


def test_the_command_line_writes_a_whole_file_or_none(
    service: Service, http: httpx.Client, tmp_path: Path
) -> None:
    path = tmp_path / "usage.csv"
    path.write_text("before")
    refused = service.run("credits", "usage", "nobody", "--output", str(path))
    assert (3, "before") == (refused.code, path.read_text())
    written = service.run("credits", "usage", "ann", "--output", str(path))
    lost = service.run("credits", "usage", "ann", "--output", str(tmp_path / "no" / "u.csv"))

    assert 0 == written.code
    assert path.read_text().startswith("start,end,")
    assert [path] == list(tmp_path.iterdir())
    assert (1, 1) == (lost.code, lost.err.count("\n"))


def test_what_the_command_line_cannot_mean(service: Service, http: httpx.Client) -> None:
    for wrong, code in (
        (["ann", "--tenant", "acme"], 2),
        (["ann", "--csv", "--json"], 2),
        (["ann", "--time-zone", "Mars/Olympus"], 1),
    ):
        assert code == service.run("credits", "usage", *wrong).code, wrong


FILL = """
SELECT set_config('session_replication_role', 'replica', false);
INSERT INTO usage_rollups (
    begins_at, consumptions, transactions, peak_balance, shard, account_id, feature, consumed,
    purchased, refunded
)
SELECT '2026-01-01Z', 1, 1, 5, shard, account_id, lpad(n::text, 128, 'x'), 5, 0, 0
FROM accounts, generate_series(1, 40000) AS n WHERE account_id = 'wide'
"""


async def test_a_client_that_goes_away_ends_the_export(
    service: Service, http: httpx.Client
) -> None:
    """The file is larger than what sockets keep, so the service waits for somebody to take it."""
    wide = {"account_id": "wide", "tenant_id": "wide"}
    await asyncio.to_thread(http.post, "/v1/accounts", json=wide)
    await asyncio.to_thread(execute, service.credits_dsn, FILL)
    path = "/v1/accounts/wide/usage?by=feature&format=csv&from=2026-01-01&to=2026-02-01"
    owner = await asyncpg.connect(service.credits_dsn)
    try:
        for _ in range(3):  # more than may run at once
            before = await exports(owner)
            with socket.create_connection(("127.0.0.1", httpx.URL(service.url).port or 0)) as peer:
                head = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.api_key}"
                peer.sendall(f"{head}\r\n\r\n".encode())
                assert b"200" in await asyncio.to_thread(peer.recv, 4_096)
                assert 0 == before
                assert 1 == await exports(owner)
            async with asyncio.timeout(TAKE_LIMIT_S):  # sooner than one that takes nothing
                while await exports(owner):
                    await asyncio.sleep(0.02)
        answer = await asyncio.to_thread(http.get, path)
    finally:
        await owner.close()

    assert 40_001 == answer.text.count("\r\n")


async def exports(owner: "asyncpg.Connection[asyncpg.Record]") -> int:
    """Return how many sessions of the service are in the middle of an export."""
    count: int = await owner.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND state = 'idle in transaction' AND query LIKE 'WITH members AS%'"
    )
    return count


def test_the_worker_adds_up_what_is_answered_alike_before_and_after(
    service: Service, http: httpx.Client
) -> None:
    asked = {"by": "feature", "from": "2026-01-01", "to": "2099-01-01"}
    before = usage(http, "accounts/ann", **asked), usage(http, "tenants/acme", **asked)
    once = tollkeeper(
        "worker", "--once", environment={"TOLLKEEPER_CREDITS_DSN": service.credits_dsn}
    )

    assert 0 == once.code, once.err
    assert 31 == asyncio.run(rolled_up(service.credits_dsn, "ann"))
    assert before == (usage(http, "accounts/ann", **asked), usage(http, "tenants/acme", **asked))


async def rolled_up(dsn: str, account_id: str) -> object:
    """Return up to which transaction an account is rolled up."""
    owner = await asyncpg.connect(dsn)
    try:
        return await owner.fetchval(
            "SELECT sequence FROM rolled_accounts WHERE account_id = $1", account_id
        )
    finally:
        await owner.close()


def test_now_is_part_of_what_is_asked_for_without_a_range(http: httpx.Client) -> None:
    end = datetime.fromisoformat(str(usage(http)["to"]))

    assert timedelta() < end - datetime.now(UTC) <= timedelta(minutes=15)
