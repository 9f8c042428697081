"""What a file did when it was applied or taken back, and where a database stands. Pure.

`locks` are the strongest that it held on relations that were there before, `rewritten` those of
them whose rows were all written again, with about how many there are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from tollkeeper.migrate.history import Cut
from tollkeeper.migrate.model import AppliedMigration, Migration

Event = Mapping[str, object]
"""One happening of a run: `event` is its dotted name; JSON can say all of it, without secrets."""

Tell = Callable[[Event], None]
"""Who listens to a run: the screen, the run's log."""

BLOCKING: Final = frozenset({"AccessExclusiveLock"})
"""Locks that keep readers out."""


def silence(_: Event) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementReport:
    """How one statement went; `shown` is without values."""

    line: int
    shown: str
    duration_ms: float
    lock_wait_ms: float

    def as_data(self) -> dict[str, object]:
        """Return it as JSON says it."""
        return {
            "line": self.line,
            "statement": self.shown,
            "duration_ms": self.duration_ms,
            "lock_wait_ms": self.lock_wait_ms,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReport:
    """How one file went; `is_rehearsed` is False for one that a dry run cannot try."""

    migration: Migration
    is_down: bool = False
    is_rehearsed: bool = True
    duration_ms: int = 0
    statements: tuple[StatementReport, ...] = ()
    locks: Mapping[str, str] = field(default_factory=dict)
    rewritten: Mapping[str, int] = field(default_factory=dict)
    lost: Mapping[str, int] = field(default_factory=dict)

    @property
    def lock_wait_ms(self) -> float:
        """Return how long its statements waited for locks."""
        return sum(each.lock_wait_ms for each in self.statements)

    def as_data(self) -> dict[str, object]:
        """Return it as JSON says it."""
        return {
            "file": self.migration.file,
            "version": self.migration.version,
            "name": self.migration.name,
            "checksum": self.migration.checksum,
            "digest": self.migration.digest,
            "is_down": self.is_down,
            "is_rehearsed": self.is_rehearsed,
            "duration_ms": self.duration_ms,
            "lock_wait_ms": round(self.lock_wait_ms, 1),
            "locks": dict(self.locks),
            "rewritten": dict(self.rewritten),
            "lost": dict(self.lost),
            "statements": [each.as_data() for each in self.statements],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Where a database stands."""

    database: str
    applied: tuple[AppliedMigration, ...]
    pending: tuple[Migration, ...]
    reworded: tuple[Migration, ...]
    log_faults: tuple[str, ...]
    cut: Cut | None
