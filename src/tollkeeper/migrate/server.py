"""The server that a DSN leads to, as backup, restore and rollback reach it and its databases.

Of several hosts it is the one that takes writes; a pooler is refused. It is found through the
DSN's database or, where that is closed or gone, through one that every server has.
"""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import asyncpg

from tollkeeper.database.connect import close_gently, connector, is_connection_lost
from tollkeeper.database.driver import Connection
from tollkeeper.database.dsn import Dsn, Host, parse_dsn
from tollkeeper.database.errors import DatabaseError
from tollkeeper.database.libpq import client_environment, database_of
from tollkeeper.database.queries import load_queries
from tollkeeper.migrate.backup_errors import NoPrimary, ServerLost, ServerRefused
from tollkeeper.migrate.errors import PoolerRefused
from tollkeeper.migrate.store import MigrationStore

APPLICATION_NAME: Final = "tollkeeper backup"
MAINTENANCE: Final = ("postgres", "template1")
"""Where one stands to rename others; every server has the second."""

CLOSE_TIMEOUT_S: Final = 5.0

_DRIVER_ERRORS: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    ConnectionError,
)

_SESSION: Final[Mapping[str, str]] = MappingProxyType(
    {
        # Work here takes as long as it takes, whatever a role or database has as its default.
        "statement_timeout": "0",
        "lock_timeout": "0",
        "idle_in_transaction_session_timeout": "0",
        "idle_session_timeout": "0",
        "default_transaction_read_only": "off",
        # Rows are compared as text.
        "TimeZone": "UTC",
        "DateStyle": "ISO, MDY",
        "IntervalStyle": "postgres",
        "bytea_output": "hex",
        "extra_float_digits": "1",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One server and the database of it that a DSN names."""

    dsn: Dsn
    host: Host
    database: str
    user: str
    major: int
    version: str

    @asynccontextmanager
    async def connected(self, database: str | None = None) -> AsyncIterator[Connection]:
        """Lend a connection to the DSN's database, or to another of the server."""
        connection = await self.connect(database)
        try:
            yield connection
        finally:
            await close_gently(connection, CLOSE_TIMEOUT_S)

    async def connect(self, database: str | None = None) -> Connection:
        """Open a connection; whoever calls closes it."""
        settings = {"application_name": APPLICATION_NAME, **_SESSION}
        if self.major >= 17:
            settings["transaction_timeout"] = "0"
        open_one = connector(
            self.dsn,
            settings=settings,
            host=None if self.dsn.hosts[0].is_default else self.host,
            database=database or self.database,
        )
        connection = await open_one()
        try:
            await MigrationStore(connection).notice_dead_client()
        except BaseException:
            connection.terminate()
            raise
        return connection

    @asynccontextmanager
    async def standing_beside(self) -> AsyncIterator[Connection]:
        """Lend a connection to a database in which one can stand while others are renamed."""
        connection = await self._stand_beside()
        try:
            yield connection
        finally:
            await close_gently(connection, CLOSE_TIMEOUT_S)

    async def _stand_beside(self) -> Connection:
        failures: list[DatabaseError] = []
        for name in MAINTENANCE:
            if name == self.database:
                continue
            try:
                return await self.connect(name)
            except DatabaseError as error:
                failures.append(error)
        raise failures[0]

    def environment(self, database: str | None = None) -> dict[str, str]:
        """Return the environment for a program of PostgreSQL that works with a database."""
        return client_environment(
            self.dsn,
            host=self.host,
            user=self.user,
            database=database or self.database,
            inherited=os.environ,
        )

    @property
    def is_local(self) -> bool:
        """Whether its files may be on this machine's file systems."""
        return self.host.is_socket or self.host.name in {"localhost", "127.0.0.1", "::1"}


async def find_server(dsn: str) -> Server:
    """Find the server that a DSN leads to.

    Raises:
        PoolerRefused, NoPrimary: it is none to make backups of.
        DatabaseError: it cannot be reached.
    """
    known = parse_dsn(dsn)
    failures: list[Exception] = []
    for host in known.hosts:
        found = await _ask_host(known, host, failures)
        if found is not None:
            return found
    for failure in failures:
        raise failure
    raise NoPrimary(where=str(known))


async def _ask_host(dsn: Dsn, host: Host, failures: list[Exception]) -> Server | None:
    """Return the server at `host` if it takes writes; what kept us away goes to the list."""
    named = database_of(dsn, os.environ)
    reached: Server | None = None
    for database in (named, *MAINTENANCE):
        connect = connector(
            dsn,
            settings={"application_name": APPLICATION_NAME},
            host=None if host.is_default else host,
            database=database,
        )
        try:
            connection = await connect()
        except DatabaseError as error:
            failures.append(error)
            continue
        try:
            reached = await _look(connection, dsn, host, named)
        finally:
            await close_gently(connection, CLOSE_TIMEOUT_S)
        break
    return reached


async def _look(connection: Connection, dsn: Dsn, host: Host, named: str | None) -> Server | None:
    row = await connection.fetchrow(load_queries("tollkeeper.migrate")["look_at_server"])
    assert row is not None
    if row["pid"] != connection.get_server_pid():
        raise PoolerRefused(where=str(host))
    if row["is_standby"]:
        return None
    version = connection.get_server_version()
    return Server(
        dsn=dsn,
        host=_reached(connection) if host.is_default else host,
        database=named or row["session_user"],
        user=row["session_user"],
        major=version.major,
        version=row["version"],
    )


def _reached(connection: Connection) -> Host:
    """Return where a connection went whose DSN names no host."""
    transport = getattr(connection, "_transport", None)  # the driver has no public way to it
    peer = transport.get_extra_info("peername") if transport is not None else None
    if isinstance(peer, str):
        folder, _, name = peer.rpartition("/")
        return Host(name=folder, port=int(name.rpartition(".")[2]))
    return Host(name=peer[0], port=peer[1]) if peer else Host(name="")


@asynccontextmanager
async def explained(doing: str) -> AsyncIterator[None]:
    """Explain what the driver raises during the block: the server is gone, or refused.

    Raises:
        ServerLost, ServerRefused: which of them.
    """
    try:
        yield
    except _DRIVER_ERRORS as error:
        if is_connection_lost(error):
            raise ServerLost(doing=doing, reason=str(error)) from error
        raise ServerRefused(doing=doing, reason=str(error)) from error
