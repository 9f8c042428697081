"""The command `tollkeeper migrate`. Where a database is, the caller knows: it passes `dsn_of`."""

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Annotated

import typer

from tollkeeper.kernel.clock import SystemClock
from tollkeeper.migrate.model import DATABASES, Migration


class Target(StrEnum):
    """Which databases to migrate."""

    CREDITS = "credits"
    ACCESS = "access"
    ALL = "all"

    @property
    def databases(self) -> Sequence[str]:
        """Return the databases in the order in which they are migrated."""
        return DATABASES if self is Target.ALL else (self.value,)


def migrate_command(dsn_of: Callable[[str], str]) -> Callable[[Target, bool, bool], None]:
    """Return the command for `app.command("migrate")`; `dsn_of` gives the DSN of a database."""

    def migrate(
        target: Annotated[Target, typer.Argument(help="Which databases.")] = Target.ALL,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Say what would be applied; change nothing.")
        ] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Bring the databases to this version's schema."""
        # Every DSN before any change: half of `all` would be worse than nothing.
        dsns = {database: dsn_of(database) for database in target.databases}
        asyncio.run(_check(dsns))
        results = []
        for database, dsn in dsns.items():
            migrations = asyncio.run(_migrate(database, dsn, dry_run=dry_run))
            results.append(_as_data(database, migrations, dry_run=dry_run))
            if not as_json:
                typer.echo(_as_text(database, migrations, dry_run=dry_run))
        if as_json:
            typer.echo(json.dumps(results, indent=2))

    return migrate


async def _check(dsns: Mapping[str, str]) -> None:
    from tollkeeper.database import preflight

    await preflight.check({f"TOLLKEEPER_{name.upper()}_DSN": dsn for name, dsn in dsns.items()})


async def _migrate(database: str, dsn: str, *, dry_run: bool) -> tuple[Migration, ...]:
    # `tollkeeper --help` must not load the database driver.
    from tollkeeper.migrate import service

    if dry_run:
        return await service.rehearse(dsn, database)

    def say(line: str) -> None:
        typer.echo(line, err=True)

    return await service.migrate(dsn, database, clock=SystemClock(), say=say)


def _as_data(database: str, migrations: Iterable[Migration], *, dry_run: bool) -> dict[str, object]:
    return {
        "database": database,
        "dry_run": dry_run,
        "migrations": [
            {"version": each.version, "name": each.name, "checksum": each.checksum}
            for each in migrations
        ],
    }


def _as_text(database: str, migrations: Sequence[Migration], *, dry_run: bool) -> str:
    if not migrations:
        return f"{database}: up to date"
    verb = "would apply" if dry_run else "applied"
    return f"{database}: {verb} {', '.join(each.file for each in migrations)}"
