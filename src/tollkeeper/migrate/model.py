"""The nouns of the schema runner: a migration as shipped, and as a database remembers it.

A migration is applied by its `up` statements; `checks` must then hold, and `down` takes it back.
What it is known by is its `up` section: `checksum` tells whether one character of it is another,
`digest` whether PostgreSQL would see a difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

DATABASES: Final = ("credits", "access", "shadow", "locator", "cdefnet")
"""Every database with migrations, in the order in which `all` runs them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One statement of a file, without the semicolon; `line` of the file on which it begins."""

    text: str
    line: int

    def line_at(self, position: int) -> int:
        """Return the file's line of a character; both count from 1, as PostgreSQL does."""
        return self.line + self.text.count("\n", 0, position - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One file `NNNN_what.sql`; made by `script.migration_from`.

    `source` is its text as it stands; `down` is None for one that cannot be taken back; one that
    is not transactional is a single statement that PostgreSQL allows in no unit of work.
    `derived` names tables whose rows `up` or later work makes again from others: they are no loss.
    `checksum` and `digest` are SHA-256 in hexadecimal.
    """

    database: str
    version: int
    name: str
    source: str
    up: tuple[Statement, ...]
    checks: tuple[Statement, ...]
    down: tuple[Statement, ...] | None
    derived: frozenset[str]
    is_transactional: bool
    checksum: str
    digest: str

    @property
    def file(self) -> str:
        """Return the path below the migrations' folder."""
        return file_of(self.database, self.version, self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedMigration:
    """What a database remembers of a migration that it has.

    `digest` and `source` are None where a program of before the log applied it.
    """

    version: int
    name: str
    checksum: str
    applied_at: datetime
    duration_ms: int
    digest: str | None = None
    source: str | None = None
    run_id: UUID | None = None


def file_of(database: str, version: int, name: str) -> str:
    """Return the path of a migration below the migrations' folder."""
    return f"{database}/{version:04}_{name}.sql"


def head_of(applied: Sequence[AppliedMigration]) -> int:
    """Return the version that a database is at; 0 before the first."""
    return max((each.version for each in applied), default=0)
