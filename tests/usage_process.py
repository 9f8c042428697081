"""A worker's process as far as usage is concerned, for a parent that kills it.

    python usage_process.py DSN

Rolls up without a pause, a few transactions at a time; writes a line after each unit of work.
"""

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.usage import running_roller  # after the path is set

from tollkeeper.credits import roller


async def work(dsn: str) -> None:
    roller.SLICE_TRANSACTIONS = 7  # type: ignore[misc]  # so that there is a middle to die in
    async with running_roller(dsn) as running:
        while True:
            await running.round()
            sys.stdout.write("round\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1]))
