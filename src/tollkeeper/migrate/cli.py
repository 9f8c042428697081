"""`tollkeeper migrate`: where the databases stand, and what brings them further.

Knows neither where the databases are nor how the screen works: `tollkeeper.cli` puts a
`MigrateTerminal` into the context. Every database is looked at before the first is changed; a run
stops at the first that fails, says what became of each, and can be run again.
"""

import asyncio
import signal
import threading
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol, TypeVar

import typer

from tollkeeper.kernel.clock import SystemClock
from tollkeeper.migrate import views
from tollkeeper.migrate.backup_errors import (
    BackupDamaged,
    BackupError,
    BackupInconsistent,
    BackupMissing,
    DatabaseInUse,
    LossNotAccepted,
)
from tollkeeper.migrate.errors import (
    DownLosesRows,
    MigrationBlocked,
    MigrationError,
    MigrationFailed,
    OtherWork,
    OutcomeUnknown,
    RunnerBusy,
    RunnerLockLost,
    RunnerRefused,
    VerifyFailed,
)
from tollkeeper.migrate.model import DATABASES
from tollkeeper.migrate.report import Status, Tell

if TYPE_CHECKING:
    from tollkeeper.migrate.equipment import Equipment
    from tollkeeper.migrate.retention import Policy

PENDING_EXIT = 10
FILES_EXIT = 11
BUSY_EXIT = 12
STATEMENT_EXIT = 13
BACKUP_EXIT = 14
DAMAGED_EXIT = 15
LOSS_EXIT = 16

_EXITS: Mapping[int, tuple[type[MigrationError], ...]] = {
    BUSY_EXIT: (RunnerBusy, RunnerLockLost, MigrationBlocked, OtherWork, DatabaseInUse),
    STATEMENT_EXIT: (MigrationFailed, VerifyFailed, OutcomeUnknown, RunnerRefused),
    LOSS_EXIT: (DownLosesRows, LossNotAccepted),
    DAMAGED_EXIT: (BackupDamaged, BackupMissing, BackupInconsistent),
    BACKUP_EXIT: (BackupError,),
}

_Result = TypeVar("_Result")


