"""`tollkeeper migrate backup|backups|verify|restore|rollback|prune|keep`: copies, and ways back."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from tollkeeper.kernel.clock import SystemClock
from tollkeeper.migrate import backup_views
from tollkeeper.migrate.backup_errors import BackupError
from tollkeeper.migrate.backup_model import Level
from tollkeeper.migrate.cli import (
    AsJson,
    MigrateTerminal,
    Target,
    Which,
    app,
    look,
    places_of,
    run,
    say_left_out,
)
from tollkeeper.migrate.narration import colouring
from tollkeeper.migrate.report import Tell
from tollkeeper.migrate.runlog import RunLog, both

if TYPE_CHECKING:
    from uuid import UUID

    from tollkeeper.migrate.backup_model import KeptBackup
    from tollkeeper.migrate.equipment import Equipment

__all__ = ["app"]

BackupId = Annotated[str, typer.Argument(metavar="BACKUP", help="Id of a backup.")]


@contextmanager
def _logged(
    terminal: MigrateTerminal, *, as_json: bool
) -> "Iterator[tuple[UUID, Tell, Equipment]]":
    """Lend what backups work with, in a run that is logged."""
    from tollkeeper.migrate.service import new_run_id

    clock = SystemClock()
    run_id = new_run_id(clock)
    with RunLog(terminal.backups(), run_id, clock=clock, say=terminal.say) as log:
        tell = log.tell if as_json else both(log.tell, colouring(terminal.say_toned))
        yield run_id, tell, terminal.equipment(tell, as_json=as_json)


@app.command("backup")
def backup(
    context: typer.Context,
    target: Which = Target.ALL,
    deep: Annotated[bool, typer.Option("--deep", help="Restore it to verify it.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Never delete it by its age.")] = False,
    reason: Annotated[str, typer.Option(help="Is kept with it.")] = "by hand",
    as_json: AsJson = False,
) -> None:
    """Back the databases up, read each backup to its end, and delete those whose time is over."""
    from tollkeeper.migrate.backup import Occasion
    from tollkeeper.migrate.guarding import safe_backup, tidy

    terminal, places = look(context, target)
    if not as_json:
        say_left_out(terminal, places)
    taken = []
    level = Level.DEEP if deep else Level.READ
    with _logged(terminal, as_json=as_json) as (run_id, _, equipment):
        for name, dsn in places.dsns.items():
            occasion = Occasion(service=name, reason=reason, run_id=str(run_id))
            made = run(safe_backup(dsn, occasion, equipment, level=level))
            if keep:
                equipment.catalogue.pin(made.id)
            taken.append(equipment.catalogue.read(made.id))
        tidy(equipment, terminal.retention())
    if as_json:
        terminal.json([backup_views.backup_data(each) for each in taken])
        return
    _show(terminal, taken)


@app.command("backups")
def backups(context: typer.Context, target: Which = Target.ALL, as_json: AsJson = False) -> None:
    """List the backups that are there, and how far each was verified."""
    terminal: MigrateTerminal = context.obj
    equipment = _equipment(terminal)
    broken: list[BackupError] = []
    found = [
        kept
        for kept in equipment.catalogue.list(unreadable=broken.append)
        if kept.backup.service in target.databases
    ]
    if as_json:
        terminal.json([backup_views.backup_data(each) for each in found])
    elif found:
        _show(terminal, found)
    else:
        terminal.say(
            f"no backups in {equipment.catalogue.folder}: `tollkeeper migrate backup` takes one"
        )
    for error in broken:
        terminal.say(str(error))


@app.command("verify")
def verify(
    context: typer.Context,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[BACKUP]...", help="Else the last of each.")
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Restore it beside the live one and compare.")
    ] = False,
    checksum: Annotated[
        bool, typer.Option("--checksum", help="Only compare the files with their checksums.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Verify backups: read each to its end, or further, or less; what was found is recorded."""
    from tollkeeper.migrate.verify import verify_backup

    if deep and checksum:
        raise typer.BadParameter("give one of --deep and --checksum", param_hint="--checksum")
    level = Level.DEEP if deep else Level.CHECKSUM if checksum else Level.READ
    terminal: MigrateTerminal = context.obj
    failed: BackupError | None = None
    looked_at: list[str] = []
    with _logged(terminal, as_json=as_json) as (_, _, equipment):
        chosen = ids or _last_of_each(equipment)
        if not chosen:
            terminal.say(f"no backups in {equipment.catalogue.folder}")
        for identifier in chosen:
            service = equipment.catalogue.read(identifier).backup.service
            dsn = terminal.migrated_databases([service]).dsns[service] if deep else None
            try:
                run(verify_backup(identifier, level, equipment, dsn=dsn))
            except BackupError as error:
                failed = failed or error
                terminal.say(str(error))
            looked_at.append(identifier)
    kept = [equipment.catalogue.read(each) for each in looked_at]
    if as_json:
        terminal.json([backup_views.backup_data(each) for each in kept])
    elif kept:
        _show(terminal, kept)
    if failed is not None:
        raise failed


