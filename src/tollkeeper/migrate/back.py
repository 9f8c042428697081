"""Goes back: by the files' own SQL where all have it, else to a backup; states what is lost."""

from dataclasses import dataclass
from uuid import UUID

from tollkeeper.database.errors import DatabaseError
from tollkeeper.migrate import service
from tollkeeper.migrate.equipment import Equipment
from tollkeeper.migrate.errors import (
    MigrationError,
    NothingToTakeBack,
    NotReversible,
    NoWayBack,
)
from tollkeeper.migrate.guarding import backing_up
from tollkeeper.migrate.model import AppliedMigration, head_of
from tollkeeper.migrate.report import FileReport, Tell
from tollkeeper.migrate.rollback import Rollback, reopen_database, roll_back, undo_rollback


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where to: a version, a backup, before the last rollback; else before the last run."""

    version: int | None = None
    backup: str | None = None
    is_undo: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone:
    """What going back has done: files taken back, or a database swapped in."""

    database: str
    files: tuple[FileReport, ...] = ()
    swapped: Rollback | None = None
    is_undo: bool = False

    @property
    def lost(self) -> int:
        """Return how many rows or transactions were lost."""
        if self.swapped is not None:
            return self.swapped.lost
        return sum(sum(each.lost.values()) for each in self.files)

    def sentence(self) -> str:
        """Say it for people."""
        if self.swapped is not None:
            done = "what was put aside is live again" if self.is_undo else (
                f"{self.swapped.backup} is live"
            )  # fmt: skip
            undo = f"`tollkeeper migrate rollback {self.database} --undo` puts it back, "
            return (
                f"{self.database}: {done}; lost: {self.swapped.lost_detail}. What was live before "
                f"is closed and kept as {self.swapped.kept}: {'' if self.is_undo else undo}"
                "dropdb removes it"
            )
        names = ", ".join(each.migration.file for each in self.files)
        return f"{self.database}: took back {names}; rows lost: {self.lost}"

    def as_data(self) -> dict[str, object]:
        """Return it as JSON says it."""
        swapped = self.swapped
        return {
            "database": self.database,
            "files": [each.as_data() for each in self.files],
            "backup": None if swapped is None else swapped.backup,
            "kept": None if swapped is None else swapped.kept,
            "is_undo": self.is_undo,
            "lost": self.lost,
            "lost_detail": None if swapped is None else swapped.lost_detail,
        }


class Back:
    """One way back of one database."""

    def __init__(
        self,
        dsn: str,
        database: str,
        equipment: Equipment,
        *,
        run_id: UUID,
        tell: Tell,
        accept_loss: int,
    ) -> None:
        self._dsn = dsn
        self._database = database
        self._equipment = equipment
        self._accept_loss = accept_loss
        self._run = service.Run(
            dsn=dsn, database=database, available=service.shipped_migrations(database),
            clock=equipment.clock, run_id=run_id, tell=tell,
            before=backing_up(dsn, equipment, run_id=str(run_id)),
        )  # fmt: skip

    async def reopen(self) -> bool:
        """Open the database if a cut rollback has left it closed; return whether it had."""
        return await reopen_database(self._dsn, self._database, self._equipment)

    async def go(self, where: Destination) -> Gone:
        """Go back.

        Raises:
            MigrationError, BackupError: what was live is live as before.
        """
        if where.is_undo:
            done = await undo_rollback(
                self._dsn, self._database, accept_loss=self._accept_loss, equipment=self._equipment
            )
            return await self._swapped(done, is_undo=True)
        if where.backup is not None:
            return await self._to_backup(where.backup)
        await self.reopen()
        known = await service.status(self._dsn, self._database, self._run.available)
        to = before_last_run(self._database, known.applied) if where.version is None else (
            where.version
        )  # fmt: skip
        try:
            files = await service.down(self._run, to=to, accepted_rows=self._accept_loss)
        except NotReversible as error:
            chosen = self._backup_at(to)
            if chosen is None:
                raise NoWayBack(database=self._database, version=to) from error
            return await self._to_backup(chosen)
        if not files:
            raise NothingToTakeBack(database=self._database, version=head_of(known.applied))
        return Gone(database=self._database, files=files)

    def _backup_at(self, version: int) -> str | None:
        """Return the newest good backup that was taken at a version."""
        for kept in reversed(self._equipment.catalogue.list(self._database)):
            if kept.is_good and kept.backup.version == version:
                return kept.backup.id
        return None

    async def _to_backup(self, identifier: str) -> Gone:
        done = await roll_back(
            self._dsn, self._database, identifier,
            accept_loss=self._accept_loss, equipment=self._equipment,
        )  # fmt: skip
        return await self._swapped(done, is_undo=False)

    async def _swapped(self, done: Rollback, *, is_undo: bool) -> Gone:
        try:
            await service.remember_restored(
                self._run, backup=done.backup, kept=done.kept, lost=done.lost,
                lost_detail=done.lost_detail,
            )  # fmt: skip
        except (MigrationError, DatabaseError) as error:
            # It is done: whoever is told that it failed would do it again.
            self._run.tell(
                {"event": "rollback.not_noted", "database": self._database, "reason": str(error)}
            )
        return Gone(database=self._database, swapped=done, is_undo=is_undo)


def before_last_run(database: str, applied: tuple[AppliedMigration, ...]) -> int:
    """Return the version before the run that applied the last file.

    What a program of before the log had applied has the run that adopted it, and no digest: that
    run has applied none of it.

    Raises:
        NothingToTakeBack: nothing was applied, or by a program that kept no runs.
    """
    ours = tuple(each for each in applied if each.digest is not None)
    last = max(applied, key=lambda each: each.version, default=None)
    if last is None or last not in ours:
        raise NothingToTakeBack(database=database, version=head_of(applied))
    return min(each.version for each in ours if each.run_id == last.run_id) - 1
