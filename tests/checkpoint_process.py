"""A worker's process as far as checkpoints are concerned, for a parent that kills it.

    python checkpoint_process.py DSN FILE

Makes and publishes checkpoints without a pause; writes a line after each round.
"""

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.checkpoints import running_maker  # after the path is set


async def work(dsn: str, file: Path) -> None:
    async with running_maker(dsn, file=file) as maker:
        while True:
            await maker.round()
            sys.stdout.write("round\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], Path(sys.argv[2])))
