"""Errors of the schema runner.

MigrationError
├── UnknownDatabase           no such folder of migrations
├── BadMigrationName          a file that is not called NNNN_what.sql
├── DuplicateVersion          two files with one number
├── MissingVersion            a number left out between the files
├── MigrationChanged          an applied file is not what it was
├── MigrationMissing          an applied file is gone
├── MigrationOutOfOrder       a later one was applied before it
├── DatabaseNewer             the database has versions this program does not know
├── RunnerBusy                another runner holds the lock
├── RunnerLockLost            our lock was not ours at the end
├── MigrationBlocked          somebody holds a lock that the change needs
├── NotOneUnitOfWork          the file commits by itself
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

    def message(self) -> str:
        """Name the file and say what to do."""
        return (
            f"{self.file} was changed after it had been applied "
            f"({self.applied_checksum[:12]} then, {self.file_checksum[:12]} now): "
            "restore it and make the change in a new file"
        )


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
