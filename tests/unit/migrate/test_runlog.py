"""The log of a run on a real disk."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIG_IGN, SIGXFSZ, signal
from uuid import UUID

from tollkeeper.kernel.clock import SystemClock
from tollkeeper.migrate.runlog import RunLog

RUN = UUID(int=1)


@contextmanager
def no_room_behind(size_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size."""
    before, limits = signal(SIGXFSZ, SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal(SIGXFSZ, before)


def test_line_that_cannot_be_written_is_said_once_and_costs_no_other(tmp_path: Path) -> None:
    said: list[str] = []
    with RunLog(tmp_path, RUN, clock=SystemClock(), say=said.append) as log:
        log.tell({"event": "first"})
        with no_room_behind(log.path.stat().st_size + 10):
            log.tell({"event": "second"})
            log.tell({"event": "third"})
        log.tell({"event": "fourth"})

    lines = log.path.read_text().splitlines()
    assert ["first", "fourth"] == [json.loads(lines[at])["event"] for at in (0, -1)]
    assert 1 == len(said)
    assert str(log.path) in said[0]
