"""A service's process as far as the ledger is concerned: an engine that spends, told by its parent.

    python spending_process.py DSN ACCOUNT CALLERS ROUNDS PREFIX...

Writes `ready`, waits for a line, then lets CALLERS callers spend 1 from ACCOUNT, ROUNDS times each,
once for every prefix with a key made of prefix, caller and round. Ends with a JSON object: how
often each answer came.
"""

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.ledger import consume, running_ledger, words_of  # after the path is set

from tollkeeper.telemetry.logging import configure_logging


async def spend(
    dsn: str, account_id: str, prefixes: list[str], *, callers: int, rounds: int
) -> None:
    found: Counter[str] = Counter()

    async def caller(number: int) -> None:
        for turn in range(rounds):
            for prefix in prefixes:
                key = f"{prefix}-{number}-{turn}"
                found.update(words_of(await ledger.execute(consume(account_id, 1, key))))

    async with running_ledger(dsn) as ledger:
        say("ready")
        await asyncio.to_thread(sys.stdin.readline)
        await asyncio.gather(*(caller(number) for number in range(callers)))
    say(json.dumps(found))


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    configure_logging("info", "json")  # to standard error: standard output is the answer
    dsn, account_id, callers, rounds, *prefixes = sys.argv[1:]
    asyncio.run(spend(dsn, account_id, prefixes, callers=int(callers), rounds=int(rounds)))
