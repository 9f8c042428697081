"""Errors of the schema runner.

MigrationError
├── UnknownDatabase           no such folder of migrations
├── BadMigrationName          a file that is not called NNNN_what.sql
├── BadMigrationFile          a file whose sections are not as they must be
├── DuplicateVersion          two files with one number
├── MissingVersion            a number left out between the files
├── MigrationChanged          an applied file is not what it was
├── MigrationMissing          an applied file is gone
├── MigrationOutOfOrder       a later one was applied before it
├── DatabaseNewer             the database has versions this program does not know
├── UnknownVersion            no such version to go to
├── NotReversible             a file that has no way back of its own
├── NoWayBack                 neither SQL nor a verified backup leads there
├── NothingToTakeBack         nothing is known of a last run
├── HistoryBroken             the log of migrations is not what was written
├── DownLosesRows             taking it back would lose more rows than was accepted
├── OutcomeUnknown            a statement outside of a unit of work was cut and cannot be judged
├── PoolerRefused             a pooler stands between us and the server
├── OtherWork                 a dump or a restore of the database is under way
├── RunnerRefused             the server refuses the runner itself, not a file: no right to it
├── RunnerBusy                another runner holds the lock
├── RunnerLockLost            our lock was not ours at the end
├── MigrationBlocked          somebody holds a lock that the change needs
├── NotOneUnitOfWork          the file commits by itself
├── VerifyFailed              what must hold afterwards does not
└── MigrationFailed           PostgreSQL refused a statement
"""

from dataclasses import dataclass

from tollkeeper.kernel.errors import TollkeeperError


@dataclass(eq=False, kw_only=True)
class MigrationError(TollkeeperError):
    """A schema change cannot be made."""


@dataclass(eq=False, kw_only=True)
class UnknownDatabase(MigrationError):
    """There is no folder of migrations with this name."""

    database: str

    def message(self) -> str:
        """Name the database."""
        return f"there are no migrations for a database called {self.database!r}"


@dataclass(eq=False, kw_only=True)
class BadMigrationName(MigrationError):
    """A file whose name does not say its number."""

    file: str

    def message(self) -> str:
        """Name the file and the form."""
        return f"{self.file} must be called NNNN_what.sql, from 0001, in lower case"


@dataclass(eq=False, kw_only=True)
class BadMigrationFile(MigrationError):
    """A file that cannot be understood."""

    file: str
    problem: str

    def message(self) -> str:
        """Name the file and what is wrong with it."""
        return f"{self.file}: {self.problem}"


@dataclass(eq=False, kw_only=True)
class DuplicateVersion(MigrationError):
    """Two files with one number."""

    files: tuple[str, str]

    def message(self) -> str:
        """Name both files."""
        return f"{self.files[0]} and {self.files[1]} have the same number"


@dataclass(eq=False, kw_only=True)
class MissingVersion(MigrationError):
    """A number is left out: a file was lost, or is still to come."""

    database: str
    version: int

    def message(self) -> str:
        """Name the number."""
        return f"{self.database} has later migrations but none with the number {self.version:04}"


@dataclass(eq=False, kw_only=True)
class MigrationChanged(MigrationError):
    """An applied file is not what it was; both checksums are SHA-256 in hexadecimal."""

    file: str
    applied_checksum: str
    file_checksum: str
    difference: str = ""

    def message(self) -> str:
        """Name the file, show what differs and say what to do."""
        said = (
            f"{self.file} was changed after it had been applied "
            f"({self.applied_checksum[:12]} then, {self.file_checksum[:12]} now): "
            "restore it and make the change in a new file"
        )
        return f"{said}\n{self.difference}" if self.difference else said


@dataclass(eq=False, kw_only=True)
class MigrationMissing(MigrationError):
    """An applied file is gone."""

    file: str

    def message(self) -> str:
        """Name the file."""
        return f"{self.file} has been applied, but this program does not have it"


@dataclass(eq=False, kw_only=True)
class MigrationOutOfOrder(MigrationError):
    """A later one was applied before it: what it would meet is not what it was written for."""

    file: str
    later_file: str

    def message(self) -> str:
        """Name both files."""
        return f"{self.file} has not been applied, but {self.later_file} has"


@dataclass(eq=False, kw_only=True)
class DatabaseNewer(MigrationError):
    """The database has versions that this program does not know."""

    database: str
    version: int
    known_version: int

    def message(self) -> str:
        """Say both versions and what to do."""
        return (
            f"{self.database} is at version {self.version}, this program knows "
            f"{self.known_version}: use a newer Tollkeeper"
        )


@dataclass(eq=False, kw_only=True)
class UnknownVersion(MigrationError):
    """There is no such version to go to from here."""

    database: str
    version: int
    low: int
    high: int

    def message(self) -> str:
        """Say which there are."""
        return (
            f"{self.database} cannot go to version {self.version} from here: "
            f"give one of {self.low}..{self.high}"
        )


@dataclass(eq=False, kw_only=True)
class NotReversible(MigrationError):
    """Files that cannot be taken back by SQL of their own."""

    files: tuple[str, ...]

    def message(self) -> str:
        """Name them and say what can be done."""
        return (
            f"{', '.join(self.files)} cannot be taken back by SQL: roll back to a backup, "
            "which `tollkeeper migrate rollback` does when it is given none other"
        )


