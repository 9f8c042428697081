"""One run of `tollkeeper migrate up` over several databases, in order, until one fails.

A run that failed or was cut is run again: what is done is done, and it goes on from there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from tollkeeper.kernel.clock import Clock
from tollkeeper.kernel.errors import TollkeeperError
from tollkeeper.migrate import service, views
from tollkeeper.migrate.backup_model import Level
from tollkeeper.migrate.equipment import Equipment
from tollkeeper.migrate.guarding import backing_up, tidy
from tollkeeper.migrate.model import head_of
from tollkeeper.migrate.narration import colouring
from tollkeeper.migrate.rehearsal import rehearse
from tollkeeper.migrate.report import Event, FileReport, Tell, silence
from tollkeeper.migrate.retention import Policy
from tollkeeper.migrate.runlog import RunLog, both


class Terminal(Protocol):
    """Where a run says what it does."""

    def backups(self) -> Path:
        """Return the folder of backups and logs of runs."""

    def equipment(self, log: Tell, *, as_json: bool) -> Equipment:
        """Return what backups are taken with, telling `log` and a progress bar."""

    def retention(self) -> Policy:
        """Return how long backups are kept."""

    def say(self, text: str) -> None:
        """Print a sentence to standard error."""

    def say_toned(self, text: str, tone: str) -> None:
        """Print a sentence to standard error that is `good`, `bad`, `warn` or nothing of these."""

    def json(self, document: object) -> None:
        """Print one JSON document to standard output."""

    def table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        tones: Sequence[str] = (),
    ) -> None:
        """Print rows; `tones` of the rows, if they have any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one database; `failed` is the error's sentence."""

    database: str
    before: int
    reports: tuple[FileReport, ...] = ()
    backup: str | None = None
    failed: str | None = None

    @property
    def after(self) -> int:
        """Return the version it is at now."""
        return max((each.migration.version for each in self.reports), default=self.before)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    """What was asked for; `level` is how far backups are verified."""

    to: int | None = None
    is_backed_up: bool = True
    level: Level = Level.READ
    as_json: bool = False


