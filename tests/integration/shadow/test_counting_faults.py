"""Processes and servers die, and answers are lost: what was sent until it was answered counts once.

After each: the counters are what a recount of the rows gives, and what the callers were told.
"""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.conftest import Databases, temporary_server
from tests.counting import (
    Counting,
    Storm,
    Tally,
    assert_sound,
    expose,
    in_pieces,
    record,
    running_counting,
    words_of,
)
from tests.cutting_proxy import Cut, CuttingProxy
from tests.experiments import create, definition, start
from tests.integration.shadow.conftest import METRICS

from tollkeeper.database.connect import close_gently, connector
from tollkeeper.database.driver import Connection
from tollkeeper.kernel.backoff import Backoff
from tollkeeper.shadow.errors import ShadowUnavailable
from tollkeeper.shadow.model import Request

PROGRAM = Path(__file__).parents[2] / "counting_process.py"
DEADLINE_S = 60.0
QUICK = Backoff(first_ms=1, ceiling_ms=4, retries=2)
PATIENT = Backoff(first_ms=2, ceiling_ms=50, retries=100)
SERIES = [
    [Cut.AFTER],
    [Cut.BEFORE],
    [Cut.AFTER, Cut.BEFORE, Cut.AFTER],
]


@pytest.mark.parametrize("cuts", SERIES, ids=lambda cuts: "-".join(cut.value for cut in cuts))
async def test_what_was_committed_and_not_answered_is_counted_once(
    running: int, shadow_owner: Connection, shadow_dsn: str, cuts: list[Cut]
) -> None:
    requests: list[Request] = [
        record(running, "ann", "early", 2),
        expose(running, "ann", 1),
        record(running, "ann", "late", 5),
        record(running, "bob", "waits", 7),
    ]
    async with (
        CuttingProxy(shadow_dsn, cuts) as proxy,
        running_counting(proxy.dsn, lanes=1) as cut_off,
    ):
        await cut_off.execute(*requests)
        again = await cut_off.execute(*requests)
        retries = cut_off.tally.retries["database"]

    assert not proxy.cuts
    assert len(cuts) * len(requests) == retries
    assert ["counted before", "exposed before", "counted before", "waiting before"] == words_of(
        again
    )
    await assert_sound(shadow_owner, running, exposed=1, units=1, total=7)


async def test_under_load_and_many_cuts_everything_is_counted_once(
    running: int, shadow_owner: Connection, shadow_dsn: str
) -> None:
    storm = Storm(running, 100)
    cuts = [Cut.AFTER, Cut.BEFORE, Cut.PASS, Cut.PASS, Cut.PASS, Cut.PASS] * 6
    async with (
        CuttingProxy(shadow_dsn, cuts) as proxy,
        running_counting(proxy.dsn, batch=10) as cut_off,
    ):
        answers = await in_pieces(cut_off, storm.shuffled(1), callers=20)

    assert "unavailable" not in words_of(answers)
    assert len(storm.requests) == len(answers)
    await storm.assert_counted(shadow_owner, running)


async def test_backends_killed_under_load_lose_nothing(
    running: int, shadow_owner: Connection, shadow_dsn: str
) -> None:
    storm, rounds = Storm(running, 200), 0
    rows = "SELECT (SELECT count(*) FROM units) + (SELECT count(*) FROM outcomes)"
    async with running_counting(shadow_dsn, backoff=PATIENT, batch=20) as shaken:
        work = asyncio.ensure_future(in_pieces(shaken, storm.shuffled(2), callers=50))
        while not work.done():
            rounds += 1
            await shadow_owner.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE"
                " datname = current_database() AND application_name = 'tollkeeper'"
                " AND pid <> pg_backend_pid()"
            )
            # Let some commits through, so that killing cannot go on for ever.
            enough = await shadow_owner.fetchval(rows) + 40
            async with asyncio.timeout(DEADLINE_S):
                while not work.done() and enough > await shadow_owner.fetchval(rows):
                    await asyncio.sleep(0.001)
        answers = await work

    assert rounds > 1
    assert len(storm.requests) == len(answers)
    assert "unavailable" not in words_of(answers)
    await storm.assert_counted(shadow_owner, running)