@dataclass(eq=False, kw_only=True)
class NoWayBack(MigrationError):
    """Neither the files' own SQL nor a verified backup leads to a version."""

    database: str
    version: int

    def message(self) -> str:
        """Say why, and where to look."""
        return (
            f"{self.database} cannot go back to version {self.version}: not every file above has "
            "SQL for it, and no verified backup is of that version; see `tollkeeper migrate "
            "backups`, and give --backup BACKUP"
        )


@dataclass(eq=False, kw_only=True)
class NothingToTakeBack(MigrationError):
    """There is no last run to take back, or it has applied nothing above the version."""

    database: str
    version: int

    def message(self) -> str:
        """Say where it is and what to give."""
        return (
            f"{self.database} is at version {self.version} and there is nothing to take back: give "
            "--to VERSION below it, or --backup BACKUP (`tollkeeper migrate backups`)"
        )


@dataclass(eq=False, kw_only=True)
class HistoryBroken(MigrationError):
    """The log of migrations was changed: its chain does not hold."""

    database: str
    faults: tuple[str, ...]

    def message(self) -> str:
        """Name the first faults."""
        return (
            f"the log of migrations of {self.database} is not what was written: "
            f"{'; '.join(self.faults[:3])}. Compare it with a backup's before anything else"
        )


@dataclass(eq=False, kw_only=True)
class DownLosesRows(MigrationError):
    """Taking files back would lose rows, more than was accepted."""

    database: str
    rows: int
    accepted: int
    places: tuple[str, ...]

    def message(self) -> str:
        """Say what would be lost and how to accept it."""
        return (
            f"{self.database}: this would lose {self.rows} rows ({', '.join(self.places)}), "
            f"and {self.accepted} were accepted: nothing was changed. If that is meant, give "
            f"--accept-loss {self.rows}"
        )


@dataclass(eq=False, kw_only=True)
class OutcomeUnknown(MigrationError):
    """A statement outside of a unit of work was cut, and its checks do not tell whether it is."""

    file: str
    reason: str

    def message(self) -> str:
        """Name the file and the reason."""
        return (
            f"{self.file} was cut on an earlier run and cannot be done again: {self.reason}. "
            "Look at what it has left, remove that, and run again"
        )


@dataclass(eq=False, kw_only=True)
class PoolerRefused(MigrationError):
    """What answers is a pooler: a lock, a snapshot and a session would be nobody's own there."""

    where: str

    def message(self) -> str:
        """Say what to do."""
        return (
            f"{self.where}: a connection pooler answers there, and this work needs a session of "
            "its own: give a DSN that leads to PostgreSQL itself"
        )


@dataclass(eq=False, kw_only=True)
class OtherWork(MigrationError):
    """Somebody reads or writes the whole database: a change would queue behind it."""

    database: str
    what: str

    def message(self) -> str:
        """Say what is under way."""
        return (
            f"{self.database}: {self.what} is under way, and a change of the schema would wait "
            "for it with everyone else behind: run again when it is over"
        )


@dataclass(eq=False, kw_only=True)
class RunnerRefused(MigrationError):
    """The server refuses what the runner itself asks: its log, its locks."""

    database: str
    reason: str

    def message(self) -> str:
        """Say what it said, and who is not refused."""
        return (
            f"the server refused the runner of {self.database} ({self.reason}): connect to the "
            "primary, as the owner of the database"
        )


@dataclass(eq=False, kw_only=True)
class RunnerBusy(MigrationError):
    """Another runner is at work."""

    database: str
    holder: str
    waited_s: float

    def message(self) -> str:
        """Say who holds the lock."""
        return (
            f"another runner has been migrating {self.database} for more than "
            f"{self.waited_s:g} s: {self.holder}"
        )


@dataclass(eq=False, kw_only=True)
class RunnerLockLost(MigrationError):
    """The lock was not ours at the end: the backend changed under us."""

    database: str

    def message(self) -> str:
        """Name the likely cause."""
        return (
            f"the runner's lock on {self.database} was lost on the way: connect to the server "
            "itself, without a pooler in between"
        )


@dataclass(eq=False, kw_only=True)
class MigrationBlocked(MigrationError):
    """Somebody holds a lock that the change needs."""

    file: str
    attempts: int
    reason: str

    def message(self) -> str:
        """Say how often it was tried and what to do."""
        return (
            f"{self.file} met a lock in each of {self.attempts} attempts ({self.reason}): end the "
            "long unit of work that holds it (see pg_stat_activity) and run again"
        )


@dataclass(eq=False, kw_only=True)
class NotOneUnitOfWork(MigrationError):
    """The file commits or rolls back by itself, so it is neither whole nor undone."""

    file: str

    def message(self) -> str:
        """Name the file and say what to do."""
        return f"{self.file} commits or rolls back by itself: remove that, the runner commits"


@dataclass(eq=False, kw_only=True)
class MigrationFailed(MigrationError):
    """PostgreSQL refused a statement; nothing of the file remains."""

    file: str
    line: int | None
    sqlstate: str
    reason: str

    def message(self) -> str:
        """Name file and line and give PostgreSQL's message."""
        place = self.file if self.line is None else f"{self.file}, line {self.line}"
        return f"{place}: {self.reason}"


@dataclass(eq=False, kw_only=True)
class VerifyFailed(MigrationError):
    """A check of the file's `verify` section does not hold."""

    file: str
    line: int
    is_undone: bool

    def message(self) -> str:
        """Name the check and say what became of the change."""
        outcome = "nothing of it remains" if self.is_undone else "what it did remains"
        return f"{self.file}, line {self.line}: this check does not hold; {outcome}"
