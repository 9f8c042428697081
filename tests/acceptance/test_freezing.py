"""Freezing as tenants and operators meet it: a row edited in SQL while service and worker run."""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import asyncpg
import httpx
import pytest
from tests.acceptance.conftest import (
    READY_S,
    Service,
    clean_environment,
    free_port,
    running_service,
)
from tests.conftest import Databases

BROKEN = "credits_audit_chain_integrity_errors"


@dataclass(frozen=True)
class Watched:
    """A service and a worker that watches it."""

    service: Service
    metrics_url: str
    log: Path
    evidence: Path

    def call(self, method: str, path: str, body: object = None, key: str = "k") -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.service.api_key}", "Idempotency-Key": key}
        return httpx.request(
            method, f"{self.service.url}{path}", json=body, headers=headers, timeout=20
        )

    def metric(self, name: str) -> float:
        with urlopen(self.metrics_url, timeout=5) as answer:
            text = answer.read().decode()
        (value,) = re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(value)

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + READY_S
        while not is_so():
            assert time.monotonic() < deadline_s, self.log.read_text()
            time.sleep(0.05)


@pytest.fixture
def watched(databases: Databases, tmp_path: Path) -> Iterator[Watched]:
    with (
        databases.fresh("credits") as credits_dsn,
        databases.fresh("access") as access_dsn,
        running_service(credits_dsn, access_dsn, tmp_path) as service,
    ):
        port, log, evidence = free_port(), tmp_path / "worker.log", tmp_path / "evidence"
        environment = {
            "TOLLKEEPER_CREDITS_DSN": credits_dsn,
            "TOLLKEEPER_WORKER_PORT": str(port),
            "TOLLKEEPER_EVIDENCE": str(evidence),
        }
        with running_worker(environment, log):
            watched = Watched(service, f"http://127.0.0.1:{port}/metrics", log, evidence)
            for account, tenant in (("ann", "acme"), ("bob", "umbra")):
                opened = watched.call(
                    "POST", "/v1/accounts", {"account_id": account, "tenant_id": tenant}
                )

                assert 201 == opened.status_code
                watched.call("POST", f"/v1/accounts/{account}/topups", {"amount": 100}, "first")
                watched.call("POST", f"/v1/accounts/{account}/topups", {"amount": 1}, "second")
            yield watched


@contextmanager
def running_worker(environment: dict[str, str], log: Path) -> Iterator[None]:
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", "tollkeeper", "worker"],
            env=clean_environment(environment), stdout=output, stderr=output,
        ) as process,
    ):  # fmt: skip
        try:
            yield
        finally:
            process.terminate()

            assert 0 == process.wait(timeout=30)


def edit(dsn: str, statement: str) -> None:
    """Do as somebody who may do anything to the database does."""

    async def work() -> None:
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute("SET session_replication_role = replica")
            await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(work())


def is_frozen(watched: Watched) -> bool:
    account = watched.call("GET", "/v1/accounts/ann").json()
    return account["frozen_at"] is not None


def is_scraped(watched: Watched) -> bool:
    """Whether the worker has reconciled what there is."""
    try:
        return watched.metric('credits_reconciled_transactions_total{pass="recent"}') >= 4
    except OSError:
        return False


def test_an_edited_row_freezes_its_account_until_an_operator_answers_for_it(
    watched: Watched,
) -> None:
    service = watched.service
    watched.wait_until(lambda: is_scraped(watched))

    assert 0 == watched.metric(BROKEN)
    assert "No account is frozen" in service.run("credits", "frozen").out

    edit(
        service.credits_dsn,
        "UPDATE credit_transactions SET amount = 1000, balance = 1000"
        " WHERE account_id = 'ann' AND sequence = 1",
    )
    watched.wait_until(lambda: is_frozen(watched))
    what_a_tenant_sees(watched)
    what_an_operator_sees(watched)
    what_an_operator_does(watched)


