"""Errors of the database layer.

DatabaseError
├── PoolTimeout               no connection became free before the deadline
├── PoolClosed                the pool is draining or closed
├── DatabaseUnavailable       the server cannot be reached, or went away
├── SchemaMissing             the database lacks tables, or roles: it was not migrated
└── EmbeddedError             the embedded server cannot run here; `problem` says why
"""

from dataclasses import dataclass

from tollkeeper.kernel.errors import TollkeeperError


@dataclass(eq=False, kw_only=True)
class DatabaseError(TollkeeperError):
    """Something between us and PostgreSQL failed."""


@dataclass(eq=False, kw_only=True)
class PoolTimeout(DatabaseError):
    """No connection became free before the deadline."""

    waited_s: float
    size: int

    def message(self) -> str:
        """Say how long was waited for how many connections."""
        return f"none of {self.size} database connections became free in {self.waited_s:g} s"


@dataclass(eq=False, kw_only=True)
class PoolClosed(DatabaseError):
    """The pool is draining or closed and hands out nothing more."""

    def message(self) -> str:
        """Say that the pool is closed."""
        return "the connection pool is closed"


@dataclass(eq=False, kw_only=True)
class DatabaseUnavailable(DatabaseError):
    """The server cannot be reached, or went away."""

    reason: str

    def message(self) -> str:
        """Say what the server or the network answered."""
        return f"the database cannot be reached: {self.reason}"


@dataclass(eq=False, kw_only=True)
class SchemaMissing(DatabaseError):
    """The database lacks what the migrations make."""

    reason: str

    def message(self) -> str:
        """Say what is missing in PostgreSQL's words, and what to do."""
        return f"the database is not migrated ({self.reason}): run `tollkeeper migrate`"


@dataclass(eq=False, kw_only=True)
class EmbeddedError(DatabaseError):
    """The embedded server cannot run here."""

    problem: str

    def message(self) -> str:
        """Return the problem, which is a full sentence."""
        return self.problem