class Target(StrEnum):
    """Which databases."""

    ALL = "all"
    CREDITS = "credits"
    ACCESS = "access"
    SHADOW = "shadow"
    LOCATOR = "locator"
    CDEFNET = "cdefnet"

    @property
    def databases(self) -> Sequence[str]:
        """Return the databases in the order in which they are migrated."""
        return DATABASES if self is Target.ALL else (self.value,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the databases are; those left out have no DSN and nobody asked for them by name."""

    dsns: Mapping[str, str]
    left_out: tuple[str, ...]


class MigrateTerminal(Protocol):
    """What the commands need of the command line."""

    def migrated_databases(self, names: Sequence[str]) -> Places:
        """Return where databases are; of several, those that are configured."""

    def backups(self) -> Path:
        """Return the folder of backups and logs of runs."""

    def equipment(self, log: Tell, *, as_json: bool) -> "Equipment":
        """Return what backups are taken with, telling `log` and a progress bar."""

    def retention(self) -> "Policy":
        """Return how long backups are kept."""

    def say(self, text: str) -> None:
        """Print a sentence to standard error."""

    def say_toned(self, text: str, tone: str) -> None:
        """Print a sentence to standard error that is `good`, `bad`, `warn` or nothing of these."""

    def json(self, document: object) -> None:
        """Print one JSON document to standard output."""

    def json_lines(self, documents: Sequence[object]) -> None:
        """Print JSON documents to standard output, one a line."""

    def table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        tones: Sequence[str] = (),
    ) -> None:
        """Print rows; `tones` of the rows, if they have any."""


app = typer.Typer(
    name="migrate",
    help="Bring the databases' schemas to this version, and back.",
    epilog="Exit codes beside the usual ones: 10 files are pending (status --check); 11 files or "
    "history are not as they must be; 12 somebody else is at work or holds a lock; 13 PostgreSQL "
    "or a check refused a file; 14 no backup could be taken; 15 a backup is not whole; 16 more "
    "would be lost than was accepted.",
    no_args_is_help=True,
)

Which = Annotated[Target, typer.Argument(help="Which database; all that are configured.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
To = Annotated[
    int | None, typer.Option("--to", metavar="VERSION", min=0, help="Stop at this version.")
]


def exit_code_of(error: MigrationError) -> int:
    """Return the exit code of an error of this slice: one for each class of failure."""
    for code, kinds in _EXITS.items():
        if isinstance(error, kinds):
            return code
    return FILES_EXIT


@app.command("status")
def status(
    context: typer.Context,
    target: Which = Target.ALL,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 10 if a file is pending.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say at which version the databases are, what is pending, and whether the log is whole."""
    from tollkeeper.migrate import service

    terminal, places = look(context, target)
    found = [
        run(service.status(dsn, name, service.shipped_migrations(name)))
        for name, dsn in places.dsns.items()
    ]
    if as_json:
        terminal.json([views.status_data(each) for each in found])
    else:
        say_left_out(terminal, places)
        rows = [views.status_row(each) for each in found]
        terminal.table("Schemas", views.STATUS_COLUMNS, rows, [_tone_of(each) for each in found])
        for each in found:
            for file in each.reworded:
                terminal.say(f"{file.file} reads otherwise than what was applied; it does the same")
    if any(each.log_faults for each in found):
        raise typer.Exit(FILES_EXIT)
    if check and any(each.pending for each in found):
        raise typer.Exit(PENDING_EXIT)


@app.command("plan")
def plan(
    context: typer.Context, target: Which = Target.ALL, to: To = None, as_json: AsJson = False
) -> None:
    """Say which files `up` would apply; run nothing."""
    from tollkeeper.migrate import service

    terminal, places = look(context, target, to)
    planned = {
        name: run(service.planned(dsn, name, service.shipped_migrations(name), to=to))
        for name, dsn in places.dsns.items()
    }
    if as_json:
        terminal.json(
            [
                {"database": name, "files": [views.plan_data(each) for each in files]}
                for name, files in planned.items()
            ]
        )
        return
    say_left_out(terminal, places)
    rows = [views.plan_row(each) for files in planned.values() for each in files]
    if rows:
        terminal.table("To be applied", views.PLAN_COLUMNS, rows)
    else:
        terminal.say("nothing to apply: every schema is up to date")


@app.command("history")
def history(
    context: typer.Context,
    target: Which = Target.ALL,
    every: Annotated[bool, typer.Option("--all", help="Also the single statements.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON line for each row.")
    ] = False,
) -> None:
    """Print the log of migrations, and whether it is whole."""
    from tollkeeper.migrate import service
    from tollkeeper.migrate.history import faults

    terminal, places = look(context, target)
    logs = {name: run(service.history(dsn, name)) for name, dsn in places.dsns.items()}
    wrong = {name: faults(rows) for name, rows in logs.items()}
    if as_json:
        terminal.json_lines(
            [views.history_data(name, row) for name, rows in logs.items() for row in rows]
        )
    else:
        shown = [
            views.history_row(name, row)
            for name, rows in logs.items()
            for row in (rows if every else views.of_interest(rows))
        ]
        if shown:
            terminal.table("What was done to the schemas", views.HISTORY_COLUMNS, shown)
        else:
            terminal.say("nothing yet: the log begins with the next `tollkeeper migrate up`")
    for name, found in wrong.items():
        for fault in found:
            terminal.say(f"{name}: {fault}")
    if any(wrong.values()):
        raise typer.Exit(FILES_EXIT)


@app.command("up")
def up(
    context: typer.Context,
    target: Which = Target.ALL,
    to: To = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Apply it in one unit of work and undo that.")
    ] = False,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="Apply it to a copy of the last backup.")
    ] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Restore each backup to verify it.")] = False,
    without_backup: Annotated[
        bool,
        typer.Option("--without-backup", help="Take none: somebody else has taken one just now."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring the databases to this version's schema, or to a version; each is backed up before."""
    from tollkeeper.migrate.backup_model import Level
    from tollkeeper.migrate.up import Up, UpOptions

    if dry_run and rehearse:
        raise typer.BadParameter("give one of --dry-run and --rehearse", param_hint="--rehearse")
    terminal, places = look(context, target, to)
    if not as_json:
        say_left_out(terminal, places)
    options = UpOptions(
        to=to,
        is_backed_up=not without_backup,
        level=Level.DEEP if deep else Level.READ,
        as_json=as_json,
    )
    work = Up(terminal, places.dsns, clock=SystemClock(), options=options)
    if dry_run:
        run(work.dry_run())
    elif rehearse:
        run(work.rehearse())
    else:
        run(work.run())


def _tone_of(status: Status) -> str:
    if status.log_faults:
        return "bad"
    return "warn" if status.pending or status.cut is not None else ""


def look(
    context: typer.Context, target: Target, to: int | None = None
) -> tuple[MigrateTerminal, Places]:
    """Return where the databases are, once they were found to be possible at all.

    Raises:
        ConfigurationError: one of them can never be reached like this.
    """
    from tollkeeper.database import preflight

    if to is not None and target is Target.ALL:
        raise typer.BadParameter("name the database whose version it is", param_hint="--to")
    terminal, places = places_of(context, target)
    run(
        preflight.check(
            {f"TOLLKEEPER_{name.upper()}_DSN": dsn for name, dsn in places.dsns.items()}
        )
    )
    return terminal, places


def places_of(context: typer.Context, target: Target) -> tuple[MigrateTerminal, Places]:
    """Return where the databases are, without a look at them."""
    terminal: MigrateTerminal = context.obj
    return terminal, terminal.migrated_databases(target.databases)


def say_left_out(terminal: MigrateTerminal, places: Places) -> None:
    """Say which databases are not configured."""
    if places.left_out:
        variables = ", ".join(f"TOLLKEEPER_{name.upper()}_DSN" for name in places.left_out)
        terminal.say(f"left out: {', '.join(places.left_out)} ({variables} is not set)")


def run(work: Coroutine[object, object, _Result]) -> _Result:
    """Do the work; Ctrl-C cancels it, and so does who ends us with SIGTERM or hangs up.

    Cancelled, it takes back what it has begun: a database that was closed is opened again.
    """
    try:
        return asyncio.run(_cancelled_by_signals(work))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


async def _cancelled_by_signals(work: Coroutine[object, object, _Result]) -> _Result:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    # As for Ctrl-C: in another thread than the main one, signals are somebody else's.
    is_ours = threading.current_thread() is threading.main_thread()
    for number in (signal.SIGTERM, signal.SIGHUP) if is_ours else ():
        # `nohup` has us ignore SIGHUP: then we outlive the terminal.
        if signal.getsignal(number) != signal.SIG_IGN:
            loop.add_signal_handler(number, task.cancel)
    return await work
