"""Programs are kept running: real ones, that really die."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from tollkeeper.kernel.clock import SystemClock
from tollkeeper.supervisor import BoundedLog, Program, Supervised

DEADLINE_S = 30.0

GOOD_CHILD = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("leaving", flush=True), sys.exit(0)))
print("running", flush=True)
time.sleep(1000)
"""
STUBBORN_CHILD = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("running", flush=True)
time.sleep(1000)
"""
FAILING_CHILD = "import sys; sys.exit('the sky is falling')"
HOLDER = """
import asyncio, sys
from pathlib import Path
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.supervisor import Program, Supervised
async def hold():
    command = (sys.executable, "-c", "import time; print('running', flush=True); time.sleep(1000)")
    program = Program(name="child", command=command, environment={}, log=Path(sys.argv[1]))
    child = Supervised(program, clock=SystemClock(), say=print)
    child.start()
    while child.last_words != "running":
        await asyncio.sleep(0.01)
    print(child.pid, flush=True)
    await asyncio.sleep(1000)
asyncio.run(hold())
"""


def program(script: str, tmp_path: Path) -> Program:
    return Program(
        name="child",
        command=(sys.executable, "-c", script),
        environment=dict(os.environ),
        log=tmp_path / "child.log",
    )


@asynccontextmanager
async def supervised(
    script: str, tmp_path: Path, *, stop_timeout_s: float = DEADLINE_S
) -> AsyncIterator[tuple[Supervised, list[str]]]:
    said: list[str] = []
    child = Supervised(program(script, tmp_path), clock=SystemClock(), say=said.append)
    child.start()
    try:
        yield child, said
    finally:
        await child.stop(timeout_s=stop_timeout_s)


async def until(claim: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not claim():
            await asyncio.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


async def test_a_program_that_is_killed_is_started_again(tmp_path: Path) -> None:
    async with supervised(GOOD_CHILD, tmp_path) as (child, said):
        await until(lambda: child.last_words == "running")
        killed = child.pid
        assert killed is not None

        os.kill(killed, signal.SIGKILL)
        await until(lambda: child.pid not in {None, killed})

        assert said == ["child was killed by SIGKILL; starting it again"]


async def test_a_program_that_fails_is_tried_again_and_its_words_are_kept(tmp_path: Path) -> None:
    async with supervised(FAILING_CHILD, tmp_path) as (child, said):
        await until(lambda: child.failures >= 2)

        assert child.last_words == "the sky is falling"
        assert said[0] == "child ended with 1; starting it again"


async def test_a_program_that_does_not_exist_is_reported(tmp_path: Path) -> None:
    said: list[str] = []
    missing = Program(
        name="child", command=("/nowhere",), environment={}, log=tmp_path / "child.log"
    )
    child = Supervised(missing, clock=SystemClock(), say=said.append)
    child.start()

    await until(lambda: child.failures >= 1)
    await child.stop(timeout_s=DEADLINE_S)

    assert child.last_words.startswith("cannot start /nowhere:")


async def test_stop_lets_the_program_leave(tmp_path: Path) -> None:
    async with supervised(GOOD_CHILD, tmp_path) as (child, said):
        await until(lambda: child.last_words == "running")

    assert child.last_words == "leaving"
    assert child.pid is None
    assert said == []


async def test_stop_ends_a_program_that_does_not_leave(tmp_path: Path) -> None:
    async with supervised(STUBBORN_CHILD, tmp_path, stop_timeout_s=0.05) as (child, _):
        await until(lambda: child.last_words == "running")

    assert child.pid is None


async def test_stop_before_the_program_is_up_leaves_nothing(tmp_path: Path) -> None:
    async with supervised(GOOD_CHILD, tmp_path) as (child, _):
        pass

    assert child.pid is None


async def test_sigkill_of_the_supervisor_ends_the_program(tmp_path: Path) -> None:
    supervisor = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HOLDER, str(tmp_path / "child.log")),
        stdout=asyncio.subprocess.PIPE,
    )
    assert supervisor.stdout is not None
    pid = int(await supervisor.stdout.readline())
    assert is_alive(pid)

    supervisor.kill()
    await supervisor.wait()

    await until(lambda: not is_alive(pid))


def test_a_log_never_outgrows_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "child.log"
    log = BoundedLog(path, limit_bytes=100)
    for number in range(50):
        log.write(f"line {number:2}\n".encode())
    log.close()

    assert path.stat().st_size <= 100
    assert path.with_name("child.log.1").stat().st_size <= 100
    assert path.read_text().endswith("line 49\n")
    assert log.last_line == "line 49"


def test_a_log_is_continued_by_the_next_run(tmp_path: Path) -> None:
    for text in (b"first\n", b"second\n"):
        log = BoundedLog(tmp_path / "child.log")
        log.write(text)
        log.close()

    assert (tmp_path / "child.log").read_bytes() == b"first\nsecond\n"
