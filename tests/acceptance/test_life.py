"""The life of a process: it starts in any order, says what is missing, and leaves without a trace.

Real processes, real signals. What a caller sees of a service that was told to leave while a load
balancer follows its readiness is that nothing went wrong.
"""

import asyncio
import json
import os
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
    clean_environment,
    create_key,
    free_port,
    running_service,
)
from tests.conftest import Databases, run
from tests.exposition import series, undocumented

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

            eventually(lambda: worker.ask("/metrics")[0] == 200, worker.log.read_text)
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
    assert 0 < len(failures) < 20
    recovered = {e["job"] for e in worker.events() if e["event"] == "worker.round_recovered"}
    # Reconciliation tells of its passes; its rounds fail only when both of them were tried. Summary
    # and archive may wait for longer.
    slow = {"reconciliation", "summary", "archive"}
    assert {"alerts", "holds", "partitions", "usage"} == recovered - slow


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
    """Whether all jobs of a worker without a key for checkpoints have done a round."""
    _, body = worker.ask("/metrics")
    text = str(body.get("text", ""))
    return all(
        f'worker_rounds_total{{job="{job}",result="ok"}} 0.0' not in text and job in text
        for job in ("alerts", "holds", "partitions", "usage", "reconciliation")
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
            credits_dsn, access_dsn, tmp_path, settings={"TOLLKEEPER_DRAIN_GRACE_S": "2"}
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
                os.kill(service.process.pid, signal.SIGTERM)
            # It was told, and still answers: what a slower balancer sends meanwhile is served.
            late = await client.get(f"{service.url}/v1/accounts/hot")
        ended = await asyncio.to_thread(service.process.wait)
        booked = await versions(credits_dsn)

    assert 0 == ended
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