class Up:
    """A run over several databases."""

    def __init__(
        self, terminal: Terminal, dsns: Mapping[str, str], *, clock: Clock, options: UpOptions
    ) -> None:
        self._terminal = terminal
        self._dsns = dsns
        self._clock = clock
        self._options = options
        self._run_id = service.new_run_id(clock)

    async def dry_run(self) -> None:
        """Try every pending file in a unit of work that is undone; change nothing.

        Raises:
            TollkeeperError: what `run` would have met.
        """
        to, tell = self._options.to, self._narrator()
        tried = {
            name: await service.dry_up(self._one(name, dsn, tell), to=to)
            for name, dsn in self._dsns.items()
        }
        self._show_tried(tried, {}, "Would be applied; nothing was changed")

    async def rehearse(self) -> None:
        """Apply every pending file to a restored copy of the last good backup, and drop that.

        Raises:
            TollkeeperError: what `run` would have met on those rows, or no backup can be had.
        """
        tried: dict[str, tuple[FileReport, ...]] = {}
        backups: dict[str, str] = {}
        with RunLog(
            self._terminal.backups(), self._run_id, clock=self._clock, say=self._terminal.say
        ) as log:
            tell = both(log.tell, self._narrator())
            equipment = self._terminal.equipment(tell, as_json=self._options.as_json)
            for name, dsn in self._dsns.items():
                run = self._one(name, dsn, tell)
                if not await service.planned(dsn, name, run.available, to=self._options.to):
                    tried[name] = ()
                    continue
                backup, tried[name] = await rehearse(run, equipment, to=self._options.to)
                backups[name] = backup.id
        self._show_tried(
            tried, backups, "Applied to a copy of the last backup, which is gone again"
        )

    async def run(self) -> None:
        """Apply every pending file, and say what became of each database.

        Raises:
            TollkeeperError: the first failure; the databases after it were not touched.
        """
        outcomes: Sequence[Outcome] = ()
        failure: TollkeeperError | None = None
        with RunLog(
            self._terminal.backups(), self._run_id, clock=self._clock, say=self._terminal.say
        ) as log:
            tell = both(log.tell, self._narrator())
            equipment = self._terminal.equipment(tell, as_json=self._options.as_json)
            log.tell(
                {
                    "event": "migrate.run", "databases": list(self._dsns),
                    "is_backed_up": self._options.is_backed_up,
                }
            )  # fmt: skip
            for work in (self._looked_at, partial(self._migrated, equipment=equipment)):
                outcomes, failure = await work(tell)
                if failure is not None:
                    break
            else:
                tidy(equipment, self._terminal.retention())
            log.tell({"event": "migrate.run_over", "failed": failure is not None})
        self._show(outcomes, log.path)
        if failure is not None:
            raise failure

    async def _looked_at(self, tell: Tell) -> tuple[Sequence[Outcome], TollkeeperError | None]:
        """Look at every database before the first is changed; return the one that cannot be."""
        for name, dsn in self._dsns.items():
            available, before = service.shipped_migrations(name), 0
            try:
                before = head_of((await service.status(dsn, name, available)).applied)
                await service.planned(dsn, name, available, to=self._options.to)
            except TollkeeperError as error:
                tell({"event": "migrate.failed", "database": name, "reason": str(error)})
                return [Outcome(database=name, before=before, failed=str(error))], error
        return [], None

    async def _migrated(
        self, tell: Tell, *, equipment: Equipment
    ) -> tuple[Sequence[Outcome], TollkeeperError | None]:
        """Migrate one after the other until one fails."""
        outcomes: list[Outcome] = []
        for name, dsn in self._dsns.items():
            outcome, failure = await self._database(name, dsn, tell, equipment)
            outcomes.append(outcome)
            if failure is not None:
                return outcomes, failure
        return outcomes, None

    async def _database(
        self, name: str, dsn: str, tell: Tell, equipment: Equipment
    ) -> tuple[Outcome, TollkeeperError | None]:
        """Migrate one database; what was done before a failure is told as well."""
        reports: list[FileReport] = []
        taken: list[str] = []
        before = 0
        failure: TollkeeperError | None = None

        def hear(event: Event) -> None:
            if event["event"] == "backup.taken":
                taken.append(str(event["backup"]))
            tell(event)

        run = self._one(name, dsn, hear)
        if self._options.is_backed_up:
            heard = replace(equipment, log=hear)
            guard = backing_up(dsn, heard, run_id=str(self._run_id), level=self._options.level)
            run = replace(run, before=guard)
        try:
            before = head_of((await service.status(dsn, name, run.available)).applied)
            await service.up(run, to=self._options.to, done=reports.append)
            if not reports:  # another run may have done it while we waited
                before = head_of((await service.status(dsn, name, run.available)).applied)
        except TollkeeperError as error:
            failure = error
            tell({"event": "migrate.failed", "database": name, "reason": str(error)})
        outcome = Outcome(
            database=name,
            before=before,
            reports=tuple(reports),
            backup=taken[-1] if taken else None,
            failed=None if failure is None else str(failure),
        )
        return outcome, failure

    def _one(self, name: str, dsn: str, tell: Tell) -> service.Run:
        return service.Run(
            dsn=dsn,
            database=name,
            available=service.shipped_migrations(name),
            clock=self._clock,
            run_id=self._run_id,
            tell=tell,
        )

    def _narrator(self) -> Tell:
        """Return who tells people; where a program reads, nobody does."""
        return silence if self._options.as_json else colouring(self._terminal.say_toned)

    def _show_tried(
        self,
        tried: Mapping[str, tuple[FileReport, ...]],
        backups: Mapping[str, str],
        title: str,
    ) -> None:
        if self._options.as_json:
            self._terminal.json(
                [
                    {
                        "database": name,
                        "backup": backups.get(name),
                        "files": [each.as_data() for each in reports],
                    }
                    for name, reports in tried.items()
                ]
            )
            return
        rows = [views.report_row(each) for reports in tried.values() for each in reports]
        if rows:
            self._terminal.table(title, views.REPORT_COLUMNS, rows)
        else:
            self._terminal.say("nothing to apply: every schema is up to date")

    def _show(self, outcomes: Sequence[Outcome], log: Path) -> None:
        named = {each.database for each in outcomes}
        not_touched = [name for name in self._dsns if name not in named]
        if self._options.as_json:
            self._terminal.json(
                {
                    "run": str(self._run_id),
                    "log": str(log),
                    "databases": [_as_data(each) for each in outcomes],
                    "not_touched": not_touched,
                }
            )
            return
        rows = [_as_row(each) for each in outcomes]
        rows += [(name, *[""] * 5, "not touched", "") for name in not_touched]
        tones = ["" if each.failed is None else "bad" for each in outcomes]
        tones += ["warn"] * (len(rows) - len(tones))
        self._terminal.table("Migrations", views.SUMMARY_COLUMNS, rows, tones)
        self._terminal.say(f"every statement is in {log}")


def _as_row(outcome: Outcome) -> tuple[str, ...]:
    done = f"applied {len(outcome.reports)}" if outcome.reports else "up to date"
    return (
        outcome.database,
        str(outcome.before),
        str(outcome.after),
        str(len(outcome.reports)),
        str(sum(each.duration_ms for each in outcome.reports)),
        f"{sum(each.lock_wait_ms for each in outcome.reports):g}",
        done if outcome.failed is None else "failed",
        outcome.backup or "",
    )


def _as_data(outcome: Outcome) -> dict[str, object]:
    return {
        "database": outcome.database,
        "from": outcome.before,
        "to": outcome.after,
        "backup": outcome.backup,
        "failed": outcome.failed,
        "files": [each.as_data() for each in outcome.reports],
    }