def what_a_tenant_sees(watched: Watched) -> None:
    refused = watched.call("POST", "/v1/accounts/ann/consumptions", {"amount": 1})
    problem = refused.json()
    batch = [
        {"op": "consume", "account_id": name, "idempotency_key": "b", "amount": 1}
        for name in ("ann", "bob")
    ]
    results = watched.call("POST", "/v1/batch", {"operations": batch}).json()["results"]
    again = watched.call("POST", "/v1/accounts/ann/topups", {"amount": 100}, "first")
    history = watched.call("GET", "/v1/accounts/ann/transactions")
    said = watched.service.run("credits", "consume", "ann", "1")

    assert (423, "urn:tollkeeper:problem:account-frozen") == (refused.status_code, problem["type"])
    assert "hash of transaction 1" in problem["faults"]
    assert problem["frozen_at"] < "9999"
    assert [423, 201] == [each["status"] for each in results]
    assert (201, "true") == (again.status_code, again.headers.get("Idempotent-Replayed"))
    assert 200 == history.status_code
    assert 3 == said.code
    assert "is frozen since" in said.err
    assert "unfreeze" in said.err


def what_an_operator_sees(watched: Watched) -> None:
    service = watched.service
    watched.wait_until(lambda: watched.metric(BROKEN) == 1)
    table, listed = service.run("credits", "frozen"), service.run("credits", "frozen", "--json")
    (item,) = json.loads(listed.out)["items"]
    events = [json.loads(line) for line in watched.log.read_text().splitlines()]
    (told,) = (event for event in events if event["event"] == "worker.account_frozen")
    document = json.loads((watched.evidence / item["evidence"]).read_text())

    assert "ann" in table.out
    assert item["evidence"] in table.out
    balance = service.run("credits", "balance", "ann").out
    assert "frozen since" in balance
    assert not {"bad:", "warn:", "\0"} & {*table.out.split(), *balance.split(), *balance}
    assert ("warning", "ann", "acme") == (told["level"], told["account"], told["tenant"])
    assert item["evidence"] == told["evidence"]
    assert 1000 == document["rows"][0]["balance"]
    assert document["software"].startswith("tollkeeper ")


def what_an_operator_does(watched: Watched) -> None:
    service = watched.service
    bound = watched.call(
        "POST", "/v1/keys", {"name": "acme", "scopes": ["admin"], "tenant_id": "acme"}
    ).json()["token"]
    not_theirs = service.run(
        "credits", "unfreeze", "ann", "--reason", "mine", "--json",
        environment={"TOLLKEEPER_API_KEY": bound},
    )  # fmt: skip
    lifted = service.run("credits", "unfreeze", "ann", "--reason", "ticket 7", "--json")
    empty = service.run("credits", "unfreeze", "ann", "--reason", " ")
    twice = service.run("credits", "unfreeze", "ann", "--reason", "ticket 7")
    spent = service.run("credits", "consume", "ann", "1", "--json")

    assert "urn:tollkeeper:problem:operator-needed" == not_theirs.problem()["type"]
    assert 0 == lifted.code
    transaction = lifted.json()["transaction"]

    assert isinstance(transaction, dict)
    assert {"kind": "unfreeze", "amount": 0, "sequence": 3, "description": "ticket 7"}.items() <= (
        transaction.items()
    )
    # It is lifted, and says what still does not hold.
    assert ("hash", 1) in {(each["fault"], each["sequence"]) for each in transaction["faults"]}
    assert 2 == empty.code
    assert "say why" in empty.err
    assert 3 == twice.code
    assert "is not frozen" in twice.err
    assert (0, 100) == (spent.code, spent.json()["transaction"]["balance"])  # type: ignore[index]  # JSON
    # It goes on accusing what was found; the reconciler has accepted it.
    assert 4 == service.run("credits", "verify").code
    passes = 'credits_reconciled_accounts_total{pass="thorough"}'
    before = watched.metric(passes)
    watched.wait_until(lambda: watched.metric(passes) >= before + 4)

    assert not is_frozen(watched)
    assert 0 == watched.metric(BROKEN)
