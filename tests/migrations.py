"""Migrations that tests make up, and how they are run: here, or in a process that is killed."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from tests.nursery import Program, start

from tollkeeper.database.binaries import all_binaries, inspect_installation
from tollkeeper.database.connect import connector
from tollkeeper.database.driver import Connection
from tollkeeper.kernel.backoff import Backoff
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.migrate.model import Migration
from tollkeeper.migrate.narration import narrating
from tollkeeper.migrate.script import migration_from
from tollkeeper.migrate.service import Run, new_run_id, up
from tollkeeper.migrate.session import Patience

DEADLINE_S = 20.0
CLOCK = SystemClock()
HASTY = Patience(
    runner_wait_s=0.05,
    poll_interval_s=0.01,
    lock_timeout_ms=50,
    backoff=Backoff(first_ms=1, ceiling_ms=1, retries=2),
)

KILLED_AT = """
import asyncio, os, pathlib, signal, sys
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.migrate.service import Run, new_run_id, read_migrations, up

def tell(event, seen=[]):
    if event["event"] in {"migrate.statement_begins", "migrate.statement", "migrate.applied"}:
        seen.append(event)
        if len(seen) == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)

clock = SystemClock()
available = read_migrations(pathlib.Path(sys.argv[2]))
run = Run(
    dsn=sys.argv[1], database="credits", available=available, clock=clock,
    run_id=new_run_id(clock), tell=tell,
)
asyncio.run(up(run))
"""


def step(version: int, text: str) -> Migration:
    """Make a migration of `credits`; `text` begins behind `-- up`."""
    return migration_from("credits", f"{version:04}_step.sql", f"-- up\n{text}\n")


def steps(*texts: str) -> Sequence[Migration]:
    """Make migrations of `credits`, one of each text."""
    return [step(version, text) for version, text in enumerate(texts, start=1)]


def run_of(
    dsn: str,
    available: Sequence[Migration],
    *,
    say: Callable[[str], None] = lambda _: None,
    patience: Patience | None = None,
    database: str = "credits",
) -> Run:
    """Describe a run on a database."""
    return Run(
        dsn=dsn, database=database, available=available, clock=CLOCK, run_id=new_run_id(CLOCK),
        tell=narrating(say), patience=patience or Patience(),
    )  # fmt: skip


async def applied_to(
    dsn: str,
    available: Sequence[Migration],
    *,
    say: Callable[[str], None] = lambda _: None,
    patience: Patience | None = None,
    database: str = "credits",
) -> tuple[Migration, ...]:
    """Bring a database to the last of `available` and return what was applied."""
    reports = await up(run_of(dsn, available, say=say, patience=patience, database=database))
    return tuple(report.migration for report in reports)


def put(folder: Path, available: Sequence[Migration]) -> Path:
    """Write migrations as files and return their folder."""
    place = folder / "credits"
    place.mkdir(parents=True)
    for each in available:
        (place / each.file.rpartition("/")[2]).write_text(each.source, encoding="utf-8")
    return place


def start_killed_at(dsn: str, folder: Path, event: int) -> Program:
    """Start a run in a process that kills itself at its n-th event, counted from 1."""
    return start("-c", KILLED_AT, dsn, str(folder), str(event), environment=os.environ)


def was_killed(process: Program) -> bool:
    """Wait for such a process; False if it came to its end."""
    code = process.wait(timeout=60)
    assert code in {0, -signal.SIGKILL}
    return code != 0


async def eventually(condition: Callable[[], Awaitable[object]]) -> None:
    """Wait until a condition is true."""
    async with asyncio.timeout(DEADLINE_S):
        while not await condition():
            await asyncio.sleep(0.005)


async def is_waiting_for(observer: Connection, event: str) -> bool:
    """Tell whether a runner waits for an event of `pg_stat_activity`."""
    count = await observer.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name LIKE 'tollkeeper migrate %' AND wait_event = $1",
        event,
    )
    return bool(count)


async def schema_of(connection: Connection) -> Mapping[str, str]:
    """Describe every index, table and column there is, apart from the runner's own."""
    rows = await connection.fetch(
        """
        SELECT c.relname || coalesce('.' || a.attname, '') AS name,
            c.relkind::text || coalesce(format_type(a.atttypid, a.atttypmod), '')
            || coalesce(i.indisvalid::text, '') AS what
        FROM pg_class AS c
        LEFT JOIN pg_index AS i ON i.indexrelid = c.oid
        LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        WHERE c.relnamespace = 'public'::regnamespace AND c.relname !~ '^tollkeeper_migration'
        """
    )
    return {row["name"]: row["what"] for row in rows}


async def dump_of(dsn: str, *options: str) -> list[str]:
    """Return the lines of a dump, apart from the random key of newer servers."""
    connection = await connector(dsn)()
    major = connection.get_server_version().major
    await connection.close()
    [binaries] = [each for each in all_binaries() if inspect_installation(each).major == major]
    process = await asyncio.create_subprocess_exec(
        str(binaries / "pg_dump"), *options, dsn, stdout=subprocess.PIPE
    )
    said, _ = await process.communicate()
    assert 0 == process.returncode
    lines = said.decode().splitlines()
    return [line for line in lines if not line.startswith(("\\restrict", "\\unrestrict"))]
