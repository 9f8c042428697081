"""Starting: the time from `tollkeeper up` until `/health/ready` answers 200 over HTTP.

Each round starts in an empty directory (a new database cluster, all migrations, a development key),
stops in order, and starts again on what is there. The time begins before the process does.
"""

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.credits.http import free_port
from benchmarks.figures import Figure

POLL_S = 0.01
DEADLINE_S = 60.0


def measure(bench: Bench) -> list[Figure]:
    """Return the time to the first good answer, from nothing and on existing data."""
    empty: list[float] = []
    existing: list[float] = []
    for _ in range(bench.rounds):
        data = bench.fresh_directory("startup")
        for what, found in (("from nothing", empty), ("on existing data", existing)):
            found.append(_start_and_stop(data))
            bench.say(f"up, {what}: {found[-1]:.2f} s, load {os.getloadavg()[0]:.1f}")
    return [
        _figure("`tollkeeper up` answers, from nothing", empty, at_most_s=10.0),
        _figure("`tollkeeper up` answers, on existing data", existing, at_most_s=3.0),
    ]


def _figure(what: str, found_s: Sequence[float], *, at_most_s: float) -> Figure:
    return Figure(
        what=what,
        value=statistics.median(found_s),
        unit="s",
        target=at_most_s,
        at_most=True,
        note=f"{len(found_s)} rounds, {min(found_s):.2f} to {max(found_s):.2f} s",
    )


def _start_and_stop(data: Path) -> float:
    """Return the seconds until it was ready."""
    port = free_port()
    settings = {name: os.environ[name] for name in os.environ if not name.startswith("TOLLKEEPER_")}
    ports = ("--port", str(port), "--shadow-port", str(free_port()))
    command = [sys.executable, "-m", "tollkeeper", "up", "--data", str(data), *ports]
    began = time.perf_counter()
    with subprocess.Popen(
        command, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            while not _is_ready(port):
                if process.poll() is not None or time.perf_counter() - began > DEADLINE_S:
                    raise RuntimeError(f"`{' '.join(command)}` did not become ready")
                time.sleep(POLL_S)
            return time.perf_counter() - began
        finally:
            process.send_signal(signal.SIGTERM)


def _is_ready(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
