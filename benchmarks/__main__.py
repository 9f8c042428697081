"""Runs the benchmarks, prints the table, saves everything as JSON."""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from benchmarks import startup
from benchmarks.bench import Bench
from benchmarks.credits import (
    checkpoints,
    engine,
    growth,
    holds,
    http,
    partitions,
    reads,
    reconciliation,
    verification,
)
from benchmarks.figures import Figure, table_of
from benchmarks.machine import Machine, server_facts, this_machine
from benchmarks.migrate import copies, live
from benchmarks.pool import side_by_side
from benchmarks.posterior import side_by_side as statistics
from benchmarks.shadow import http as shadow_http
from benchmarks.shadow import outcomes
from tollkeeper.database.connect import connector
from tollkeeper.database.embedded import EmbeddedServer

BENCHMARKS: Mapping[str, Callable[[Bench], list[Figure]]] = {
    "engine": engine.measure,
    "holds": holds.measure,
    "verification": verification.measure,
    "checkpoints": checkpoints.measure,
    "reconciliation": reconciliation.measure,
    "migrate": live.measure,
    "backups": copies.measure,
    "partitions": partitions.measure,
    "pool": side_by_side.measure,
    "outcomes": outcomes.measure,
    "posterior": statistics.measure,
    "shadow_http": shadow_http.measure,
    "http": http.measure,
    "balance_read": reads.measure,
    "startup": startup.measure,
    "growth": growth.measure,
}
"""Every benchmark by the name `--only` takes, in the order they run."""

TABLE_WIDTH = 160
"""Characters of the table where there is no terminal to ask."""

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> int:
    """Run what was asked for; exit code 1 when a target was missed."""
    options = _options()
    progress = Console(stderr=True, highlight=False, soft_wrap=True)
    with (
        tempfile.TemporaryDirectory(prefix="tollkeeper-bench-", dir=options.directory) as directory,
        EmbeddedServer.start(Path(directory) / "server", say=progress.print) as server,
    ):
        machine = this_machine(Path(directory))
        facts = asyncio.run(_facts(server.dsn("postgres")))
        progress.print(f"[bold]{machine}, PostgreSQL {facts['server_version']}[/]")
        bench = Bench(
            server=server,
            directory=Path(directory),
            quick=options.quick,
            soak=options.only == ["growth"],
            say=lambda line: progress.print(f"  {line}"),
        )
        figures: list[Figure] = []
        for name in options.only or BENCHMARKS:
            progress.print(f"[bold]{name}[/]")
            figures += BENCHMARKS[name](bench)
    result = _result(machine, facts, figures, quick=options.quick)
    path = _save(result, machine)
    if options.json:
        json.dump(result, sys.stdout, indent=2)
        print()
    else:
        title = f"{machine}, PostgreSQL {facts['server_version']}"
        output = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH)
        output.print(table_of(figures, title))
    progress.print(f"saved in {path}")
    return 1 if any(figure.is_met is False for figure in figures) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="short rounds: a first look, rough figures"
    )
    parser.add_argument("--only", action="append", choices=BENCHMARKS, help="this one (repeatable)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument(
        "--directory", type=Path, help="where the database's temporary directory is made"
    )
    return parser.parse_args()


async def _facts(dsn: str) -> dict[str, str]:
    connection = await connector(dsn)()
    try:
        return await server_facts(connection)
    finally:
        await connection.close()


def _result(
    machine: Machine, facts: Mapping[str, str], figures: list[Figure], *, quick: bool
) -> dict[str, object]:
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "machine": asdict(machine),
        "postgresql": dict(facts),
        "figures": [{**asdict(figure), "is_met": figure.is_met} for figure in figures],
    }


def _save(result: Mapping[str, object], machine: Machine) -> Path:
    RESULTS.mkdir(exist_ok=True)
    day = f"{datetime.now(UTC):%Y-%m-%dT%H%M%S}"
    path = RESULTS / f"{day}-{machine.commit}.json"
    path.write_text(json.dumps(result, indent=2), encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())
