"""What the figures were measured on: machine, versions, commit. Saved with every result."""

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tollkeeper.database.driver import Connection
from tollkeeper.database.queries import load_queries


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The machine and what runs on it."""

    processor: str
    cores: int
    memory_gib: float
    kernel: str
    python: str
    file_system: str
    commit: str

    def __str__(self) -> str:
        return (
            f"{self.cores} cores of {self.processor}, {self.memory_gib:.0f} GiB, {self.kernel}, "
            f"{self.file_system}, Python {self.python}, commit {self.commit}"
        )


def this_machine(data: Path) -> Machine:
    """Describe this machine; `data` is where the database lies."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        processor=_processor(),
        cores=_cores(),
        memory_gib=round(memory / 2**30, 1),
        kernel=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        file_system=_file_system(data.resolve()),
        commit=_commit(),
    )


async def server_facts(connection: Connection) -> dict[str, str]:
    """Return the server's version and every setting that is not PostgreSQL's own default."""
    rows = await connection.fetch(load_queries("benchmarks")["server_facts"])
    return {row["name"]: row["value"] for row in rows}


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _file_system(path: Path) -> str:
    """Return the type of the file system: on one that lives in memory, durability costs nothing."""
    mounts = Path("/proc/self/mounts")
    if not mounts.exists():
        return "unknown file system"
    found, longest = "unknown file system", -1
    for line in mounts.read_text(encoding="utf-8").splitlines():
        _, place, kind, *_ = line.split()
        if path.is_relative_to(place) and len(place) > longest:
            found, longest = kind, len(place)
    return found


def _commit() -> str:
    root = Path(__file__).resolve().parent.parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=10"],
            cwd=root, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()
