"""What went wrong while connecting, as one typed error with one clear sentence.

The driver alone has five families of errors there. No sentence shows a secret: the server's words
name users, roles, databases and hosts, and the driver's words about a DSN are left out, because
they may quote a piece of a password that was not percent-encoded.
"""

import socket
import ssl
from typing import Final

import asyncpg

from tollkeeper.database.errors import (
    DatabaseError,
    DatabaseMisconfigured,
    DatabaseUnavailable,
    SchemaMissing,
    TooManyConnections,
)

CONNECTING_ERRORS: Final = (
    OSError,  # TimeoutError and ssl.SSLError are
    ValueError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
"""What the driver raises while connecting, all of it."""

TOO_MANY_CONNECTIONS: Final = "53300"
_BAD_VALUE: Final = "22023"
_NO_SUCH_DATABASE: Final = "3D000"
_NOT_AS_CONFIGURED: Final = frozenset({"42704", "22023", "42501", "55000"})
"""A setting that there is not, or not with this value (also a parameter of the DSN that the driver
passes on); no right to connect, or to act as our role; a database that takes no connections."""

_NOT_LET_IN: Final = frozenset({"28P01", "28000"})
"""A wrong password; no such user, not allowed to log in, or not from here."""

_POOLER_SAYS: Final = "the connection pooler says: {said}."
_BY_POOLER: Final = {
    "unsupported startup parameter": "a connection pooler stands before the database and refuses "
    "settings of a session ({said}): set TOLLKEEPER_POOLER=pgbouncer, or name PostgreSQL itself.",
    "no such database": _POOLER_SAYS,
    "no such user": _POOLER_SAYS,
    "bouncer config error": _POOLER_SAYS,
    "authentication failed": _POOLER_SAYS,
}
"""PgBouncer has one SQLSTATE (08P01) for whatever it says itself: its words are told apart."""


def refusal(
    error: Exception, *, where: str, role: str | None = None, waited_s: float
) -> DatabaseError:
    """Say what an error means that was raised while connecting to `where` to act as `role`."""
    match error:
        case TimeoutError():
            return DatabaseUnavailable(reason=f"no answer from {where} in {waited_s:g} s")
        case OSError():
            return _of_network(error, where)
        case asyncpg.PostgresError():
            return _of_server(error, where, role)
        case asyncpg.ClientConfigurationError() | ValueError():
            return _of_dsn(error, where)
        case asyncpg.InterfaceError():
            return DatabaseMisconfigured(reason=f"{where} cannot be used: {error}.")
        case _:
            return DatabaseUnavailable(reason=f"{where} does not answer as PostgreSQL does")


def is_quotable(error: Exception) -> bool:
    """Whether an error's own words may be kept as a cause: they come from elsewhere than a DSN."""
    return isinstance(error, OSError | asyncpg.PostgresError)


def _of_network(error: OSError, where: str) -> DatabaseError:
    kind: type[DatabaseUnavailable] = DatabaseUnavailable
    match error:
        case socket.gaierror() if error.errno != socket.EAI_AGAIN:
            return _unknown_host(where)
        case socket.gaierror():
            reason = f"the name of {where} cannot be looked up now"
        case ConnectionRefusedError():
            reason = f"{where} refuses connections"
        case FileNotFoundError() if where.startswith("/"):
            reason = f"no server listens in {where}"
        case FileNotFoundError():
            kind = DatabaseMisconfigured
            reason = "a file that the DSN or the environment names for TLS is not there."
        case ssl.SSLCertVerificationError():
            kind = DatabaseMisconfigured
            said = error.verify_message or error.reason
            reason = f"the TLS certificate of {where} is not to be trusted: {said}."
        case ConnectionError() if "rejected SSL upgrade" in str(error):
            kind = DatabaseMisconfigured
            reason = f"{where} does not offer the TLS that is asked for, or is no PostgreSQL."
        case ConnectionError():
            reason = f"{where} hung up during the greeting"
        case _:
            reason = f"{where}: {error.strerror or str(error) or type(error).__name__}"
    return kind(reason=reason)


def _of_server(error: asyncpg.PostgresError, where: str, role: str | None) -> DatabaseError:
    kind: type[DatabaseUnavailable] = DatabaseUnavailable
    said, state = error.message or type(error).__name__, error.sqlstate or ""
    reason = said
    pooler_s = next((text for sign, text in _BY_POOLER.items() if sign in said), None)
    if state == _BAD_VALUE and role is not None and f'"{role}"' in said:
        return SchemaMissing(reason=said)  # the migrations make the roles
    if isinstance(error, asyncpg.ConnectionDoesNotExistError):
        reason = f"{where} hung up during the greeting"
    elif state == TOO_MANY_CONNECTIONS or "no more connections allowed" in said:
        kind = TooManyConnections
    elif state in _NOT_LET_IN:
        kind, reason = DatabaseMisconfigured, f"{where} does not let us in: {said}."
    elif state == _NO_SUCH_DATABASE:
        kind = DatabaseMisconfigured
        reason = f"{said}: create it with createdb, or correct its name."
    elif pooler_s is not None:
        kind, reason = DatabaseMisconfigured, pooler_s.format(said=said)
    elif state in _NOT_AS_CONFIGURED:
        kind, reason = DatabaseMisconfigured, f"{where} refuses the connection: {said}."
    return kind(reason=reason)


def _of_dsn(error: Exception, where: str) -> DatabaseError:
    if isinstance(error, UnicodeError):  # a name with an empty or endless part
        return _unknown_host(where)
    return DatabaseMisconfigured(
        reason="the DSN cannot be understood: a parameter has a value that there is not, or "
        "special characters of a password are not percent-encoded."
    )


def _unknown_host(where: str) -> DatabaseMisconfigured:
    return DatabaseMisconfigured(reason=f"the host {where} is not known.")
