"""The life of a process: it starts in any order, says what is missing, and leaves without a trace.

Real processes, real signals. What a caller sees of a service that was told to leave while a load
balancer follows its readiness is that nothing went wrong.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import parse_qs, quote, urlsplit
from urllib.request import Request, urlopen

import asyncpg
import httpx
import pytest
from tests.acceptance.conftest import (
    Service,
    clean_environment,
    create_key,
    free_port,
    running_service,
)
from tests.conftest import Databases, run

from tollkeeper.kernel.clock import SystemClock
from tollkeeper.migrate.service import migrate

URN = "urn:tollkeeper:problem:"
PATIENCE_S = 20.0


@dataclass(frozen=True)
class Running:
    """A started `tollkeeper ...` that may not be ready."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def ask(self, path: str, *, key: str = "") -> tuple[int, dict[str, object]]:
        """Return status and body of a GET; 0 while nobody listens."""
        request = Request(f"{self.url}{path}")
        if key:
            request.add_header("Authorization", f"Bearer {key}")
        try:
            with urlopen(request, timeout=PATIENCE_S) as answer:
                status, text = answer.status, answer.read().decode()
        except HTTPError as error:
            with error:
                status, text = error.code, error.read().decode()
        except OSError:
            return 0, {}
        return status, json.loads(text) if text.startswith("{") else {"text": text}

    def faults(self) -> dict[str, str]:
        """Return what the service says it lacks; it must be a problem document."""
        status, body = self.ask("/health/ready")
        found: dict[str, str] = body.get("faults", {"service": "not listening"})  # type: ignore[assignment]  # as documented
        assert status in {0, 503} or not found
        assert status != 503 or (body["type"], body["ready"]) == (f"{URN}not-ready", False)
        return found

    def events(self) -> list[dict[str, object]]:
        """Return its log."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@contextmanager
def running(folder: Path, *arguments: str, port: int, **settings: str) -> Iterator[Running]:
    log = folder / f"{'-'.join(arguments[:2])}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tollkeeper", *arguments],
            env=clean_environment({"TOLLKEEPER_DRAIN_GRACE_S": "0", **settings}),
            stdout=output,
            stderr=output,
        )
    try:
        yield Running(process, f"http://127.0.0.1:{port}", log)
        process.terminate()
        assert process.wait(PATIENCE_S) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def eventually(claim: Callable[[], bool], said: Callable[[], object]) -> None:
    pause = threading.Event()
    for _ in range(int(PATIENCE_S / 0.05)):
        if claim():
            return
        pause.wait(0.05)
    pytest.fail(f"it did not come true: {said()}")


def through(link: Path, dsn: str) -> str:
    """Return a DSN whose server is where `link` will point."""
    folder = parse_qs(urlsplit(dsn).query)["host"][0]
    return dsn.replace(quote(folder, safe="/"), quote(str(link), safe="/"))


def test_start_up_order_does_not_matter(databases: Databases, tmp_path: Path) -> None:
    """Service and worker first; then the server, the migrations of each database, a key."""
    link, port, worker_port = tmp_path / "server", free_port(), free_port()
    with databases.fresh() as credits_dsn, databases.fresh() as access_dsn:
        dsns = {
            "TOLLKEEPER_CREDITS_DSN": through(link, credits_dsn),
            "TOLLKEEPER_ACCESS_DSN": through(link, access_dsn),
        }
        service_settings = {"TOLLKEEPER_CREDITS_PORT": str(port), **dsns}
        worker_settings = {"TOLLKEEPER_WORKER_PORT": str(worker_port), **dsns}
        with (
            running(tmp_path, "worker", port=worker_port, **worker_settings) as worker,
            running(tmp_path, "serve", "credits", port=port, **service_settings) as service,
        ):
            # No server: alive, not ready, and a caller is told what is missing.
            eventually(lambda: "database" in service.faults(), service.faults)
            assert 200 == service.ask("/health")[0]
            status, problem = service.ask("/v1/accounts/ann", key="any")
            assert (503, f"{URN}keys-unavailable") == (status, problem["type"])
            assert "database cannot be reached" in str(problem["detail"])

            worker_series = series(worker.url)
            assert [] == undocumented(worker_series)

            # A server, but no schema.
            link.symlink_to(parse_qs(urlsplit(credits_dsn).query)["host"][0])
            eventually(lambda: "schema" in service.faults(), service.faults)
            eventually(lambda: "migrate" in service.faults().get("access", ""), service.faults)
            assert "tollkeeper migrate" in service.faults()["schema"]
            assert "is not migrated" in str(service.ask("/v1/accounts/ann", key="any")[1]["detail"])

            # Keys can be kept, and there is none yet; then there is one, but no ledger.
            run(lambda: migrated(access_dsn, "access"))
            eventually(lambda: ["schema"] == list(service.faults()), service.faults)
            assert 401 == service.ask("/v1/accounts/ann", key="any")[0]
            key = create_key(access_dsn, tmp_path / "dev.key")
            eventually(
                lambda: service.ask("/v1/accounts/ann", key=key)[0] != 401, service.log.read_text
            )
            status, problem = service.ask("/v1/accounts/ann", key=key)
            assert (503, f"{URN}schema-missing") == (status, problem["type"])
            assert 503 == open_account(service.url, key)

            # All is there: both go to work by themselves.
            run(lambda: migrated(credits_dsn, "credits"))
            eventually(lambda: not service.faults(), service.faults)
            assert 201 == open_account(service.url, key)
            eventually(lambda: has_worked(worker), worker.log.read_text)
            assert worker_series == series(worker.url)

    said = [event["event"] for event in service.events()]
    assert ["service.listening", "service.not_ready"] == said[:2] or "access.keys_stale" in said
    assert "service.ready" in said
    assert "web.request_failed" not in said
    failures = [e["error"] for e in worker.events() if e["event"] == "worker.round_failed"]
    assert 0 < len(failures) < 10
    assert {"holds", "partitions"} == {
        e["job"] for e in worker.events() if e["event"] == "worker.round_recovered"
    }


async def migrated(dsn: str, database: str) -> None:
    await migrate(dsn, database, clock=SystemClock())


def open_account(url: str, key: str) -> int:
    answer = httpx.post(
        f"{url}/v1/accounts",
        json={"account_id": "ann", "tenant_id": "acme"},
        headers={"Authorization": f"Bearer {key}"},
        timeout=PATIENCE_S,
    )
    return answer.status_code


def has_worked(worker: Running) -> bool:
    """Whether both jobs of a worker without a key for checkpoints have done a round."""
    _, body = worker.ask("/metrics")
    text = str(body.get("text", ""))
    return all(
        f'worker_rounds_total{{job="{job}",result="ok"}} 0.0' not in text and job in text
        for job in ("holds", "partitions")
    )


class Balancer:
    """Polls readiness as a load balancer does; callers send while it says yes."""

    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self._client = client
        self._url = url
        self.is_ready = True
        self.refusal: dict[str, object] = {}

    async def poll(self) -> None:
        while self.is_ready:
            answer = await self._client.get(f"{self._url}/health/ready")
            if answer.status_code != 200:
                self.refusal = answer.json()
                self.is_ready = False
            await asyncio.sleep(0.05)


async def test_a_balancer_that_follows_readiness_sees_no_failure(
    databases: Databases, tmp_path: Path
) -> None:
    """Thirty callers over kept connections; new callers come while the service says it leaves."""
    answers: list[int] = []

    async def spend(client: httpx.AsyncClient, url: str, name: str, balancer: Balancer) -> None:
        turn = 0
        while balancer.is_ready:
            answer = await client.post(
                f"{url}/v1/accounts/hot/consumptions",
                content=b'{"amount":1}',
                headers={"Idempotency-Key": f"{name}-{turn}"},
            )
            answers.append(answer.status_code)
            turn += 1

    with (
        databases.fresh("credits") as credits_dsn,
        databases.fresh("access") as access_dsn,
        running_service(
            credits_dsn, access_dsn, tmp_path, settings={"TOLLKEEPER_DRAIN_GRACE_S": "1"}
        ) as service,
    ):
        headers = {"Authorization": f"Bearer {service.api_key}"}
        limits = httpx.Limits(max_connections=40)
        async with httpx.AsyncClient(headers=headers, timeout=PATIENCE_S, limits=limits) as client:
            await fill(client, service.url)
            balancer = Balancer(client, service.url)
            async with asyncio.timeout(2 * PATIENCE_S), asyncio.TaskGroup() as tasks:
                tasks.create_task(balancer.poll())
                for number in range(30):
                    tasks.create_task(spend(client, service.url, f"a{number}", balancer))
                while len(answers) < 300:
                    await asyncio.sleep(0.01)
                os.kill(service.pid, signal.SIGTERM)
            # It was told, and still answers: what a slower balancer sends meanwhile is served.
            late = await client.get(f"{service.url}/v1/accounts/hot")
        _, ended = await asyncio.to_thread(os.waitpid, service.pid, 0)
        booked = await versions(credits_dsn)

    assert 0 == os.waitstatus_to_exitcode(ended)
    assert ({"service": "draining"}, False) == (
        balancer.refusal["faults"], balancer.refusal["ready"],
    )  # fmt: skip
    assert (200, "close") == (late.status_code, late.headers["Connection"])
    assert {201} == set(answers)
    assert 1 + len(answers) == booked


async def fill(client: httpx.AsyncClient, url: str) -> None:
    await client.post(f"{url}/v1/accounts", json={"account_id": "hot", "tenant_id": "acme"})
    topup = {"amount": 10**12}
    await client.post(
        f"{url}/v1/accounts/hot/topups", json=topup, headers={"Idempotency-Key": "first"}
    )


async def versions(dsn: str) -> int:
    """Return how many transactions the account has."""
    connection = await asyncpg.connect(dsn)
    try:
        found: int = await connection.fetchval(
            "SELECT version FROM accounts WHERE account_id = 'hot'"
        )
    finally:
        await connection.close()
    return found


async def test_a_drain_has_a_bound_and_a_second_signal_ends_the_grace(
    databases: Databases, tmp_path: Path
) -> None:
    """A table that somebody keeps locked cannot keep the service, nor the worker."""
    port = free_port()
    with databases.fresh("credits") as credits_dsn, databases.fresh("access") as access_dsn:
        key = create_key(access_dsn, tmp_path / "dev.key")
        settings = {
            "TOLLKEEPER_CREDITS_DSN": credits_dsn,
            "TOLLKEEPER_ACCESS_DSN": access_dsn,
            "TOLLKEEPER_CREDITS_PORT": str(port),
            "TOLLKEEPER_DRAIN_GRACE_S": "600",
            "TOLLKEEPER_DRAIN_TIMEOUT_S": "0.2",
        }
        locker = await asyncpg.connect(credits_dsn)
        async with locker.transaction():
            await locker.execute("LOCK TABLE accounts, holds IN ACCESS EXCLUSIVE MODE")
            with (
                running(tmp_path, "worker", port=port, **settings) as worker,
                running(tmp_path, "serve", "credits", port=port, **settings) as service,
            ):
                await asyncio.to_thread(
                    eventually, lambda: service.faults() == {}, service.log.read_text
                )
                await asyncio.to_thread(
                    eventually, lambda: "worker.started" in worker.log.read_text(), list
                )
                stuck = asyncio.create_task(asyncio.to_thread(open_or_fail, service.url, key))
                while "0.0" == depth(service):
                    await asyncio.sleep(0.02)
                service.process.terminate()
                await asyncio.to_thread(
                    eventually, lambda: "service" in service.faults(), service.log.read_text
                )
                assert 200 == service.ask("/health")[0]
                # On leaving the block: the second signal to the service, the first to the worker.
            await stuck
        await locker.close()

    said = [event["event"] for event in service.events()]
    assert ["service.leaving", "service.leaving_at_once", "credits.left_undecided"] == [
        event for event in said if str(event).startswith(("service.leaving", "credits.left"))
    ]
    assert "service.left" == said[-1]
    assert {"worker.leaving", "worker.left"} <= {event["event"] for event in worker.events()}


def open_or_fail(url: str, key: str) -> int:
    try:
        return open_account(url, key)
    except httpx.TransportError:
        return 0


def depth(service: Running) -> str:
    """Return how many operations wait, as the metrics say it."""
    text = str(service.ask("/metrics")[1]["text"])
    return next(
        line.split()[1] for line in text.splitlines() if line.startswith("credits_queue_depth ")
    )


@pytest.fixture(scope="module")
def talkative(
    databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, Path]]:
    folder = tmp_path_factory.mktemp("life")
    settings = {"TOLLKEEPER_LOG_REQUESTS_PER_S": "1000", "TOLLKEEPER_BODY_LIMIT_BYTES": "10000"}
    with (
        databases.fresh("credits") as credits_dsn,
        databases.fresh("access") as access_dsn,
        running_service(credits_dsn, access_dsn, folder, settings=settings) as service,
    ):
        yield service, folder / "service.log"


def series(url: str) -> set[str]:
    """Return the names and labels of everything in the exposition."""
    text = httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text
    return {line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")}


def test_no_series_appears_on_first_use(talkative: tuple[Service, Path]) -> None:
    service, log = talkative
    before = series(service.url)
    with httpx.Client(
        base_url=service.url,
        headers={"Authorization": f"Bearer {service.api_key}"},
        timeout=PATIENCE_S,
    ) as client:
        statuses = use_everything(client)
    after = series(service.url)

    assert {200, 201, 400, 401, 402, 403, 404, 405, 409, 413, 422} <= statuses
    assert before == after
    assert [] == undocumented(after)
    names = [name for name in after if "{" in name]
    assert [] == [name for name in names if "life-" in name or "tenant" in name]
    assert len(after) < 500
    assert "web.request_failed" not in log.read_text()


def undocumented(found: set[str]) -> list[str]:
    """Return the metrics that the guide does not list."""
    guide = (Path(__file__).parents[2] / "docs/guide/operations.md").read_text()
    names = {name.partition("{")[0] for name in found}
    names = {re.sub("_(bucket|count|sum|created)$", "", name) for name in names}
    return [
        name
        for name in sorted(names)
        if not name.startswith(("process_", "python_"))
        and f"`{name}`" not in guide
        and f"`{name}_total`" not in guide
    ]


def use_everything(client: httpx.Client) -> set[int]:
    """Have every operation done, refused and sent wrongly; return the statuses of the answers."""
    statuses = set()

    def send(method: str, path: str, body: object = None, **headers: str) -> dict[str, object]:
        answer = client.request(
            method,
            path,
            json=body,
            headers={name.replace("_", "-"): t for name, t in headers.items()},
        )
        statuses.add(answer.status_code)
        found: dict[str, object] = answer.json() if answer.content else {}
        return found

    def write(path: str, key: str, body: object) -> dict[str, object]:
        return send("POST", path, body, Idempotency_Key=key)

    account = "/v1/accounts/life-1"
    for tenant in ("life", "life", "other"):
        send("POST", "/v1/accounts", {"account_id": "life-1", "tenant_id": tenant})
    write(f"{account}/topups", "a", {"amount": 100})
    write(f"{account}/topups", "a", {"amount": 100})
    write(f"{account}/topups", "a", {"amount": 101})
    write(f"{account}/topups", "b", {"amount": 2**53 - 1})
    write(f"{account}/topups", "c", {"amount": 2**63})
    write(f"{account}/topups", "01890a5d-ac96-774b-bcce-b302099a8057", {"amount": 1})
    spent = write(f"{account}/consumptions", "d", {"amount": 10})
    send("POST", "/v1/accounts", {"account_id": "life-2", "tenant_id": "life"})
    write("/v1/accounts/life-2/consumptions", "e", {"amount": 1})
    write("/v1/accounts/life-none/consumptions", "f", {"amount": 1})
    write(f"{account}/consumptions", "g", {"amount": 1, "metadata": {"x": "y" * 20_000}})
    refund = f"/v1/transactions/{spent['transaction_id']}/refunds"
    write(refund, "h", {"amount": 3})
    write(refund, "i", {"amount": 30})
    hold = write(f"{account}/holds", "j", {"amount": 10})["hold_id"]
    write(f"/v1/holds/{hold}/extend", "k", {"amount": 1})
    write(f"/v1/holds/{hold}/capture", "l", {"amount": 3})
    write(f"/v1/holds/{hold}/capture", "m", {"amount": 3_000})
    write(f"/v1/holds/{hold}/release", "n", {})
    write(f"/v1/holds/{hold}/release", "o", {})
    write(f"/v1/holds/{spent['transaction_id']}/release", "p", {})
    operations = [
        {"op": "topup", "account_id": "life-1", "idempotency_key": "q", "amount": 1},
        {"op": "consume", "account_id": "life-none", "idempotency_key": "r", "amount": 1},
    ]
    send("POST", "/v1/batch", {"operations": operations})
    for path in (
        account, f"{account}/transactions", f"{account}/holds", f"/v1/holds/{hold}",
        "/v1/audit/checkpoints", "/v1/keys", "/v1/nowhere", f"{account}?x=1",
    ):  # fmt: skip
        send("GET", path)
    send("POST", "/v1/audit/verify", {})
    send("DELETE", account)
    new = send("POST", "/v1/keys", {"name": "life", "scopes": ["credits:read"]})
    send("POST", f"{account}/topups", {"amount": 1}, Authorization=f"Bearer {new['token']}")
    send("GET", account, Authorization="Bearer unknown")
    send("GET", account, Authorization="Basic x")
    return statuses


def test_every_line_of_a_request_has_its_ids_and_no_secret(
    talkative: tuple[Service, Path],
) -> None:
    service, log = talkative
    key = service.api_key
    made = httpx.post(
        f"{service.url}/v1/keys",
        json={"name": "logged", "scopes": ["credits:write"], "tenant_id": "acme"},
        headers={"Authorization": f"Bearer {key}"},
        timeout=PATIENCE_S,
    ).json()
    hidden = [key, made["token"], "4111-1111-1111-1111", "hush-hush"]
    url = f"{service.url}/v1/accounts/logged/topups?card=4111-1111-1111-1111"
    refused = httpx.post(
        url,
        headers={
            "Authorization": f"Bearer {made['token']}",
            "X-Request-Id": "asked-by-a-test",
            "Cookie": "hush-hush",
            "X-Api-Key": key,
        },
        timeout=PATIENCE_S,
    )
    for identifier in hidden[:3]:
        answer = httpx.get(
            f"{service.url}/v1/accounts/logged",
            headers={"X-Request-Id": identifier, "Authorization": f"Bearer {identifier}"},
            timeout=PATIENCE_S,
        )
        assert identifier != answer.headers["X-Request-Id"]

    lines = [json.loads(line) for line in log.read_text().splitlines()]
    (mine,) = [line for line in lines if line.get("request_id") == "asked-by-a-test"]
    assert "asked-by-a-test" == refused.json()["request_id"] == refused.headers["X-Request-Id"]
    assert ("web.request", 400, "POST", "acme", made["key_id"]) == tuple(
        mine[name] for name in ("event", "status", "method", "tenant_id", "key_id")
    )
    assert "/v1/accounts/{account_id}/topups" == mine["route"]
    assert {} == {text: line for text in hidden for line in lines if text in json.dumps(line)}
    assert "postgresql://" not in log.read_text()


async def test_what_the_engine_says_of_requests_names_them(
    databases: Databases, tmp_path: Path
) -> None:
    with (
        databases.fresh("credits") as credits_dsn,
        databases.fresh("access") as access_dsn,
        running_service(credits_dsn, access_dsn, tmp_path) as service,
    ):
        connection = await asyncpg.connect(credits_dsn)
        await connection.execute("ALTER TABLE accounts RENAME TO away")
        answer = await asyncio.to_thread(
            httpx.post,
            f"{service.url}/v1/accounts",
            json={"account_id": "ann", "tenant_id": "acme"},
            headers={"Authorization": f"Bearer {service.api_key}", "X-Request-Id": "lost"},
            timeout=PATIENCE_S,
        )
        await connection.execute("ALTER TABLE away RENAME TO accounts")
        await connection.close()

    lines = [json.loads(line) for line in (tmp_path / "service.log").read_text().splitlines()]
    assert (503, f"{URN}ledger-unavailable") == (answer.status_code, answer.json()["type"])
    retried = [line for line in lines if line["event"] == "credits.batch_retried"]
    (given_up,) = [line for line in lines if line["event"] == "credits.operations_given_up"]
    (ended,) = [line for line in lines if line["event"] == "web.request"]
    assert [["lost"]] * len(retried) == [line["request_ids"] for line in retried]
    assert (["lost"], 1) == (given_up["request_ids"], given_up["operations"])
    assert ("lost", "warning") == (ended["request_id"], ended["level"])
    assert "LedgerUnavailable" in ended["cause"]