class Faulty(Tally):
    """Metrics with a bug that shows twice: before a batch, and after one."""

    def __init__(self) -> None:
        super().__init__()
        self.faults = [KeyError("before"), None, KeyError("after")]

    def batch_taken(self, size: int) -> None:
        del size
        self._fail()

    def batch_decided(self, counts: Mapping[tuple[str, str], int]) -> None:
        del counts
        self._fail()

    def _fail(self) -> None:
        fault = self.faults.pop(0) if self.faults else None
        if fault is not None:
            raise fault


async def test_a_bug_in_a_lane_fails_its_batch_and_nobody_after_it(
    running: int, shadow_owner: Connection, shadow_dsn: str
) -> None:
    faulty = Faulty()
    async with (
        asyncio.timeout(DEADLINE_S),
        running_counting(shadow_dsn, lanes=1, tally=faulty) as counting,
    ):
        before = await counting.execute(expose(running, "ann"), expose(running, "bob"))
        after = await counting.execute(expose(running, "ann"))
        later = await counting.execute(expose(running, "ann"), expose(running, "bob"))
        left = counting.engine.waiting

    assert not faulty.faults
    assert ["OutcomeFailed", "OutcomeFailed"] == words_of(before)
    assert ["exposed"] == words_of(after)
    assert ["exposed before", "exposed"] == words_of(later)
    assert 0 == left
    await assert_sound(shadow_owner, running, exposed=2, units=0, total=0)


async def begin(dsn: str, experiment_no: int, units: int, seed: int) -> Process:
    """Start a process and wait until its engine runs."""
    arguments = [str(PROGRAM), dsn, str(experiment_no), str(units), "50", str(seed)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdin=PIPE, stdout=PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE_S):
        assert b"ready\n" == await process.stdout.readline()
    return process


async def test_what_a_killed_process_had_counted_is_not_counted_again(
    counting: Counting, running: int, shadow_owner: Connection, shadow_dsn: str
) -> None:
    """Killed in mid-load beside another that goes on; then somebody sends everything again."""
    units = 500
    storm = Storm(running, units)
    killed, other = [await begin(shadow_dsn, running, units, seed) for seed in (1, 2)]
    for process in (killed, other):
        assert process.stdin is not None
        process.stdin.write(b"go\n")
    assert killed.stdout is not None
    async with asyncio.timeout(DEADLINE_S):
        told = [int(await killed.stdout.readline()) for _ in range(200)]
        killed.kill()
        rest, _ = await killed.communicate()
        told += [int(line) for line in rest.splitlines(keepends=True) if line.endswith(b"\n")]
        answered, _ = await other.communicate()
    assert other.returncode == 0
    again = words_of(await counting.execute(*(storm.requests[place] for place in told)))
    everything = words_of(await in_pieces(counting, storm.requests, callers=10))

    assert len(storm.requests) == len(answered.splitlines())
    assert len(told) < len(storm.requests)
    # Who was told that something is counted finds it counted.
    assert {"exposed before", "counted before"} == set(again)
    assert {"exposed before", "counted before"} == set(everything)
    await storm.assert_counted(shadow_owner, running)


async def test_a_server_that_dies_under_load_has_counted_what_it_answered() -> None:
    with temporary_server() as server, Databases(server).fresh("shadow") as dsn:
        number = await running_experiment(dsn)
        storm, acknowledged = Storm(number, 300), list[Request]()
        async with running_counting(dsn, backoff=QUICK) as counting:
            queue = storm.shuffled(3)
            has_died = False

            async def caller() -> None:
                nonlocal has_died
                while queue and not has_died:
                    request = queue.pop()
                    (result,) = await counting.execute(request)
                    if isinstance(result, ShadowUnavailable):
                        has_died = True
                    else:
                        acknowledged.append(request)
                    if len(acknowledged) == 300:
                        os.kill(server.pid, signal.SIGKILL)

            async with asyncio.timeout(DEADLINE_S):
                await asyncio.gather(*(caller() for _ in range(30)))
            server.restart()
            kept = words_of(await counting.execute(*acknowledged))
            await counting.execute(*storm.shuffled(4))
            everything = words_of(await counting.execute(*storm.requests))

        assert has_died
        assert {"exposed before", "counted before", "waiting before"} >= set(kept)
        assert {"exposed before", "counted before"} == set(everything)
        owner = await connector(dsn)()
        await storm.assert_counted(owner, number)
        await close_gently(owner, 5)


async def running_experiment(dsn: str) -> int:
    owner = await connector(dsn)()
    number = await create(owner, wanted=definition(metrics=METRICS))
    await start(owner, number)
    await close_gently(owner, 5)
    return number
