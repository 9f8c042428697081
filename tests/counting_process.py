"""A service's process as far as counting is concerned: an engine, told what to do by its parent.

    python counting_process.py DSN EXPERIMENT_NO UNITS CALLERS SEED

Writes `ready`, waits for a line, then lets CALLERS callers send a storm of requests in an order of
its own. Writes the place of each request that was answered in the storm, one a line.
"""

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.counting import Storm, running_counting, words_of  # after the path is set

from tollkeeper.telemetry.logging import configure_logging


async def count(dsn: str, experiment_no: int, units: int, *, callers: int, seed: int) -> None:
    storm = Storm(experiment_no, units)
    places = {id(request): place for place, request in enumerate(storm.requests)}
    queue = storm.shuffled(seed)

    async def caller() -> None:
        while queue:
            request = queue.pop()
            (word,) = words_of(await counting.execute(request))
            if word != "unavailable":
                say(str(places[id(request)]))

    async with running_counting(dsn) as counting:
        say("ready")
        await asyncio.to_thread(sys.stdin.readline)
        await asyncio.gather(*(caller() for _ in range(callers)))


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    configure_logging("info", "json")  # to standard error: standard output is the answer
    dsn, experiment_no, units, callers, seed = sys.argv[1:]
    asyncio.run(count(dsn, int(experiment_no), int(units), callers=int(callers), seed=int(seed)))
