"""A shadow service beside another, and PostgreSQL, killed while units are assigned and measured.

`kill -9`, of all processes of the server at once. Callers send again until they are answered.
"""

import asyncio
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import pytest
from tests.acceptance.conftest import create_key, free_port
from tests.conftest import Databases, fastest_folder
from tests.programs import PATIENCE_S, Program, kill_server

from tollkeeper.client.shadow import ShadowClient
from tollkeeper.client.shadow_messages import Outcome
from tollkeeper.database.embedded import EmbeddedServer
from tollkeeper.kernel.backoff import Backoff
from tollkeeper.shadow.model import MICRO

VICTIMS = ("one", "server")
CALLERS = 8
ANSWERS_BETWEEN = 40
"""So many requests are answered between a kill and the next."""

LISTED = {"late": 2, "first": 3, "second": 4}
"""Outcomes that every unit has beside `early`, by their ids."""

INSISTING = Backoff(first_ms=5, ceiling_ms=200, retries=1_000)
COUNTED = """
SELECT
    (SELECT sum(units) FROM arm_exposures)::bigint AS exposed,
    (SELECT sum(units) FROM arm_statistics)::bigint AS units,
    (SELECT sum(total) FROM arm_statistics)::bigint AS total,
    (SELECT count(*) FROM experiment_differences((SELECT experiment_no FROM experiments))) AS wrong
"""


@dataclass(frozen=True)
class Site:
    """Everything that runs, and how to reach it."""

    server: EmbeddedServer
    data: Path
    programs: dict[str, Program]
    url: str
    api_key: str
    shadow_dsn: str

    def kill(self, victim: str) -> None:
        """Kill a victim and start it again."""
        if victim == "server":
            kill_server(self.server, self.data)
            return
        self.programs[victim].kill()
        self.programs[victim].start()

    def client(self) -> ShadowClient:
        return ShadowClient(self.url, self.api_key, connections=1, timeout_s=5, backoff=INSISTING)


@dataclass
class Told:
    """What callers were answered: variants of units, and the values of outcomes."""

    variants: dict[str, str] = field(default_factory=dict)
    outcomes: dict[tuple[str, str], int] = field(default_factory=dict)
    duplicates: int = 0
    answers: int = 0

    async def wait_for_answers(self, count: int) -> None:
        wanted = self.answers + count
        async with asyncio.timeout(PATIENCE_S):
            while self.answers < wanted:
                await asyncio.sleep(0.002)

    async def serve(self, client: ShadowClient, unit: str) -> None:
        """Have a unit assigned between its outcomes; one of them is sent twice, once in a list."""
        await self._record(client, unit, "early", 1)
        assigned = await client.assign("checkout", unit)
        self.variants[unit] = assigned.variant
        self.answers += 1
        await self._record(client, unit, "late", 2)
        sent = [Outcome("checkout", unit, name, value=value) for name, value in LISTED.items()]
        results = await client.record_batch(sent)
        for (name, value), result in zip(LISTED.items(), results, strict=True):
            if result.outcome is None:  # not now: whoever sends a list insists on each of it
                await self._record(client, unit, name, value)
            else:
                self._note(unit, name, value)
                self.duplicates += result.outcome.duplicate

    async def _record(self, client: ShadowClient, unit: str, name: str, value: int) -> None:
        recorded = await client.record("checkout", unit, value, outcome_id=name)
        self.duplicates += recorded.duplicate
        self._note(unit, name, value)

    def _note(self, unit: str, name: str, value: int) -> None:
        self.outcomes[unit, name] = value
        self.answers += 1


@contextmanager
def running_site(folder: Path) -> Iterator[Site]:
    with (
        tempfile.TemporaryDirectory(prefix="tollkeeper-test-", dir=fastest_folder()) as data,
        EmbeddedServer.start(Path(data)) as server,
        both_databases(server) as (shadow_dsn, access_dsn),
    ):
        environment = {
            "TOLLKEEPER_SHADOW_DSN": shadow_dsn, "TOLLKEEPER_ACCESS_DSN": access_dsn,
            "TOLLKEEPER_SHARE_PORT": "1", "TOLLKEEPER_DRAIN_GRACE_S": "0",
        }  # fmt: skip
        port = free_port()
        api_key = create_key(access_dsn, folder / "dev.key")
        programs = {
            name: Program(
                "serve", "shadow", "--port", str(port),
                environment=environment, log=folder / f"{name}.log",
            )
            for name in ("one", "two")
        }  # fmt: skip
        try:
            yield Site(
                server, Path(data).resolve() / "postgres", programs, f"http://127.0.0.1:{port}",
                api_key, shadow_dsn,
            )  # fmt: skip
        finally:
            statuses = [program.end() for program in programs.values()]

        # Who is asked to leave before it can be asked ends by the signal.
        assert {0, -signal.SIGTERM} >= set(statuses)


@contextmanager
def both_databases(server: EmbeddedServer) -> Iterator[tuple[str, str]]:
    databases = Databases(server)
    with databases.fresh("shadow") as shadow_dsn, databases.fresh("access") as access_dsn:
        yield shadow_dsn, access_dsn


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with running_site(tmp_path) as site:
        yield site
    for log in sorted(tmp_path.glob("*.log")):
        assert "web.request_failed" not in log.read_text(), log
        assert "shadow.operation_failed" not in log.read_text(), log


async def test_what_was_answered_counts_once_however_often_everything_dies(site: Site) -> None:
    told, leaving = Told(), asyncio.Event()

    async def caller(number: int) -> None:
        turn = 0
        async with site.client() as client:
            while not leaving.is_set():
                await told.serve(client, f"unit-{number}-{turn}")
                turn += 1

    async with site.client() as client:
        await client.create(
            "checkout",
            {"variants": [{"name": "a"}, {"name": "b"}],
             "metrics": [{"name": "items", "kind": "count"}]},
            start=True,
        )  # fmt: skip
        async with asyncio.TaskGroup() as group:
            for number in range(CALLERS):
                group.create_task(caller(number))
            for victim in VICTIMS:
                await told.wait_for_answers(ANSWERS_BETWEEN)
                await asyncio.to_thread(site.kill, victim)
            await told.wait_for_answers(ANSWERS_BETWEEN)
            leaving.set()
        units = sorted(told.variants)
        again = await client.assign_batch("checkout", units)
    connection = await asyncpg.connect(site.shadow_dsn)
    try:
        counted = await connection.fetchrow(COUNTED)
    finally:
        await connection.close()

    assert told.duplicates >= len(units)
    assert [told.variants[unit] for unit in units] == [
        each.assignment.variant for each in again if each.assignment is not None
    ]
    assert 4 * len(units) == len(told.outcomes)
    assert (len(units), len(units), sum(told.outcomes.values()) * MICRO, 0) == tuple(counted)
