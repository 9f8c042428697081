"""`tollkeeper db` against the routes it calls: the product's command line, client and server."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
from tests.clocks import SetClock
from tests.databases import (
    DOWN,
    HEALTHY,
    OFFLINE,
    PRIMARY,
    StatedDatabase,
    routes_of,
    served,
    stated,
)
from typer.testing import CliRunner, Result

from tollkeeper.cli import app
from tollkeeper.client.errors import CallFailed
from tollkeeper.database.status import DatabaseStatus, Health, HostState, Probe

LONG = "SELECT " + ", ".join(f"column_{number}" for number in range(50))


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


async def run(
    clock: SetClock, databases: Sequence[StatedDatabase], *arguments: str, **environment: str
) -> Result:
    """Run `tollkeeper db ARGUMENTS` against a service of these databases."""
    async with served(routes_of(databases, clock)) as url:
        settings = {"TOLLKEEPER_URL": url, "TOLLKEEPER_API_KEY": "operator", "COLUMNS": "200"}
        return await asyncio.to_thread(
            lambda: CliRunner().invoke(app, ["db", *arguments], env={**settings, **environment})
        )


def lines_of(result: Result) -> list[str]:
    """Return what was printed, with single spaces."""
    assert not isinstance(result.exception, Exception), result.exception
    return [" ".join(line.split()) for line in result.stdout.splitlines() if line.strip()]


async def test_how_databases_stand_is_printed(clock: SetClock) -> None:
    result = await run(clock, [stated(HEALTHY, clock), stated(DOWN, clock)], "status")

    assert [
        "Database credits",
        "health healthy",
        "checked (UTC) 2026-03-01 11:59:57Z, 3 s ago",
        "host db1:5432 primary, for writes, PostgreSQL 18.1, answered in 1.2 ms, lag 500.0 ms",
        "breaker for writes closed",
        "breaker for reads closed, opened 1 time",
        "budget 24 connections",
        "Database access",
        "health down",
        "checked (UTC) not yet",
        "host db2:5432 offline, for reads, connection refused",
        "breaker for writes closed",
        "breaker for reads open, tried again in 12.3 s, opened 4 times",
        "Connections of process 4711",
        "database pool for most idle in use opening waiting",
        "credits lanes writes 10 2 1 1 4",
        "access reads reads 4 0 0 0 0",
        "Acquires since it started",
        "database pool in all at once reused timeouts refused lost",
        "credits lanes 1,000 95.0 % 99.0 % 7 8 12",
        "access reads 0 - - 0 0 0",
    ] == lines_of(result)  # fmt: skip


@pytest.mark.parametrize(
    ("expected", "states"),
    [
        (0, [Health.HEALTHY]),
        (0, [Health.HEALTHY, Health.HEALTHY]),
        (1, [Health.HEALTHY, Health.SUSPECT]),
        (1, [Health.UNKNOWN]),
        (1, [Health.DOWN, Health.HEALTHY]),
    ],
)
async def test_the_exit_code_says_whether_all_are_healthy(
    clock: SetClock, expected: int, states: list[Health]
) -> None:
    databases = [
        stated(replace(HEALTHY, name=f"d{number}", health=health), clock)
        for number, health in enumerate(states)
    ]

    assert expected == (await run(clock, databases, "status")).exit_code


async def test_a_terminal_of_80_columns_has_it_all(clock: SetClock) -> None:
    database = stated(HEALTHY, clock)
    database.slow.note(LONG, wait_s=1, run_s=1, failed="57014")

    standing = lines_of(await run(clock, [database], "status", COLUMNS="80"))
    slow = await run(clock, [database], "slow", COLUMNS="80")

    assert {"credits lanes writes 10 2 1 1 4", "credits lanes 1,000 95.0 % 99.0 % 7 8 12"} <= {
        *standing
    }
    shown = f"{LONG[:57]} ... {LONG[-57:]}"
    assert 2 * shown.count("column_") == slow.stdout.count("column_")


async def test_what_is_wrong_is_red(clock: SetClock) -> None:
    ill: DatabaseStatus = replace(
        DOWN,
        hosts=(
            OFFLINE,
            replace(PRIMARY, state=HostState.READ_ONLY, probe=Probe.FAILED, lag_s=None),
        ),
    )
    result = await run(
        clock, [stated(HEALTHY, clock), stated(ill, clock)], "status", FORCE_COLOR="1"
    )

    green, red = "\x1b[32m", "\x1b[1;31m"
    for expected in (
        f"{green}healthy", f"{green}primary", f"{green}closed", f"{red}down", f"{red}offline",
        f"{red}open", f"{red}read only, for writes, PostgreSQL 18.1, answered in 1.2 ms, write",
    ):  # fmt: skip
        assert expected in result.stdout


async def test_the_documents_are_those_of_the_routes(clock: SetClock) -> None:
    database = stated(HEALTHY, clock)
    database.slow.note(LONG, args=(5,), wait_s=0, run_s=1)

    shown = await run(clock, [database, stated(DOWN, clock)], "status", "--json")
    standing = json.loads(shown.stdout)
    slow = json.loads((await run(clock, [database], "slow", "--json")).stdout)

    assert 1 == shown.exit_code
    assert (4_711, ["credits", "access"], 0.0012) == (
        standing["pid"],
        [each["name"] for each in standing["databases"]],
        standing["databases"][0]["hosts"][0]["latency_s"],
    )
    assert (LONG, ["int"], 1.0) == tuple(
        slow["items"][0][name] for name in ("statement", "types", "duration_s")
    )
    assert 0.1 == slow["threshold_s"]


async def test_slow_statements_are_printed_newest_first_with_their_totals(clock: SetClock) -> None:
    database = stated(HEALTHY, clock)
    database.slow.note(LONG, wait_s=0, run_s=0.2)
    clock.advance(7_000)
    database.slow.note("SELECT 'ann'", wait_s=0.25, run_s=1.05, failed="57014")
    database.slow.note("SELECT 'bob'", wait_s=0, run_s=0.15)
    clock.advance(300)

    cut = f"{LONG[:57]} ... {LONG[-57:]}"
    name = database.slow.latest()[0].fingerprint
    assert [
        "Last 2 of 3 slow statements",
        "time (UTC) ms wait failed fingerprint statement",
        f"13:56:40Z 150.0 0.0 - {name} credits: SELECT ?",
        f"13:56:40Z 1,300.0 250.0 57014 {name} credits: SELECT ?",
        "Slow statements by the time they took",
        "last count failed ms in all longest statement",
        "5 min ago 2 1 1,450.0 1,300.0 credits: SELECT ?",
        f"2 h ago 1 0 200.0 200.0 credits: {cut}",
    ] == lines_of(await run(clock, [database], "slow", "--limit", "2", COLUMNS="250"))


async def test_without_a_slow_statement_the_threshold_is_said(clock: SetClock) -> None:
    assert ["No statement took longer than 100 ms"] == lines_of(
        await run(clock, [stated(HEALTHY, clock)], "slow")
    )
    assert ["Slow statements are not looked for: TOLLKEEPER_SLOW_QUERY_MS is 0"] == lines_of(
        await run(clock, [stated(HEALTHY, clock, threshold_s=0)], "slow")
    )


@pytest.mark.parametrize("command", ["status", "slow"])
async def test_a_refusal_is_told_as_by_every_command(clock: SetClock, command: str) -> None:
    result = await run(clock, [stated(HEALTHY, clock)], command, TOLLKEEPER_API_KEY="tenant")

    assert isinstance(result.exception, CallFailed)
    assert 403 == result.exception.status
    assert "not bound to a tenant" in str(result.exception)


async def test_so_many_are_asked_for_and_no_more(clock: SetClock) -> None:
    assert 2 == (await run(clock, [], "slow", "--limit", "1001")).exit_code
