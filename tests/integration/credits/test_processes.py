"""Several processes on one database: nothing lost, nothing twice, also when one is killed."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from pathlib import Path

from tests.ledger import Ledger, consume, words_of

from tollkeeper.database.driver import Connection

PROGRAM = Path(__file__).parents[2] / "spending_process.py"
CALLERS = 50
DEADLINE_S = 60.0


async def begin(dsn: str, rounds: int, *prefixes: str) -> Process:
    """Start a process and wait until its engine runs."""
    arguments = [str(PROGRAM), dsn, "hot", str(CALLERS), str(rounds), *prefixes]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdin=PIPE, stdout=PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE_S):
        assert b"ready\n" == await process.stdout.readline()
    return process


def let_go(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.write(b"go\n")


async def outcome(process: Process) -> Counter[str]:
    async with asyncio.timeout(DEADLINE_S):
        out, _ = await process.communicate()

    assert 0 == process.returncode
    return Counter(json.loads(out.splitlines()[-1]))


async def test_two_processes_on_one_hot_account_lose_nothing(
    ledger: Ledger, credits_dsn: str
) -> None:
    rounds = 20
    await ledger.open_with(100_000, "hot")
    processes = [await begin(credits_dsn, rounds, prefix) for prefix in ("one", "two")]
    for process in processes:
        let_go(process)
    found = sum([await outcome(process) for process in processes], Counter[str]())
    asked = 2 * CALLERS * rounds

    assert asked == found.total()
    # SPEC C2 asks for 99.9 % with 100 concurrent callers.
    assert 0.999 * asked <= found["posted"]
    assert {"posted", "unavailable"} >= set(found)
    assert 0 <= 100_000 - await ledger.balance("hot") - found["posted"] <= found["unavailable"]
    await ledger.assert_sound()


async def test_two_processes_with_the_same_keys_charge_each_once(
    ledger: Ledger, credits_dsn: str
) -> None:
    rounds = 6
    await ledger.open_with(100_000, "hot")
    processes = [await begin(credits_dsn, rounds, "shared") for _ in range(2)]
    for process in processes:
        let_go(process)
    found = sum([await outcome(process) for process in processes], Counter[str]())

    assert {"posted": CALLERS * rounds, "replayed": CALLERS * rounds} == found
    assert 100_000 - CALLERS * rounds == await ledger.balance("hot")
    await ledger.assert_sound()


async def test_what_a_killed_process_had_charged_is_not_charged_again(
    ledger: Ledger, credits_dsn: str, owner: Connection
) -> None:
    """Killed in mid-load; then somebody else sends everything again with the same keys."""
    rounds = 1_000
    await ledger.open_with(1_000_000, "hot")
    process = await begin(credits_dsn, rounds, "killed")
    let_go(process)
    async with asyncio.timeout(DEADLINE_S):
        while await owner.fetchval("SELECT version FROM accounts") < 20 * CALLERS:
            await asyncio.sleep(0.001)
    process.kill()
    await process.wait()
    keys = [f"killed-{number}-{turn}" for turn in range(60) for number in range(CALLERS)]
    results = words_of(await ledger.execute(*(consume("hot", 1, key) for key in keys)))
    charged = await owner.fetchval(
        "SELECT count(*) FROM credit_transactions WHERE kind = 'consume'"
    )

    assert {"posted", "replayed"} >= set(results)
    assert results.count("replayed") >= 15 * CALLERS
    assert charged == 1_000_000 - await ledger.balance("hot")
    assert charged == await owner.fetchval(
        "SELECT count(DISTINCT (account_id, key_hash)) - 1 FROM idempotency_keys"
    )
    await ledger.assert_sound()
