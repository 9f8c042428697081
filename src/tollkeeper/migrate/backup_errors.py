"""Errors of backups, restoring and rollback: a second tree below `MigrationError`.

BackupError
├── ProgramsMissing           no pg_dump of the server's version on this machine
├── NoPrimary                 none of the DSN's hosts takes writes
├── ServerLost                the server went away meanwhile
├── ServerRefused             it refused a statement
├── DatabaseInUse             another dump, backup, restore or rollback is at work
├── SpaceShort                there is not enough room; nothing was begun
├── DiskFull                  the room ended on the way; nothing half remains
├── ProgramFailed             pg_dump, pg_dumpall or pg_restore refused, or was killed
├── FilesRefused              this user may not read or write a file, or the folder
├── BackupMissing             there is no backup with this id, or a file of it is gone
├── BackupDamaged             it is not what was written
│   ├── MetadataChanged       the description itself
│   ├── BackupTruncated       the dump is shorter than it was
│   ├── BackupChanged         a byte of it is another
│   └── BackupUnreadable      pg_restore cannot read it
├── BackupInconsistent        it can be restored, and is not what was backed up
├── TargetExists              restoring makes a new database, and this one is there
├── ServerOlder               the backup is of a newer PostgreSQL than this server
├── RolesMissing              owners or grantees do not exist on this server
├── LossNotAccepted           the rollback would lose more than was agreed to
├── RollbackRefused           the database is in a state that cannot be swapped
├── LeftClosed                the database could not be opened again
└── NothingToUndo             no database was kept by a rollback
"""

from dataclasses import dataclass

from tollkeeper.migrate.errors import MigrationError