@app.command("restore")
def restore(
    context: typer.Context,
    identifier: BackupId,
    to: Annotated[str, typer.Option("--to", metavar="NAME", help="Name of the new database.")],
    as_json: AsJson = False,
) -> None:
    """Restore a backup into a new database on its server; never over one that is there."""
    from tollkeeper.migrate.restore import restore_backup

    terminal: MigrateTerminal = context.obj
    with _logged(terminal, as_json=as_json) as (_, _, equipment):
        service = equipment.catalogue.read(identifier).backup.service
        dsn = terminal.migrated_databases([service]).dsns[service]
        restored = run(restore_backup(dsn, identifier, to, equipment))
    if as_json:
        terminal.json({"database": to, "backup": restored.id, "rows": restored.snapshot.rows})
        return
    terminal.say(f"{to} has what {restored.id} has: {restored.snapshot.rows} rows, verified")


@app.command("rollback")
def rollback(
    context: typer.Context,
    target: Annotated[Target, typer.Argument(help="Which database; one at a time.")],
    to: Annotated[
        int | None,
        typer.Option("--to", metavar="VERSION", min=0, help="Version to go back to."),
    ] = None,
    identifier: Annotated[
        str | None, typer.Option("--backup", metavar="BACKUP", help="Backup to go back to.")
    ] = None,
    accept_loss: Annotated[
        int,
        typer.Option(
            "--accept-loss", metavar="N", min=0, help="Transactions (or rows) that may be lost."
        ),
    ] = 0,
    undo: Annotated[
        bool, typer.Option("--undo", help="Put back what the last rollback has put aside.")
    ] = False,
    reopen: Annotated[
        bool, typer.Option("--reopen", help="Open a database that a cut rollback left closed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Go back: by the files' own SQL where all have it, else to a backup, restored beside.

    Without --to and --backup, what the last run has applied is taken back.
    """
    from tollkeeper.migrate.back import Back, Destination

    if target is Target.ALL:
        raise typer.BadParameter("name one database", param_hint="target")
    if sum([to is not None, identifier is not None, undo, reopen]) > 1:
        raise typer.BadParameter("give one of --to, --backup, --undo, --reopen", param_hint="--to")
    terminal, places = places_of(context, target)
    with _logged(terminal, as_json=as_json) as (run_id, tell, equipment):
        back = Back(
            places.dsns[target.value], target.value, equipment, run_id=run_id, tell=tell,
            accept_loss=accept_loss,
        )  # fmt: skip
        if reopen:
            was_closed = run(back.reopen())
            if as_json:
                terminal.json({"database": target.value, "was_closed": was_closed})
            else:
                terminal.say(
                    "it is open again" if was_closed else "it was not closed by a rollback"
                )
            return
        where = Destination(version=to, backup=identifier, is_undo=undo)
        done = run(back.go(where))
    if as_json:
        terminal.json(done.as_data())
        return
    terminal.say(done.sentence())


@app.command("prune")
def prune(
    context: typer.Context,
    confirm: Annotated[
        bool, typer.Option("--confirm", help="Delete; without it, only say what would be.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Delete the backups whose time is over; never one of the last that were verified."""
    from tollkeeper.migrate.prune import prune as prune_backups

    terminal: MigrateTerminal = context.obj
    with _logged(terminal, as_json=as_json) as (_, tell, equipment):
        pruning = prune_backups(
            equipment.catalogue, now=SystemClock().now(), policy=terminal.retention(), log=tell,
            confirmed=confirm,
        )  # fmt: skip
    if as_json:
        terminal.json(backup_views.pruning_data(pruning))
        return
    rows = backup_views.pruning_rows(pruning)
    if rows:
        title = "Deleted" if pruning.is_done else "Would be deleted; give --confirm to do it"
        terminal.table(title, backup_views.PRUNING_COLUMNS, rows)
    terminal.say(backup_views.pruning_sentence(pruning))


@app.command("keep")
def keep(
    context: typer.Context,
    identifier: BackupId,
    off: Annotated[bool, typer.Option("--off", help="Let it go when its time has come.")] = False,
) -> None:
    """Keep a backup however old it becomes."""
    terminal: MigrateTerminal = context.obj
    catalogue = _equipment(terminal).catalogue
    if off:
        catalogue.unpin(identifier)
        terminal.say(f"{identifier} goes when its time has come")
        return
    catalogue.pin(identifier)
    terminal.say(f"{identifier} is kept until `tollkeeper migrate keep --off {identifier}`")


def _show(terminal: MigrateTerminal, backups: "Sequence[KeptBackup]") -> None:
    rows = [backup_views.row_of(each) for each in backups]
    tones = [backup_views.tone_of(each) for each in backups]
    terminal.table("Backups (times are UTC)", backup_views.COLUMNS, rows, tones)


def _equipment(terminal: MigrateTerminal) -> "Equipment":
    return terminal.equipment(colouring(terminal.say_toned), as_json=True)


def _last_of_each(equipment: "Equipment") -> Sequence[str]:
    last = {kept.backup.service: kept.backup.id for kept in equipment.catalogue.list()}
    return list(last.values())
