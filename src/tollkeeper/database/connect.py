"""Opens and closes one connection, and says what a driver's error means for it.

Not a pool (`pool.py`) and no retry policy (the engine's). Invariant: whatever the network or the
server answers while connecting becomes a `DatabaseError` of one sentence (`refusals.py`).
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import assert_never

import asyncpg

from tollkeeper.database.binaries import MINIMUM_MAJOR
from tollkeeper.database.driver import Connection
from tollkeeper.database.dsn import Dsn, Host, parse_dsn
from tollkeeper.database.errors import (
    DatabaseBusy,
    DatabaseError,
    DatabaseMisconfigured,
    DatabaseUnavailable,
    PoolFull,
    PoolTimeout,
    ReadOnlyServer,
    SchemaMissing,
    TooManyConnections,
)
from tollkeeper.database.pgbouncer import PooledConnection, is_pooled
from tollkeeper.database.pooler import Pooler
from tollkeeper.database.refusals import (
    CONNECTING_ERRORS,
    TOO_MANY_CONNECTIONS,
    is_quotable,
    refusal,
)

APPLICATION_NAME = "tollkeeper"
"""Shown in pg_stat_activity, unless `settings` says otherwise."""

CONNECT_TIMEOUT_S = 10.0
"""A server that has not finished the greeting by then counts as unreachable."""

CONNECTION_LOST_STATES = frozenset({"57P01", "57P02", "57P03"})
"""Admin shutdown, crash shutdown, cannot connect now; class 08 and every FATAL count too."""

READ_ONLY = "25006"
"""Read-only transaction: a demoted primary says it to every write."""

GENERATION_OVER_STATES = CONNECTION_LOST_STATES | {READ_ONLY}
"""With class 08 also."""

RETRYABLE_STATES = frozenset({"40001", "40P01", "55P03", "53100", "53200", "53300"})
"""Serialization failure, deadlock, lock not available, disk full, out of memory, too many
connections."""

BUSY_STATES = RETRYABLE_STATES | {"57014"}
"""With a statement that was cancelled: it took longer than it may."""

CHECK_VIOLATION = "23514"
"""Of a constraint, which is named then, or of a row for which there is no partition."""

SCHEMA_MISSING_STATES = frozenset({"42P01", "42703", "42704", "42883", "3F000"})
"""Undefined table, column, object (a type), function; invalid schema name: migrations make them."""

_SILENCE: Mapping[str, int] = MappingProxyType(
    {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 10_000}
)
"""Probes after 5 s of silence, 2 s apart, 3 of them; 10,000 ms for what was sent to be received."""

_CHANGED_SCHEMA = asyncpg.InvalidCachedStatementError | asyncpg.OutdatedSchemaCacheError
_NO_SETTINGS: Mapping[str, str] = MappingProxyType({})


def connector(
    dsn: str | Dsn,
    *,
    role: str | None = None,
    settings: Mapping[str, str] = _NO_SETTINGS,
    host: Host | None = None,
    database: str | None = None,
    command_timeout_s: float | None = None,
    pooler: Pooler = Pooler.NONE,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
) -> Callable[[], Awaitable[Connection]]:
    """Return a function that opens one connection to `dsn`, acting as `role`, with `settings`.

    Both travel in the greeting: they cost no round trip, and RESET returns to them; through
    PgBouncer they travel with every BEGIN. `host` stands for all hosts of the DSN, `database` for
    its database.
    `command_timeout_s` is the driver's own limit on every statement, for a server that accepts and
    never answers: the server's `statement_timeout` is useless then.

    The function raises `SchemaMissing` where there is no such role, `DatabaseMisconfigured` where
    nothing helps but a change, `DatabaseUnavailable` whatever else the reason; none shows a secret.

    Raises:
        ConfigurationError: a DSN that cannot be understood.
    """
    known = dsn if isinstance(dsn, Dsn) else parse_dsn(dsn)
    hosts = known.hosts if host is None else (host,)
    where = ", ".join(str(each) for each in hosts)
    options: dict[str, object] = {
        "timeout": None,  # ours is around it, and around what follows
        "command_timeout": command_timeout_s,
        **({} if hosts[0].is_default else _addresses(hosts)),
        **({} if database is None else {"database": database}),
        **_greeting(pooler, role, settings),
    }

    async def open_one() -> Connection:
        connection: Connection = await asyncpg.connect(known.bare, **options)
        try:
            _notice_silence(connection)
            await _settle_in(connection, role, settings)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def connect() -> Connection:
        try:
            async with asyncio.timeout(connect_timeout_s):
                return await open_one()
        except CONNECTING_ERRORS as error:
            failed = refusal(error, where=where, role=role, waited_s=connect_timeout_s)
            cause = error if is_quotable(error) else None
        # Outside of the handler: what may quote the DSN does not become the error's context.
        raise failed from cause

    return connect


def _addresses(hosts: Sequence[Host]) -> Mapping[str, object]:
    return {"host": [each.name for each in hosts], "port": [each.port for each in hosts]}


def _greeting(
    pooler: Pooler, role: str | None, settings: Mapping[str, str]
) -> Mapping[str, object]:
    """Return what the driver needs for role and settings; PgBouncer knows one of the latter."""
    name = settings.get("application_name", APPLICATION_NAME)
    match pooler:
        case Pooler.NONE:
            acting = {} if role is None else {"role": role}
            return {"server_settings": {"application_name": name, **settings, **acting}}
        case Pooler.PGBOUNCER:
            return {
                "server_settings": {"application_name": name},
                "statement_cache_size": 0,
                "connection_class": PooledConnection,
            }
        case _:
            assert_never(pooler)


def _notice_silence(connection: Connection) -> None:
    """Have the kernel give up a TCP connection whose other end has vanished without a word.

    What a network swallows (a firewall that forgot the flow, a host that lost its power) is
    otherwise noticed after a quarter of an hour, or never by who only waits.
    """
    transport = getattr(connection, "_transport", None)  # the driver has no public way to it
    flow = None if transport is None else transport.get_extra_info("socket")
    if flow is None or flow.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    flow.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _SILENCE.items():
        if hasattr(socket, name):  # as far as the platform has it
            flow.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def _settle_in(connection: Connection, role: str | None, settings: Mapping[str, str]) -> None:
    """Refuse a server that is too old; through PgBouncer, try out whether there is one at all."""
    version = connection.get_server_version()
    if version.major < MINIMUM_MAJOR:
        raise DatabaseMisconfigured(
            reason=f"PostgreSQL {version.major}.{version.micro or 0} is too old: "
            f"Tollkeeper needs {MINIMUM_MAJOR} or newer."
        )
    if is_pooled(connection):
        local = {key: value for key, value in settings.items() if key != "application_name"}
        connection.bring(role=role, settings=local)
        async with connection.transaction():
            pass


async def close_gently(connection: Connection, timeout_s: float) -> None:
    """Cancel what still runs, say goodbye to the server, and hang up after `timeout_s` at most.

    Hanging up at once would leave a cancelled statement running on the server with its row locks:
    the server reads its socket only between statements. Never raises for a server that is gone.
    """
    with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        await connection.close(timeout=timeout_s)


def is_connection_lost(error: BaseException) -> bool:
    """Say whether `error` means that its connection is gone (its last outcome may be unknown)."""
    match error:
        case DatabaseUnavailable() | ConnectionError():
            return True
        case asyncpg.OutdatedSchemaCacheError():
            return False
        case asyncpg.InternalClientError():
            # The driver lost track of the protocol. It raises this when the server said its FATAL
            # goodbye between two statements and the second is sent before the socket closes.
            return True
        case asyncpg.PostgresError():
            state = error.sqlstate or ""
            # A FATAL error is the server's last word on a connection, whatever its code.
            fatal = (error.severity_en or error.severity) in {"FATAL", "PANIC"}
            return fatal or state.startswith("08") or state in CONNECTION_LOST_STATES
        case asyncpg.InterfaceError():
            # The driver has no class for it; misuse ("another operation ...") must not match.
            return "closed" in str(error)
        case _:
            return False


def is_schema_missing(error: BaseException) -> bool:
    """Say whether `error` means that the database lacks what the migrations make."""
    return isinstance(error, asyncpg.PostgresError) and error.sqlstate in SCHEMA_MISSING_STATES


def is_retryable(error: BaseException) -> bool:
    """Say whether the same unit of work may succeed when tried again (SPEC C2).

    After a lost connection the outcome may be unknown: retry only under an idempotency key. A
    schema that is missing may be on its way; what the driver remembered of one that has changed is
    forgotten by the error itself.
    """
    if isinstance(error, PoolTimeout | PoolFull | DatabaseBusy | SchemaMissing | _CHANGED_SCHEMA):
        return True
    if is_connection_lost(error) or is_generation_over(error):
        return True
    return isinstance(error, asyncpg.PostgresError) and error.sqlstate in RETRYABLE_STATES


def is_lock_refused(error: BaseException) -> bool:
    """Say whether others kept a lock longer than we may wait, or were kept by us in turn."""
    return isinstance(error, asyncpg.PostgresError) and error.sqlstate in {"55P03", "40P01"}


def is_generation_over(error: BaseException | None) -> bool:
    """Say whether the server, or its role, is not what it was when the connections were opened.

    Then none of them is worth keeping: it shut down, went away, or was demoted.
    """
    match error:
        case ReadOnlyServer():
            return True
        case DatabaseUnavailable():
            return is_generation_over(error.__cause__)
        case asyncpg.PostgresError():
            state = error.sqlstate or ""
            return state.startswith("08") or state in GENERATION_OVER_STATES
        case _:
            return False


def is_read_only(error: BaseException | None) -> bool:
    """Say whether the server refused to write: it is a standby, or was demoted."""
    if isinstance(error, asyncpg.PostgresError):
        return bool(error.sqlstate == READ_ONLY)
    return isinstance(error, ReadOnlyServer)


def is_too_many(error: BaseException | None) -> bool:
    """Say whether the server has no connection left for us."""
    if isinstance(error, asyncpg.PostgresError):
        return bool(error.sqlstate == TOO_MANY_CONNECTIONS)
    return isinstance(error, TooManyConnections)


def translated(error: Exception) -> DatabaseError | None:
    """Return our error for one of the driver that callers need to tell apart; None for others."""
    known: DatabaseError | None = None
    if isinstance(error, DatabaseError):
        pass
    elif is_read_only(error):
        known = ReadOnlyServer(reason=str(error))
    elif is_connection_lost(error):
        known = DatabaseUnavailable(reason=str(error) or type(error).__name__)
    elif is_schema_missing(error):
        known = SchemaMissing(reason=str(error))
    elif isinstance(error, TimeoutError):
        known = DatabaseBusy(reason="a statement was not answered in time")
    elif isinstance(error, asyncpg.PostgresError) and error.sqlstate in BUSY_STATES:
        known = DatabaseBusy(reason=str(error))
    return known


def is_partition_missing(error: BaseException) -> bool:
    """Say whether `error` means that a row belongs to a partition that does not exist."""
    return (
        isinstance(error, asyncpg.PostgresError)
        and error.sqlstate == CHECK_VIOLATION
        and error.constraint_name is None
    )