def sized(size_bytes: int) -> str:
    """Return a size as people read it, in steps of 1024."""
    value = float(size_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


@dataclass(eq=False, kw_only=True)
class BackupError(MigrationError):
    """A backup cannot be made, trusted or used."""


@dataclass(eq=False, kw_only=True)
class ProgramsMissing(BackupError):
    """A dump is made by the programs of the server's own major version, and there are none."""

    major: int
    found: tuple[str, ...]
    """What there is: `16.2 in /usr/lib/postgresql/16/bin`."""

    def message(self) -> str:
        """Say what was found and what to install."""
        found = ", ".join(self.found) or "none at all"
        return (
            f"the server is PostgreSQL {self.major}, and its pg_dump, pg_dumpall and pg_restore "
            f"are not on this machine (found: {found}): install postgresql-client-{self.major}, "
            "or name their folder with TOLLKEEPER_PG_BIN"
        )


@dataclass(eq=False, kw_only=True)
class NoPrimary(BackupError):
    """None of the hosts takes writes."""

    where: str

    def message(self) -> str:
        """Name the hosts."""
        return f"no server of {self.where} takes writes: connect to the primary"


@dataclass(eq=False, kw_only=True)
class ServerLost(BackupError):
    """The connection ended on the way."""

    doing: str
    reason: str

    def message(self) -> str:
        """Say what was cut."""
        return f"the server went away during {self.doing} ({self.reason}): run it again"


@dataclass(eq=False, kw_only=True)
class ServerRefused(BackupError):
    """The server refused something: mostly, the role may not do it."""

    doing: str
    reason: str

    def message(self) -> str:
        """Give its reason."""
        return f"the server refused {self.doing}: {self.reason}"


@dataclass(eq=False, kw_only=True)
class DatabaseInUse(BackupError):
    """Somebody else is at work with the database."""

    database: str
    holder: str

    def message(self) -> str:
        """Name who."""
        return f"{self.database} is being worked on by {self.holder}: wait for its end"


@dataclass(eq=False, kw_only=True)
class SpaceShort(BackupError):
    """There is not enough room for what would be written; nothing was begun."""

    where: str
    what: str
    needed_bytes: int
    free_bytes: int

    def message(self) -> str:
        """Give both figures."""
        return (
            f"{self.what} needs about {sized(self.needed_bytes)} in {self.where}, where "
            f"{sized(self.free_bytes)} are free: make room, or prune backups"
        )


@dataclass(eq=False, kw_only=True)
class DiskFull(BackupError):
    """The disk was full on the way; what was written has been removed."""

    where: str
    written_bytes: int

    def message(self) -> str:
        """Say how far it came."""
        return (
            f"the disk of {self.where} was full after {sized(self.written_bytes)}; nothing of it "
            "remains: make room, or prune backups"
        )


@dataclass(eq=False, kw_only=True)
class ProgramFailed(BackupError):
    """A program of PostgreSQL ended with an error, or was killed."""

    program: str
    status: int
    """Its exit status; negative: the signal that killed it."""
    reason: str

    def message(self) -> str:
        """Give its last words."""
        how = f"was killed by signal {-self.status}" if self.status < 0 else "failed"
        return f"{self.program} {how}: {self.reason or 'it said nothing'}"


@dataclass(eq=False, kw_only=True)
class FilesRefused(BackupError):
    """The system does not let this user at a file, which says nothing of what is in it."""

    path: str

    def message(self) -> str:
        """Name the file and who may."""
        return (
            f"this user may not read or write {self.path}: run it as the one who takes the "
            "backups, or let this one have their folder"
        )


@dataclass(eq=False, kw_only=True)
class BackupMissing(BackupError):
    """There is no such backup, or a file of it is gone."""

    backup_id: str
    file: str

    def message(self) -> str:
        """Name the file."""
        return f"backup {self.backup_id} cannot be used: {self.file} is not there; use another one"


@dataclass(eq=False, kw_only=True)
class BackupDamaged(BackupError):
    """The files are not what was written."""

    backup_id: str
    file: str
    detail: str

    def message(self) -> str:
        """Say what was found."""
        return (
            f"backup {self.backup_id} cannot be used: {self.file} {self.detail}; "
            "use another one, and look for the cause"
        )


@dataclass(eq=False, kw_only=True)
class MetadataChanged(BackupDamaged):
    """The description does not have the checksum that it states of itself, or is none."""


@dataclass(eq=False, kw_only=True)
class BackupTruncated(BackupDamaged):
    """The dump is shorter, or longer, than when it was made."""


@dataclass(eq=False, kw_only=True)
class BackupChanged(BackupDamaged):
    """The dump has its size and not its checksum."""


@dataclass(eq=False, kw_only=True)
class BackupUnreadable(BackupDamaged):
    """`pg_restore` cannot read the dump to its end."""


@dataclass(eq=False, kw_only=True)
class BackupInconsistent(BackupError):
    """What was restored is not what was backed up, or is not sound."""

    backup_id: str
    faults: tuple[str, ...]

    def message(self) -> str:
        """Give the first faults."""
        shown = "; ".join(self.faults[:5])
        more = f"; and {len(self.faults) - 5} more" if len(self.faults) > 5 else ""
        return f"backup {self.backup_id} was restored and is not sound: {shown}{more}"


@dataclass(eq=False, kw_only=True)
class TargetExists(BackupError):
    """Restoring makes a new database and never touches one that is there."""

    database: str

    def message(self) -> str:
        """Say what to do."""
        return (
            f"there is a database {self.database!r} already, and nothing is restored over one: "
            "name another, or roll back"
        )


@dataclass(eq=False, kw_only=True)
class ServerOlder(BackupError):
    """A dump of a newer PostgreSQL is not made for an older one."""

    backup_id: str
    backup_major: int
    server_major: int

    def message(self) -> str:
        """Give both versions."""
        return (
            f"backup {self.backup_id} is of PostgreSQL {self.backup_major} and this server is "
            f"{self.server_major}: restore it on a server of {self.backup_major} or newer"
        )


@dataclass(eq=False, kw_only=True)
class RolesMissing(BackupError):
    """Roles that own something or were granted something do not exist here."""

    backup_id: str
    roles: tuple[str, ...]
    globals_file: str | None

    def message(self) -> str:
        """Name them and say how to make them."""
        how = (
            f"psql -f {self.globals_file} makes them, without passwords"
            if self.globals_file
            else "create them first"
        )
        return (
            f"backup {self.backup_id} needs roles that this server does not have: "
            f"{', '.join(self.roles)}; {how}"
        )


@dataclass(eq=False, kw_only=True)
class LossNotAccepted(BackupError):
    """Going back would lose more than was agreed to; nothing was changed."""

    database: str
    accepted: int
    count: int
    """Transactions, or rows where the database is no ledger."""
    detail: str

    def message(self) -> str:
        """State the loss and how to agree to it."""
        return (
            f"going back would lose {self.detail} of {self.database}, and {self.accepted} were "
            f"accepted; nothing was changed: --accept-loss {self.count} agrees to it"
        )


@dataclass(eq=False, kw_only=True)
class RollbackRefused(BackupError):
    """The database cannot be closed or swapped as it stands; it is open as before."""

    database: str
    reason: str

    def message(self) -> str:
        """Give the reason."""
        return f"{self.database} was not rolled back and is open as before: {self.reason}"


@dataclass(eq=False, kw_only=True)
class LeftClosed(BackupError):
    """A rollback was given up, and the database could not be opened again: nobody can connect."""

    database: str
    command: str
    reason: str

    def message(self) -> str:
        """Say which command opens it."""
        return (
            f"{self.database} is still CLOSED after a rollback that was given up "
            f"({self.reason}): `{self.command}` opens it"
        )


@dataclass(eq=False, kw_only=True)
class NothingToUndo(BackupError):
    """No database was kept by a rollback."""

    database: str

    def message(self) -> str:
        """Say what is missing."""
        return f"no rollback of {self.database} has left a database that could be put back"
