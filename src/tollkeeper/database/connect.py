"""Opens and closes one connection, and says what a driver's error means for it.

Not a pool (`pool.py`) and no retry policy (the engine's). Invariant: whatever the network or the
server answers while connecting becomes `DatabaseUnavailable`; the driver alone has five families of
errors there.
"""

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

import asyncpg

from tollkeeper.database.driver import Connection
from tollkeeper.database.errors import DatabaseUnavailable, PoolTimeout, SchemaMissing
from tollkeeper.kernel.errors import ConfigurationError

APPLICATION_NAME = "tollkeeper"
"""Shown in pg_stat_activity, unless `settings` says otherwise."""

CONNECT_TIMEOUT_S = 10.0
"""A server that has not finished the greeting by then counts as unreachable."""

CONNECTION_LOST_STATES = frozenset({"57P01", "57P02", "57P03"})
"""Admin shutdown, crash shutdown, cannot connect now; class 08 and every FATAL count too."""

RETRYABLE_STATES = frozenset({"40001", "40P01", "55P03", "53100", "53200", "53300"})
"""Serialization failure, deadlock, lock not available, disk full, out of memory, too many
connections."""

CHECK_VIOLATION = "23514"
"""Of a constraint, which is named then, or of a row for which there is no partition."""

SCHEMA_MISSING_STATES = frozenset({"42P01", "42703", "42704", "42883", "3F000"})
"""Undefined table, column, object (a type), function; invalid schema name: migrations make them."""

_NO_SETTINGS: Mapping[str, str] = MappingProxyType({})


def connector(
    dsn: str, *, role: str | None = None, settings: Mapping[str, str] = _NO_SETTINGS
) -> Callable[[], Awaitable[Connection]]:
    """Return a function that opens one connection to `dsn`, acting as `role`, with `settings`.

    Both travel in the greeting: they cost no round trip, and RESET returns to them. The function
    raises `SchemaMissing` where there is no such role, `DatabaseUnavailable` whatever else the
    reason, and `ConfigurationError` for a DSN that no driver could understand.
    """
    greeting = {"application_name": APPLICATION_NAME, **settings}
    if role is not None:
        greeting["role"] = role

    async def connect() -> Connection:
        try:
            connection: Connection = await asyncpg.connect(
                dsn, server_settings=greeting, timeout=CONNECT_TIMEOUT_S
            )
        except TimeoutError as error:
            reason = f"no answer in {CONNECT_TIMEOUT_S:g} s"
            raise DatabaseUnavailable(reason=reason) from error
        except asyncpg.InvalidParameterValueError as error:
            if role is not None and f'"{role}"' in str(error):  # the migrations make the roles
                raise SchemaMissing(reason=str(error)) from error
            raise DatabaseUnavailable(reason=str(error)) from error
        except (OSError, asyncpg.PostgresError, asyncpg.InternalClientError) as error:
            raise DatabaseUnavailable(reason=str(error) or type(error).__name__) from error
        except (asyncpg.InterfaceError, ValueError) as error:
            # The driver's text is left out: it may quote a part of an unescaped password.
            raise ConfigurationError(
                problem="The database's DSN cannot be understood (special characters in a "
                "password must be percent-encoded)."
            ) from error
        return connection

    return connect


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
    schema that is missing may be on its way.
    """
    if isinstance(error, PoolTimeout | SchemaMissing) or is_connection_lost(error):
        return True
    return isinstance(error, asyncpg.PostgresError) and error.sqlstate in RETRYABLE_STATES


def is_partition_missing(error: BaseException) -> bool:
    """Say whether `error` means that a row belongs to a partition that does not exist."""
    return (
        isinstance(error, asyncpg.PostgresError)
        and error.sqlstate == CHECK_VIOLATION
        and error.constraint_name is None
    )
