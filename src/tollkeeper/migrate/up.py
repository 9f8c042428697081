"""One run of `tollkeeper migrate up` over several databases, in order, until one fails.

A run that failed or was cut is run again: what is done is done, and it goes on from there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tollkeeper.kernel.clock import Clock
from tollkeeper.kernel.errors import TollkeeperError
from tollkeeper.migrate import service, views
from tollkeeper.migrate.model import head_of
from tollkeeper.migrate.narration import narrating
from tollkeeper.migrate.report import FileReport, Tell
from tollkeeper.migrate.runlog import RunLog, both
from tollkeeper.migrate.runner import Before


class Terminal(Protocol):
    """Where a run says what it does."""

    def backups(self) -> Path:
        """Return the folder of backups and logs of runs."""

    def say(self, text: str) -> None:
        """Print a sentence to standard error."""

    def json(self, document: object) -> None:
        """Print one JSON document to standard output."""

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print rows."""


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


class Up:
    """A run over several databases."""

    def __init__(
        self,
        terminal: Terminal,
        dsns: Mapping[str, str],
        *,
        clock: Clock,
        to: int | None = None,
        as_json: bool = False,
    ) -> None:
        self._terminal = terminal
        self._dsns = dsns
        self._clock = clock
        self._to = to
        self._as_json = as_json
        self._run_id = service.new_run_id(clock)

    async def rehearse(self) -> None:
        """Try every pending file in a unit of work that is undone; change nothing.

        Raises:
            TollkeeperError: what `run` would have met.
        """
        tried: dict[str, tuple[FileReport, ...]] = {}
        for name, dsn in self._dsns.items():
            tried[name] = await service.dry_up(self._one(name, dsn, self._narrator()), to=self._to)
        if self._as_json:
            self._terminal.json(
                [
                    {
                        "database": name,
                        "dry_run": True,
                        "files": [each.as_data() for each in reports],
                    }
                    for name, reports in tried.items()
                ]
            )
            return
        rows = [views.report_row(each) for reports in tried.values() for each in reports]
        if rows:
            self._terminal.table(
                "Would be applied; nothing was changed", views.REPORT_COLUMNS, rows
            )
        else:
            self._terminal.say("nothing to apply: every schema is up to date")

    async def run(self) -> None:
        """Apply every pending file, and say what became of each database.

        Raises:
            TollkeeperError: the first failure; the databases after it were not touched.
        """
        outcomes: list[Outcome] = []
        failure: TollkeeperError | None = None
        with RunLog(self._terminal.backups(), self._run_id, clock=self._clock) as log:
            tell = both(log.tell, self._narrator())
            log.tell({"event": "migrate.run", "databases": list(self._dsns)})
            for name, dsn in self._dsns.items():
                outcome, failure = await self._database(name, dsn, tell)
                outcomes.append(outcome)
                if failure is not None:
                    break
            log.tell({"event": "migrate.run_over", "failed": failure is not None})
        self._show(outcomes, log.path)
        if failure is not None:
            raise failure

    async def _database(
        self, name: str, dsn: str, tell: Tell
    ) -> tuple[Outcome, TollkeeperError | None]:
        """Migrate one database; what was done before a failure is told as well."""
        reports: list[FileReport] = []
        before = 0
        failure: TollkeeperError | None = None
        try:
            known = await service.status(dsn, name, service.shipped_migrations(name))
            before = head_of(known.applied)
            await service.up(self._one(name, dsn, tell), to=self._to, done=reports.append)
        except TollkeeperError as error:
            failure = error
            tell({"event": "migrate.failed", "database": name, "reason": str(error)})
        outcome = Outcome(
            database=name,
            before=before,
            reports=tuple(reports),
            failed=None if failure is None else str(failure),
        )
        return outcome, failure

    def _one(self, name: str, dsn: str, tell: Tell, before: Before | None = None) -> service.Run:
        return service.Run(
            dsn=dsn,
            database=name,
            available=service.shipped_migrations(name),
            clock=self._clock,
            run_id=self._run_id,
            tell=tell,
            before=before,
        )

    def _narrator(self) -> Tell:
        return narrating(self._terminal.say)

    def _show(self, outcomes: Sequence[Outcome], log: Path) -> None:
        if self._as_json:
            self._terminal.json(
                {
                    "run": str(self._run_id),
                    "log": str(log),
                    "databases": [_as_data(each) for each in outcomes],
                    "not_touched": list(self._dsns)[len(outcomes) :],
                }
            )
            return
        rows = [_as_row(each) for each in outcomes]
        rows += [(name, *[""] * 6, "not touched") for name in list(self._dsns)[len(outcomes) :]]
        self._terminal.table("Migrations", views.SUMMARY_COLUMNS, rows)
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
        outcome.backup or "",
        done if outcome.failed is None else "failed",
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
