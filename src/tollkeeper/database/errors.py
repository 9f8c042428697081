"""Errors of the database layer.

DatabaseError
├── PoolTimeout               no connection became free before the deadline
├── PoolFull                  refused at once: too many wait, or it would take too long
├── NestedAcquire             a task that holds a connection waits for another one
├── DatabaseBusy              a statement took too long, or met others that were faster
├── PoolClosed                the pool is draining or closed
├── DatabaseUnavailable       the server cannot be reached, or went away
│   ├── DatabaseDown          it is known to be away: the circuit breaker is open
│   ├── ReadOnlyServer        it answers, and does not accept writes
│   ├── TooManyConnections    it has no connection left for us
│   └── DatabaseMisconfigured it will not let us in before somebody changes something
├── SchemaMissing             the database lacks tables, or roles: it was not migrated
└── EmbeddedError             the embedded server cannot run here; `problem` says why

Whatever is a `DatabaseUnavailable` may be tried again later; no error shows a password.
"""

from dataclasses import dataclass, field

from tollkeeper.kernel.errors import TollkeeperError


@dataclass(eq=False, kw_only=True)
class DatabaseError(TollkeeperError):
    """Something between us and PostgreSQL failed."""


@dataclass(eq=False, kw_only=True)
class PoolTimeout(DatabaseError):
    """No connection became free before the deadline."""

    waited_s: float
    size: int
    reason: str | None = None
    """Why none could be opened, where that is why."""

    def message(self) -> str:
        """Say how long was waited for how many connections, and what was in the way."""
        said = f"none of {self.size} database connections became free in {self.waited_s:g} s"
        return said if self.reason is None else f"{said}: {self.reason}"


@dataclass(eq=False, kw_only=True)
class PoolFull(DatabaseError):
    """An acquire was refused at once: it could not be served in time, or too many wait already."""

    waiting: int
    limit: int
    expected_s: float | None = None
    """How long it would have waited, where that was the reason."""

    def message(self) -> str:
        """Say how many wait, and how long it would take."""
        if self.expected_s is None:
            return f"{self.waiting} callers wait for a database connection, {self.limit} may"
        return (
            f"a database connection would become free in {self.expected_s:.3g} s only: "
            f"{self.waiting} callers wait for one"
        )


@dataclass(eq=False, kw_only=True)
class NestedAcquire(DatabaseError):
    """A task asked for a connection while it holds one of the same pool.

    If all did, all would wait for each other until their deadlines.
    """

    pool: str

    def message(self) -> str:
        """Name the pool."""
        return f"a task that holds a connection of the pool {self.pool!r} asked for another one"


@dataclass(eq=False, kw_only=True)
class PoolClosed(DatabaseError):
    """The pool is draining or closed and hands out nothing more."""

    def message(self) -> str:
        """Say that the pool is closed."""
        return "the connection pool is closed"


@dataclass(eq=False, kw_only=True)
class DatabaseBusy(DatabaseError):
    """The server is there and could not do it now: locks, time, memory or disk."""

    reason: str

    def message(self) -> str:
        """Say what was in the way, in the server's words."""
        return f"the database could not do it now: {self.reason}"


@dataclass(eq=False, kw_only=True)
class DatabaseUnavailable(DatabaseError):
    """The server cannot be reached, or went away."""

    reason: str

    def message(self) -> str:
        """Say what the server or the network answered."""
        return f"the database cannot be reached: {self.reason}"


@dataclass(eq=False, kw_only=True)
class DatabaseDown(DatabaseUnavailable):
    """The server was lost and is not asked again before `retry_after_s` are over."""

    retry_after_s: float = field(repr=False)
    """Not shown: what is said twice must be recognised as the same."""
    access: str
    """What was asked for: `read` or `write`."""
    reason: str = "it was lost and has not come back"

    def message(self) -> str:
        """Say for what it is down, and why."""
        return f"the database is down for {self.access}s: {self.reason}"


@dataclass(eq=False, kw_only=True)
class ReadOnlyServer(DatabaseUnavailable):
    """The server answers and refuses to write: a standby, or a primary that was demoted."""

    reason: str = "it does not accept writes, as a standby does not"

    def message(self) -> str:
        """Say that nothing can be written."""
        return f"the database cannot be written to: {self.reason}"


@dataclass(eq=False, kw_only=True)
class TooManyConnections(DatabaseUnavailable):
    """The server, or a pooler before it, has no connection left for us."""

    def message(self) -> str:
        """Say it in the server's words."""
        return f"the database has no connection left: {self.reason}"


@dataclass(eq=False, kw_only=True)
class DatabaseMisconfigured(DatabaseUnavailable):
    """The server, or the way to it, is not as configured; `reason` is a sentence for an operator.

    Host, password, database, role, version, TLS: nothing that time alone would mend.
    """

    def message(self) -> str:
        """Return the reason."""
        return self.reason


@dataclass(eq=False, kw_only=True)
class SchemaMissing(DatabaseError):
    """The database lacks what the migrations make."""

    reason: str

    def message(self) -> str:
        """Say what is missing in PostgreSQL's words, and what to do."""
        return f"the database is not migrated ({self.reason}): run `tollkeeper migrate up`"


@dataclass(eq=False, kw_only=True)
class EmbeddedError(DatabaseError):
    """The embedded server cannot run here."""

    problem: str

    def message(self) -> str:
        """Return the problem, which is a full sentence."""
        return self.problem
