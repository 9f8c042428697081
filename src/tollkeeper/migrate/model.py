"""The nouns of the schema runner: a migration as shipped, and as a database remembers it.

A checksum ignores how the checkout ends its lines, and nothing else.
"""

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime

from tollkeeper.migrate.errors import BadMigrationName

DATABASES = ("credits", "access")
"""Every database with migrations, in the order in which `all` runs them."""

_NAME = re.compile(r"([0-9]{4})_([a-z0-9]+(?:_[a-z0-9]+)*)\.sql")


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One file `NNNN_what.sql`; `sql` is its text as it stands."""

    database: str
    version: int
    name: str
    sql: str

    @property
    def file(self) -> str:
        """Return the path below the migrations' folder."""
        return file_of(self.database, self.version, self.name)

    @property
    def checksum(self) -> str:
        """Return the SHA-256 of the text with newlines as LF, in hexadecimal."""
        text = self.sql.replace("\r\n", "\n").replace("\r", "\n")
        return hashlib.sha256(text.encode()).hexdigest()

    def line_at(self, position: int) -> int:
        """Return the line of a character; both count from 1, as PostgreSQL does."""
        return self.sql.count("\n", 0, position - 1) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedMigration:
    """What a database remembers of a migration."""

    version: int
    name: str
    checksum: str
    applied_at: datetime
    duration_ms: int


def file_of(database: str, version: int, name: str) -> str:
    """Return the path of a migration below the migrations' folder."""
    return f"{database}/{version:04}_{name}.sql"


def migration_from(database: str, file_name: str, sql: str) -> Migration:
    """Make a migration of a file.

    Raises:
        BadMigrationName: the name is not `NNNN_what.sql`, or its number is 0000.
    """
    match = _NAME.fullmatch(file_name)
    if match is None or int(match[1]) == 0:
        raise BadMigrationName(file=f"{database}/{file_name}")
    return Migration(database=database, version=int(match[1]), name=match[2], sql=sql)
